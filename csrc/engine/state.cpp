#include "engine/state.h"

#include <algorithm>

namespace mimo {
namespace {

constexpr int64_t kPrefillRows = 256;  // positions computed at once: bounds the memory of a long prompt

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
      cache_(model_->backbone.config(), capacity_),
      patch_cache_(model_->patch_decoder.make_cache()) {}

void State::prefill(const Positions& positions, const Tap& tap) {
    if (positions.count() == 0) throw InputError("prompt: expected at least one position, got none");
    if (length() + positions.count() > capacity_) {
        throw InputError(message("prompt: expected at most ", capacity_, " positions of 160 ms or one token, got ",
                                 length() + positions.count(), "; shorten the audio or the history"));
    }
    const Context context = model_->context(tap);
    const Array embeds = model_->patch_encoder(context, positions, model_->speech_embeddings);
    Array all(embeds.rows, embeds.cols);
    for (int64_t first = 0; first < embeds.rows; first += kPrefillRows) {
        Array part(std::min(kPrefillRows, embeds.rows - first), embeds.cols);
        std::copy_n(embeds.row(first), part.data.size(), part.data.begin());
        const Array hidden = model_->backbone.append(context, std::move(part), cache_);
        std::copy(hidden.data.begin(), hidden.data.end(), all.row(first));
    }
    tap("backbone.hidden", all);
    hidden_ = Array(1, all.cols);
    std::copy_n(all.row(all.rows - 1), all.cols, hidden_.data.begin());
}

void State::rewind(int64_t length) {
    if (length < 0 || length > cache_.length) {
        throw InputError(message("rewind: expected 0 to ", cache_.length, " positions, got ", length));
    }
    cache_.length = length;
    hidden_ = {};
}

const Array& State::hidden() const {
    if (hidden_.rows == 0) throw InputError("state: expected a prompt to be read first, got an empty conversation");
    return hidden_;
}

std::vector<float> State::text_logits(const Tap& tap) const {
    Array logits = linear(model_->context(), hidden(), model_->text_head);
    tap("backbone.logits", {logits.cols}, logits.data.data());
    return std::move(logits.data);
}

Array State::local_hidden() const {
    return model_->patch_decoder.enter(model_->context(), hidden());
}

int32_t State::sample_token(const Sampling& sampling, std::span<const int32_t> removed, const Tap& tap) const {
    return sample(text_logits(tap), sampling, removed, draw());
}

Codes State::decode_patch(const Sampling& sampling, const Tap& tap, const Codes* forced) {
    const Array input = local_hidden();
    tap("backbone.local_hidden", {input.cols}, input.data.data());
    return model_->patch_decoder(model_->context(tap), input, model_->speech_embeddings, sampling, draw(), forced,
                                 patch_cache_);
}

}  // namespace mimo
