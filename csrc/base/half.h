// 16-bit floats to float32 and back, to the nearest, ties to even. bfloat16 is the upper half of a float32.
#pragma once

#include <bit>
#include <cstdint>

namespace mimo {

// IEEE half precision, subnormals included.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half} >> 15 << 31, magnitude = half & 0x7FFFu;
    if (magnitude >= 0x7C00) return std::bit_cast<float>(sign | 0x7F800000u | magnitude << 13);
    // Shifting leaves the exponent 112 too small; the multiplication mends it, and makes subnormals normal.
    const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

// To nearest, ties to even; what is too large becomes the largest half, NaN stays NaN.
inline uint16_t float_to_half(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7FFFFFFFu;
    const auto sign = static_cast<uint16_t>(bits >> 31 << 15);
    if (magnitude > 0x7F800000u) return sign | 0x7E00;
    if (magnitude >= 0x477FE000u) return sign | 0x7BFF;  // 65504
    if (magnitude < 0x38800000u) {                       // below 2^-14: a multiple of 2^-24
        const float steps = std::bit_cast<float>(magnitude) * 0x1p24f + 0x1p23f;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(steps) & 0x7FFu));
    }
    const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

inline float bfloat_to_float(uint16_t bfloat) {
    return std::bit_cast<float>(uint32_t{bfloat} << 16);
}

inline uint16_t float_to_bfloat(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace mimo
