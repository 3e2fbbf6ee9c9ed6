// Residual vector quantisation on the device: codec/rvq.h for many code frames at once.
#pragma once

#include <cstdint>

namespace mimo::gpu {

inline constexpr int kRvqFrames = 4;  // code frames of a block: they share the reading of the codebooks

struct RvqJob {
    const float* const* codebooks;  // [levels] of [bins, dim]
    const float* const* norms;      // [levels] of [bins], |row|^2
    const int32_t* bins;            // [levels]
    int32_t levels, dim;
    int64_t frames;
    float* hidden;   // [frames, dim]
    int32_t* codes;  // [levels, frames]
};

}  // namespace mimo::gpu
