// codes at 25 Hz -> wav at 24 kHz: RVQ rows, two transposed convolutions with GroupNorm around a causal transformer (a
// coarse mel at 100 Hz), then the vocoder: a windowed transformer that predicts magnitude and phase, and an inverse
// STFT. Upstream: modeling_audio_tokenizer.py AudioDecoder, TransformerVocos, ISTFTHead, ISTFT, streaming_decode.
#pragma once

#include <array>
#include <optional>

#include "codec/fft.h"
#include "codec/layers.h"

namespace mimo {

struct Moments {
    double mean = 0, variance = 1;
};

// Statistics of the two GroupNorms where the whole time axis, which upstream takes, is not known yet: what has passed
// so far, the frame in hand included, beside `prior`, which counts as weight_frames code frames. Weight 0 is a running
// norm, infinity a frozen one, anything between a seeded one.
struct NormPolicy {
    std::array<Moments, 2> prior = {};
    double weight_frames = 0;
};

struct StreamOptions {
    NormPolicy norm;
    int64_t history_frames = 250;    // code frames of the past that the causal layers see; upstream's left_overlap
    int64_t look_ahead_frames = 40;  // code frames the vocoder waits for; more than exact_look_ahead() is not used

    void check() const;  // throws InputError on what is negative or absurd
};

class CodecDecoder {
public:
    CodecDecoder(const Config& config, const Weights& weights, const LayersDevice* device = nullptr);

    int64_t samples_per_frame() const { return config_.samples_per_code_frame(); }

    // hidden [T, D] (rvq.decode) -> wav [batch_frames * samples_per_frame()].
    // batch_frames >= T: the longest item of upstream's padded batch; GroupNorm and the vocoder's head see the padding.
    // Alone, it is T.
    std::vector<float> operator()(const Context& context, const Array& hidden, int64_t batch_frames) const;

    // The same with the norms and the history of a stream, and all the future: the law that DecoderStream keeps at an
    // exact look-ahead. hidden [T, D] -> wav [T * samples_per_frame()].
    std::vector<float> operator()(const Context& context, const Array& hidden, const StreamOptions& options) const;

    // Upstream's statistics of both norms over hidden [T, D]: the prior of a policy.
    std::array<Moments, 2> measure(const Context& context, const Array& hidden) const;

    // Code frames of future that the vocoder's windows reach; none if they reach without end.
    std::optional<int64_t> exact_look_ahead() const;

private:
    friend class DecoderStream;
    struct ConvTranspose {
        Linear taps;     // weight [kernel * out, in]
        Vector bias;     // [out]
        LayerNorm norm;  // GroupNorm with one group: statistics over channels and the whole time axis
        int64_t kernel = 0, stride = 0;
    };

    static ConvTranspose read_conv(const Weights& weights, int64_t in, int64_t out, int64_t kernel, int64_t stride);
    // What a transposed convolution that is given its input in parts keeps.
    struct Tail {
        Array rows;                             // sums that the next input adds to
        double count = 0, sum = 0, square = 0;  // over all rows that are complete
    };

    // The next part of `up` under a policy: x [T, in] -> [T * stride, out]. frame_rows: rows of x in a code frame.
    static Array up_part(const Context& context, const Array& x, const ConvTranspose& layer, const Moments& prior,
                         double weight_frames, int64_t frame_rows, Tail& tail);
    // The next code frames up to the vocoder's input, hidden [T, D] -> [F, vocoder_dim].
    Array coarse(const Context& context, const Array& hidden, const NormPolicy& norm, std::array<Tail, 2>& tails,
                 LayersMemory& memory) const;
    Array spectra(const Context& context, const Array& x) const;         // vocoder layers' output -> head [F, nfft + 2]
    Array wave_frames(const Context& context, const Array& head) const;  // -> [F, nfft], windowed
    LayersMemory layers_memory(int64_t history_frames, int64_t frames) const;
    LayersMemory vocoder_memory(int64_t history_frames, int64_t rows) const;  // its own window, if it has one

    static Array up_sums(const Context& context, const Array& x, const ConvTranspose& layer);
    static Array up(const Context& context, const Array& x, const ConvTranspose& layer, const std::string& name,
                    const std::string& norm_name);

    CodecConfig config_;
    std::optional<ConvTranspose> dconv1_;  // only if avg_pooler > 1
    Layers layers_;
    LayerNorm norm_;
    ConvTranspose dconv2_;
    Linear vocoder_in_;
    Layers vocoder_;
    LayerNorm vocoder_norm_;
    Linear head_;  // [nfft + 2, vocoder_dim]: log magnitudes, then phases
    Fft fft_;
    std::vector<float> window_;

    std::vector<float> inverse_stft(const Context& context, const Array& head) const;
};

// Upstream's streaming_decode for a batch of streams: every call decodes the kept history and the new chunk again.
class StreamingDecoder {
public:
    StreamingDecoder(int64_t left_overlap, int64_t right_overlap);

    // chunks: hidden rows [T_i, D] of each stream, the same streams in each call. Returns each stream's new samples, or
    // nothing while a stream is no longer than the right overlap. last: everything left comes out.
    std::vector<std::optional<std::vector<float>>> push(const Context& context, const CodecDecoder& decoder,
                                                        std::vector<Array> chunks, bool last);

    struct Stream {
        Array history;          // rows kept for the next call
        int64_t processed = 0;  // of them, how many have been given out
    };
    const std::vector<Stream>& streams() const { return streams_; }

private:
    int64_t left_, right_;
    std::vector<Stream> streams_;
};

}  // namespace mimo
