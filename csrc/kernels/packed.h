// Packed integer weights, and the arithmetic on them that every kernel and every bundle means.
//
// 16 rows lie side by side, so that 64 bytes hold 16 rows x 4 bytes and one register of 32-bit lanes owns 16 outputs:
//   i8  [ceil(N / 16), ceil(K / 4), 16, 4]: (n, k) at [n / 16, k / 4, n % 16, k % 4], in [-127, 127]
//   i4  [ceil(N / 16), ceil(K / 8), 16, 4]: byte [n / 16, c, n % 16, j] holds k = 8c + j in its low and 8c + 4 + j in
//   its
//       high nibble, as q + 8 with q in [-7, 7]
// Rows and columns added to fill a block hold 0. weight (n, k) = q * scale[n / 16, k / group, n % 16].
//
// Inputs are rounded row by row in groups of columns (the weights' group for i4, 128 for i8): with m = max |x|,
//   8 bit   q = rint(x * (127 / m)), scale m / 127
//   16 bit  q = rint(x * (16256 / m)) = 128 * high + low, scale m / 16256; high in [-127, 127], low in [-64, 63]
// m < 1e-30 counts as 0 and gives q = 0, scale 0; a group with NaN or infinity has the scale NaN.
//
// y[n] = sum over groups, in order, of float(dot product as int32) * (input scale * weight scale), then + bias; each
// product and sum rounded on its own. The integers are exact and the order is fixed: every table gives the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "base/array.h"
#include "base/half.h"

namespace mimo {

inline constexpr int64_t kBlockRows = 16;        // weight rows side by side
inline constexpr int64_t kInputGroup = 128;      // input columns that share a scale under i8 weights
inline constexpr int64_t kInputPadding = 8;      // rounded rows are filled with zeros to a multiple of this
inline constexpr float kSmallestInput = 1e-30f;  // a group below it counts as zero, so that no reciprocal overflows

// Columns in one 64-byte piece of a block.
inline int64_t chunk_cols(const Matrix& w) {
    return w.type == DType::i4 ? 8 : 4;
}

inline int64_t chunks_of(const Matrix& w) {
    return (w.cols + chunk_cols(w) - 1) / chunk_cols(w);
}

// Groups of weight columns with scales of their own.
inline int64_t scale_groups(const Matrix& w) {
    return (w.cols + w.group - 1) / w.group;
}

inline int64_t input_group(const Matrix& w) {
    return w.type == DType::i4 ? w.group : kInputGroup;
}

// The integer at (row, col) of packed weights.
inline int32_t packed_integer(const Matrix& w, int64_t row, int64_t col) {
    const int64_t per_chunk = chunk_cols(w), chunk = row / kBlockRows * chunks_of(w) + col / per_chunk;
    const int64_t at = (chunk * kBlockRows + row % kBlockRows) * 4 + col % 4;
    if (w.type == DType::i8) return static_cast<const int8_t*>(w.data)[at];
    return (static_cast<const uint8_t*>(w.data)[at] >> (col % 8 < 4 ? 0 : 4) & 15) - 8;
}

inline float packed_scale(const Matrix& w, int64_t row, int64_t col) {
    const int64_t at = (row / kBlockRows * scale_groups(w) + col / w.group) * kBlockRows + row % kBlockRows;
    if (w.type == DType::i8) return static_cast<const float*>(w.scales)[at];
    return half_to_float(static_cast<const uint16_t*>(w.scales)[at]);
}

// Rows of inputs, rounded.
struct RoundedInputs {
    int64_t rows = 0, cols = 0;  // cols: filled up to a multiple of kInputPadding
    int64_t stride = 0;          // bytes from row to row
    int64_t group = 0, groups = 0;
    int planes = 1;                  // 1: 8 bit; 2: 16 bit, high then low
    const int8_t* values = nullptr;  // [rows], each [planes, cols]
    const float* scales = nullptr;   // [groups, rows]: neighbours in a tile are neighbours in memory
    const int32_t* sums =
        nullptr;  // [groups, rows]: sum of q, which turns dot products with q + offset into those with q

    const int8_t* row(int64_t i) const { return values + i * stride; }
};

}  // namespace mimo
