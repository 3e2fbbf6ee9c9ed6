#include "engine/state.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "io/sha256.h"

namespace mimo {
namespace {

constexpr std::string_view kMagic = "mimo-edge conversation 2\n";

// Fletcher's checksum over the bits of the floats: hundreds of MB at the speed of memory, against damage, not malice.
int64_t checksum(std::span<const float> floats) {
    uint64_t sum = 0, sums = 0;
    for (const float value : floats) sums += sum += std::bit_cast<uint32_t>(value);
    return static_cast<int64_t>(sums ^ sum << 32);
}

int64_t capacity_of(const LmConfig& lm, int64_t asked) {
    if (asked < 0 || asked > lm.max_position_embeddings) {
        throw InputError(
            message("state: expected a context of 0 to ", lm.max_position_embeddings, " positions, got ", asked));
    }
    return asked > 0 ? asked : lm.max_position_embeddings;
}

}  // namespace

State::State(std::shared_ptr<const Model> model, uint64_t seed, uint32_t stream, int64_t context)
    : model_(std::move(model)),
      seed_(seed),
      stream_(stream),
      capacity_(capacity_of(model_->config.lm, context)),
      sequence_(model_->backend().sequence(capacity_)) {}

void State::prefill(const Positions& positions, const Tap& tap, std::span<const int32_t> guesses) {
    if (positions.count() == 0) throw InputError("prompt: expected at least one position, got none");
    if (length() + positions.count() > capacity_) {
        throw InputError(message("prompt: expected at most ", capacity_,
                                 " positions, each a patch of sound or one token, got ", length() + positions.count(),
                                 "; shorten the audio or the history"));
    }
    const int64_t room = std::min(sequence_->most_ahead(), capacity_ - length() - positions.count());
    Positions all = positions;
    for (const int32_t guess : guesses.first(tap ? 0 : std::min(guesses.size(), static_cast<size_t>(room))))
        append(all, guess, nullptr, model_->config.lm);
    check(all, model_->config);
    hidden_ = {};
    const int32_t token = positions.tokens.front();
    const bool known = positions.count() == 1 && !guessed_.empty() && guessed_.front() == token;
    Array last;
    if (known && token != model_->config.tokens.empty && !tap) {
        guessed_.erase(guessed_.begin());
        last = sequence_->look(std::ssize(guessed_));
    } else {
        guessed_.clear();
        last = sequence_->append(length(), all.tokens, all.codes, tap);
        guessed_.assign(all.tokens.begin() + positions.count(), all.tokens.end());
        if (!guessed_.empty()) last = sequence_->look(std::ssize(guessed_));
    }
    expect_made("hidden", {1, model_->config.lm.hidden_size}, {last.rows, last.cols});
    hidden_ = std::move(last);
    append(positions_, positions);
}

void State::rewind(int64_t length) {
    if (length < 0 || length > this->length()) {
        throw InputError(message("rewind: expected 0 to ", this->length(), " positions, got ", length));
    }
    positions_.tokens.resize(static_cast<size_t>(length));
    positions_.codes.resize(static_cast<size_t>(length * codes_of_position()));
    guessed_.clear();
    hidden_ = {};
}

int64_t State::keep(const Positions& wanted) {
    const auto width = codes_of_position();
    const int64_t most = std::min(length(), wanted.count() - 1);
    int64_t same = 0;
    while (same < most && wanted.tokens[static_cast<size_t>(same)] == positions_.tokens[static_cast<size_t>(same)] &&
           std::equal(wanted.codes.begin() + same * width, wanted.codes.begin() + (same + 1) * width,
                      positions_.codes.begin() + same * width)) {
        ++same;
    }
    same = std::max<int64_t>(0, same);
    if (same < length()) rewind(same);
    return same;
}

int64_t State::become(const Positions& wanted) {
    if (wanted.count() > capacity_) {
        throw InputError(message("conversation: expected at most ", capacity_, " positions, got ", wanted.count(),
                                 "; speak shorter or let old turns go"));
    }
    const int64_t kept = keep(wanted);
    prefill({.tokens = {wanted.tokens.begin() + kept, wanted.tokens.end()},
             .codes = {wanted.codes.begin() + kept * codes_of_position(), wanted.codes.end()}});
    return kept;
}

std::string State::save(std::string_view note) const {
    hidden();
    const std::vector<float> floats = sequence_->save();
    std::string bytes(kMagic);
    const auto put = [&bytes](const void* data, size_t size) { bytes.append(static_cast<const char*>(data), size); };
    const std::array<int64_t, 4> sizes = {static_cast<int64_t>(note.size()), length(),
                                          static_cast<int64_t>(floats.size()), checksum(floats)};
    bytes += model_->identity();
    put(sizes.data(), sizeof(sizes));
    bytes += note;
    put(positions_.tokens.data(), positions_.tokens.size() * sizeof(int32_t));
    put(positions_.codes.data(), positions_.codes.size() * sizeof(int32_t));
    put(floats.data(), floats.size() * sizeof(float));
    return bytes + sha256_hex({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size() - floats.size() * 4});
}

std::string State::restore(std::span<const char> bytes) {
    const auto refuse = [](const char* expected, const char* got) {
        throw InputError(message("restore: expected ", expected, ", got ", got, "; prefill and save it again"));
    };
    size_t at = 0;
    const auto take = [&](size_t size) {
        if (size > bytes.size() - at) refuse("a whole saved conversation", "a shorter one");
        at += size;
        return bytes.data() + at - size;
    };
    if (std::string_view(take(kMagic.size()), kMagic.size()) != kMagic) refuse("a saved conversation", "other bytes");
    const std::string identity = model_->identity();
    if (std::string_view(take(identity.size()), identity.size()) != identity)
        refuse("a conversation with this model on these kernels", "another's");
    std::array<int64_t, 4> sizes;
    std::memcpy(sizes.data(), take(sizeof(sizes)), sizeof(sizes));
    const auto [note_size, count, float_count, sum] = sizes;
    const auto limit = static_cast<int64_t>(bytes.size());
    if (note_size < 0 || note_size > limit || count < 1 || count > limit || float_count < 0 || float_count > limit)
        refuse("a saved conversation", "impossible sizes");
    if (count > capacity_) refuse("no more positions than the context holds", "more");
    std::string note(take(static_cast<size_t>(note_size)), static_cast<size_t>(note_size));
    Positions positions;
    for (auto [values, size] : {std::pair(&positions.tokens, count), {&positions.codes, count * codes_of_position()}}) {
        values->resize(static_cast<size_t>(size));
        std::memcpy(values->data(), take(values->size() * sizeof(int32_t)), values->size() * sizeof(int32_t));
    }
    const size_t described = at;
    std::vector<float> floats(static_cast<size_t>(float_count));
    std::memcpy(floats.data(), take(floats.size() * sizeof(float)), floats.size() * sizeof(float));
    const std::string hash = sha256_hex({reinterpret_cast<const uint8_t*>(bytes.data()), described});
    if (std::string_view(take(hash.size()), hash.size()) != hash || checksum(floats) != sum || at != bytes.size())
        refuse("an unaltered saved conversation", "an altered one");
    check(positions, model_->config);
    sequence_->load(floats, count);
    positions_ = std::move(positions);
    guessed_.clear();
    hidden_ = Array(1, model_->config.lm.hidden_size);
    std::copy_n(floats.begin(), std::min(floats.size(), hidden_.data.size()), hidden_.data.begin());
    return note;
}

int64_t State::codes_of_position() const {
    return model_->config.lm.group_size * model_->config.lm.audio_channels;
}

const Array& State::hidden() const {
    if (hidden_.rows == 0) throw InputError("state: expected a prompt to be read first, got an empty conversation");
    return hidden_;
}

std::vector<float> State::text_logits(const Tap& tap) const {
    hidden();
    std::vector<float> logits = sequence_->text_logits();
    expect_made("logits", {model_->config.lm.vocab_size}, {static_cast<int64_t>(logits.size())});
    tap("backbone.logits", {static_cast<int64_t>(logits.size())}, logits.data());
    return logits;
}

Array State::local_hidden() const {
    hidden();
    return sequence_->local_hidden();
}

int32_t State::sample_token(const Sampling& sampling, std::span<const int32_t> removed, const Tap& tap) const {
    hidden();
    if (!tap) {
        if (const auto token = sequence_->sample_token(sampling, removed, draw())) return *token;
    }
    return sample(text_logits(tap), sampling, removed, draw());
}

Codes State::decode_patch(const Sampling& sampling, const Tap& tap, const Codes* forced) {
    if (tap) {
        const Array input = local_hidden();
        tap("backbone.local_hidden", {input.cols}, input.data.data());
    }
    hidden();
    if (!tap && !forced) {
        if (auto patch = sequence_->decode_patch(sampling, draw())) return std::move(*patch);
    }
    return mimo::decode_patch(*sequence_, model_->config.lm, sampling, draw(), forced, tap);
}

}  // namespace mimo
