// The codec's transformer layers, shared by encoder, decoder and vocoder: pre-norm LayerNorm, RoPE on q and k, exact
// GELU; q, v and out projections have a bias, k has none. Upstream: modeling_audio_tokenizer.py TransformerLayer.
#pragma once

#include <optional>
#include <string>

#include "io/bundle.h"
#include "kernels/ops.h"

namespace mimo {

struct LayersConfig {
    int64_t count, dim, heads, ffn_dim;
    bool causal;
    int64_t left, right;  // a position sees [i - left, i + right]; -1: unlimited
    double rope_theta;
};

LayerNorm read_layer_norm(const Weights& weights, const std::string& name, int64_t dim);

class Layers {
public:
    Layers(const LayersConfig& config, const Weights& weights);  // weights hold "0.self_attn.q_proj.weight", ...

    // x [n, dim] of one sequence, positions 0..n-1, changed in place. The tap sees "<name>.layer<i>".
    // Returns the output of layer `keep` (1-based), or nothing.
    std::optional<Array> run(const Context& context, Array& x, const std::string& name,
                             std::optional<int64_t> keep = {}) const;

private:
    struct Layer {
        LayerNorm attention_norm, ffn_norm;
        Linear q, k, v, out, up, down;
    };

    void attend(const Context& context, const Layer& layer, const Rope& rope, const std::vector<KeyRange>& ranges,
                KeyValues& cache, Array& x) const;
    static void feed_forward(const Context& context, const Layer& layer, Array& x);

    LayersConfig config_;
    std::vector<Layer> layers_;
};

}  // namespace mimo
