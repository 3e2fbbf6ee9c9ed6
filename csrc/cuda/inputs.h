// The inputs of a linear layer, from global memory to shared: RMSNorm or LayerNorm if there is one, then rounded as
// kernels/packed.h says. Every block does this for itself; it costs less than a barrier.
#pragma once

#include "cuda/layout.h"
#include "cuda/slab.h"

namespace mimo::gpu {

// One row of inputs as the layer sees it. Every thread of the block makes one.
class NormedRow {
public:
    MIMO_DEVICE NormedRow(const LinearJob& job, int64_t row)
        : x_(job.x + row * job.x_stride), norm_(job.norm), bias_(job.norm_bias) {
        if (norm_ == nullptr) return;
        norm_cols_ = job.norm_cols;
        if (bias_ != nullptr) {
            double sum = 0, squares = 0;
            for (int i = thread(); i < norm_cols_; i += threads()) sum += x_[i];
            const double mean = reduce_block(sum, Sum{}) / norm_cols_;
            for (int i = thread(); i < norm_cols_; i += threads()) squares += (x_[i] - mean) * (x_[i] - mean);
            squares = reduce_block(squares, Sum{});
            mean_ = static_cast<float>(mean);
            scale_ = static_cast<float>(1.0 / square_root(squares / norm_cols_ + job.eps));
            return;
        }
        const int segments = job.w.cols / norm_cols_;
        auto* scales = reinterpret_cast<float*>(shared_memory() + kScratchBytes);
        for (int s = 0; s < segments; ++s) {
            double squares = 0;
            for (int i = thread(); i < norm_cols_; i += threads()) {
                const double v = x_[s * norm_cols_ + i];
                squares += v * v;
            }
            squares = reduce_block(squares, Sum{});
            scale_ = static_cast<float>(1.0 / square_root(squares / static_cast<double>(norm_cols_) + job.eps));
            if (segments > 1 && thread() == 0) scales[s] = scale_;
        }
        if (segments == 1) return;
        scales_ = scales;
        sync();
    }

    MIMO_DEVICE float operator()(int col) const {
        if (norm_ == nullptr) return x_[col];
        if (bias_ != nullptr) return (x_[col] - mean_) * scale_ * norm_[col] + bias_[col];
        if (scales_ == nullptr) return x_[col] * scale_ * norm_[col];
        return x_[col] * scales_[col / norm_cols_] * norm_[col % norm_cols_];
    }

private:
    const float* x_;
    const float* norm_;
    const float* bias_;
    int norm_cols_ = 0;
    float scale_ = 0, mean_ = 0;
    const float* scales_ = nullptr;
};

// Rounds one group of columns, one warp. x[i]: column lane + 32 i of it, zero from `count` on.
template <int planes>
MIMO_DEVICE void round_group(const float (&x)[kSlabCols / kWarp], int count, int8_t* bytes, int plane_stride,
                             float* scale, int32_t* sum) {
    uint32_t bits = 0;  // of the largest magnitude; NaN is above infinity is above every number
#pragma unroll
    for (int i = 0; i < kSlabCols / kWarp; ++i) bits = Highest{}(bits, as_bits(x[i]) & 0x7FFFFFFFu);
    const float most = as_float(reduce_warp(bits, Highest{}));
    constexpr float steps = planes == 1 ? 127.0f : 16256.0f;
    const bool finite = as_bits(most) < 0x7F800000u;
    const float step = finite ? (most < kSmallestInput ? 0.0f : most / steps) : as_float(0x7FC00000u);
    const float inverse = step > 0 ? steps / most : 0.0f;
    int32_t total = 0;
#pragma unroll
    for (int i = 0; i < kSlabCols / kWarp; ++i) {
        if (i >= count) break;
        const int32_t q = step > 0 ? static_cast<int32_t>(round_even(x[i] * inverse)) : 0;
        const int32_t high = planes == 1 ? q : (q + 64) >> 7;
        bytes[lane() + i * kWarp] = static_cast<int8_t>(high);
        if (planes == 2) bytes[plane_stride + lane() + i * kWarp] = static_cast<int8_t>(q - 128 * high);
        total += q;
    }
    total = reduce_warp(total, Sum{});
    if (lane() == 0) {
        *scale = step;
        *sum = total;
    }
}

// Rows [first, first + rows) of the inputs, into shared memory at `memory`. All threads of the block call it; a barrier
// follows.
template <int planes>
MIMO_DEVICE Inputs read_inputs(const LinearJob& job, int first, int rows, char* memory) {
    const SlabMatrix& w = job.w;
    const int cols = w.slabs * kSlabCols;
    Inputs in = {.cols = cols, .groups = 0, .values = nullptr, .bytes = nullptr, .scales = nullptr, .sums = nullptr};
    float* scales = nullptr;
    int32_t* sums = nullptr;
    if constexpr (planes == 0) {
        in.values = reinterpret_cast<float*>(memory);
    } else {
        in.groups = cols / w.group;
        in.bytes = reinterpret_cast<int8_t*>(memory);
        scales = reinterpret_cast<float*>(memory + rows * planes * cols);
        sums = reinterpret_cast<int32_t*>(scales + rows * in.groups);
        in.scales = scales;
        in.sums = sums;
    }
    for (int r = 0; r < rows; ++r) {
        const NormedRow row(job, first + r);
        if constexpr (planes == 0) {
            auto* values = reinterpret_cast<float*>(memory) + r * cols;
            for (int k = thread(); k < cols; k += threads()) values[k] = k < w.cols ? row(k) : 0.0f;
        } else {
            auto* bytes = reinterpret_cast<int8_t*>(memory) + r * planes * cols;
            for (int g = warp(); g < in.groups; g += warps()) {
                float part[kSlabCols / kWarp];
#pragma unroll
                for (int i = 0; i < kSlabCols / kWarp; ++i) {
                    const int k = g * w.group + lane() + i * kWarp;
                    part[i] = i < w.group / kWarp && k < w.cols ? row(k) : 0.0f;
                }
                round_group<planes>(part, w.group / kWarp, bytes + g * w.group, cols, scales + r * in.groups + g,
                                    sums + r * in.groups + g);
            }
        }
    }
    return in;
}

}  // namespace mimo::gpu
