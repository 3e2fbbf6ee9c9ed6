#include "lm/patch_decoder.h"

namespace mimo {

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

Codes PatchDecoder::operator()(const Context& context, Array input, const SpeechEmbeddings& speech,
                               const Sampling& sampling, Draw draw, const Codes* forced, KvCache& cache) const {
    if (forced && (forced->levels != lm_.audio_channels || forced->frames != lm_.group_size)) {
        throw ShapeError(message("patch decoder: expected forced codes [", lm_.audio_channels, ", ", lm_.group_size,
                                 "], got [", forced->levels, ", ", forced->frames, "]"));
    }
    Codes patch(lm_.audio_channels, lm_.group_size);
    cache.length = 0;
    for (int64_t step = 0; step < lm_.local_steps(); ++step) {
        context.tap("patch_decoder.input", {input.cols}, input.data.data());
        const Array hidden = layers_.append(context, std::move(input), cache);
        context.tap("patch_decoder.hidden", {hidden.cols}, hidden.data.data());
        Array sum(1, lm_.input_local_dim);
        for (int64_t level = 0; level < lm_.audio_channels; ++level) {
            const int64_t frame = step - lm_.delay_pattern[static_cast<size_t>(level)];
            if (frame < 0 || frame >= lm_.group_size) continue;
            const Array logits = linear(context, hidden, heads_[static_cast<size_t>(level)]);
            if (context.tap)
                context.tap("patch_decoder.logits." + std::to_string(level), {logits.cols}, logits.data.data());
            const auto empty = static_cast<int32_t>(lm_.speech_zeroemb_idx[static_cast<size_t>(level)]);
            draw.step = static_cast<uint32_t>(step);
            draw.level = static_cast<uint32_t>(level + 1);
            patch.at(level, frame) =
                forced ? forced->at(level, frame) : sample(logits.data, sampling, {&empty, 1}, draw);
            speech.add_code(level, patch.at(level, frame), sum.row(0));
        }
        input = widen_ ? linear(context, sum, to_local_) : std::move(sum);
    }
    return patch;
}

}  // namespace mimo
