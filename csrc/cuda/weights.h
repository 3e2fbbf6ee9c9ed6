// The language model's weights on a device, in one allocation: immutable, shared by all conversations.
#pragma once

#include <functional>

#include "cuda/arena.h"
#include "cuda/pack.h"
#include "lm/qwen2.h"

namespace mimo::gpu {

// Where weights come from, by their names in a bundle: a bundle, or a benchmark that makes them up.
struct Tensors {
    std::function<Matrix(const std::string& name, int64_t rows, int64_t cols)> matrix;
    std::function<Vector(const std::string& name, int64_t size)> vector;

    explicit Tensors(const Weights& weights);
    Tensors() = default;
};

// A linear layer, or a third of one: queries, keys and values are one matrix if they are of one kind, else three.
struct QkvPart {
    SlabMatrix w;
    const float* bias;
    int32_t first_tile;
    int32_t unit_tiles;  // LinearJob::unit_tiles
};

struct LayerWeights {
    std::vector<QkvPart> qkv;
    SlabMatrix o, gate_up, down;
    const float* attention_norm;
    const float* ffn_norm;
};

struct StackWeights {
    Qwen2Config config;
    Heads heads;
    std::vector<LayerWeights> layers;
    const float* norm;
};

class LmWeights {
public:
    // On the current device. Throws DeviceError if it has too little memory, BundleError if a tensor is missing.
    LmWeights(const Config& config, const Tensors& tensors, const Pool& pool);

    int64_t bytes() const { return arena_.bytes(); }

    StackWeights backbone, encoder, decoder;
    SlabMatrix text;                   // [vocab_size, hidden_size]
    SlabMatrix text_head;              // likewise
    SlabMatrix encoder_down;           // [hidden_size, G * input_local_dim]
    SlabMatrix enter;                  // [local_dim, hidden_size]
    SlabMatrix heads;                  // of all levels, each from a tile of its own
    std::vector<float> backbone_norm;  // backbone.norm, on the host
    bool widen;
    SlabMatrix to_local;  // [local_dim, input_local_dim], only if the widths differ
    Levels levels;
    std::vector<int32_t> first_of_level;  // levels.first, on the host

private:
    struct Loader;

    Arena arena_;
};

}  // namespace mimo::gpu
