// The inner loops of the core, one table of functions per instruction set.
//
// cpu/plain.cpp is the twin: loops that read like the formulas below. cpu/vector.cpp is the shipping path, compiled
// once for each instruction set. Both obey one law: a result depends on its own operands only, never on how many rows
// or keys are computed beside it, so that prefill, decode and any chunking agree bit for bit.
#pragma once

#include <cstdint>

#include "base/array.h"
#include "kernels/packed.h"

namespace mimo {

// Keys are stored in blocks of kLanes positions, transposed inside the block, so that one vector holds one channel of
// many keys.
inline constexpr int64_t kLanes = 16;

// The keys and values of one head, as a cache stores them: f32, f16, or i8 of which (t, d) means q * scales[t].
struct AttentionHead {
    const void* keys;  // [ceil(key_end / kLanes), head_dim, kLanes]; lanes past the last written key hold finite values
    const void* values;            // [key_end, head_dim]
    const uint16_t* key_scales;    // i8: bfloat16 [key_end, filled up to kLanes]
    const uint16_t* value_scales;  // i8: bfloat16 [key_end]
    DType type;
    int64_t head_dim;
    float scale;  // 1 / sqrt(head_dim)
};

// Query i of a call sees keys [begin, end).
struct KeyRange {
    int64_t begin;
    int64_t end;
};

struct Kernels {
    const char* name;

    // Weights of floats: y[i, j] = sum_k x[i, k] * w[j, k] (+ bias[j]) for i in [0, rows), j in [first, last). x rows
    // x_stride apart, y rows y_stride.
    void (*linear)(const float* x, int64_t rows, int64_t x_stride, const Matrix& w, const float* bias, int64_t first,
                   int64_t last, float* y, int64_t y_stride);

    // One row for packed weights: x [cols] -> values [planes, cols filled up], scales and sums [groups], `step` apart
    // (packed.h).
    void (*round_inputs)(const float* x, int64_t cols, int64_t group, int planes, int8_t* values, float* scales,
                         int32_t* sums, int64_t step);

    // Packed weights: columns [first, last) of y for all rows of x; first is a multiple of kBlockRows. Bit for bit the
    // twin's result.
    void (*linear_packed)(const RoundedInputs& x, const Matrix& w, const float* bias, int64_t first, int64_t last,
                          float* y, int64_t y_stride);

    // out[i] = softmax(scale * q[i] · K[range_i]) V[range_i] for `queries` queries; q and out rows are `stride` apart.
    // scratch: 8 * (highest range end + 2 * kLanes) floats. Ranges are non-empty.
    void (*attention)(const AttentionHead& head, const float* q, int64_t queries, const KeyRange* ranges, float* out,
                      int64_t stride, float* scratch);

    // x <- x / 2 * (1 + erf(x / sqrt 2)), the exact GELU.
    void (*gelu)(float* x, int64_t n);

    // gate <- gate * sigmoid(gate) * up
    void (*silu_multiply)(float* gate, const float* up, int64_t n);

    // y <- (x - mean) / sqrt(var + eps) * weight + bias over one row; variance is biased.
    void (*layer_norm)(const float* x, Vector weight, Vector bias, float eps, float* y);

    // y <- x / sqrt(mean(x^2) + eps) * weight over one row.
    void (*rms_norm)(const float* x, Vector weight, float eps, float* y);
};

const Kernels& plain_kernels();

// The fastest table this processor can run; `name` forces one: "plain", "base", on x86 "avx2", "avxvnni", "avx512",
// "avx512vnni", on Arm "dotprod" (DeviceError if it cannot run). From outside: _core.Model.open(kernels=) and mimo-edge
// verify --kernels.
const Kernels& choose_kernels(const char* name = nullptr);

}  // namespace mimo
