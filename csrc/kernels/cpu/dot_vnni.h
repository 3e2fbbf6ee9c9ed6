// Integer dot products by VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four neighbours exactly, 512 bits
// of them (AVX512-VNNI) or 256 (AVX-VNNI, of processors without AVX-512).
#pragma once

#include <immintrin.h>

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 128;  // dot_i8 sees weight + 128

#if MIMO_VECTOR_BYTES == 64
inline Int dpbusd(Int sum, Int w, Int x) {
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
inline Float load_halves(const uint16_t* p) {
    return (Float)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#else
inline Int dpbusd(Int sum, Int w, Int x) {
    return (Int)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
inline Float load_halves(const uint16_t* p) {
    return (Float)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#endif

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    return dpbusd(dpbusd(sum, w[0], x_low), w[1], x_high);
}

// sum + (weight + kByteOffset) * x over 4 columns.
inline Int dot_i8(Int sum, Int w, Int x) {
    return dpbusd(sum, w, x);
}

}  // namespace
}  // namespace mimo
