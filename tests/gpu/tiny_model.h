// Random weights at sizes that no release has, in a file of their own, for comparing a device with the core: a language
// model, or layers of the codec.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>

#include "codec/layers.h"
#include "lm/qwen2.h"
#include "packing.h"

namespace tiny {

inline mimo::Config config() {
    mimo::Config config = {};
    config.lm = {.hidden_size = 72,
                 .num_hidden_layers = 2,
                 .num_attention_heads = 6,
                 .num_key_value_heads = 2,
                 .head_dim = 12,
                 .intermediate_size = 147,
                 .vocab_size = 301,
                 .rope_theta = 10000,
                 .rms_norm_eps = 1e-6,
                 .max_position_embeddings = 200,
                 .tie_word_embeddings = false,
                 .group_size = 3,
                 .audio_channels = 5,
                 .delay_pattern = {0, 2, 1, 3, 1},
                 .speech_vocab_size = {41, 25, 33, 25, 9},
                 .speech_zeroemb_idx = {40, 24, 32, 24, 8},
                 .local_dim = 40,
                 .local_layers = 2,
                 .local_attn_heads = 2,
                 .local_ffn_dim = 97,
                 .input_local_dim = 36,
                 .input_local_layers = 1,
                 .input_full_attention = true};
    config.tokens.empty = 300;
    return config;
}

// Every tensor of the language model. How its matrices are stored: f32, bf16, i8, i4, f8_e4m3 (random bytes).
struct Format {
    mimo::DType type = mimo::DType::f32;
    int bits = 16;  // of inputs
    int64_t group = 32;
};

class Model {
public:
    explicit Model(const mimo::Config& config, Format format, uint32_t seed = 1) : config_(config), random_(seed) {
        const mimo::LmConfig& lm = config_.lm;
        config_.quantization =
            mimo::Quantization{.recipe = "tiny", .group = format.group, .activation_bits = {{"", format.bits}}};
        matrix("model.embed_tokens.weight", lm.vocab_size, lm.hidden_size, {});
        if (!lm.tie_word_embeddings) matrix("lm_head.weight", lm.vocab_size, lm.hidden_size, format);
        stack("model.", mimo::backbone_config(lm), format);
        stack("input_local_transformer.", mimo::patch_encoder_config(lm), format);
        stack("local_transformer.", mimo::patch_decoder_config(lm), format);
        matrix("speech_group_downcast.weight", lm.hidden_size, lm.group_size * lm.input_local_dim, format);
        matrix("hidden_states_downcast.weight", lm.local_dim, lm.hidden_size, format);
        if (lm.input_local_dim != lm.local_dim) {
            matrix("speech_embeddings_to_local.weight", lm.local_dim, lm.input_local_dim, format);
        }
        for (int64_t level = 0; level < lm.audio_channels; ++level) {
            const int64_t codes = lm.speech_vocab_size[static_cast<size_t>(level)];
            const std::string n = std::to_string(level);
            matrix("speech_embeddings." + n + ".weight", codes, lm.input_local_dim, {});
            matrix("local_transformer_lm_heads." + n + ".weight", codes, lm.local_dim, format);
        }
        write();
    }
    explicit Model(const mimo::LayersConfig& c, Format format, uint32_t seed = 1) : config_(), random_(seed) {
        config_.quantization =
            mimo::Quantization{.recipe = "tiny", .group = format.group, .activation_bits = {{"", format.bits}}};
        for (int64_t i = 0; i < c.count; ++i) {
            const std::string layer = "layers." + std::to_string(i) + ".";
            for (const char* norm : {"self_attn_layer_norm", "final_layer_norm"}) {
                vector(layer + norm + ".weight", c.dim);
                vector(layer + norm + ".bias", c.dim);
            }
            for (const char* name : {"q", "k", "v", "out"}) {
                const std::string full = layer + "self_attn." + name + "_proj.";
                matrix(full + "weight", c.dim, c.dim, format);
                if (*name != 'k') vector(full + "bias", c.dim);
            }
            matrix(layer + "fc1.weight", c.ffn_dim, c.dim, format);
            vector(layer + "fc1.bias", c.ffn_dim);
            matrix(layer + "fc2.weight", c.dim, c.ffn_dim, format);
            vector(layer + "fc2.bias", c.dim);
        }
        write();
    }
    ~Model() { std::filesystem::remove(path_); }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const mimo::Config& config() const { return config_; }
    mimo::Weights weights() const { return mimo::Weights(*file_, &*config_.quantization); }

private:
    void stack(const std::string& name, const mimo::Qwen2Config& c, Format format) {
        for (int64_t i = 0; i < c.layers; ++i) {
            const std::string layer = name + "layers." + std::to_string(i) + ".";
            vector(layer + "input_layernorm.weight", c.hidden);
            vector(layer + "post_attention_layernorm.weight", c.hidden);
            for (const auto& [part, heads] : {std::pair{"q", c.heads}, {"k", c.kv_heads}, {"v", c.kv_heads}}) {
                const std::string full = layer + "self_attn." + part + "_proj.";
                // values of a kind of their own, so that queries, keys and values are not one matrix everywhere
                const bool apart = i == 1 && *part == 'v' && format.type == mimo::DType::i4;
                matrix(full + "weight", heads * c.head_dim, c.hidden, apart ? Format{mimo::DType::i8} : format);
                vector(full + "bias", heads * c.head_dim);
            }
            matrix(layer + "self_attn.o_proj.weight", c.hidden, c.heads * c.head_dim, format);
            matrix(layer + "mlp.gate_proj.weight", c.ffn, c.hidden, format);
            matrix(layer + "mlp.up_proj.weight", c.ffn, c.hidden, format);
            matrix(layer + "mlp.down_proj.weight", c.hidden, c.ffn, format);
        }
        vector(name + "norm.weight", c.hidden);
    }

    std::vector<float> noise(int64_t n, float mean, float scale) {
        std::normal_distribution<float> normal(mean, scale);
        std::vector<float> values(static_cast<size_t>(n));
        for (float& v : values) v = normal(random_);
        return values;
    }

    void vector(const std::string& name, int64_t n) { add(name, "F32", {n}, noise(n, 1, 0.2f)); }

    void matrix(const std::string& name, int64_t rows, int64_t cols, Format format) {
        const auto values = noise(rows * cols, 0, 1.5f / std::sqrt(static_cast<float>(cols)));
        const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
        switch (format.type) {
            case mimo::DType::bf16: {
                std::vector<uint16_t> half;
                for (const float v : values) half.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16));
                return add(name, "BF16", {rows, cols}, half);
            }
            case mimo::DType::i8: {
                const auto packed = packing::pack(values, rows, cols, format.type, cols, format.bits);
                add(name, "I8", {parts(rows, 16), parts(cols, 4), 16, 4}, packed.data);
                return add(name + "_scale", "F32", {parts(rows, 16), 1, 16}, packed.scales);
            }
            case mimo::DType::f8_e4m3: {
                std::vector<uint8_t> bytes(static_cast<size_t>(parts(rows, 16) * parts(cols, 4) * 64));
                for (uint8_t& byte : bytes) {  // magnitudes up to 1.75
                    byte = static_cast<uint8_t>(random_());
                    byte = static_cast<uint8_t>((byte & 0x80) | (byte & 0x7F) % 0x3F);
                }
                std::vector<float> scales(static_cast<size_t>(parts(rows, 16) * 16));
                for (float& scale : scales)
                    scale = 2.0f / std::sqrt(static_cast<float>(cols)) * (1 + static_cast<float>(random_() % 8) / 8);
                add(name, "F8_E4M3", {parts(rows, 16), parts(cols, 4), 16, 4}, bytes);
                return add(name + "_scale", "F32", {parts(rows, 16), 1, 16}, scales);
            }
            case mimo::DType::i4: {
                const auto packed = packing::pack(values, rows, cols, format.type, format.group, format.bits);
                add(name, "U8", {parts(rows, 16), parts(cols, 8), 16, 4}, packed.data);
                return add(name + "_scale", "F16", {parts(rows, 16), parts(cols, format.group), 16},
                           packed.half_scales);
            }
            default:
                return add(name, "F32", {rows, cols}, values);
        }
    }

    template <typename T>
    void add(const std::string& name, const char* type, const std::vector<int64_t>& shape,
             const std::vector<T>& values) {
        const size_t begin = data_.size();
        const auto* bytes = reinterpret_cast<const char*>(values.data());
        data_.append(bytes, values.size() * sizeof(T));
        header_ << (header_.tellp() > 0 ? "," : "{") << '"' << name << "\":{\"dtype\":\"" << type << "\",\"shape\":[";
        for (size_t i = 0; i < shape.size(); ++i) header_ << (i ? "," : "") << shape[i];
        header_ << "],\"data_offsets\":[" << begin << "," << data_.size() << "]}";
    }

    void write() {
        static int count = 0;
        path_ = std::filesystem::temp_directory_path() /
                mimo::message("mimo-tiny-", static_cast<const void*>(this), "-", ++count, ".safetensors");
        std::string header = header_.str() + "}";
        header.resize((header.size() + 7) / 8 * 8, ' ');
        const uint64_t size = header.size();
        std::ofstream out(path_, std::ios::binary);
        out.write(reinterpret_cast<const char*>(&size), sizeof(size)) << header << data_;
        out.close();
        file_.emplace(path_);
    }

    mimo::Config config_;
    std::mt19937 random_;
    std::ostringstream header_;
    std::string data_;
    std::filesystem::path path_;
    std::optional<mimo::Safetensors> file_;
};

}  // namespace tiny
