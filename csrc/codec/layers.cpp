#include "codec/layers.h"

#include <algorithm>

namespace mimo {

namespace {

// [n, head_dim / 2] -> [n, head_dim], the table as upstream keeps it.
Array both_halves(const Array& table) {
    Array out(table.rows, 2 * table.cols);
    for (int64_t t = 0; t < table.rows; ++t) {
        std::copy_n(table.row(t), table.cols, out.row(t));
        std::copy_n(table.row(t), table.cols, out.row(t) + table.cols);
    }
    return out;
}

}  // namespace

LayerNorm read_layer_norm(const Weights& weights, const std::string& name, int64_t dim) {
    const Weights w = weights.under(name);
    return {.weight = w.vector("weight", dim), .bias = w.vector("bias", dim)};
}

Layers::Layers(const LayersConfig& config, const Weights& weights, const LayersDevice* device) : config_(config) {
    const int64_t dim = config.dim, ffn = config.ffn_dim;
    for (int64_t i = 0; i < config.count; ++i) {
        const Weights w = weights.under("layers", i);
        const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
            return Linear{w.matrix(name + ".weight", {out, in}), w.vector(name + ".bias", out)};
        };
        layers_.push_back({.attention_norm = read_layer_norm(w, "self_attn_layer_norm", dim),
                           .ffn_norm = read_layer_norm(w, "final_layer_norm", dim),
                           .q = linear("self_attn.q_proj", dim, dim),
                           .k = {w.matrix("self_attn.k_proj.weight", {dim, dim}), {}},
                           .v = linear("self_attn.v_proj", dim, dim),
                           .out = linear("self_attn.out_proj", dim, dim),
                           .up = linear("fc1", ffn, dim),
                           .down = linear("fc2", dim, ffn)});
    }
    if (device) open_ = device->load(*this);
}

std::optional<Array> Layers::run(const Context& context, Array& x, const std::string& name,
                                 std::optional<int64_t> keep) const {
    const int64_t n = x.rows;
    const auto keys = ranges(0, n, config_.left, n);
    const Rope rope(0, n, config_.dim / config_.heads, config_.rope_theta);
    if (context.tap) {
        context.tap(name + ".rope_cos", both_halves(rope.cosine));
        context.tap(name + ".rope_sin", both_halves(rope.sine));
    }
    std::optional<Array> kept;
    const auto after = [&](int64_t layer) {
        if (keep == layer + 1) kept = x;
        if (context.tap) context.tap(name + ".layer" + std::to_string(layer), x);
    };
    if (open_) {
        open_(n, n, false)->run(x, rope, keys, 0, keep || context.tap ? after : std::function<void(int64_t)>());
        return kept;
    }
    KeyValues cache(config_.heads, config_.dim / config_.heads, n);
    for (size_t i = 0; i < layers_.size(); ++i) {
        attend(context, layers_[i], rope, keys, 0, cache, x);
        feed_forward(context, layers_[i], x);
        after(static_cast<int64_t>(i));
    }
    return kept;
}

std::vector<KeyRange> Layers::ranges(int64_t first, int64_t n, int64_t left, int64_t end) const {
    const int64_t right = config_.causal ? 0 : config_.right;
    std::vector<KeyRange> out;
    for (int64_t i = first; i < first + n; ++i) {
        out.push_back({left < 0 ? 0 : std::max<int64_t>(0, i - left), right < 0 ? end : std::min(end, i + right + 1)});
    }
    return out;
}

LayersMemory Layers::memory(int64_t left, int64_t rows) const {
    if (config_.left >= 0) left = std::min(left, config_.left);
    LayersMemory memory = {.device = open_ ? open_(left + rows, rows, true) : nullptr, .layers = {}, .left = left};
    if (open_) return memory;
    // Old keys are dropped kLanes or more at a time, and only when the room ends: a quarter more makes that rare.
    const int64_t capacity = left + left / 4 + rows + 2 * kLanes;
    for (int64_t i = 0; i < config_.count; ++i)
        memory.layers.emplace_back(config_.heads, config_.dim / config_.heads, capacity, config_.cache);
    return memory;
}

void Layers::append(const Context& context, Array& x, int64_t settled, LayersMemory& memory) const {
    const int64_t begin = memory.settled, end = begin + x.rows;
    if (!memory.layers.empty() && end - memory.first > memory.layers[0].capacity()) {
        const int64_t dropped = std::max<int64_t>(0, begin - memory.left - memory.first) / kLanes * kLanes;
        for (KeyValues& cache : memory.layers) cache.forget(dropped, begin - memory.first);
        memory.first += dropped;
    }
    std::vector<KeyRange> keys = ranges(begin, x.rows, memory.left, end);
    const Rope rope(begin, x.rows, config_.dim / config_.heads, config_.rope_theta);
    if (memory.device) {
        memory.device->run(x, rope, keys, begin, {});
        memory.settled += settled;
        return;
    }
    for (KeyRange& range : keys) range = {range.begin - memory.first, range.end - memory.first};
    for (size_t i = 0; i < layers_.size(); ++i) {
        attend(context, layers_[i], rope, keys, begin - memory.first, memory.layers[i], x);
        feed_forward(context, layers_[i], x);
    }
    memory.settled += settled;
}

void Layers::attend(const Context& context, const Layer& layer, const Rope& rope, const std::vector<KeyRange>& ranges,
                    int64_t slot, KeyValues& cache, Array& x) const {
    const Array normed = layer_norm(context, x, layer.attention_norm);
    std::vector<Array> qkv = linear(context, normed, {&layer.q, &layer.k, &layer.v});
    rotate(context, qkv[0], rope);
    rotate(context, qkv[1], rope);
    cache.write(context, slot, qkv[1], qkv[2]);
    add(context, x, linear(context, attention(context, qkv[0], cache, ranges), layer.out));
}

void Layers::feed_forward(const Context& context, const Layer& layer, Array& x) {
    Array inner = linear(context, layer_norm(context, x, layer.ffn_norm), layer.up);
    gelu(context, inner);
    add(context, x, linear(context, inner, layer.down));
}

}  // namespace mimo
