// The jobs of a stack of transformer layers, pre-norm, with a feed-forward of two products: the three stacks of the
// language model, and those of the codec.
#pragma once

#include "cuda/weights.h"

namespace mimo::gpu {

// What the layers of one sequence work in.
struct StackBuffers {
    float *x, *q, *mixed, *inner;  // [rows, ...]
    float* parts;
    uint32_t* done;
    std::vector<Cache> caches;  // of each layer

    StackBuffers() = default;
    // rows: of a call; capacity: positions whose keys are kept. Up to kMaxRows rows spread their keys over blocks.
    // keeps: false: a call has all positions, so one cache serves all layers.
    StackBuffers(Arena& arena, const StackWeights& stack, int64_t rows, int64_t capacity, bool keeps = true);
};

Job linear_job(const SlabMatrix& w, const float* x, int64_t x_stride, float* out, int64_t out_stride, Finish finish,
               int32_t rows);
Job with_norm(Job job, const float* norm, int64_t cols, float eps, const float* bias = nullptr);

// Four jobs a layer where the cache is short, else five; more where queries, keys and values are of several kinds.
// rows: 0: Request::rows. causal, seen: of AttentionJob; `seen` goes with many rows, whose items see all their keys.
void add_stack(std::vector<Job>& jobs, const StackWeights& stack, const StackBuffers& buffers, int32_t rows,
               Clock clock, bool causal, const KeySpan* seen = nullptr);

// Shared memory that a job needs, of Request::rows at most `rows`. Chooses how many of a linear job's rows are computed
// at once: as many as the device has room for. Throws DeviceError if that is none.
int64_t fit(Job& job, int64_t rows, const Device& device);

}  // namespace mimo::gpu
