// One warp and one slab, [8, 128] weights against 128 inputs of one row.
//
// A slab is read in `loads` pieces of 512 bytes, 16 a lane: 32 lanes x 16 bytes are 8 / loads whole rows, and
// 4 * loads lanes share a row. Every piece of a lane covers the same columns, so its inputs are read once.
//   int4 1 load, 32 columns a lane · int8, fp8 2, 16 · bf16 4, 8 · f32 8, 4
#pragma once

#include "cuda/reduce.h"
#include "kernels/packed.h"

namespace mimo::gpu {

// Inputs in shared memory; `cols` is filled with zeros to whole slabs.
struct Inputs {
    int32_t cols;
    int32_t groups;       // of a row
    const float* values;  // [rows, cols], planes == 0
    const int8_t* bytes;  // [rows, planes, cols]
    const float* scales;  // [rows, groups]
    const int32_t* sums;  // [rows, groups]
};

MIMO_DEVICE float from_e4m3(uint32_t byte) {
    return as_float((byte & 0x80) << 24 | (byte & 0x7F) << 20) * 0x1p120f;  // exponent bias 127 - 7
}

MIMO_DEVICE float from_half(uint32_t half) {
    const uint32_t sign = (half & 0x8000) << 16, magnitude = half & 0x7FFF;
    return as_float(sign | as_bits(as_float(magnitude << 13) * 0x1p112f));  // scales are finite
}

// v[i]: this lane's part of the row of load i -> the whole sum of one row, that of sum_row(). `span`: lanes that add
// up; the full 4 * loads unless int4 groups are narrower.
template <int loads, typename T>
MIMO_DEVICE T sum_lanes(T (&v)[loads], int span) {
    int offset = 2 * loads;
#pragma unroll
    for (int n = loads; n > 1; n /= 2, offset /= 2) {
        const bool upper = (lane() & offset) != 0;
#pragma unroll
        for (int i = 0; i < n / 2; ++i) {
            const T theirs = upper ? v[i] : v[i + n / 2];
            v[i] = (upper ? v[i + n / 2] : v[i]) + shuffle_xor(theirs, offset);
        }
    }
    T sum = v[0];
    if (span > 2) sum += shuffle_xor(sum, 2);
    if (span > 1) sum += shuffle_xor(sum, 1);
    return sum;
}

// The row of the slab whose sum this lane holds (four lanes hold the same).
template <int loads>
MIMO_DEVICE int sum_row() {
    constexpr int lanes = 4 * loads;  // of a row
    return lane() % lanes / 4 * (kTileRows / loads) + lane() / lanes;
}

template <WeightType type>
MIMO_DEVICE int first_col() {
    constexpr int lanes = 4 * loads_of(type);
    return lane() % lanes * (kSlabCols / lanes);
}

MIMO_DEVICE Quad read_quad(const void* p) {
    return *static_cast<const Quad*>(p);
}

// Integer weights: dot products with the rounded inputs of row r, columns from `col` on.
template <WeightType type, int planes>
MIMO_DEVICE void dot_integers(const Quad (&w)[loads_of(type)], const Inputs& in, int r, int col,
                              int32_t (&v)[loads_of(type)]) {
    const int8_t* bytes = in.bytes + r * planes * in.cols + col;
#pragma unroll
    for (int i = 0; i < loads_of(type); ++i) v[i] = 0;
#pragma unroll
    for (int plane = 0; plane < planes; ++plane, bytes += in.cols) {
        if constexpr (type == WeightType::int4) {  // as q + 8: the caller takes 8 * the sum of the inputs away
            const Quad x[2] = {read_quad(bytes), read_quad(bytes + 16)};
            int32_t sum = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum = dot4(w[0].word[j] & 0x0F0F0F0F, x[j / 2].word[j % 2 * 2], sum);
                sum = dot4(w[0].word[j] >> 4 & 0x0F0F0F0F, x[j / 2].word[j % 2 * 2 + 1], sum);
            }
            v[0] = plane + 1 < planes ? 128 * sum : v[0] + sum;
        } else {
            const Quad x = read_quad(bytes);
#pragma unroll
            for (int i = 0; i < loads_of(type); ++i) {
                int32_t sum = 0;
#pragma unroll
                for (int j = 0; j < 4; ++j) sum = dot4(w[i].word[j], x.word[j], sum);
                v[i] = plane + 1 < planes ? 128 * sum : v[i] + sum;
            }
        }
    }
}

// Weights of floats.
template <WeightType type>
MIMO_DEVICE void dot_floats(const Quad (&w)[loads_of(type)], const Inputs& in, int r, int col,
                            float (&v)[loads_of(type)]) {
    constexpr int cols = kSlabCols / (4 * loads_of(type)), per_word = cols / 4;
    const float* values = in.values + r * in.cols + col;
#pragma unroll
    for (int i = 0; i < loads_of(type); ++i) v[i] = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float x[per_word];
#pragma unroll
        for (int k = 0; k < per_word; ++k) x[k] = values[j * per_word + k];
#pragma unroll
        for (int i = 0; i < loads_of(type); ++i) {
            const uint32_t word = w[i].word[j];
            if constexpr (type == WeightType::f32) {
                v[i] = fused(as_float(word), x[0], v[i]);
            } else if constexpr (type == WeightType::bf16) {
                v[i] = fused(as_float(word << 16), x[0], v[i]);
                v[i] = fused(as_float(word & 0xFFFF0000), x[1], v[i]);
            } else {
#pragma unroll
                for (int k = 0; k < 4; ++k) v[i] = fused(from_e4m3(word >> 8 * k & 0xFF), x[k], v[i]);
            }
        }
    }
}

// The weight at (row, col) as a float: rows of embedding tables are gathered this way.
MIMO_DEVICE float weight_at(const SlabMatrix& w, int64_t row, int64_t col) {
    const int64_t slab = row / kTileRows * w.slabs + col / kSlabCols;
    const int64_t at = row % kTileRows * kSlabCols + col % kSlabCols;
    const uint8_t* data = w.data + slab * slab_bytes(w.type);
    switch (w.type) {
        case WeightType::f32:
            return reinterpret_cast<const float*>(data)[at];
        case WeightType::bf16:
            return as_float(uint32_t{reinterpret_cast<const uint16_t*>(data)[at]} << 16);
        case WeightType::fp8:
            return from_e4m3(data[at]) * static_cast<const float*>(w.scales)[row];
        case WeightType::int8:
            return static_cast<float>(static_cast<int8_t>(data[at])) * static_cast<const float*>(w.scales)[row];
        case WeightType::int4:
            break;
    }
    const int64_t byte = at / 8 * 4 + at % 4;
    const int q = (data[byte] >> (at % 8 < 4 ? 0 : 4) & 15) - 8;
    const int64_t groups = int64_t{w.slabs} * (kSlabCols / w.group);
    const int64_t scale = (row / kTileRows * groups + col / w.group) * kTileRows + row % kTileRows;
    return static_cast<float>(q) * from_half(static_cast<const uint16_t*>(w.scales)[scale]);
}

}  // namespace mimo::gpu
