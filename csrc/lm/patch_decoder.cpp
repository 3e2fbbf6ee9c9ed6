#include "lm/patch_decoder.h"

#include <algorithm>

namespace mimo {
namespace {

// The code frame that `level` makes at `step`, -1 if it is silent.
int64_t frame_at(const LmConfig& lm, int64_t step, size_t level) {
    const int64_t frame = step - lm.delay_pattern[level];
    return frame < lm.group_size ? std::max<int64_t>(frame, -1) : -1;
}

}  // namespace

PatchDecoder::PatchDecoder(const Config& config, const Weights& weights)
    : lm_(config.lm),
      down_{weights.matrix("hidden_states_downcast.weight", {lm_.local_dim, lm_.hidden_size}), {}},
      layers_(patch_decoder_config(lm_), weights.under("local_transformer")),
      widen_(lm_.input_local_dim != lm_.local_dim) {
    for (int64_t level = 0; level < lm_.audio_channels; ++level) {
        const int64_t codes = lm_.speech_vocab_size[static_cast<size_t>(level)];
        heads_.push_back(
            {weights.under("local_transformer_lm_heads", level).matrix("weight", {codes, lm_.local_dim}), {}});
    }
    if (widen_)
        to_local_ = {weights.matrix("speech_embeddings_to_local.weight", {lm_.local_dim, lm_.input_local_dim}), {}};
}

Array PatchDecoder::embed(const Context& context, std::span<const int32_t> made, const SpeechEmbeddings& speech) const {
    Array sum(1, lm_.input_local_dim);
    for (int64_t level = 0; level < lm_.audio_channels; ++level) {
        const int32_t code = made[static_cast<size_t>(level)];
        if (code >= 0) speech.add_code(level, code, sum.row(0));
    }
    return widen_ ? linear(context, sum, to_local_) : sum;
}

std::vector<std::vector<float>> PatchDecoder::step(const Context& context, int64_t step, Array input,
                                                   KvCache& cache) const {
    context.tap("patch_decoder.input", {input.cols}, input.data.data());
    const Array hidden = layers_.append(context, std::move(input), cache);
    context.tap("patch_decoder.hidden", {hidden.cols}, hidden.data.data());
    std::vector<std::vector<float>> scores(heads_.size());
    for (size_t level = 0; level < scores.size(); ++level) {
        if (frame_at(lm_, step, level) >= 0) scores[level] = linear(context, hidden, heads_[level]).values();
    }
    return scores;
}

Codes decode_patch(Sequence& sequence, const LmConfig& lm, const Sampling& sampling, Draw draw, const Codes* forced,
                   const Tap& tap) {
    if (forced && (forced->levels != lm.audio_channels || forced->frames != lm.group_size)) {
        throw ShapeError(message("patch decoder: expected forced codes [", lm.audio_channels, ", ", lm.group_size,
                                 "], got [", forced->levels, ", ", forced->frames, "]"));
    }
    Codes patch(lm.audio_channels, lm.group_size);
    std::vector<int32_t> made(static_cast<size_t>(lm.audio_channels), -1);
    for (int64_t step = 0; step < lm.local_steps(); ++step) {
        const auto scores = sequence.local_step(step, made, tap);
        expect_made("levels", {lm.audio_channels}, {static_cast<int64_t>(scores.size())});
        for (size_t level = 0; level < made.size(); ++level) {
            made[level] = -1;
            const int64_t frame = frame_at(lm, step, level), row = static_cast<int64_t>(level);
            if (frame < 0) continue;
            const std::vector<float>& logits = scores[level];
            expect_made("scores", {lm.speech_vocab_size[level]}, {static_cast<int64_t>(logits.size())});
            if (tap)
                tap("patch_decoder.logits." + std::to_string(level), {static_cast<int64_t>(logits.size())},
                    logits.data());
            const auto empty = static_cast<int32_t>(lm.speech_zeroemb_idx[level]);
            draw.step = static_cast<uint32_t>(step);
            draw.level = static_cast<uint32_t>(level + 1);
            made[level] = forced ? forced->at(row, frame) : sample(logits, sampling, {&empty, 1}, draw);
            patch.at(row, frame) = made[level];
        }
    }
    return patch;
}

}  // namespace mimo
