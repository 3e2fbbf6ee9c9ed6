#include "lm/patch.h"

namespace mimo {

Codes patch_of(const Positions& positions, int64_t index, const LmConfig& lm) {
    const int64_t levels = lm.audio_channels, frames = lm.group_size;
    Codes patch(levels, frames);
    for (int64_t frame = 0; frame < frames; ++frame) {
        for (int64_t level = 0; level < levels; ++level) {
            patch.at(level, frame) = positions.codes[static_cast<size_t>((index * frames + frame) * levels + level)];
        }
    }
    return patch;
}

void append(Positions& positions, int32_t token, const Codes* patch, const LmConfig& lm) {
    positions.tokens.push_back(token);
    for (int64_t frame = 0; frame < lm.group_size; ++frame) {
        for (int64_t level = 0; level < lm.audio_channels; ++level) {
            const auto empty = static_cast<int32_t>(lm.speech_zeroemb_idx[static_cast<size_t>(level)]);
            positions.codes.push_back(patch ? patch->at(level, frame) : empty);
        }
    }
}

void append(Positions& positions, const Positions& more) {
    positions.tokens.insert(positions.tokens.end(), more.tokens.begin(), more.tokens.end());
    positions.codes.insert(positions.codes.end(), more.codes.begin(), more.codes.end());
}

void check(const Positions& positions, const Config& config) {
    const LmConfig& lm = config.lm;
    for (int64_t i = 0; i < positions.count(); ++i) {
        const int32_t token = positions.tokens[static_cast<size_t>(i)];
        if (token < 0 || token >= lm.vocab_size) {
            throw InputError(
                message("prompt: expected tokens from 0 to ", lm.vocab_size - 1, ", got ", token, " at position ", i));
        }
        if (token != config.tokens.empty) continue;
        for (int64_t at = 0; at < lm.group_size * lm.audio_channels; ++at) {
            const int64_t level = at % lm.audio_channels, codes = lm.speech_vocab_size[static_cast<size_t>(level)];
            const int32_t code = positions.codes[static_cast<size_t>(i * lm.group_size * lm.audio_channels + at)];
            if (code < 0 || code >= codes) {
                throw InputError(message("prompt: expected codes from 0 to ", codes - 1, " at level ", level, ", got ",
                                         code, " at position ", i));
            }
        }
    }
}

}  // namespace mimo
