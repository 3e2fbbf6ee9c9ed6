// The codec's transformer layers, shared by encoder, decoder and vocoder: pre-norm LayerNorm, RoPE on q and k, exact
// GELU; q, v and out projections have a bias, k has none. Upstream: modeling_audio_tokenizer.py TransformerLayer.
#pragma once

#include <functional>
#include <memory>
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
    DType cache = DType::f32;  // what keys and values of a sequence in parts are kept as
};

LayerNorm read_layer_norm(const Weights& weights, const std::string& name, int64_t dim);

class Layers;

// The layers of one sequence on a device, with the keys and values that it keeps there.
class DeviceLayers {
public:
    virtual ~DeviceLayers() = default;

    // x [n, dim] in place: positions first, first + 1, ..., of which row i sees the positions seen[i]. rope: of these
    // rows. after: if any, is called when x is the output of each layer.
    virtual void run(Array& x, const Rope& rope, const std::vector<KeyRange>& seen, int64_t first,
                     const std::function<void(int64_t layer)>& after) = 0;
};

// Where layers can be computed besides here (cuda/codec_layers.h).
class LayersDevice {
public:
    virtual ~LayersDevice() = default;

    // capacity: positions whose keys are kept; rows: of one run at most; keeps: false if each run is a whole sequence.
    using Open = std::function<std::unique_ptr<DeviceLayers>(int64_t capacity, int64_t rows, bool keeps)>;
    virtual Open load(const Layers& layers) const = 0;  // copies the weights
};

// What the layers remember of a sequence that is given in parts: the keys and values of its last positions.
struct LayersMemory {
    std::unique_ptr<DeviceLayers> device;  // has them, if any
    std::vector<KeyValues> layers;
    int64_t left;         // positions that a query sees behind it at most; -1: all
    int64_t first = 0;    // position of the first key held, a multiple of kLanes
    int64_t settled = 0;  // positions whose keys and values are final
};

class Layers {
public:
    struct Layer {
        LayerNorm attention_norm, ffn_norm;
        Linear q, k, v, out, up, down;
    };

    // weights hold "layers.0.self_attn.q_proj.weight", ...; device: computes the layers, if any.
    Layers(const LayersConfig& config, const Weights& weights, const LayersDevice* device = nullptr);

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
    const std::vector<Layer>& layers() const { return layers_; }

private:
    // The keys that n queries from position `first` on see, of keys up to position `end`.
    std::vector<KeyRange> ranges(int64_t first, int64_t n, int64_t left, int64_t end) const;
    void attend(const Context& context, const Layer& layer, const Rope& rope, const std::vector<KeyRange>& ranges,
                int64_t slot, KeyValues& cache, Array& x) const;
    static void feed_forward(const Context& context, const Layer& layer, Array& x);

    LayersConfig config_;
    std::vector<Layer> layers_;
    LayersDevice::Open open_;  // empty: here
};

}  // namespace mimo
