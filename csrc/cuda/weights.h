// The language model's weights on a device, in one allocation: immutable, shared by all conversations.
#pragma once

#include <array>
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

// Biases are null where a model has none. Qwen2: RMSNorm, `up` is gate_proj and up_proj woven together; the codec:
// LayerNorm, fc1 and GELU.
struct LayerWeights {
    std::vector<QkvPart> qkv;
    SlabMatrix o, up, down;
    const float *o_bias, *up_bias, *down_bias;
    const float *attention_norm, *attention_norm_bias;
    const float *ffn_norm, *ffn_norm_bias;
};

struct StackWeights {
    int64_t hidden, ffn;
    float eps;
    Finish up;  // gate or gelu
    Heads heads;
    std::vector<LayerWeights> layers;
    const float* norm;
};

// Host weights -> an arena. Goes twice over the same tensors: to count, then, when the arena has memory, to copy.
class WeightLoader {
public:
    WeightLoader(Arena& arena, const Pool& pool) : arena_(arena), pool_(pool) {}

    template <typename T>
    const T* put(std::span<const T> values) {
        T* to = arena_.take<T>(std::ssize(values));
        if (!arena_.counting()) copy(to, values.data(), static_cast<int64_t>(values.size_bytes()));
        return to;
    }
    SlabMatrix put(std::span<const Matrix> sources, std::span<const SourceRow> order, int64_t rows);
    SlabMatrix put(const Matrix& source) { return put({&source, 1}, rows_in_order(source.rows), source.rows); }

    // short_cache: what belongs to a key head lies together (LinearJob::unit_tiles).
    std::vector<QkvPart> put_qkv(const std::array<Matrix, 3>& sources, const std::array<Vector, 3>& biases,
                                 const Heads& heads, bool short_cache);

private:
    void copy(void* to, const void* from, int64_t bytes);

    Arena& arena_;
    const Pool& pool_;
    Stream stream_;
    std::vector<uint8_t> data_, scales_;
};

// Sizes of heads, without angles.
Heads heads_of(int64_t heads, int64_t kv_heads, int64_t head_dim);

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
    Arena arena_;
};

}  // namespace mimo::gpu
