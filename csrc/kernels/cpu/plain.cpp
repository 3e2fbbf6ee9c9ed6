// The twin of every kernel: the formulas of kernels.h as plain loops.
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/kernels.h"

namespace mimo {
namespace {

float weight_at(const Matrix& w, int64_t row, int64_t col) {
    const int64_t i = row * w.cols + col;
    if (w.type == DType::f32) return static_cast<const float*>(w.data)[i];
    return bfloat_to_float(static_cast<const uint16_t*>(w.data)[i]);
}

void linear(const float* x, int64_t rows, int64_t x_stride, const Matrix& w, const float* bias, int64_t first,
            int64_t last, float* y, int64_t y_stride) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = first; j < last; ++j) {
            float sum = 0;
            for (int64_t k = 0; k < w.cols; ++k) sum += x[i * x_stride + k] * weight_at(w, j, k);
            y[i * y_stride + j] = sum + (bias ? bias[j] : 0.0f);
        }
    }
}

void round_inputs(const float* x, int64_t cols, int64_t group, int planes, int8_t* values, float* scales, int32_t* sums,
                  int64_t step) {
    const int64_t padded = (cols + kInputPadding - 1) / kInputPadding * kInputPadding;
    std::fill_n(values, planes * padded, int8_t{0});
    const float steps = planes == 1 ? 127.0f : 16256.0f;
    for (int64_t first = 0; first < cols; first += group) {
        const int64_t end = std::min(cols, first + group), g = first / group * step;
        uint32_t bits = 0;  // of the largest magnitude; NaN is above infinity is above every number
        for (int64_t k = first; k < end; ++k) bits = std::max(bits, std::bit_cast<uint32_t>(x[k]) & 0x7FFFFFFFu);
        const float most = std::bit_cast<float>(bits);
        scales[g] = std::isfinite(most) ? (most < kSmallestInput ? 0.0f : most / steps) : NAN;
        sums[g] = 0;
        if (!(scales[g] > 0)) continue;
        const float inverse = steps / most;
        for (int64_t k = first; k < end; ++k) {
            const auto q = static_cast<int32_t>(std::nearbyint(x[k] * inverse));
            const int32_t high = planes == 1 ? q : (q + 64) >> 7;
            values[k] = static_cast<int8_t>(high);
            if (planes == 2) values[padded + k] = static_cast<int8_t>(q - 128 * high);
            sums[g] += q;
        }
    }
}

void linear_packed(const RoundedInputs& x, const Matrix& w, const float* bias, int64_t first, int64_t last, float* y,
                   int64_t y_stride) {
    for (int64_t i = 0; i < x.rows; ++i) {
        const int8_t* high = x.row(i);
        const int8_t* low = high + x.cols;
        for (int64_t j = first; j < last; ++j) {
            float sum = 0;
            for (int64_t g = 0; g < x.groups; ++g) {
                int32_t dot = 0;
                for (int64_t k = g * x.group; k < std::min(w.cols, (g + 1) * x.group); ++k) {
                    const int32_t q = x.planes == 1 ? high[k] : 128 * high[k] + low[k];
                    dot += q * packed_integer(w, j, k);
                }
                const float scale = x.scales[g * x.rows + i] * packed_scale(w, j, g * x.group);
                const float product = static_cast<float>(dot) * scale;
                sum = sum + product;
            }
            y[i * y_stride + j] = bias ? sum + bias[j] : sum;
        }
    }
}

// Element `at` of a head's stored keys or values, of position t.
float stored(const void* elements, int64_t at, DType type, const uint16_t* scales, int64_t t) {
    if (type == DType::f32) return static_cast<const float*>(elements)[at];
    if (type == DType::f16) return half_to_float(static_cast<const uint16_t*>(elements)[at]);
    return static_cast<float>(static_cast<const int8_t*>(elements)[at]) * bfloat_to_float(scales[t]);
}

void attention(const AttentionHead& head, const float* q, int64_t queries, const KeyRange* ranges, float* out,
               int64_t stride, float* scratch) {
    const int64_t dim = head.head_dim;
    for (int64_t i = 0; i < queries; ++i) {
        const auto [begin, end] = ranges[i];
        float best = -INFINITY;
        for (int64_t t = begin; t < end; ++t) {
            float score = 0;
            for (int64_t d = 0; d < dim; ++d) {
                const int64_t at = (t / kLanes * dim + d) * kLanes + t % kLanes;
                score += q[i * stride + d] * stored(head.keys, at, head.type, head.key_scales, t);
            }
            scratch[t - begin] = score * head.scale;
            best = std::max(best, scratch[t - begin]);
        }
        float sum = 0;
        for (int64_t t = begin; t < end; ++t) sum += scratch[t - begin] = std::exp(scratch[t - begin] - best);
        for (int64_t d = 0; d < dim; ++d) {
            float mix = 0;
            for (int64_t t = begin; t < end; ++t) {
                mix += scratch[t - begin] * stored(head.values, t * dim + d, head.type, head.value_scales, t);
            }
            out[i * stride + d] = mix / sum;
        }
    }
}

void gelu(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
}

void silu_multiply(float* gate, const float* up, int64_t n) {
    for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void layer_norm(const float* x, Vector weight, Vector bias, float eps, float* y) {
    const size_t n = weight.size();
    double mean = 0, variance = 0;
    for (size_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<double>(n);
    for (size_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const double scale = 1.0 / std::sqrt(variance / static_cast<double>(n) + eps);
    for (size_t i = 0; i < n; ++i) y[i] = static_cast<float>((x[i] - mean) * scale) * weight[i] + bias[i];
}

void rms_norm(const float* x, Vector weight, float eps, float* y) {
    const size_t n = weight.size();
    double square = 0;
    for (size_t i = 0; i < n; ++i) square += double{x[i]} * x[i];
    const auto scale = static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(n) + eps));
    for (size_t i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

}  // namespace

const Kernels& plain_kernels() {
    static constexpr Kernels table = {"plain", linear,        round_inputs, linear_packed, attention,
                                      gelu,    silu_multiply, layer_norm,   rms_norm};
    return table;
}

}  // namespace mimo
