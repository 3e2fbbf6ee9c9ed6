// The shipping CPU kernels, written once on the compiler's vector types and compiled for each instruction set
// (CMakeLists.txt: MIMO_ISA names the table, MIMO_VECTOR_BYTES is its register width).
//
// linear: each output element owns one vector accumulator that runs over k in order and is folded at the end. A tile of
// weight rows x inputs shares the loads; its size changes nothing in an element's own arithmetic.
// attention: scores of kLanes keys at a time (keys are stored transposed), then values summed key by key.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/packed_table.h"
#include "kernels/cpu/vector_types.h"
#include "kernels/kernels.h"

#include MIMO_DOT

namespace mimo {
namespace {

constexpr int kTileRows = 4;
constexpr int kTileCols = MIMO_VECTOR_BYTES == 64 ? 6 : 2;  // accumulators + operands fit the 32 (16) registers
constexpr int kSingleRows = 8;                              // of a tile with one input: enough sums to hide latency

inline float fold(Float v) {
    return fold<float>(v, [](auto a, auto b) { return a + b; });
}

// How many vectors of floats one register of weights gives: float32 one; bfloat16 two, its even and its odd elements,
// which cost one shift or mask each. Inputs are packed in that order.
template <typename Weight>
constexpr int64_t kParts = sizeof(float) / sizeof(Weight);
template <typename Weight>
constexpr int64_t kStep = kWidth * kParts<Weight>;

template <typename Weight, int part>
inline Float widen(Int weights) {
    if constexpr (kParts<Weight> == 1) return std::bit_cast<Float>(weights);
    return std::bit_cast<Float>(part == 0 ? weights << 16 : weights & int32_t(0xFFFF0000));
}

// x [rows, n] -> [rows, n rounded up to kStep] in the order of the weights' parts, zeros at the end.
template <typename Weight>
void pack_inputs(const float* x, int64_t rows, int64_t x_stride, int64_t n, float* packed) {
    constexpr int64_t parts = kParts<Weight>, step = kStep<Weight>;
    const int64_t padded = (n + step - 1) / step * step;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < padded; ++k) {
            const int64_t from = k / step * step + k % kWidth * parts + k % step / kWidth;
            packed[i * padded + k] = from < n ? x[i * x_stride + from] : 0.0f;
        }
    }
}

// Adds one register of weights of each of R rows, times C inputs, to the sums.
template <typename Weight, int part, int R, int C>
inline void multiply(const Int (&weights)[R], const float* x, int64_t x_stride, Float (&sum)[R][C]) {
    Float weight[R];
    for (int r = 0; r < R; ++r) weight[r] = widen<Weight, part>(weights[r]);
    for (int c = 0; c < C; ++c) {
        const Float input = load<Float>(x + c * x_stride + part * kWidth);
        for (int r = 0; r < R; ++r) sum[r][c] += weight[r] * input;
    }
    if constexpr (part + 1 < kParts<Weight>) multiply<Weight, part + 1>(weights, x, x_stride, sum);
}

// One tile: R rows of w [.., n] against C packed rows of x.
template <int R, int C, typename Weight>
inline void tile(const float* x, int64_t x_stride, const Weight* w, int64_t n, const float* bias, float* y,
                 int64_t y_stride) {
    Float sum[R][C] = {};
    Int weights[R];
    int64_t k = 0;
    for (; k + kStep<Weight> <= n; k += kStep<Weight>) {
        for (int r = 0; r < R; ++r) weights[r] = load<Int>(w + r * n + k);
        multiply<Weight, 0>(weights, x + k, x_stride, sum);
    }
    if (k < n) {
        for (int r = 0; r < R; ++r) weights[r] = load_part<Int>(w + r * n + k, n - k);
        multiply<Weight, 0>(weights, x + k, x_stride, sum);
    }
    for (int c = 0; c < C; ++c) {
        for (int r = 0; r < R; ++r) y[c * y_stride + r] = fold(sum[r][c]) + (bias ? bias[r] : 0.0f);
    }
}

// Columns [first, last) of y for C inputs, R weight rows at a time.
template <int R, int C, typename Weight>
inline int64_t columns(const float* x, int64_t x_stride, const Weight* w, int64_t n, const float* bias, int64_t first,
                       int64_t last, float* y, int64_t y_stride) {
    for (; first + R <= last; first += R) {
        tile<R, C>(x, x_stride, w + first * n, n, bias ? bias + first : nullptr, y + first, y_stride);
    }
    return first;
}

template <typename Weight>
void linear_typed(const float* x, int64_t rows, int64_t x_stride, const Weight* w, int64_t n, const float* bias,
                  int64_t first, int64_t last, float* y, int64_t y_stride) {
    constexpr int64_t kBlockFloats = 65536;  // packed inputs that stay in the second-level cache
    constexpr int64_t kRowsAtOnce = 32;      // weight rows that all inputs of a block use before the next ones come
    const int64_t padded = (n + kStep<Weight> - 1) / kStep<Weight> * kStep<Weight>;
    const int64_t fitting = kBlockFloats / std::max<int64_t>(padded, 1) / kTileCols * kTileCols;
    const int64_t block = std::min(rows, std::max<int64_t>(kTileCols, fitting));
    std::vector<float> packed(static_cast<size_t>(block * padded));
    for (int64_t i = 0; i < rows; i += block) {
        const int64_t count = std::min(block, rows - i);
        pack_inputs<Weight>(x + i * x_stride, count, x_stride, n, packed.data());
        for (int64_t j = first; j < last; j += kRowsAtOnce) {
            const int64_t end = std::min(last, j + kRowsAtOnce);
            int64_t c = 0;
            for (; c + kTileCols <= count; c += kTileCols) {
                const float* xc = packed.data() + c * padded;
                float* yc = y + (i + c) * y_stride;
                const int64_t rest = columns<kTileRows, kTileCols>(xc, padded, w, n, bias, j, end, yc, y_stride);
                columns<1, kTileCols>(xc, padded, w, n, bias, rest, end, yc, y_stride);
            }
            for (; c < count; ++c) {
                const float* xc = packed.data() + c * padded;
                float* yc = y + (i + c) * y_stride;
                const int64_t rest = columns<kSingleRows, 1>(xc, padded, w, n, bias, j, end, yc, y_stride);
                columns<1, 1>(xc, padded, w, n, bias, rest, end, yc, y_stride);
            }
        }
    }
}

void linear(const float* x, int64_t rows, int64_t x_stride, const Matrix& w, const float* bias, int64_t first,
            int64_t last, float* y, int64_t y_stride) {
    if (w.type == DType::f32) {
        linear_typed(x, rows, x_stride, static_cast<const float*>(w.data), w.cols, bias, first, last, y, y_stride);
    } else {
        linear_typed(x, rows, x_stride, static_cast<const uint16_t*>(w.data), w.cols, bias, first, last, y, y_stride);
    }
}

// exp by 2^n * e^r, |r| <= ln 2 / 2, degree-6 polynomial in r (error below 2 ulp); inputs below -87 give 0.
inline Float exponential(Float x) {
    constexpr float kLog2e = 1.44269504088896341f;
    constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // ln 2 split so that n * high is exact
    const Int tiny = x < -87.0f;
    x = x > 88.0f ? Float{} + 88.0f : x;
    const Float magic = Float{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Float shifted = x * kLog2e + magic;
    const Float n = shifted - magic;
    const Float r = (x - n * kLn2High) - n * kLn2Low;
    Float p = Float{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Int power = (std::bit_cast<Int>(shifted) - std::bit_cast<int32_t>(12582912.0f) + 127) << 23;
    return tiny ? Float{} : p * std::bit_cast<Float>(power);
}

// erf as x P(x^2) / Q(x^2) on |x| <= 4 (the rational minimax form used by Eigen); beyond 4 float erf is +-1.
inline Float error_function(Float x) {
    x = x > 4.0f ? Float{} + 4.0f : x;
    x = x < -4.0f ? Float{} - 4.0f : x;
    const Float s = x * x;
    Float p = Float{} - 2.72614225801306e-10f;
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    Float q = Float{} - 1.45660718464996e-05f;
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

template <typename Function>
inline void map(float* x, int64_t n, Function function) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(x + i, function(load<Float>(x + i), i));
    if (i == n) return;
    const Float last = function(load_part<Float>(x + i, n - i), i);
    std::memcpy(x + i, &last, static_cast<size_t>(n - i) * sizeof(float));
}

void gelu(float* x, int64_t n) {
    map(x, n, [](Float v, int64_t) { return 0.5f * v * (1.0f + error_function(v * 0.70710678118654752f)); });
}

void silu_multiply(float* gate, const float* up, int64_t n) {
    map(gate, n, [&](Float v, int64_t i) {
        const Float u = i + kWidth <= n ? load<Float>(up + i) : load_part<Float>(up + i, n - i);
        return v / (1.0f + exponential(-v)) * u;
    });
}

// Queries at once, and what their sums leave of the registers: blocks of keys for scores, vectors of channels for
// values.
constexpr int kPieces = kLanes / kWidth;                         // vectors that hold a block's keys
constexpr int kRegisterSums = MIMO_VECTOR_BYTES == 32 ? 8 : 16;  // of AVX2 there are but 16 registers
constexpr int kQueries = kPieces == 1 ? 8 : 4;
template <int Q>
constexpr int kKeyBlocks = std::min(4, kRegisterSums / (Q * kPieces));
template <int Q>
constexpr int kChannels = std::min(4, kRegisterSums / Q);
constexpr int64_t kAheadBytes = 8192;  // of keys and values asked for early, into the second-level cache

// Stored elements as floats, before the scales of i8.
inline Float widened(const float* p) {
    return load<Float>(p);
}
inline Float widened(const uint16_t* p) {
    return load_halves(p);
}
inline Float widened(const int8_t* p) {
    using Byte = int8_t __attribute__((vector_size(kWidth)));
    using Short = int16_t __attribute__((vector_size(2 * kWidth)));
    // in steps of twice the width, which GCC makes one instruction each of
    const Short wider = __builtin_convertvector(load<Byte>(p), Short);
    return __builtin_convertvector(__builtin_convertvector(wider, Int), Float);
}

// Scores of Q queries (rows `stride` apart) against B blocks of kLanes keys. scales: of these keys, if they are i8.
template <int Q, int B, typename Element>
inline void score_blocks(const Element* keys, const uint16_t* scales, int64_t dim, const float* q, int64_t stride,
                         float scale, float* scores, int64_t score_stride) {
    constexpr int V = B * kPieces;
    Float sum[Q][V] = {}, unit[V];
    if constexpr (sizeof(Element) == 1) {
        for (int v = 0; v < V; ++v) {
            for (int64_t i = 0; i < kWidth; ++i) unit[v][i] = bfloat_to_float(scales[v * kWidth + i]);
        }
    }
    for (int64_t d = 0; d < dim; ++d) {
        Float channel[V];
        for (int v = 0; v < V; ++v) {
            const Element* at = keys + (v / kPieces * dim + d) * kLanes + v % kPieces * kWidth;
            channel[v] = widened(at);
            if constexpr (sizeof(Element) == 1) channel[v] *= unit[v];
            if (v % kPieces == 0) __builtin_prefetch(reinterpret_cast<const char*>(at) + kAheadBytes, 0, 2);
        }
        for (int i = 0; i < Q; ++i) {
            for (int v = 0; v < V; ++v) sum[i][v] += channel[v] * q[i * stride + d];
        }
    }
    for (int i = 0; i < Q; ++i) {
        for (int v = 0; v < V; ++v) store(scores + i * score_stride + v * kWidth, sum[i][v] * scale);
    }
}

// Replaces the scores of [range) by exp(score - max), those outside by 0; returns the sum over the range.
// first: key of scores[0]; count: a multiple of kLanes. Sums run in fixed lanes of absolute key positions.
inline float softmax_numerators(float* scores, int64_t first, int64_t count, KeyRange range) {
    for (int64_t t = first; t < range.begin; ++t) scores[t - first] = -std::numeric_limits<float>::infinity();
    for (int64_t t = range.end; t < first + count; ++t) scores[t - first] = -std::numeric_limits<float>::infinity();
    const auto higher = [](auto a, auto b) { return a > b ? a : b; };
    Float highest = load<Float>(scores);
    for (int64_t i = kWidth; i < count; i += kWidth) highest = higher(highest, load<Float>(scores + i));
    const float best = fold<float>(highest, higher);
    Float sum = {};
    map(scores, count, [&](Float v, int64_t) {
        const Float e = exponential(v - best);
        sum += e;
        return e;
    });
    return fold(sum);
}

// out[i, d...] = sum_t weight[i, t] * values[t, d...] over keys [begin, end) for Q queries and V vectors of channels.
template <int Q, int V, typename Element>
inline void mix_values(const AttentionHead& head, const float* weights, int64_t weight_stride, int64_t begin,
                       int64_t end, const float* totals, int64_t d, int64_t n, float* out, int64_t stride) {
    Float sum[Q][V] = {};
    for (int64_t t = begin; t < end; ++t) {
        Float value[V];
        for (int v = 0; v < V; ++v) {
            const Element* at = static_cast<const Element*>(head.values) + t * head.head_dim + d + v * kWidth;
            if (n < kWidth) {
                Element part[kWidth] = {};
                std::copy_n(at, n, part);
                value[v] = widened(part);
            } else {
                value[v] = widened(at);
            }
            if constexpr (sizeof(Element) == 1) value[v] *= bfloat_to_float(head.value_scales[t]);
            __builtin_prefetch(reinterpret_cast<const char*>(at) + kAheadBytes, 0, 2);
        }
        for (int i = 0; i < Q; ++i) {
            const float weight = weights[i * weight_stride + t];
            for (int v = 0; v < V; ++v) sum[i][v] += weight * value[v];
        }
    }
    for (int i = 0; i < Q; ++i) {
        for (int v = 0; v < V; ++v) {
            const Float mixed = sum[i][v] / totals[i];
            std::memcpy(out + i * stride + d + v * kWidth, &mixed,
                        static_cast<size_t>(std::min(n, kWidth)) * sizeof(float));
        }
    }
}

template <int Q, typename Element>
void attend(const AttentionHead& head, const float* q, const KeyRange* ranges, float* out, int64_t stride,
            float* scratch) {
    KeyRange all = ranges[0];
    for (int i = 1; i < Q; ++i) all = {std::min(all.begin, ranges[i].begin), std::max(all.end, ranges[i].end)};
    const int64_t first = all.begin / kLanes * kLanes;
    const int64_t count = (all.end - first + kLanes - 1) / kLanes * kLanes;
    const auto score = [&]<int B>(int64_t t) {
        for (; t + B * kLanes <= count; t += B * kLanes) {
            const Element* keys = static_cast<const Element*>(head.keys) + (first + t) * head.head_dim;
            const uint16_t* scales = sizeof(Element) == 1 ? head.key_scales + first + t : nullptr;
            score_blocks<Q, B>(keys, scales, head.head_dim, q, stride, head.scale, scratch + t, count);
        }
        return t;
    };
    score.template operator()<1>(score.template operator()<kKeyBlocks<Q>>(0));
    float totals[Q];
    for (int i = 0; i < Q; ++i) totals[i] = softmax_numerators(scratch + i * count, first, count, ranges[i]);
    const float* weights = scratch - first;
    int64_t d = 0;
    for (; d + kChannels<Q> * kWidth <= head.head_dim; d += kChannels<Q> * kWidth) {
        mix_values<Q, kChannels<Q>, Element>(head, weights, count, all.begin, all.end, totals, d, kWidth, out, stride);
    }
    for (; d < head.head_dim; d += kWidth) {
        mix_values<Q, 1, Element>(head, weights, count, all.begin, all.end, totals, d, head.head_dim - d, out, stride);
    }
}

template <typename Element>
void attention_of(const AttentionHead& head, const float* q, int64_t queries, const KeyRange* ranges, float* out,
                  int64_t stride, float* scratch) {
    const auto attend_by = [&]<int Q>(int64_t i) {
        for (; i + Q <= queries; i += Q)
            attend<Q, Element>(head, q + i * stride, ranges + i, out + i * stride, stride, scratch);
        return i;
    };
    attend_by.template operator()<1>(attend_by.template operator()<4>(attend_by.template operator()<kQueries>(0)));
}

void attention(const AttentionHead& head, const float* q, int64_t queries, const KeyRange* ranges, float* out,
               int64_t stride, float* scratch) {
    const auto of = head.type == DType::f32   ? attention_of<float>
                    : head.type == DType::f16 ? attention_of<uint16_t>
                                              : attention_of<int8_t>;
    of(head, q, queries, ranges, out, stride, scratch);
}

// Sums for the norms run in double, in fixed lanes: exact enough that the order does not show.
constexpr int64_t kSums = 8;

template <typename Term>
inline double sum_of(int64_t n, Term term) {
    double sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= n; i += kSums) {
        for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += term(i + lane);
    }
    for (; i < n; ++i) sums[0] += term(i);
    double total = 0;
    for (const double sum : sums) total += sum;
    return total;
}

void layer_norm(const float* x, Vector weight, Vector bias, float eps, float* y) {
    const auto n = static_cast<int64_t>(weight.size());
    const double mean = sum_of(n, [x](int64_t i) { return double{x[i]}; }) / static_cast<double>(n);
    const double square = sum_of(n, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    const auto scale = static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(n) + eps));
    const auto shift = static_cast<float>(mean);
    for (int64_t i = 0; i < n; ++i) {
        y[i] = (x[i] - shift) * scale * weight[static_cast<size_t>(i)] + bias[static_cast<size_t>(i)];
    }
}

void rms_norm(const float* x, Vector weight, float eps, float* y) {
    const auto n = static_cast<int64_t>(weight.size());
    const double square = sum_of(n, [x](int64_t i) { return double{x[i]} * x[i]; });
    const auto scale = static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(n) + eps));
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale * weight[static_cast<size_t>(i)];
}

}  // namespace

#define MIMO_JOIN(a, b) a##b
#define MIMO_TABLE(isa) MIMO_JOIN(isa, _kernels)
#define MIMO_TEXT(isa) #isa
#define MIMO_NAME(isa) MIMO_TEXT(isa)

const Kernels& MIMO_TABLE(MIMO_ISA)() {
    static constexpr Kernels table = {MIMO_NAME(MIMO_ISA),     linear,     MIMO_ISA::round_inputs,
                                      MIMO_ISA::linear_packed, attention,  gelu,
                                      silu_multiply,           layer_norm, rms_norm};
    return table;
}

}  // namespace mimo
