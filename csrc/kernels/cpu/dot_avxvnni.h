// Integer dot products by AVX-VNNI, the 256-bit vpdpbusd of processors without AVX-512.
#pragma once

#include <immintrin.h>

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 128;  // dot_i8 sees weight + 128

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    sum = (Int)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w[0], (__m256i)x_low);
    return (Int)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w[1], (__m256i)x_high);
}

// sum + (weight + kByteOffset) * x over 4 columns.
inline Int dot_i8(Int sum, Int w, Int x) {
    return (Int)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}

inline Float load_halves(const uint16_t* p) {
    return (Float)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace
}  // namespace mimo
