// Every size of the model, read once from bundle.json and checked. Field names are the checkpoint's own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/array.h"
#include "io/json.h"

namespace mimo {

struct CodecConfig {
    // waveform and mel
    int64_t sampling_rate, nfft, window_size, hop_length, n_mels;
    double fmin;
    std::optional<double> fmax;  // none: half the sampling rate
    // encoder
    int64_t d_model, kernel_size, stride_size, avg_pooler;
    int64_t encoder_layers, encoder_attention_heads, encoder_ffn_dim;
    std::optional<int64_t> encoder_skip_layer_id;  // 1-based; none: no skip connection
    bool encoder_causal;
    std::vector<int64_t> encoder_attn_window_size;  // [left, right], -1: unlimited
    // decoder
    int64_t decoder_layers, decoder_attention_heads, decoder_ffn_dim, decoder_kernel_size, decoder_stride_size;
    bool decoder_causal;
    std::vector<int64_t> decoder_attn_window_size;
    // vocoder
    int64_t vocoder_dim, vocoder_num_layers, vocoder_attention_heads, vocoder_intermediate_dim;
    std::vector<int64_t> vocoder_attn_window_size;
    // residual vector quantiser
    int64_t num_quantizers;
    std::vector<int64_t> codebook_size;  // [num_quantizers]
    double rope_theta;

    // Samples a code frame stands for (960 in the release).
    int64_t samples_per_code_frame() const { return hop_length * stride_size * avg_pooler; }
};

struct LmConfig {
    // backbone
    int64_t hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size,
        vocab_size;
    double rope_theta, rms_norm_eps;
    int64_t max_position_embeddings;
    bool tie_word_embeddings;
    // speech: K levels, patches of G code frames
    int64_t group_size, audio_channels;
    std::vector<int64_t> delay_pattern, speech_vocab_size, speech_zeroemb_idx;  // [audio_channels]
    // patch decoder and patch encoder
    int64_t local_dim, local_layers, local_attn_heads, local_ffn_dim;
    int64_t input_local_dim, input_local_layers;
    bool input_full_attention;

    int64_t local_steps() const;  // of one patch: group_size + the longest delay
};

struct SpecialTokens {
    int32_t eos, pad, im_start, im_end, sosp, eosp, empty, sostm, eostm, eot;
};

// How the packed weights of a bundle are to be read.
struct Quantization {
    std::string recipe;
    int64_t group;             // columns that share a scale in 4-bit weights
    DType cache = DType::f32;  // "kv": what the backbone's keys and values are kept as: f32, f16 or i8
    std::vector<std::pair<std::string, int>> activation_bits;  // tensor name prefix -> 8 or 16

    int activation_bits_of(const std::string& tensor) const;  // the longest prefix wins; none: 16
};

struct Config {
    CodecConfig codec;
    LmConfig lm;
    SpecialTokens tokens;
    bool asr_variant;                          // MiMo-V2.5-ASR: segments of 30 s instead of 60
    std::optional<Quantization> quantization;  // none: all weights are floats

    // Throws BundleError naming the field, what was expected and what came.
    static Config parse(const Json& bundle);

    int64_t segment_frames() const;  // mel frames the codec encodes at once

    // What keys and values are kept as: the backbone's, and those of a stream of sound.
    DType cache() const { return quantization ? quantization->cache : DType::f32; }
    DType stream_cache() const { return cache() == DType::f32 ? DType::f32 : DType::f16; }
};

}  // namespace mimo
