// Integer dot products on any vector unit that multiplies 16-bit integers. Lanes are 32 bits, little endian.
#pragma once

namespace mimo {
namespace {

constexpr int32_t kByteOffset = 0;  // dot_i8 sees the weight itself

// sum + (weight + kByteOffset) * x over 4 columns. Two products of bytes fit 16 bits: 2 * 127 * 127 < 32768.
inline Int dot_i8(Int sum, Int w, Int x) {
    using Short = int16_t __attribute__((vector_size(sizeof(Int))));
    const auto even = [](Int v) { return ((Short)v << 8) >> 8; };
    const auto odd = [](Int v) { return (Short)v >> 8; };
    const Int pairs = (Int)(Short)(even(w) * even(x) + odd(w) * odd(x));
    return sum + ((pairs << 16) >> 16) + (pairs >> 16);
}

// sum + (weight + 8) * x over 8 columns: x_low against the low nibbles w[0], x_high against the high ones w[1].
inline Int dot_i4(Int sum, const Int (&w)[2], Int x_low, Int x_high) {
    return dot_i8(dot_i8(sum, w[0], x_low), w[1], x_high);
}

inline Float load_halves(const uint16_t* p) {
    Float v;
    for (size_t i = 0; i < sizeof(Float) / sizeof(float); ++i) v[i] = half_to_float(p[i]);
    return v;
}

}  // namespace
}  // namespace mimo
