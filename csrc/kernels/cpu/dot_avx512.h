// Integer dot products by AVX-512BW, for processors without VNNI. vpmaddubsw multiplies unsigned by signed bytes and
// adds neighbours in 16 bits, where it saturates: nibbles stay far below (4 * 15 * 127), and of bytes the magnitude is
// multiplied (2 * 127 * 127 < 32768).
#pragma once

#include <immintrin.h>

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 0;  // dot_i8 sees the weight itself

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16((__m512i)w[0], (__m512i)x_low),
                                           _mm512_maddubs_epi16((__m512i)w[1], (__m512i)x_high));
    return sum + (Int)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

// sum + (weight + kByteOffset) * x over 4 columns.
inline Int dot_i8(Int sum, Int w, Int x) {
    const __m512i magnitude = _mm512_abs_epi8((__m512i)w), bytes = (__m512i)x;
    const __m512i signed_x = _mm512_mask_sub_epi8(bytes, _mm512_movepi8_mask((__m512i)w), __m512i{}, bytes);
    return sum + (Int)_mm512_madd_epi16(_mm512_maddubs_epi16(magnitude, signed_x), _mm512_set1_epi16(1));
}

inline Float load_halves(const uint16_t* p) {
    return (Float)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

}  // namespace
}  // namespace mimo
