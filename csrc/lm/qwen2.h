// A Qwen2 decoder stack: RMSNorm, grouped-query attention with q/k/v bias and RoPE, SiLU-gated feed-forward. The
// backbone, the patch encoder and the patch decoder are three of these. Upstream: transformers modeling_qwen2.py
// Qwen2Model.
#pragma once

#include <string>
#include <vector>

#include "io/bundle.h"
#include "kernels/ops.h"

namespace mimo {

struct Qwen2Config {
    std::string name;  // of its taps: "<name>.layer<i>"
    int64_t layers, hidden, heads, kv_heads, head_dim, ffn;
    double rope_theta;
    float eps;
};

Qwen2Config backbone_config(const LmConfig& lm);
Qwen2Config patch_encoder_config(const LmConfig& lm);  // its FFN is 4 * input_local_dim, whatever local_ffn_dim says
Qwen2Config patch_decoder_config(const LmConfig& lm);

// What a stack remembers of a sequence: keys and values of every layer, a fixed capacity and a length.
struct KvCache {
    std::vector<KeyValues> layers;
    int64_t length = 0;

    KvCache(const Qwen2Config& config, int64_t capacity, DType type = DType::f32);  // f32 or f16
};

class Qwen2 {
public:
    Qwen2(const Qwen2Config& config, const Weights& weights);  // weights hold "layers.0...", "norm.weight"

    const Qwen2Config& config() const { return config_; }

    // x [n, hidden]: the next n positions of the cached sequence, which see themselves and all before. -> [n, hidden]
    // after the final norm; the cache grows by n. Throws ShapeError if it is full.
    Array append(const Context& context, Array x, KvCache& cache) const;

    // x [n * block, hidden]: independent sequences of `block` positions. bidirectional: each position sees its whole
    // block.
    Array blocks(const Context& context, Array x, int64_t block, bool bidirectional) const;

private:
    struct Layer {
        Vector attention_norm, ffn_norm;
        Linear q, k, v, o, gate, up, down;
    };

    // The rotated queries, keys and the values of the normed input.
    struct Qkv {
        Array q, k, v;
    };
    Qkv project(const Context& context, const Layer& layer, const Array& x, const Rope& rope) const;
    // x after layer `index`, given its attention.
    void finish(const Context& context, size_t index, const Array& attended, Array& x) const;

    Qwen2Config config_;
    std::vector<Layer> layers_;
    Vector norm_;
};

}  // namespace mimo
