// What a block keeps in shared memory, in bytes: the kernels and the host agree on it here.
//
//   scratch and norm scales (kReservedBytes) | linear: inputs, sums | attention: queries, scores | sampling: sums
#pragma once

#include "cuda/job.h"
#include "cuda/rvq_job.h"

namespace mimo::gpu {

inline constexpr int kScratchBytes = 512;                                // one value a warp
inline constexpr int kReservedBytes = kScratchBytes + kMaxSegments * 4;  // and the scales of a row's norms

constexpr int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

// Inputs of a linear layer (inputs.h).
constexpr int64_t input_bytes(const SlabMatrix& w, int64_t rows) {
    const int64_t cols = int64_t{w.slabs} * kSlabCols;
    if (w.planes == 0) return rows * cols * 4;
    return rows * cols * w.planes + round_up(rows * (cols / w.group) * 8, 16);
}

// Slabs that a block computes between two barriers.
constexpr int round_of(WeightType type, int warps) {
    return warps * (kLoadQuads / loads_of(type));
}

constexpr int groups_of_slab(const SlabMatrix& w) {
    return kSlabCols / w.group;
}

// Slabs whose sums are kept: of the tile that is not done, of the round that was, of the round that is.
constexpr int ring_of(const SlabMatrix& w, int warps) {
    return w.slabs + 2 * round_of(w.type, warps);
}

constexpr int64_t linear_bytes(const SlabMatrix& w, int64_t rows, int warps) {
    return kReservedBytes + input_bytes(w, rows) +
           rows * int64_t{ring_of(w, warps)} * groups_of_slab(w) * kTileRows * 4;
}

constexpr int64_t attention_bytes(const Heads& h, int64_t rows) {
    rows = rows < kMaxRows ? rows : kMaxRows;
    return kReservedBytes + 4 * rows * (h.heads / h.kv_heads) * (2 * h.head_dim + kKeyChunk + 3);
}

constexpr int64_t sample_bytes(int threads) {
    return kReservedBytes + int64_t{threads} * 8;
}

constexpr int64_t rvq_bytes(int64_t dim) {
    return kReservedBytes + kRvqFrames * dim * 4;
}

}  // namespace mimo::gpu
