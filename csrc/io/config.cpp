#include "io/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace mimo {
namespace {

constexpr int64_t kSegmentFrames = 6000;     // upstream mimo_audio.py, segment_size: 60 s in the release
constexpr int64_t kAsrSegmentFrames = 3000;  // MiMo-V2.5-ASR: 30 s

[[noreturn]] void refuse(const std::string& field, const std::string& expected, const std::string& got) {
    throw BundleError(message("bundle.json: expected ", field, " ", expected, ", got ", got));
}

// Reads fields of one object, remembering its name for errors.
class Fields {
public:
    Fields(const Json& object, std::string name) : object_(object), name_(std::move(name)) {}

    int64_t count(const char* key, int64_t least = 1, int64_t most = int64_t{1} << 31) const {
        const int64_t value = object_.at(key).integer();
        if (value < least || value > most) {
            refuse(name_ + "." + key, message("between ", least, " and ", most), std::to_string(value));
        }
        return value;
    }

    double positive(const char* key) const {
        const double value = object_.at(key).number();
        if (!(value > 0) || !std::isfinite(value)) refuse(name_ + "." + key, "above 0", std::to_string(value));
        return value;
    }

    bool flag(const char* key) const { return object_.at(key).boolean(); }
    const Json& at(const char* key) const { return object_.at(key); }

    std::vector<int64_t> list(const char* key, int64_t size, int64_t least) const {
        std::vector<int64_t> values;
        for (const Json& item : object_.at(key).array()) values.push_back(item.integer());
        const bool small = std::any_of(values.begin(), values.end(), [&](int64_t v) { return v < least; });
        if (static_cast<int64_t>(values.size()) != size || small) {
            refuse(name_ + "." + key, message("with ", size, " numbers of at least ", least),
                   message(values.size(), " numbers"));
        }
        return values;
    }

    // Every head must have an even share of the width: RoPE turns pairs.
    void check_heads(const char* width, const char* heads) const {
        const int64_t w = count(width), h = count(heads);
        if (w % h != 0 || w / h % 2 != 0) {
            refuse(name_ + "." + width, message("to be an even multiple of ", heads, " = ", h), std::to_string(w));
        }
    }

private:
    const Json& object_;
    std::string name_;
};

CodecConfig parse_codec(const Json& object) {
    const Fields f(object, "codec");
    CodecConfig c = {
        .sampling_rate = f.count("sampling_rate"),
        .nfft = f.count("nfft", 4, 1 << 16),  // no file holds tables of these two sizes: a wrong one would fill memory
        .window_size = f.count("window_size", 2),
        .hop_length = f.count("hop_length"),
        .n_mels = f.count("n_mels", 1, 1 << 12),
        .fmin = f.at("fmin").number(),
        .fmax = f.at("fmax").is_null() ? std::nullopt : std::optional(f.at("fmax").number()),
        .d_model = f.count("d_model"),
        .kernel_size = f.count("kernel_size"),
        .stride_size = f.count("stride_size"),
        .avg_pooler = f.count("avg_pooler"),
        .encoder_layers = f.count("encoder_layers"),
        .encoder_attention_heads = f.count("encoder_attention_heads"),
        .encoder_ffn_dim = f.count("encoder_ffn_dim"),
        .encoder_skip_layer_id = f.at("encoder_skip_layer_id").is_null()
                                     ? std::nullopt
                                     : std::optional(f.count("encoder_skip_layer_id", 1, f.count("encoder_layers"))),
        .encoder_causal = f.flag("encoder_causal"),
        .encoder_attn_window_size = f.list("encoder_attn_window_size", 2, -1),
        .decoder_layers = f.count("decoder_layers"),
        .decoder_attention_heads = f.count("decoder_attention_heads"),
        .decoder_ffn_dim = f.count("decoder_ffn_dim"),
        .decoder_kernel_size = f.count("decoder_kernel_size"),
        .decoder_stride_size = f.count("decoder_stride_size"),
        .decoder_causal = f.flag("decoder_causal"),
        .decoder_attn_window_size = f.list("decoder_attn_window_size", 2, -1),
        .vocoder_dim = f.count("vocoder_dim"),
        .vocoder_num_layers = f.count("vocoder_num_layers"),
        .vocoder_attention_heads = f.count("vocoder_attention_heads"),
        .vocoder_intermediate_dim = f.count("vocoder_intermediate_dim"),
        .vocoder_attn_window_size = f.list("vocoder_attn_window_size", 2, -1),
        .num_quantizers = f.count("num_quantizers"),
        .codebook_size = f.list("codebook_size", f.count("num_quantizers"), 1),
        .rope_theta = f.positive("rope_theta"),
    };
    f.check_heads("d_model", "encoder_attention_heads");
    f.check_heads("d_model", "decoder_attention_heads");
    f.check_heads("vocoder_dim", "vocoder_attention_heads");
    if (c.nfft % 2 != 0) refuse("codec.nfft", "even", std::to_string(c.nfft));
    if (c.window_size > c.nfft)
        refuse("codec.window_size", message("at most nfft = ", c.nfft), std::to_string(c.window_size));
    if (c.hop_length > c.nfft || (c.nfft - c.hop_length) % 2 != 0) {
        refuse("codec.hop_length", message("to leave an even overlap in nfft = ", c.nfft),
               std::to_string(c.hop_length));
    }
    if (c.decoder_kernel_size < c.decoder_stride_size) {
        refuse("codec.decoder_kernel_size", "at least decoder_stride_size", std::to_string(c.decoder_kernel_size));
    }
    if (c.decoder_stride_size != c.stride_size) {
        refuse("codec.decoder_stride_size", message("to equal stride_size = ", c.stride_size),
               std::to_string(c.decoder_stride_size));
    }
    return c;
}

LmConfig parse_lm(const Json& object) {
    const Fields f(object, "lm");
    const int64_t levels = f.count("audio_channels", 1, 256);
    LmConfig c = {
        .hidden_size = f.count("hidden_size"),
        .num_hidden_layers = f.count("num_hidden_layers"),
        .num_attention_heads = f.count("num_attention_heads"),
        .num_key_value_heads = f.count("num_key_value_heads"),
        .head_dim = f.count("head_dim", 2),
        .intermediate_size = f.count("intermediate_size"),
        .vocab_size = f.count("vocab_size"),
        .rope_theta = f.positive("rope_theta"),
        .rms_norm_eps = f.positive("rms_norm_eps"),
        .max_position_embeddings = f.count("max_position_embeddings"),
        .tie_word_embeddings = f.flag("tie_word_embeddings"),
        .group_size = f.count("group_size", 1, 1024),
        .audio_channels = levels,
        .delay_pattern = f.list("delay_pattern", levels, 0),
        .speech_vocab_size = f.list("speech_vocab_size", levels, 1),
        .speech_zeroemb_idx = f.list("speech_zeroemb_idx", levels, 0),
        .local_dim = f.count("local_dim"),
        .local_layers = f.count("local_layers"),
        .local_attn_heads = f.count("local_attn_heads"),
        .local_ffn_dim = f.count("local_ffn_dim"),
        .input_local_dim = f.count("input_local_dim"),
        .input_local_layers = f.count("input_local_layers"),
        .input_full_attention = f.flag("input_full_attention"),
    };
    f.check_heads("local_dim", "local_attn_heads");
    f.check_heads("input_local_dim", "local_attn_heads");
    if (c.head_dim % 2 != 0) refuse("lm.head_dim", "even", std::to_string(c.head_dim));
    if (c.num_attention_heads % c.num_key_value_heads != 0) {
        refuse("lm.num_attention_heads", message("to be a multiple of num_key_value_heads = ", c.num_key_value_heads),
               std::to_string(c.num_attention_heads));
    }
    for (size_t k = 0; k < static_cast<size_t>(levels); ++k) {
        if (c.speech_zeroemb_idx[k] >= c.speech_vocab_size[k]) {
            refuse("lm.speech_zeroemb_idx", message("below the vocabulary ", c.speech_vocab_size[k], " of level ", k),
                   std::to_string(c.speech_zeroemb_idx[k]));
        }
        if (c.delay_pattern[k] > 1024)
            refuse("lm.delay_pattern", "of at most 1024 steps", std::to_string(c.delay_pattern[k]));
    }
    return c;
}

Quantization parse_quantization(const Json& object) {
    Quantization q = {.recipe = object.at("recipe").string(),
                      .group = Fields(object, "quantization").count("group"),
                      .cache = DType::f32,
                      .activation_bits = {}};
    if (q.group % 32 != 0 || q.group > 1024)
        refuse("quantization.group", "to be a multiple of 32 up to 1024", std::to_string(q.group));
    if (const Json* kv = object.find("kv")) {
        const std::string& kind = kv->string();
        if (kind != "f32" && kind != "f16" && kind != "int8") refuse("quantization.kv", "f32, f16 or int8", kind);
        q.cache = kind == "f32" ? DType::f32 : kind == "f16" ? DType::f16 : DType::i8;
    }
    for (const auto& [prefix, bits] : object.at("activation_bits").object()) {
        const int64_t value = bits.integer();
        if (value != 8 && value != 16)
            refuse("quantization.activation_bits." + prefix, "8 or 16", std::to_string(value));
        q.activation_bits.emplace_back(prefix, static_cast<int>(value));
    }
    return q;
}

SpecialTokens parse_tokens(const Json& object, int64_t vocab_size) {
    const Fields f(object, "tokens");
    const auto id = [&](const char* key) { return static_cast<int32_t>(f.count(key, 0, vocab_size - 1)); };
    return {.eos = id("eos"),
            .pad = id("pad"),
            .im_start = id("im_start"),
            .im_end = id("im_end"),
            .sosp = id("sosp"),
            .eosp = id("eosp"),
            .empty = id("empty"),
            .sostm = id("sostm"),
            .eostm = id("eostm"),
            .eot = id("eot")};
}

}  // namespace

int64_t LmConfig::local_steps() const {
    return group_size + *std::max_element(delay_pattern.begin(), delay_pattern.end());
}

int Quantization::activation_bits_of(const std::string& tensor) const {
    constexpr int kDefaultBits = 16;
    size_t longest = 0;
    int found = kDefaultBits;
    for (const auto& [prefix, bits] : activation_bits) {
        if (!tensor.starts_with(prefix) || prefix.size() < longest) continue;
        longest = prefix.size();
        found = bits;
    }
    return found;
}

Config Config::parse(const Json& bundle) {
    const LmConfig lm = parse_lm(bundle.at("lm"));
    const CodecConfig codec = parse_codec(bundle.at("codec"));
    if (lm.audio_channels > codec.num_quantizers) {
        refuse("lm.audio_channels", message("at most codec.num_quantizers = ", codec.num_quantizers),
               std::to_string(lm.audio_channels));
    }
    for (size_t k = 0; k < static_cast<size_t>(lm.audio_channels); ++k) {
        if (lm.speech_vocab_size[k] < codec.codebook_size[k]) {
            refuse("lm.speech_vocab_size", message("to hold the ", codec.codebook_size[k], " codes of level ", k),
                   std::to_string(lm.speech_vocab_size[k]));
        }
    }
    const std::string& variant = bundle.at("variant").string();
    if (variant != "audio" && variant != "asr") refuse("variant", "audio or asr", variant);
    const Json* quantization = bundle.find("quantization");
    return {.codec = codec,
            .lm = lm,
            .tokens = parse_tokens(bundle.at("tokens"), lm.vocab_size),
            .asr_variant = variant == "asr",
            .quantization = quantization ? std::optional(parse_quantization(*quantization)) : std::nullopt};
}

int64_t Config::segment_frames() const {
    return asr_variant ? kAsrSegmentFrames : kSegmentFrames;
}

}  // namespace mimo
