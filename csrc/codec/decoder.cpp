#include "codec/decoder.h"

#include <algorithm>
#include <cmath>

#include "codec/overlap_add.h"

namespace mimo {
namespace {

constexpr float kMagnitudeLimit = 100.0f;  // upstream ISTFTHead clips exp(log magnitude)

// rows [n, C] in place: (x - mean) / sqrt(var + eps), then scale and shift by channel.
void normalise(std::span<float> rows, const Moments& moments, const LayerNorm& norm) {
    const double scale = 1.0 / std::sqrt(moments.variance + kLayerNormEps);
    const size_t channels = norm.weight.size();
    for (size_t i = 0; i < rows.size(); i += channels) {
        for (size_t c = 0; c < channels; ++c) {
            const auto normed = static_cast<float>((rows[i + c] - moments.mean) * scale);
            rows[i + c] = normed * norm.weight[c] + norm.bias[c];
        }
    }
}

// The same with the moments of all of x, [T, C], which are returned.
Moments group_norm(Array& x, const LayerNorm& norm) {
    const auto count = static_cast<double>(x.data.size());
    double mean = 0, variance = 0;
    for (const float v : x.data) mean += v;
    mean /= count;
    for (const float v : x.data) variance += (v - mean) * (v - mean);
    const Moments moments = {.mean = mean, .variance = variance / count};
    normalise(x.data, moments, norm);
    return moments;
}

}  // namespace

CodecDecoder::ConvTranspose CodecDecoder::read_conv(const Weights& weights, int64_t in, int64_t out, int64_t kernel,
                                                    int64_t stride) {
    ConvTranspose layer;
    layer.taps.weight = weights.matrix("conv.weight", {kernel, out, in}, 2);
    layer.bias = weights.vector("conv.bias", out);
    layer.norm = read_layer_norm(weights, "norm", out);
    layer.kernel = kernel;
    layer.stride = stride;
    return layer;
}

CodecDecoder::CodecDecoder(const Config& config, const Weights& weights, const LayersDevice* device)
    : config_(config.codec),
      layers_({.count = config_.decoder_layers,
               .dim = config_.d_model,
               .heads = config_.decoder_attention_heads,
               .ffn_dim = config_.decoder_ffn_dim,
               .causal = config_.decoder_causal,
               .left = config_.decoder_attn_window_size[0],
               .right = config_.decoder_attn_window_size[1],
               .rope_theta = config_.rope_theta,
               .cache = config.stream_cache()},
              weights, device),
      norm_(read_layer_norm(weights, "layer_norm", config_.d_model)),
      dconv2_(read_conv(weights.under("dconv2"), config_.d_model, config_.n_mels, config_.decoder_kernel_size,
                        config_.decoder_stride_size)),
      vocoder_({.count = config_.vocoder_num_layers,
                .dim = config_.vocoder_dim,
                .heads = config_.vocoder_attention_heads,
                .ffn_dim = config_.vocoder_intermediate_dim,
                .causal = false,
                .left = config_.vocoder_attn_window_size[0],
                .right = config_.vocoder_attn_window_size[1],
                .rope_theta = config_.rope_theta,
                .cache = config.stream_cache()},
               weights.under("vocoder"), device),
      vocoder_norm_(read_layer_norm(weights.under("vocoder"), "layer_norm", config_.vocoder_dim)),
      fft_(config_.nfft),
      window_(hann_window(config_.nfft)) {
    if (config_.avg_pooler > 1) {
        dconv1_ = read_conv(weights.under("dconv1"), config_.d_model, config_.d_model, config_.avg_pooler,
                            config_.avg_pooler);
    }
    const Weights vocoder = weights.under("vocoder");
    vocoder_in_ = {vocoder.matrix("embeddings.weight", {config_.vocoder_dim, config_.n_mels}), {}};
    head_ = {vocoder.matrix("head.out.weight", {config_.nfft + 2, config_.vocoder_dim}),
             vocoder.vector("head.out.bias", config_.nfft + 2)};
}

// The transposed convolution alone: x [T, in] -> [(T - 1) * stride + kernel, out].
Array CodecDecoder::up_sums(const Context& context, const Array& x, const ConvTranspose& layer) {
    const auto out = static_cast<int64_t>(layer.bias.size());
    const Array taps = linear(context, x, layer.taps);  // [T, kernel * out]
    Array y((x.rows - 1) * layer.stride + layer.kernel, out);
    for (int64_t t = 0; t < y.rows; ++t) std::copy(layer.bias.begin(), layer.bias.end(), y.row(t));
    for (int64_t t = 0; t < x.rows; ++t) {
        float* target = y.row(t * layer.stride);
        for (int64_t i = 0; i < layer.kernel * out; ++i) target[i] += taps.row(t)[i];
    }
    return y;
}

// Transposed convolution, GroupNorm, and the causal trim of the last kernel - stride frames: x [T, in] -> [T * stride,
// out]. The norm sees the frames that the trim removes.
Array CodecDecoder::up(const Context& context, const Array& x, const ConvTranspose& layer, const std::string& name,
                       const std::string& norm_name) {
    Array y = up_sums(context, x, layer);
    context.tap(name, y);
    group_norm(y, layer.norm);
    context.tap(norm_name, y);
    return resized(std::move(y), x.rows * layer.stride);
}

std::vector<float> CodecDecoder::operator()(const Context& context, const Array& hidden, int64_t batch_frames) const {
    if (hidden.rows < 1) throw InputError("decode: expected at least one code frame, got none");
    Array x = resized(hidden, batch_frames);
    context.tap("codec_decoder.rvq", hidden);
    if (dconv1_) x = up(context, x, *dconv1_, "codec_decoder.dconv1_conv", "codec_decoder.dconv1");
    x = resized(std::move(x),
                hidden.rows * config_.avg_pooler);  // the layers see the item alone, without the batch's padding
    layers_.run(context, x, "codec_decoder");
    x = layer_norm(context, x, norm_);
    context.tap("codec_decoder.layer_norm", x);

    const int64_t mel_frames = x.rows * config_.decoder_stride_size;
    x = up(context, resized(std::move(x), batch_frames * config_.avg_pooler), dconv2_, "codec_decoder.dconv2_conv",
           "codec_decoder.dconv2_norm");
    const int64_t batch_mel_frames = x.rows;
    x = resized(std::move(x), mel_frames);
    context.tap("codec_decoder.coarse_mel", x);

    x = linear(context, x, vocoder_in_);
    context.tap("vocoder.embed", x);
    vocoder_.run(context, x, "vocoder");
    x = layer_norm(context, x, vocoder_norm_);
    context.tap("vocoder.norm", x);
    const Array head = linear(context, resized(std::move(x), batch_mel_frames), head_);
    context.tap("vocoder.head", head);
    return inverse_stft(context, head);
}

// head [F, nfft + 2] -> [F * hop]
std::vector<float> CodecDecoder::inverse_stft(const Context& context, const Array& head) const {
    const Array frames = wave_frames(context, head);
    OverlapAdd join(window_, config_.hop_length);
    std::vector<float> wav;
    for (int64_t t = 0; t < frames.rows; ++t) join.push(frames.row(t), wav);
    join.finish(wav);
    return wav;
}

// Windowed inverse FFTs. The imaginary parts of the first and last bin do not enter a real signal.
Array CodecDecoder::wave_frames(const Context& context, const Array& head) const {
    const int64_t size = fft_.size(), bins = size / 2 + 1;
    Array frames(head.rows, size);
    context.pool.run(head.rows, 4, [&](int64_t begin, int64_t end) {
        std::vector<std::complex<double>> spectrum(static_cast<size_t>(size)), signal(static_cast<size_t>(size));
        for (int64_t t = begin; t < end; ++t) {
            for (int64_t bin = 0; bin < bins; ++bin) {
                const float magnitude = std::min(std::exp(head.row(t)[bin]), kMagnitudeLimit);
                const float phase = head.row(t)[bins + bin];
                const double imaginary = bin == 0 || bin == bins - 1 ? 0.0 : magnitude * std::sin(phase);
                const std::complex<double> value(magnitude * std::cos(phase), imaginary);
                spectrum[static_cast<size_t>(bin)] =
                    std::conj(value);  // forward of the conjugate = inverse for a real signal
                if (bin > 0) spectrum[static_cast<size_t>(size - bin)] = value;
            }
            fft_.forward(spectrum, signal);
            for (int64_t n = 0; n < size; ++n) {
                frames.row(t)[n] =
                    static_cast<float>(signal[static_cast<size_t>(n)].real() / static_cast<double>(size)) *
                    window_[static_cast<size_t>(n)];
            }
        }
    });
    return frames;
}

std::optional<int64_t> CodecDecoder::exact_look_ahead() const {
    const int64_t right = config_.vocoder_attn_window_size[1];
    if (right < 0) return {};
    const int64_t frame_rows = config_.avg_pooler * config_.decoder_stride_size;
    return (config_.vocoder_num_layers * right + frame_rows - 1) / frame_rows;
}

Array CodecDecoder::up_part(const Context& context, const Array& x, const ConvTranspose& layer, const Moments& prior,
                            double weight_frames, int64_t frame_rows, Tail& tail) {
    const auto out = static_cast<int64_t>(layer.bias.size());
    const int64_t overlap = std::max<int64_t>(0, layer.kernel - layer.stride);
    const Array taps = linear(context, x, layer.taps);  // [T, kernel * out]
    Array y(x.rows * layer.stride + overlap, out);
    std::copy(tail.rows.data.begin(), tail.rows.data.end(), y.data.begin());
    for (int64_t t = tail.rows.rows; t < y.rows; ++t) std::copy(layer.bias.begin(), layer.bias.end(), y.row(t));
    for (int64_t t = 0; t < x.rows; ++t) {
        float* target = y.row(t * layer.stride);
        for (int64_t i = 0; i < layer.kernel * out; ++i) target[i] += taps.row(t)[i];
    }
    tail.rows = y.part(x.rows * layer.stride, overlap);
    y = resized(std::move(y), x.rows * layer.stride);

    const bool frozen = std::isinf(weight_frames);
    const double weight =
        frozen ? 0 : weight_frames * static_cast<double>(frame_rows * layer.stride * out);  // in elements
    for (int64_t t = 0; t < x.rows; ++t) {  // the statistics include the rows that one input row makes, at once
        const std::span<float> rows(y.row(t * layer.stride), static_cast<size_t>(layer.stride * out));
        for (const float v : rows) {
            tail.sum += v;
            tail.square += double{v} * v;
        }
        tail.count += static_cast<double>(rows.size());
        Moments seen = prior;
        if (!frozen) {
            const double count = weight + tail.count;
            seen.mean = (weight * prior.mean + tail.sum) / count;
            const double square = (weight * (prior.variance + prior.mean * prior.mean) + tail.square) / count;
            seen.variance = std::max(0.0, square - seen.mean * seen.mean);
        }
        normalise(rows, seen, layer.norm);
    }
    return y;
}

void StreamOptions::check() const {
    constexpr int64_t kMost = int64_t{1} << 30;  // a year of sound
    if (history_frames < 0 || history_frames > kMost || look_ahead_frames < 0 || look_ahead_frames > kMost ||
        !(norm.weight_frames >= 0)) {
        throw InputError(message("decoder stream: expected history and look-ahead of 0 to ", kMost,
                                 " frames and a norm weight of 0 or more, got ", history_frames, ", ",
                                 look_ahead_frames, " and ", norm.weight_frames));
    }
}

LayersMemory CodecDecoder::layers_memory(int64_t history_frames, int64_t frames) const {
    return layers_.memory(history_frames * config_.avg_pooler, frames * config_.avg_pooler);
}

LayersMemory CodecDecoder::vocoder_memory(int64_t history_frames, int64_t rows) const {
    const int64_t own = config_.vocoder_attn_window_size[0];
    return vocoder_.memory(own < 0 ? history_frames * config_.avg_pooler * config_.decoder_stride_size : own, rows);
}

Array CodecDecoder::coarse(const Context& context, const Array& hidden, const NormPolicy& norm,
                           std::array<Tail, 2>& tails, LayersMemory& memory) const {
    Array x = hidden;
    if (dconv1_) x = up_part(context, x, *dconv1_, norm.prior[0], norm.weight_frames, 1, tails[0]);
    layers_.append(context, x, x.rows, memory);
    x = layer_norm(context, x, norm_);
    x = up_part(context, x, dconv2_, norm.prior[1], norm.weight_frames, config_.avg_pooler, tails[1]);
    return linear(context, x, vocoder_in_);
}

Array CodecDecoder::spectra(const Context& context, const Array& x) const {
    return linear(context, layer_norm(context, x, vocoder_norm_), head_);
}

std::vector<float> CodecDecoder::operator()(const Context& context, const Array& hidden,
                                            const StreamOptions& options) const {
    options.check();
    std::array<Tail, 2> tails;
    LayersMemory memory = layers_memory(options.history_frames, hidden.rows);
    Array x = coarse(context, hidden, options.norm, tails, memory);
    LayersMemory vocoder = vocoder_memory(options.history_frames, x.rows);
    vocoder_.append(context, x, x.rows, vocoder);
    return inverse_stft(context, spectra(context, x));
}

std::array<Moments, 2> CodecDecoder::measure(const Context& context, const Array& hidden) const {
    if (hidden.rows < 1) throw InputError("measure: expected at least one code frame, got none");
    std::array<Moments, 2> moments;
    Array x = hidden;
    if (dconv1_) {
        Array y = up_sums(context, x, *dconv1_);
        moments[0] = group_norm(y, dconv1_->norm);
        x = resized(std::move(y), x.rows * dconv1_->stride);
    }
    layers_.run(context, x, "codec_decoder");
    Array y = up_sums(context, layer_norm(context, x, norm_), dconv2_);
    moments[1] = group_norm(y, dconv2_.norm);
    return moments;
}

StreamingDecoder::StreamingDecoder(int64_t left_overlap, int64_t right_overlap)
    : left_(left_overlap), right_(right_overlap) {
    if (right_overlap < 0 || left_overlap < right_overlap) {  // what is not yet out must be kept
        throw InputError(message("streaming decoder: expected a right overlap of 0 code frames or more and a left one ",
                                 "no shorter, got ", right_overlap, " and ", left_overlap));
    }
}

std::vector<std::optional<std::vector<float>>> StreamingDecoder::push(const Context& context,
                                                                      const CodecDecoder& decoder,
                                                                      std::vector<Array> chunks, bool last) {
    if (streams_.empty()) streams_.resize(chunks.size());
    if (chunks.size() != streams_.size()) {
        throw ShapeError(
            message("streaming decoder: expected chunks for ", streams_.size(), " streams, got ", chunks.size()));
    }
    int64_t longest = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
        Array& history = streams_[i].history;
        history.cols = chunks[i].cols;
        history.rows += chunks[i].rows;
        history.data.insert(history.data.end(), chunks[i].data.begin(), chunks[i].data.end());
        longest = std::max(longest, history.rows);
    }
    std::vector<std::optional<std::vector<float>>> pieces;
    for (Stream& stream : streams_) {
        const int64_t frames = stream.history.rows;
        if (!last && frames <= right_) {
            stream.processed = 0;
            pieces.emplace_back();
            continue;
        }
        const std::vector<float> wav = decoder(context, stream.history, longest);
        const int64_t end =
            last ? longest : frames - right_;  // the last call does not cut a shorter stream, as upstream
        const int64_t rate = decoder.samples_per_frame();
        const int64_t begin = std::min(stream.processed, end);
        pieces.emplace_back(std::vector<float>(wav.begin() + begin * rate, wav.begin() + end * rate));
        stream.processed = last ? frames : end;
        if (!last && frames > left_) {
            const int64_t dropped = frames - left_;
            stream.history.data.erase(stream.history.data.begin(),
                                      stream.history.data.begin() + dropped * stream.history.cols);
            stream.history.rows = left_;
            stream.processed -= dropped;
        }
    }
    return pieces;
}

}  // namespace mimo
