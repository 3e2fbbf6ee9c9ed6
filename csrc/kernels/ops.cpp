#include "kernels/ops.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <deque>

namespace mimo {
namespace {

constexpr int64_t kInlineWork = 8192;  // multiply-adds below which waking the threads costs more than it saves

constexpr int64_t kBlocksAtOnce = 4;  // blocks of weight rows that the kernels take side by side for one input

constexpr int64_t kPointwiseGrain = 2048;  // values of an activation function that are worth a thread

// The grain for n items that each cost `work` multiply-adds.
int64_t grain_for(int64_t n, int64_t work) {
    return n * work < kInlineWork ? n : 1;
}

// Shows what layers take in, as "input:<name of the weight of the first of them>": calibration listens.
void tap_input(const Context& context, const float* x, int64_t rows, int64_t stride, const Matrix& w) {
    if (!w.name) return;
    std::vector<float> dense(static_cast<size_t>(rows * w.cols));
    for (int64_t i = 0; i < rows; ++i) std::copy_n(x + i * stride, w.cols, dense.data() + i * w.cols);
    context.tap(std::string("input:") + w.name, {rows, w.cols}, dense.data());
}

// One input as packed layers read it, and the memory that holds it.
class Rounded {
public:
    Rounded(const Context& context, const float* x, int64_t rows, int64_t stride, const Matrix& w)
        : rows_(rows),
          cols_((w.cols + kInputPadding - 1) / kInputPadding * kInputPadding),
          group_(input_group(w)),
          groups_((w.cols + group_ - 1) / group_),
          planes_(w.activation_bits / 8),
          // an odd number of cache lines: the rows of a tile do not push each other out
          stride_(((planes_ * cols_ + kLine - 1) / kLine | 1) * kLine),
          values_(static_cast<size_t>(rows * stride_)),
          scales_(static_cast<size_t>(rows * groups_)),
          sums_(static_cast<size_t>(rows * groups_)) {
        context.pool.run(rows, grain_for(rows, w.cols), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                context.kernels.round_inputs(x + i * stride, w.cols, group_, planes_, values_.data() + i * stride_,
                                             scales_.data() + i, sums_.data() + i, rows_);
            }
        });
    }

    bool serves(const Matrix& w) const { return group_ == input_group(w) && planes_ == w.activation_bits / 8; }

    RoundedInputs view() const {
        return {rows_, cols_, stride_, group_, groups_, planes_, values_.data(), scales_.data(), sums_.data()};
    }

private:
    int64_t rows_, cols_, group_, groups_;
    int planes_;
    int64_t stride_;
    Unfilled<int8_t> values_;
    Unfilled<float> scales_;
    Unfilled<int32_t> sums_;
};

void expect_inputs(const Linear& layer, int64_t cols) {
    if (cols == layer.weight.cols) return;
    throw ShapeError(message("linear: expected ", layer.weight.cols, " input channels, got ", cols));
}

std::vector<Array> linears(const Context& context, const float* x, int64_t rows, int64_t stride,
                           std::span<const Linear* const> layers) {
    struct Part {
        const Linear* layer;
        const Rounded* inputs;  // null: weights of floats
        int64_t first, blocks;  // of the output channels of all layers, 16 at a time
    };
    if (context.tap) tap_input(context, x, rows, stride, layers[0]->weight);
    std::deque<Rounded> rounded;
    std::vector<Part> parts;
    std::vector<Array> outs;
    int64_t blocks = 0, work = 0;
    for (const Linear* layer : layers) {
        const Matrix& w = layer->weight;
        if (w.packed() && (rounded.empty() || !rounded.back().serves(w)))
            rounded.emplace_back(context, x, rows, stride, w);
        parts.push_back(
            {layer, w.packed() ? &rounded.back() : nullptr, blocks, (w.rows + kBlockRows - 1) / kBlockRows});
        blocks += parts.back().blocks;
        work += rows * w.rows * w.cols;
        outs.push_back(Array::unfilled(rows, w.rows));
    }
    context.pool.run(blocks, work < kInlineWork ? blocks : kBlocksAtOnce, [&](int64_t begin, int64_t end) {
        for (size_t i = 0; i < parts.size(); ++i) {
            const auto& [layer, inputs, origin, count] = parts[i];
            const Matrix& w = layer->weight;
            const int64_t first = std::max<int64_t>(0, begin - origin) * kBlockRows;
            const int64_t last = std::min(w.rows, std::min(count, end - origin) * kBlockRows);
            if (first >= last) continue;
            const float* bias = layer->bias.empty() ? nullptr : layer->bias.data();
            float* y = outs[i].data.data();
            if (inputs) {
                context.kernels.linear_packed(inputs->view(), w, bias, first, last, y, w.rows);
            } else {
                context.kernels.linear(x, rows, stride, w, bias, first, last, y, w.rows);
            }
        }
    });
    return outs;
}

}  // namespace

Array linear(const Context& context, const float* x, int64_t rows, int64_t stride, const Linear& layer) {
    const Linear* one = &layer;
    return std::move(linears(context, x, rows, stride, {&one, 1})[0]);
}

Array linear(const Context& context, const Array& x, const Linear& layer) {
    expect_inputs(layer, x.cols);
    return linear(context, x.data.data(), x.rows, x.cols, layer);
}

std::vector<Array> linear(const Context& context, const Array& x, std::initializer_list<const Linear*> layers) {
    for (const Linear* layer : layers) expect_inputs(*layer, x.cols);
    return linears(context, x.data.data(), x.rows, x.cols, {layers.begin(), layers.size()});
}

Array layer_norm(const Context& context, const Array& x, const LayerNorm& norm) {
    Array y = Array::unfilled(x.rows, x.cols);
    context.pool.run(x.rows, grain_for(x.rows, x.cols), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            context.kernels.layer_norm(x.row(i), norm.weight, norm.bias, kLayerNormEps, y.row(i));
        }
    });
    return y;
}

Array rms_norm(const Context& context, const Array& x, Vector weight, float eps) {
    Array y = Array::unfilled(x.rows, x.cols);
    context.pool.run(x.rows, grain_for(x.rows, x.cols), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) context.kernels.rms_norm(x.row(i), weight, eps, y.row(i));
    });
    return y;
}

void gelu(const Context& context, Array& x) {
    context.pool.run(static_cast<int64_t>(x.data.size()), kPointwiseGrain,
                     [&](int64_t begin, int64_t end) { context.kernels.gelu(x.data.data() + begin, end - begin); });
}

void silu_multiply(const Context& context, Array& gate, const Array& up) {
    context.pool.run(static_cast<int64_t>(gate.data.size()), kPointwiseGrain, [&](int64_t begin, int64_t end) {
        context.kernels.silu_multiply(gate.data.data() + begin, up.data.data() + begin, end - begin);
    });
}

void add(const Context& context, Array& x, const Array& y) {
    context.pool.run(static_cast<int64_t>(x.data.size()), 8 * kPointwiseGrain, [&](int64_t begin, int64_t end) {
        for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) x.data[i] += y.data[i];
    });
}

void add_row(const Matrix& table, int64_t row, float* y) {
    if (table.packed()) {
        for (int64_t i = 0; i < table.cols; ++i) {
            const float value = static_cast<float>(packed_integer(table, row, i)) * packed_scale(table, row, i);
            y[i] += value;
        }
        return;
    }
    const int64_t first = row * table.cols;
    if (table.type == DType::f32) {
        const auto* values = static_cast<const float*>(table.data) + first;
        for (int64_t i = 0; i < table.cols; ++i) y[i] += values[i];
    } else {
        const auto* values = static_cast<const uint16_t*>(table.data) + first;
        for (int64_t i = 0; i < table.cols; ++i) y[i] += bfloat_to_float(values[i]);
    }
}

Rope::Rope(int64_t first, int64_t count, int64_t head_dim, double theta)
    : cosine(count, head_dim / 2), sine(count, head_dim / 2) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
        const float frequency = 1.0f / std::pow(static_cast<float>(theta), exponent);
        for (int64_t t = 0; t < count; ++t) {
            const float angle = frequency * static_cast<float>(first + t);
            cosine.row(t)[i] = std::cos(angle);
            sine.row(t)[i] = std::sin(angle);
        }
    }
}

void rotate(const Context& context, Array& x, const Rope& rope) {
    const int64_t half = rope.cosine.cols;
    context.pool.run(x.rows, grain_for(x.rows, x.cols), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const float* cosine = rope.cosine.row(t);
            const float* sine = rope.sine.row(t);
            for (float* head = x.row(t); head < x.row(t) + x.cols; head += 2 * half) {
                for (int64_t i = 0; i < half; ++i) {
                    const float a = head[i], b = head[half + i];
                    head[i] = a * cosine[i] - b * sine[i];
                    head[half + i] = b * cosine[i] + a * sine[i];
                }
            }
        }
    });
}

namespace {

// One head at one position: n floats, `from` apart, to stored elements `to` apart.
void put(const float* x, int64_t from, int64_t n, float* y, int64_t to, uint16_t*) {
    for (int64_t i = 0; i < n; ++i) y[i * to] = x[i * from];
}
void put(const float* x, int64_t from, int64_t n, uint16_t* y, int64_t to, uint16_t*) {
    for (int64_t i = 0; i < n; ++i) y[i * to] = float_to_half(x[i * from]);
}
// The scale has few enough bits that 127 of it are exact: floats made of the integers give the same integers and scale.
void put(const float* x, int64_t from, int64_t n, int8_t* y, int64_t to, uint16_t* scale) {
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i * from]));
    *scale = float_to_bfloat(largest / 127.0f);
    const float unit = bfloat_to_float(*scale), steps = unit >= FLT_MIN ? 1.0f / unit : 0.0f;
    for (int64_t i = 0; i < n; ++i) y[i * to] = static_cast<int8_t>(std::lrint(x[i * from] * steps));
}

// And back, as the kernels read it: n elements, `step` apart on both sides.
void get(const float* x, int64_t step, int64_t n, const uint16_t*, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i * step] = x[i * step];
}
void get(const uint16_t* x, int64_t step, int64_t n, const uint16_t*, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i * step] = half_to_float(x[i * step]);
}
void get(const int8_t* x, int64_t step, int64_t n, const uint16_t* scale, float* y) {
    const float unit = bfloat_to_float(*scale);
    for (int64_t i = 0; i < n; ++i) y[i * step] = static_cast<float>(x[i * step]) * unit;
}

}  // namespace

KeyValues::KeyValues(int64_t heads, int64_t head_dim, int64_t capacity, DType type)
    : heads_(heads), head_dim_(head_dim), capacity_((capacity + kLanes - 1) / kLanes * kLanes), type_(type) {
    size_t positions = 0, bytes = 0;
    if (capacity < 0 || __builtin_mul_overflow(heads_, std::max(capacity_, kLanes), &positions) ||
        __builtin_mul_overflow(positions, head_dim_ * bytes_of(type), &bytes)) {
        throw DeviceError(message("attention cache: expected room for a sensible number of positions, got ", capacity));
    }
    const size_t scales = type == DType::i8 ? positions * sizeof(uint16_t) : 1;
    keys_ = Zeros(bytes);
    values_ = Zeros(bytes);
    key_scales_ = Zeros(scales);
    value_scales_ = Zeros(scales);
    if (!keys_ || !values_ || !key_scales_ || !value_scales_) {
        throw DeviceError(message("attention cache: expected ", 2 * (bytes + scales),
                                  " bytes of memory, got none; use a smaller context"));
    }
}

template <typename Body>
void KeyValues::visit(int64_t head, Body body) const {
    const auto as = [&]<typename Element>(Element*) {
        const int64_t offset = head * capacity_ * head_dim_, scale = type_ == DType::i8 ? head * capacity_ : 0;
        body(Rows<Element>{keys_.as<Element>() + offset, values_.as<Element>() + offset,
                           key_scales_.as<uint16_t>() + scale, value_scales_.as<uint16_t>() + scale});
    };
    if (type_ == DType::f32) {
        as(static_cast<float*>(nullptr));
    } else if (type_ == DType::f16) {
        as(static_cast<uint16_t*>(nullptr));
    } else {
        as(static_cast<int8_t*>(nullptr));
    }
}

void KeyValues::write(const Context& context, int64_t first, const Array& k, const Array& v) {
    if (first + k.rows > capacity_) {
        throw ShapeError(message("attention cache: expected at most ", capacity_, " positions, got ", first + k.rows));
    }
    context.pool.run(heads_, grain_for(heads_, k.rows * head_dim_), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) {
            visit(h, [&](auto rows) {
                for (int64_t i = 0; i < k.rows; ++i) {
                    const int64_t t = first + i, at = h * head_dim_;
                    put(k.row(i) + at, 1, head_dim_, rows.keys + key_at(t), kLanes, rows.key_scales + t);
                    put(v.row(i) + at, 1, head_dim_, rows.values + t * head_dim_, 1, rows.value_scales + t);
                }
            });
        }
    });
}

void KeyValues::forget(int64_t count, int64_t written) {
    const int64_t kept = (written + kLanes - 1) / kLanes * kLanes - count;
    const auto move = [&](auto* rows, int64_t width) {
        std::memmove(rows, rows + count * width, static_cast<size_t>(kept * width) * sizeof(*rows));
    };
    for (int64_t h = 0; h < heads_; ++h) {
        visit(h, [&](auto rows) {
            move(rows.keys, head_dim_);
            move(rows.values, head_dim_);
            if (type_ == DType::i8) move(rows.key_scales, 1), move(rows.value_scales, 1);
        });
    }
}

int64_t KeyValues::saved_size(int64_t written) const {
    return 2 * heads_ * head_dim_ * ((written + kLanes - 1) / kLanes * kLanes);
}

void KeyValues::save(int64_t written, float* to) const {
    const int64_t head = saved_size(written) / heads_, positions = head / (2 * head_dim_);
    for (int64_t h = 0; h < heads_; ++h) {
        visit(h, [&](auto rows) {
            float *keys = to + h * head, *values = keys + positions * head_dim_;
            for (int64_t t = 0; t < positions; ++t) {
                const int64_t key = key_at(t), value = t * head_dim_;
                get(rows.keys + key, kLanes, head_dim_, rows.key_scales + t, keys + key);
                get(rows.values + value, 1, head_dim_, rows.value_scales + t, values + value);
            }
        });
    }
}

void KeyValues::load(int64_t written, const float* from) {
    const int64_t head = saved_size(written) / heads_, positions = head / (2 * head_dim_);
    for (int64_t h = 0; h < heads_; ++h) {
        visit(h, [&](auto rows) {
            const float *keys = from + h * head, *values = keys + positions * head_dim_;
            for (int64_t t = 0; t < positions; ++t) {
                const int64_t key = key_at(t), value = t * head_dim_;
                put(keys + key, kLanes, head_dim_, rows.keys + key, kLanes, rows.key_scales + t);
                put(values + value, 1, head_dim_, rows.values + value, 1, rows.value_scales + t);
            }
        });
    }
}

AttentionHead KeyValues::head(int64_t index) const {
    AttentionHead view = {};
    view.type = type_;
    view.head_dim = head_dim_;
    view.scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
    visit(index, [&](auto rows) {
        view.keys = rows.keys;
        view.values = rows.values;
        view.key_scales = rows.key_scales;
        view.value_scales = rows.value_scales;
    });
    return view;
}

Array attention(const Context& context, const Array& q, const KeyValues& cache, const std::vector<KeyRange>& ranges) {
    constexpr int64_t kQueries = 32;  // queries of one task: enough to share the keys, few enough to balance
    const int64_t head_dim = cache.head_dim();
    const int64_t heads = q.cols / head_dim;
    int64_t keys = 0;
    for (const KeyRange& range : ranges) keys = std::max(keys, range.end);
    Array out = Array::unfilled(q.rows, q.cols);
    const auto scratch_size = static_cast<size_t>(8 * (keys + 2 * kLanes));
    if (q.rows == 1) {  // the heads that share keys are the queries of one call, and the keys are read once
        const int64_t sharing = heads / cache.heads();
        const std::vector<KeyRange> same(static_cast<size_t>(sharing), ranges[0]);
        context.pool.run(cache.heads(), grain_for(cache.heads(), sharing * keys * head_dim),
                         [&](int64_t begin, int64_t end) {
                             std::vector<float> scratch(scratch_size);
                             for (int64_t h = begin; h < end; ++h) {
                                 const int64_t first = h * sharing * head_dim;
                                 context.kernels.attention(cache.head(h), q.row(0) + first, sharing, same.data(),
                                                           out.row(0) + first, head_dim, scratch.data());
                             }
                         });
        return out;
    }
    const int64_t blocks = (q.rows + kQueries - 1) / kQueries;
    const int64_t tasks = heads * blocks;
    context.pool.run(tasks, grain_for(tasks, std::min(kQueries, q.rows) * keys * head_dim),
                     [&](int64_t begin, int64_t end) {
                         std::vector<float> scratch(scratch_size);
                         for (int64_t task = begin; task < end; ++task) {
                             const int64_t h = task / blocks;
                             const int64_t first = task % blocks * kQueries;
                             const int64_t count = std::min(kQueries, q.rows - first);
                             const AttentionHead head = cache.head(h * cache.heads() / heads);
                             context.kernels.attention(head, q.row(first) + h * head_dim, count, ranges.data() + first,
                                                       out.row(first) + h * head_dim, q.cols, scratch.data());
                         }
                     });
    return out;
}

}  // namespace mimo
