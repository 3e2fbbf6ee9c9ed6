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

Layers::Layers(const LayersConfig& config, const Weights& weights) : config_(config) {
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
}

std::optional<Array> Layers::run(const Context& context, Array& x, const std::string& name,
                                 std::optional<int64_t> keep) const {
    const int64_t n = x.rows, right = config_.causal ? 0 : config_.right;
    std::vector<KeyRange> ranges;
    for (int64_t i = 0; i < n; ++i) {
        ranges.push_back({config_.left < 0 ? 0 : std::max<int64_t>(0, i - config_.left),
                          right < 0 ? n : std::min(n, i + right + 1)});
    }
    const Rope rope(0, n, config_.dim / config_.heads, config_.rope_theta);
    if (context.tap) {
        context.tap(name + ".rope_cos", both_halves(rope.cosine));
        context.tap(name + ".rope_sin", both_halves(rope.sine));
    }
    KeyValues cache(config_.heads, config_.dim / config_.heads, n);
    std::optional<Array> kept;
    for (size_t i = 0; i < layers_.size(); ++i) {
        attend(context, layers_[i], rope, ranges, cache, x);
        feed_forward(context, layers_[i], x);
        if (keep == static_cast<int64_t>(i) + 1) kept = x;
        if (context.tap) context.tap(name + ".layer" + std::to_string(i), x);
    }
    return kept;
}

void Layers::attend(const Context& context, const Layer& layer, const Rope& rope, const std::vector<KeyRange>& ranges,
                    KeyValues& cache, Array& x) const {
    const Array normed = layer_norm(context, x, layer.attention_norm);
    Array q = linear(context, normed, layer.q);
    Array k = linear(context, normed, layer.k);
    rotate(context, q, rope);
    rotate(context, k, rope);
    cache.write(context, 0, k, linear(context, normed, layer.v));
    add(x, linear(context, attention(context, q, cache, ranges), layer.out));
}

void Layers::feed_forward(const Context& context, const Layer& layer, Array& x) {
    Array inner = linear(context, layer_norm(context, x, layer.ffn_norm), layer.up);
    gelu(context, inner);
    add(x, linear(context, inner, layer.down));
}

}  // namespace mimo
