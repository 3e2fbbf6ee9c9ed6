// Nearest rows, level by level, and their sum back.
//
// A block has kRvqFrames code frames, whose residuals stay in shared memory over all levels. A warp takes one row of
// the codebook after another: its lanes read it once and keep a dot product for each frame. The distance is |row|^2 - 2
// row · residual, all in float32; of equal distances the lowest index wins.
#pragma once

#include "cuda/reduce.h"
#include "cuda/rvq_job.h"

namespace mimo::gpu {

MIMO_DEVICE void run_rvq_encode(const RvqJob& job) {
    auto* residual = reinterpret_cast<float*>(shared_memory() + kReservedBytes);  // [kRvqFrames, dim]
    for (int64_t first = int64_t{block()} * kRvqFrames; first < job.frames; first += int64_t{blocks()} * kRvqFrames) {
        const int count = static_cast<int>(Lowest{}(int64_t{kRvqFrames}, job.frames - first));
        for (int64_t i = thread(); i < int64_t{kRvqFrames} * job.dim; i += threads()) {
            residual[i] = i < int64_t{count} * job.dim ? job.hidden[first * job.dim + i] : 0.0f;
        }
        sync();
        for (int level = 0; level < job.levels; ++level) {
            const float* codebook = job.codebooks[level];
            // Distance and index in one key that orders by both; the order of floats is that of `distance_bits`.
            uint64_t best[kRvqFrames];
#pragma unroll
            for (int f = 0; f < kRvqFrames; ++f) best[f] = ~uint64_t{0};
            for (int row = warp(); row < job.bins[level]; row += warps()) {
                float dot[kRvqFrames] = {};
                for (int64_t d = lane(); d < job.dim; d += kWarp) {
                    const float v = codebook[int64_t{row} * job.dim + d];
#pragma unroll
                    for (int f = 0; f < kRvqFrames; ++f) dot[f] = fused(v, residual[f * job.dim + d], dot[f]);
                }
#pragma unroll
                for (int f = 0; f < kRvqFrames; ++f) {
                    const float distance = job.norms[level][row] - 2 * reduce_warp(dot[f], Sum{});
                    const uint32_t bits = as_bits(distance + 0.0f);  // -0 is 0
                    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
                    best[f] = Lowest{}(best[f], uint64_t{ordered} << 32 | static_cast<uint32_t>(row));
                }
            }
#pragma unroll
            for (int f = 0; f < kRvqFrames; ++f) {
                best[f] = reduce_block(best[f], Lowest{});
                const auto code = static_cast<int32_t>(best[f] & 0xFFFFFFFFu);
                if (f >= count) continue;
                if (thread() == 0) job.codes[level * job.frames + first + f] = code;
                for (int64_t d = thread(); d < job.dim; d += threads()) {
                    residual[f * job.dim + d] -= codebook[int64_t{code} * job.dim + d];
                }
            }
            sync();
        }
    }
}

MIMO_DEVICE void run_rvq_decode(const RvqJob& job) {
    const int64_t total = job.frames * job.dim;
    for (int64_t i = int64_t{block()} * threads() + thread(); i < total; i += int64_t{blocks()} * threads()) {
        const int64_t t = i / job.dim, d = i % job.dim;
        float sum = 0;
        for (int level = 0; level < job.levels; ++level) {
            sum += job.codebooks[level][int64_t{job.codes[level * job.frames + t]} * job.dim + d];
        }
        job.hidden[i] = sum;
    }
}

}  // namespace mimo::gpu
