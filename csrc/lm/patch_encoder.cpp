#include "lm/patch_encoder.h"

#include <algorithm>

namespace mimo {

SpeechEmbeddings::SpeechEmbeddings(const LmConfig& lm, const Weights& weights) {
    for (int64_t level = 0; level < lm.audio_channels; ++level) {
        tables_.push_back(
            weights.under("speech_embeddings", level)
                .matrix("weight", {lm.speech_vocab_size[static_cast<size_t>(level)], lm.input_local_dim}));
    }
}

void SpeechEmbeddings::add_code(int64_t level, int64_t code, float* y) const {
    const Matrix& table = tables_[static_cast<size_t>(level)];
    if (code < 0 || code >= table.rows) {  // a forced patch; prompts are checked before
        throw InputError(
            message("patch decoder: expected codes from 0 to ", table.rows - 1, " at level ", level, ", got ", code));
    }
    add_row(table, code, y);
}

PatchEncoder::PatchEncoder(const Config& config, const Weights& weights)
    : lm_(config.lm),
      empty_token_(config.tokens.empty),
      text_(weights.matrix("model.embed_tokens.weight", {lm_.vocab_size, lm_.hidden_size})),
      layers_(patch_encoder_config(lm_), weights.under("input_local_transformer")),
      down_{weights.matrix("speech_group_downcast.weight", {lm_.hidden_size, lm_.group_size * lm_.input_local_dim}),
            {}} {}

Array PatchEncoder::operator()(const Context& context, const Positions& positions,
                               const SpeechEmbeddings& speech) const {
    Array embeds(positions.count(), lm_.hidden_size);
    std::vector<int64_t> patches;
    for (int64_t i = 0; i < positions.count(); ++i) {
        const int32_t token = positions.tokens[static_cast<size_t>(i)];
        if (token == empty_token_) {
            patches.push_back(i);
        } else {
            add_row(text_, token, embeds.row(i));
        }
    }
    const Array sums = sum_codes(positions, patches, speech);
    const Array encoded = layers_.blocks(context, sums, lm_.group_size, lm_.input_full_attention);
    const Array speech_embeds =
        linear(context, encoded.data.data(), static_cast<int64_t>(patches.size()), down_.weight.cols, down_);
    for (size_t i = 0; i < patches.size(); ++i) {
        std::copy_n(speech_embeds.row(static_cast<int64_t>(i)), embeds.cols, embeds.row(patches[i]));
    }
    if (context.tap) {
        const auto spread = [&](const std::string& name, const Array& rows) {  // text positions as zeros
            const int64_t width = lm_.group_size * lm_.input_local_dim;
            Array all(positions.count(), width);
            for (size_t i = 0; i < patches.size(); ++i)
                std::copy_n(rows.data.data() + static_cast<int64_t>(i) * width, width, all.row(patches[i]));
            context.tap(name, {positions.count(), lm_.group_size, lm_.input_local_dim}, all.data.data());
        };
        spread("patch_encoder.sum", sums);
        spread("patch_encoder.out", encoded);
        context.tap("backbone.embeds", embeds);
    }
    return embeds;
}

// -> [patches * G, input_local_dim]
Array PatchEncoder::sum_codes(const Positions& positions, const std::vector<int64_t>& patches,
                              const SpeechEmbeddings& speech) const {
    Array sums(static_cast<int64_t>(patches.size()) * lm_.group_size, lm_.input_local_dim);
    for (size_t i = 0; i < patches.size(); ++i) {
        const Codes patch = patch_of(positions, patches[i], lm_);
        for (int64_t frame = 0; frame < lm_.group_size; ++frame) {
            float* row = sums.row(static_cast<int64_t>(i) * lm_.group_size + frame);
            for (int64_t level = 0; level < lm_.audio_channels; ++level) {
                const int64_t code = patch.at(level, frame);
                if (code != lm_.speech_zeroemb_idx[static_cast<size_t>(level)]) speech.add_code(level, code, row);
            }
        }
    }
    return sums;
}

}  // namespace mimo
