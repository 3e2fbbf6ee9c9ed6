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

// What the layers remember of a sequence that is given in parts: the keys and values of its last positions.
struct LayersMemory {
    std::vector<KeyValues> layers;
    int64_t left;         // positions that a query sees behind it at most; -1: all
    int64_t first = 0;    // position of the first key held, a multiple of kLanes
    int64_t settled = 0;  // positions whose keys and values are final
};

class Layers {
public:
    Layers(const LayersConfig& config, const Weights& weights);  // weights hold "0.self_attn.q_proj.weight", ...

    // x [n, dim] of one sequence, positions 0..n-1, changed in place. The tap sees "<name>.layer<i>".
    // Returns the output of layer `keep` (1-based), or nothing.
    std::optional<Array> run(const Context& context, Array& x, const std::string& name,
                             std::optional<int64_t> keep = {}) const;

    // Room for a sequence of any length given in parts of at most `rows`, each position seeing the `left` before it
    // (fewer if the config says so).
    LayersMemory memory(int64_t left, int64_t rows) const;

    // x [n, dim]: positions memory.settled.., changed in place as if the sequence ended with them. The first `settled`
    // of them are final and remembered; the others, which future positions may still change, will be given again.
    // Throws ShapeError if n is more than the memory has room for.
    void append(const Context& context, Array& x, int64_t settled, LayersMemory& memory) const;

    const LayersConfig& config() const { return config_; }

private:
    struct Layer {
        LayerNorm attention_norm, ffn_norm;
        Linear q, k, v, out, up, down;
    };

    // The keys that n queries from position `first` on see, of keys up to position `end`.
    std::vector<KeyRange> ranges(int64_t first, int64_t n, int64_t left, int64_t end) const;
    void attend(const Context& context, const Layer& layer, const Rope& rope, const std::vector<KeyRange>& ranges,
                int64_t slot, KeyValues& cache, Array& x) const;
    static void feed_forward(const Context& context, const Layer& layer, Array& x);

    LayersConfig config_;
    std::vector<Layer> layers_;
};

}  // namespace mimo
