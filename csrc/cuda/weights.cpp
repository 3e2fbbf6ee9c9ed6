#include "cuda/weights.h"

#include <algorithm>

namespace mimo::gpu {
namespace {

// cos and sin of positions 0, 1, ...
Rope rope_of(const Qwen2Config& config, int64_t positions) {
    return Rope(0, positions, config.head_dim, config.rope_theta);
}

bool alike(const Matrix& a, const Matrix& b) {
    return a.type == b.type && a.activation_bits == b.activation_bits && (a.type != DType::i4 || a.group == b.group);
}

}  // namespace

Tensors::Tensors(const Weights& weights)
    : matrix([weights](const std::string& name, int64_t rows, int64_t cols) {
          return weights.matrix(name, {rows, cols});
      }),
      vector([weights](const std::string& name, int64_t size) { return weights.vector(name, size); }) {}

// Runs twice over the same tensors: to count, then to copy.
struct LmWeights::Loader {
    Arena& arena;
    const Pool& pool;
    const Tensors& tensors;
    Stream stream = {};
    std::vector<uint8_t> data = {}, scales = {};

    template <typename T>
    const T* put(std::span<const T> values) {
        T* to = arena.take<T>(std::ssize(values));
        if (!arena.counting()) copy(to, values.data(), static_cast<int64_t>(values.size_bytes()));
        return to;
    }

    SlabMatrix put(std::span<const Matrix> sources, std::span<const SourceRow> order, int64_t rows) {
        SlabMatrix w = slab_shape(sources, rows);
        auto* to = arena.take<uint8_t>(data_bytes(w));
        auto* to_scales = arena.take<uint8_t>(scale_bytes(w));
        if (!arena.counting()) {
            data.resize(static_cast<size_t>(data_bytes(w)));
            scales.resize(static_cast<size_t>(scale_bytes(w)));
            pack_slabs(pool, sources, order, w, data.data(), scales.data());
            copy(to, data.data(), data_bytes(w));
            copy(to_scales, scales.data(), scale_bytes(w));
        }
        w.data = to;
        w.scales = to_scales;
        return w;
    }

    SlabMatrix put(const Matrix& source) { return put({&source, 1}, rows_in_order(source.rows), source.rows); }

    StackWeights stack(const Qwen2Config& config, const std::string& prefix, int64_t positions);
    LayerWeights layer(const Qwen2Config& config, const std::string& prefix, bool short_cache);

    void copy(void* to, const void* from, int64_t bytes) {
        stream.copy_in(to, from, bytes);
        stream.wait();
    }
};

LayerWeights LmWeights::Loader::layer(const Qwen2Config& config, const std::string& prefix, bool short_cache) {
    const int64_t hidden = config.hidden, dim = config.head_dim;
    const auto matrix = [&](const char* name, int64_t out, int64_t in) {
        return tensors.matrix(prefix + name + ".weight", out, in);
    };
    const auto vector = [&](const std::string& name, int64_t size) { return tensors.vector(prefix + name, size); };
    LayerWeights layer = {};
    layer.attention_norm = put(vector("input_layernorm.weight", hidden));
    layer.ffn_norm = put(vector("post_attention_layernorm.weight", hidden));

    const int64_t counts[] = {config.heads, config.kv_heads, config.kv_heads};
    const char* const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    std::vector<Matrix> sources;
    std::vector<Vector> biases;
    std::vector<SourceRow> orders[3];
    for (int i = 0; i < 3; ++i) {
        sources.push_back(matrix(names[i], counts[i] * dim, hidden));
        biases.push_back(vector(std::string(names[i]) + ".bias", counts[i] * dim));
        orders[i] = i < 2 ? rows_of_rotated_heads(counts[i], dim, i) : rows_of_heads(counts[i], dim, i);
    }
    const bool woven = alike(sources[0], sources[1]) && alike(sources[0], sources[2]);
    int32_t unit_tiles = 0;
    if (woven && short_cache) {
        std::vector<SourceRow> units;
        for (int64_t unit = 0; unit < config.kv_heads; ++unit) {
            for (const auto& order : orders) {
                const auto rows = std::ssize(order) / config.kv_heads;
                units.insert(units.end(), order.begin() + unit * rows, order.begin() + (unit + 1) * rows);
            }
        }
        unit_tiles = static_cast<int32_t>(std::ssize(units) / config.kv_heads / kTileRows);
        orders[0] = std::move(units);
    } else if (woven) {
        for (int i = 1; i < 3; ++i) orders[0].insert(orders[0].end(), orders[i].begin(), orders[i].end());
    }
    int32_t first_tile = 0;
    for (int i = 0; i < (woven ? 1 : 3); ++i) {
        if (!woven) {
            for (SourceRow& row : orders[i]) row.source = 0;
        }
        const auto from = static_cast<size_t>(i);
        const std::span<const Matrix> matrices =
            woven ? std::span<const Matrix>(sources) : std::span(&sources[from], 1);
        const std::span<const Vector> vectors = woven ? std::span<const Vector>(biases) : std::span(&biases[from], 1);
        const std::vector<float> bias = in_order(vectors, orders[i]);
        const SlabMatrix packed = put(matrices, orders[i], std::ssize(orders[i]));
        layer.qkv.push_back({packed, put(std::span<const float>(bias)), first_tile, unit_tiles});
        first_tile += packed.tiles;
    }

    layer.o = put(matrix("self_attn.o_proj", hidden, config.heads * dim));
    const Matrix gate_and_up[] = {matrix("mlp.gate_proj", config.ffn, hidden),
                                  matrix("mlp.up_proj", config.ffn, hidden)};
    const std::vector<SourceRow> order = rows_of_gate_and_up(config.ffn);
    layer.gate_up = put(gate_and_up, order, 2 * config.ffn);
    layer.down = put(matrix("mlp.down_proj", hidden, config.ffn));
    return layer;
}

StackWeights LmWeights::Loader::stack(const Qwen2Config& config, const std::string& prefix, int64_t positions) {
    const Rope rope = rope_of(config, positions);
    StackWeights stack = {.config = config, .heads = {}, .layers = {}, .norm = nullptr};
    stack.heads = {.heads = static_cast<int32_t>(config.heads),
                   .kv_heads = static_cast<int32_t>(config.kv_heads),
                   .head_dim = static_cast<int32_t>(config.head_dim),
                   .pair_tiles = static_cast<int32_t>((config.head_dim / 2 + kHalfTile - 1) / kHalfTile),
                   .value_tiles = static_cast<int32_t>((config.head_dim + kTileRows - 1) / kTileRows),
                   .cosine = put(std::span<const float>(rope.cosine.data)),
                   .sine = put(std::span<const float>(rope.sine.data))};
    for (int64_t i = 0; i < config.layers; ++i) {
        stack.layers.push_back(layer(config, prefix + "layers." + std::to_string(i) + ".", positions <= kKeyChunk));
    }
    stack.norm = put(tensors.vector(prefix + "norm.weight", config.hidden));
    return stack;
}

LmWeights::LmWeights(const Config& config, const Tensors& tensors, const Pool& pool) {
    const LmConfig& lm = config.lm;
    Loader loader = {.arena = arena_, .pool = pool, .tensors = tensors};
    const auto put_all = [&] {
        backbone = loader.stack(backbone_config(lm), "model.", lm.max_position_embeddings);
        const Vector norm = tensors.vector("model.norm.weight", lm.hidden_size);
        backbone_norm.assign(norm.begin(), norm.end());
        encoder = loader.stack(patch_encoder_config(lm), "input_local_transformer.", lm.group_size);
        decoder = loader.stack(patch_decoder_config(lm), "local_transformer.", lm.local_steps());
        const Matrix table = tensors.matrix("model.embed_tokens.weight", lm.vocab_size, lm.hidden_size);
        text = loader.put(table);
        text_head =
            lm.tie_word_embeddings ? text : loader.put(tensors.matrix("lm_head.weight", lm.vocab_size, lm.hidden_size));
        encoder_down = loader.put(
            tensors.matrix("speech_group_downcast.weight", lm.hidden_size, lm.group_size * lm.input_local_dim));
        enter = loader.put(tensors.matrix("hidden_states_downcast.weight", lm.local_dim, lm.hidden_size));
        widen = lm.input_local_dim != lm.local_dim;
        if (widen) {
            to_local =
                loader.put(tensors.matrix("speech_embeddings_to_local.weight", lm.local_dim, lm.input_local_dim));
        }

        std::vector<Matrix> head_sources;
        std::vector<SlabMatrix> embeddings;
        std::vector<SourceRow> order;
        std::vector<int32_t> delay, empty, count, tile_end;
        first_of_level.clear();
        for (int64_t level = 0; level < lm.audio_channels; ++level) {
            const auto at = static_cast<size_t>(level);
            const int64_t codes = lm.speech_vocab_size[at];
            head_sources.push_back(
                tensors.matrix("local_transformer_lm_heads." + std::to_string(level) + ".weight", codes, lm.local_dim));
            embeddings.push_back(loader.put(
                tensors.matrix("speech_embeddings." + std::to_string(level) + ".weight", codes, lm.input_local_dim)));
            first_of_level.push_back(static_cast<int32_t>(std::ssize(order)));
            const auto rows = rows_in_order(codes, static_cast<int>(level));
            order.insert(order.end(), rows.begin(), rows.end());
            order.resize((order.size() + kTileRows - 1) / kTileRows * kTileRows);
            delay.push_back(static_cast<int32_t>(lm.delay_pattern[at]));
            empty.push_back(static_cast<int32_t>(lm.speech_zeroemb_idx[at]));
            count.push_back(static_cast<int32_t>(codes));
            tile_end.push_back(static_cast<int32_t>(std::ssize(order) / kTileRows));
        }
        heads = loader.put(head_sources, order, std::ssize(order));
        const auto ints = [&](const std::vector<int32_t>& v) { return loader.put(std::span<const int32_t>(v)); };
        levels = {.levels = static_cast<int32_t>(lm.audio_channels),
                  .group = static_cast<int32_t>(lm.group_size),
                  .delay = ints(delay),
                  .empty = ints(empty),
                  .first = ints(first_of_level),
                  .count = ints(count),
                  .tile_end = ints(tile_end),
                  .embeddings = loader.put(std::span<const SlabMatrix>(embeddings))};
    };
    put_all();
    arena_.allocate();
    put_all();
}

}  // namespace mimo::gpu
