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

}  // namespace mimo
