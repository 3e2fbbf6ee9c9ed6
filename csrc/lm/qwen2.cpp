#include "lm/qwen2.h"

namespace mimo {

Qwen2Config backbone_config(const LmConfig& lm) {
    return {.name = "backbone",
            .layers = lm.num_hidden_layers,
            .hidden = lm.hidden_size,
            .heads = lm.num_attention_heads,
            .kv_heads = lm.num_key_value_heads,
            .head_dim = lm.head_dim,
            .ffn = lm.intermediate_size,
            .rope_theta = lm.rope_theta,
            .eps = static_cast<float>(lm.rms_norm_eps)};
}

namespace {

// The local stacks share the backbone's RoPE base and norm epsilon; every head has its own keys.
Qwen2Config local_config(const LmConfig& lm, const char* name, int64_t layers, int64_t dim, int64_t ffn) {
    return {.name = name,
            .layers = layers,
            .hidden = dim,
            .heads = lm.local_attn_heads,
            .kv_heads = lm.local_attn_heads,
            .head_dim = dim / lm.local_attn_heads,
            .ffn = ffn,
            .rope_theta = lm.rope_theta,
            .eps = static_cast<float>(lm.rms_norm_eps)};
}

}  // namespace

Qwen2Config patch_encoder_config(const LmConfig& lm) {
    return local_config(lm, "patch_encoder", lm.input_local_layers, lm.input_local_dim, 4 * lm.input_local_dim);
}

Qwen2Config patch_decoder_config(const LmConfig& lm) {
    return local_config(lm, "patch_decoder", lm.local_layers, lm.local_dim, lm.local_ffn_dim);
}

KvCache::KvCache(const Qwen2Config& config, int64_t capacity, DType type) {
    for (int64_t i = 0; i < config.layers; ++i) layers.emplace_back(config.kv_heads, config.head_dim, capacity, type);
}

Qwen2::Qwen2(const Qwen2Config& config, const Weights& weights)
    : config_(config), norm_(weights.vector("norm.weight", config.hidden)) {
    const int64_t hidden = config.hidden, q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
    for (int64_t i = 0; i < config.layers; ++i) {
        const Weights w = weights.under("layers", i);
        const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
            return w.matrix(name + ".weight", {out, in});
        };
        const auto biased = [&](const std::string& name, int64_t out) {
            return Linear{linear(name, out, hidden), w.vector(name + ".bias", out)};
        };
        layers_.push_back({.attention_norm = w.vector("input_layernorm.weight", hidden),
                           .ffn_norm = w.vector("post_attention_layernorm.weight", hidden),
                           .q = biased("self_attn.q_proj", q),
                           .k = biased("self_attn.k_proj", kv),
                           .v = biased("self_attn.v_proj", kv),
                           .o = {linear("self_attn.o_proj", hidden, q), {}},
                           .gate = {linear("mlp.gate_proj", config.ffn, hidden), {}},
                           .up = {linear("mlp.up_proj", config.ffn, hidden), {}},
                           .down = {linear("mlp.down_proj", hidden, config.ffn), {}}});
    }
}

Qwen2::Qkv Qwen2::project(const Context& context, const Layer& layer, const Array& x, const Rope& rope) const {
    const Array normed = rms_norm(context, x, layer.attention_norm, config_.eps);
    std::vector<Array> out = linear(context, normed, {&layer.q, &layer.k, &layer.v});
    rotate(context, out[0], rope);
    rotate(context, out[1], rope);
    return {.q = std::move(out[0]), .k = std::move(out[1]), .v = std::move(out[2])};
}

void Qwen2::finish(const Context& context, size_t index, const Array& attended, Array& x) const {
    const Layer& layer = layers_[index];
    add(context, x, linear(context, attended, layer.o));
    const Array normed = rms_norm(context, x, layer.ffn_norm, config_.eps);
    std::vector<Array> inner = linear(context, normed, {&layer.gate, &layer.up});
    silu_multiply(context, inner[0], inner[1]);
    add(context, x, linear(context, inner[0], layer.down));
    if (context.tap) context.tap(config_.name + ".layer" + std::to_string(index), x);
}

Array Qwen2::append(const Context& context, Array x, KvCache& cache) const {
    const Rope rope(cache.length, x.rows, config_.head_dim, config_.rope_theta);
    std::vector<KeyRange> ranges;
    for (int64_t i = 0; i < x.rows; ++i) ranges.push_back({0, cache.length + i + 1});
    for (size_t i = 0; i < layers_.size(); ++i) {
        const auto [q, k, v] = project(context, layers_[i], x, rope);
        cache.layers[i].write(context, cache.length, k, v);
        finish(context, i, attention(context, q, cache.layers[i], ranges), x);
    }
    cache.length += x.rows;
    return rms_norm(context, x, norm_, config_.eps);
}

Array Qwen2::blocks(const Context& context, Array x, int64_t block, bool bidirectional) const {
    // All blocks lie in one cache, one after another; a position's range is its own block. Positions restart in each.
    Rope rope(0, x.rows, config_.head_dim, config_.rope_theta);
    std::vector<KeyRange> ranges;
    for (int64_t i = 0; i < x.rows; ++i) {
        const int64_t first = i / block * block;
        ranges.push_back({first, bidirectional ? first + block : i + 1});
        if (first == 0) continue;
        std::copy_n(rope.cosine.row(i - first), rope.cosine.cols, rope.cosine.row(i));
        std::copy_n(rope.sine.row(i - first), rope.sine.cols, rope.sine.row(i));
    }
    KeyValues cache(config_.kv_heads, config_.head_dim, x.rows);
    for (size_t i = 0; i < layers_.size(); ++i) {
        const auto [q, k, v] = project(context, layers_[i], x, rope);
        cache.write(context, 0, k, v);
        finish(context, i, attention(context, q, cache, ranges), x);
    }
    return rms_norm(context, x, norm_, config_.eps);
}

}  // namespace mimo
