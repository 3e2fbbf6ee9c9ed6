#include "engine/state.h"

namespace mimo {
namespace {

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

void State::prefill(const Positions& positions, const Tap& tap) {
    if (positions.count() == 0) throw InputError("prompt: expected at least one position, got none");
    if (length() + positions.count() > capacity_) {
        throw InputError(message("prompt: expected at most ", capacity_, " positions of 160 ms or one token, got ",
                                 length() + positions.count(), "; shorten the audio or the history"));
    }
    check(positions, model_->config);
    hidden_ = {};
    Array last = sequence_->append(length_, positions.tokens, positions.codes, tap);
    expect_made("hidden", {1, model_->config.lm.hidden_size}, {last.rows, last.cols});
    hidden_ = std::move(last);
    length_ += positions.count();
}

void State::rewind(int64_t length) {
    if (length < 0 || length > length_) {
        throw InputError(message("rewind: expected 0 to ", length_, " positions, got ", length));
    }
    length_ = length;
    hidden_ = {};
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
    return sample(text_logits(tap), sampling, removed, draw());
}

Codes State::decode_patch(const Sampling& sampling, const Tap& tap, const Codes* forced) {
    if (tap) {
        const Array input = local_hidden();
        tap("backbone.local_hidden", {input.cols}, input.data.data());
    }
    hidden();
    return mimo::decode_patch(*sequence_, model_->config.lm, sampling, draw(), forced, tap);
}

}  // namespace mimo
