#include "codec/encoder.h"

#include <algorithm>

namespace mimo {
namespace {

constexpr int64_t kConvPadding = 1;  // upstream pads both convolutions by 1, whatever their kernel

// x [n, in], zero rows on both sides -> [(n + 2 - kernel) / stride + 1, out]. The weight is [out, kernel, in], so a
// window of neighbouring rows is one row of a linear layer.
Array conv(const Context& context, const Array& x, const Linear& layer, int64_t stride) {
    const int64_t kernel = layer.weight.cols / x.cols;
    Array padded(x.rows + 2 * kConvPadding, x.cols);
    std::copy(x.data.begin(), x.data.end(), padded.row(kConvPadding));
    const int64_t frames = (padded.rows - kernel) / stride + 1;
    return linear(context, padded.data.data(), frames, stride * x.cols, layer);
}

}  // namespace

std::vector<std::vector<int64_t>> group_segments(const std::vector<int64_t>& lengths, int64_t most) {
    std::vector<std::vector<int64_t>> groups;
    int64_t sum = 0;
    for (const int64_t length : lengths) {
        if (groups.empty() || sum + length > most) {
            groups.emplace_back();
            sum = 0;
        }
        groups.back().push_back(length);
        sum += length;
    }
    return groups;
}

CodecEncoder::CodecEncoder(const Config& config, const Weights& weights, const LayersDevice* device)
    : config_(config.codec),
      segment_frames_(config.segment_frames()),
      layers_({.count = config_.encoder_layers,
               .dim = config_.d_model,
               .heads = config_.encoder_attention_heads,
               .ffn_dim = config_.encoder_ffn_dim,
               .causal = config_.encoder_causal,
               .left = config_.encoder_attn_window_size[0],
               .right = config_.encoder_attn_window_size[1],
               .rope_theta = config_.rope_theta},
              weights, device),
      norm_(read_layer_norm(weights, "layer_norm", config_.d_model)) {
    const int64_t dim = config_.d_model, kernel = config_.kernel_size;
    conv1_ = {weights.matrix("conv1.weight", {dim, kernel, config_.n_mels}), weights.vector("conv1.bias", dim)};
    conv2_ = {weights.matrix("conv2.weight", {dim, kernel, dim}), weights.vector("conv2.bias", dim)};
    if (config_.avg_pooler > 1) {
        pool_ = {weights.matrix("down_sample_layer.0.weight", {dim, config_.avg_pooler, dim}), {}};
        pool_norm_ = read_layer_norm(weights, "down_sample_norm", dim);
    }
}

int64_t CodecEncoder::frames_of(int64_t mel_frames) const {
    const int64_t last_window = mel_frames + 1 + 2 * (2 * kConvPadding - config_.kernel_size);
    return last_window < 0 ? 0 : last_window / config_.stride_size + 1;
}

int64_t CodecEncoder::code_frames_of(int64_t mel_frames) const {
    return (frames_of(mel_frames) + config_.avg_pooler - 1) / config_.avg_pooler;
}

std::vector<CodecEncoder::Segment> CodecEncoder::segments(int64_t mel_frames) const {
    std::vector<int64_t> lengths;
    for (int64_t first = 0; first < mel_frames; first += segment_frames_)
        lengths.push_back(std::min(segment_frames_, mel_frames - first));
    std::vector<Segment> out;
    for (const auto& batch : group_segments(lengths, kBatchMelFrames)) {
        const int64_t longest = *std::max_element(batch.begin(), batch.end());
        for (const int64_t length : batch)
            out.push_back({static_cast<int64_t>(out.size()) * segment_frames_, length, longest});
    }
    return out;
}

Array CodecEncoder::operator()(const Context& context, const Array& mel, int64_t longest) const {
    // A shorter segment of a batch is padded with zero mel frames; the convolutions see them, so as many as they can
    // reach are kept.
    const int64_t reach = 4 * config_.kernel_size * config_.stride_size;
    const int64_t frames = frames_of(mel.rows);
    if (frames == 0) {
        throw InputError(message("encoder: expected at least ", 2 * (config_.kernel_size - 2 * kConvPadding) - 1,
                                 " mel frames, got ", mel.rows, "; the recording is too short"));
    }
    Array x = conv(context, resized(mel, std::min(longest, mel.rows + reach)), conv1_, 1);
    context.tap("codec_encoder.conv1", x);
    gelu(context, x);
    x = conv(context, x, conv2_, config_.stride_size);
    context.tap("codec_encoder.conv2", x);
    gelu(context, x);
    x = resized(std::move(x), frames);

    const auto skip = layers_.run(context, x, "codec_encoder", config_.encoder_skip_layer_id);
    if (skip) add(context, x, *skip);
    x = layer_norm(context, x, norm_);
    context.tap("codec_encoder.layer_norm", x);
    if (config_.avg_pooler > 1) x = pool(context, x, frames_of(longest));
    context.tap("codec_encoder.hidden", x);
    return x;
}

// The last window is completed with zero rows, or with the last row where the batch's longest segment has frames there:
// upstream's un-packing index repeats it.
Array CodecEncoder::pool(const Context& context, const Array& x, int64_t longest) const {
    const int64_t windows = (x.rows + config_.avg_pooler - 1) / config_.avg_pooler;
    Array padded = resized(x, windows * config_.avg_pooler);
    for (int64_t i = x.rows; i < std::min(longest, padded.rows); ++i)
        std::copy_n(x.row(x.rows - 1), x.cols, padded.row(i));
    Array pooled = linear(context, padded.data.data(), windows, config_.avg_pooler * x.cols, pool_);
    gelu(context, pooled);
    context.tap("codec_encoder.pool", pooled);
    return layer_norm(context, pooled, pool_norm_);
}

}  // namespace mimo
