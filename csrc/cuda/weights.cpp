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

LayerWeights qwen2_layer(WeightLoader& loader, const Tensors& tensors, const Qwen2Config& config, const Heads& heads,
                         const std::string& prefix, bool short_cache) {
    const int64_t hidden = config.hidden, q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
    const auto matrix = [&](const char* name, int64_t out, int64_t in) {
        return tensors.matrix(prefix + name + ".weight", out, in);
    };
    const auto vector = [&](const char* name, int64_t size) { return tensors.vector(prefix + name, size); };
    LayerWeights layer = {};
    layer.attention_norm = loader.put(vector("input_layernorm.weight", hidden));
    layer.ffn_norm = loader.put(vector("post_attention_layernorm.weight", hidden));
    layer.qkv = loader.put_qkv(
        {matrix("self_attn.q_proj", q, hidden), matrix("self_attn.k_proj", kv, hidden),
         matrix("self_attn.v_proj", kv, hidden)},
        {vector("self_attn.q_proj.bias", q), vector("self_attn.k_proj.bias", kv), vector("self_attn.v_proj.bias", kv)},
        heads, short_cache);
    layer.o = loader.put(matrix("self_attn.o_proj", hidden, q));
    const Matrix gate_and_up[] = {matrix("mlp.gate_proj", config.ffn, hidden),
                                  matrix("mlp.up_proj", config.ffn, hidden)};
    layer.up = loader.put(gate_and_up, rows_of_gate_and_up(config.ffn), 2 * config.ffn);
    layer.down = loader.put(matrix("mlp.down_proj", hidden, config.ffn));
    return layer;
}

StackWeights qwen2_stack(WeightLoader& loader, const Tensors& tensors, const Qwen2Config& config,
                         const std::string& prefix, int64_t positions) {
    const Rope rope = rope_of(config, positions);
    StackWeights stack = {.hidden = config.hidden,
                          .ffn = config.ffn,
                          .eps = config.eps,
                          .up = Finish::gate,
                          .heads = heads_of(config.heads, config.kv_heads, config.head_dim),
                          .layers = {},
                          .norm = nullptr};
    stack.heads.cosine = loader.put(std::span<const float>(rope.cosine.data));
    stack.heads.sine = loader.put(std::span<const float>(rope.sine.data));
    for (int64_t i = 0; i < config.layers; ++i) {
        stack.layers.push_back(qwen2_layer(loader, tensors, config, stack.heads,
                                           prefix + "layers." + std::to_string(i) + ".", positions <= kKeyChunk));
    }
    stack.norm = loader.put(tensors.vector(prefix + "norm.weight", config.hidden));
    return stack;
}

}  // namespace

Tensors::Tensors(const Weights& weights)
    : matrix([weights](const std::string& name, int64_t rows, int64_t cols) {
          return weights.matrix(name, {rows, cols});
      }),
      vector([weights](const std::string& name, int64_t size) { return weights.vector(name, size); }) {}

Heads heads_of(int64_t heads, int64_t kv_heads, int64_t head_dim) {
    return {.heads = static_cast<int32_t>(heads),
            .kv_heads = static_cast<int32_t>(kv_heads),
            .head_dim = static_cast<int32_t>(head_dim),
            .pair_tiles = static_cast<int32_t>((head_dim / 2 + kHalfTile - 1) / kHalfTile),
            .value_tiles = static_cast<int32_t>((head_dim + kTileRows - 1) / kTileRows),
            .cosine = nullptr,
            .sine = nullptr,
            .call_angles = 0};
}

SlabMatrix WeightLoader::put(std::span<const Matrix> sources, std::span<const SourceRow> order, int64_t rows) {
    SlabMatrix w = slab_shape(sources, rows);
    auto* to = arena_.take<uint8_t>(data_bytes(w));
    auto* to_scales = arena_.take<uint8_t>(scale_bytes(w));
    if (!arena_.counting()) {
        data_.resize(static_cast<size_t>(data_bytes(w)));
        scales_.resize(static_cast<size_t>(scale_bytes(w)));
        pack_slabs(pool_, sources, order, w, data_.data(), scales_.data());
        copy(to, data_.data(), data_bytes(w));
        copy(to_scales, scales_.data(), scale_bytes(w));
    }
    w.data = to;
    w.scales = to_scales;
    return w;
}

void WeightLoader::copy(void* to, const void* from, int64_t bytes) {
    stream_.copy_in(to, from, bytes);
    stream_.wait();
}

std::vector<QkvPart> WeightLoader::put_qkv(const std::array<Matrix, 3>& sources, const std::array<Vector, 3>& biases,
                                           const Heads& heads, bool short_cache) {
    const int64_t counts[] = {heads.heads, heads.kv_heads, heads.kv_heads};
    std::vector<SourceRow> orders[3];
    for (int i = 0; i < 3; ++i) {
        orders[i] =
            i < 2 ? rows_of_rotated_heads(counts[i], heads.head_dim, i) : rows_of_heads(counts[i], heads.head_dim, i);
    }
    const bool woven = alike(sources[0], sources[1]) && alike(sources[0], sources[2]);
    int32_t unit_tiles = 0;
    if (woven && short_cache) {
        std::vector<SourceRow> units;
        for (int64_t unit = 0; unit < heads.kv_heads; ++unit) {
            for (const auto& order : orders) {
                const auto rows = std::ssize(order) / heads.kv_heads;
                units.insert(units.end(), order.begin() + unit * rows, order.begin() + (unit + 1) * rows);
            }
        }
        unit_tiles = static_cast<int32_t>(std::ssize(units) / heads.kv_heads / kTileRows);
        orders[0] = std::move(units);
    } else if (woven) {
        for (int i = 1; i < 3; ++i) orders[0].insert(orders[0].end(), orders[i].begin(), orders[i].end());
    }
    std::vector<QkvPart> parts;
    int32_t first_tile = 0;
    for (size_t i = 0; i < (woven ? 1 : 3); ++i) {
        if (!woven) {
            for (SourceRow& row : orders[i]) row.source = 0;
        }
        const std::span<const Matrix> matrices = woven ? std::span<const Matrix>(sources) : std::span(&sources[i], 1);
        const std::span<const Vector> vectors = woven ? std::span<const Vector>(biases) : std::span(&biases[i], 1);
        const std::vector<float> bias = in_order(vectors, orders[i]);
        const SlabMatrix packed = put(matrices, orders[i], std::ssize(orders[i]));
        parts.push_back({packed, put(std::span<const float>(bias)), first_tile, unit_tiles});
        first_tile += packed.tiles;
    }
    return parts;
}

LmWeights::LmWeights(const Config& config, const Tensors& tensors, const Pool& pool) {
    const LmConfig& lm = config.lm;
    WeightLoader loader(arena_, pool);
    const auto put_all = [&] {
        backbone = qwen2_stack(loader, tensors, backbone_config(lm), "model.", lm.max_position_embeddings);
        const Vector norm = tensors.vector("model.norm.weight", lm.hidden_size);
        backbone_norm.assign(norm.begin(), norm.end());
        encoder = qwen2_stack(loader, tensors, patch_encoder_config(lm), "input_local_transformer.", lm.group_size);
        decoder = qwen2_stack(loader, tensors, patch_decoder_config(lm), "local_transformer.", lm.local_steps());
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
