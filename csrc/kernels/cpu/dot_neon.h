// Integer dot products by the Arm dot-product instruction (ARMv8.2 SDOT): four neighbouring products of signed bytes.
#pragma once

#include <arm_neon.h>

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 0;  // dot_i8 sees the weight itself

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    const int32x4_t half = vdotq_s32((int32x4_t)sum, (int8x16_t)w[0], (int8x16_t)x_low);
    return (Int)vdotq_s32(half, (int8x16_t)w[1], (int8x16_t)x_high);
}

// sum + (weight + kByteOffset) * x over 4 columns.
inline Int dot_i8(Int sum, Int w, Int x) {
    return (Int)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}

inline Float load_halves(const uint16_t* p) {
    return (Float)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

}  // namespace
}  // namespace mimo
