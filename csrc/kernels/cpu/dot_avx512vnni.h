// Integer dot products by AVX512-VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four neighbours exactly.
#pragma once

#include <immintrin.h>

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 128;  // dot_i8 sees weight + 128

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    sum = (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w[0], (__m512i)x_low);
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w[1], (__m512i)x_high);
}

// sum + (weight + kByteOffset) * x over 4 columns.
inline Int dot_i8(Int sum, Int w, Int x) {
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

inline Float load_halves(const uint16_t* p) {
    return (Float)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

}  // namespace
}  // namespace mimo
