// Integer dot products by AVX2. vpmaddubsw multiplies unsigned by signed bytes and adds neighbours in 16 bits, where it
// saturates: nibbles stay far below (4 * 15 * 127), and of bytes the magnitude is multiplied (2 * 127 * 127 < 32768).
#pragma once

#include <immintrin.h>

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 0;  // dot_i8 sees the weight itself

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)w[0], (__m256i)x_low),
                                           _mm256_maddubs_epi16((__m256i)w[1], (__m256i)x_high));
    return sum + (Int)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// sum + (weight + kByteOffset) * x over 4 columns.
inline Int dot_i8(Int sum, Int w, Int x) {
    const __m256i magnitude = _mm256_abs_epi8((__m256i)w), signed_x = _mm256_sign_epi8((__m256i)x, (__m256i)w);
    return sum + (Int)_mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), _mm256_set1_epi16(1));
}

inline Float load_halves(const uint16_t* p) {
    return (Float)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace
}  // namespace mimo
