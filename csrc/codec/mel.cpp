#include "codec/mel.h"

#include <algorithm>
#include <cmath>

namespace mimo {
namespace {

constexpr float kFloor = 1e-7f;  // before the log, upstream wav2mel

double hz_to_mel(double hz) {
    return 2595.0 * std::log10(1.0 + hz / 700.0);
}

// Point i of `count` equally spaced ones, rounded once from the nearer end, as torch.linspace.
float spaced(float first, float last, int64_t count, int64_t i) {
    const float step = (last - first) / static_cast<float>(count - 1);
    return i < count / 2 ? std::fma(step, static_cast<float>(i), first)
                         : std::fma(-step, static_cast<float>(count - 1 - i), last);
}

// Triangles whose corners are equally spaced on the HTK mel scale; equal to torchaudio's melscale_fbanks to the last
// bit, which takes its corners in float.
Array make_filterbank(const CodecConfig& config) {
    const int64_t bins = config.nfft / 2 + 1, points = config.n_mels + 2;
    const auto low = static_cast<float>(hz_to_mel(config.fmin));
    const auto high =
        static_cast<float>(hz_to_mel(config.fmax.value_or(static_cast<double>(config.sampling_rate) / 2)));
    const auto corner = [&](int64_t i) {
        const double octaves = spaced(low, high, points, i) / 2595.0f;
        return 700.0f * (static_cast<float>(std::pow(10.0, octaves)) - 1.0f);
    };
    Array bank(bins, config.n_mels);
    for (int64_t m = 0; m < config.n_mels; ++m) {
        const float left = corner(m), centre = corner(m + 1), right = corner(m + 2);
        for (int64_t bin = 0; bin < bins; ++bin) {
            const float hz = spaced(0, static_cast<float>(config.sampling_rate / 2), bins, bin);
            bank.row(bin)[m] = std::max(0.0f, std::min((hz - left) / (centre - left), (right - hz) / (right - centre)));
        }
    }
    return bank;
}

}  // namespace

Mel::Mel(const CodecConfig& config)
    : hop_length_(config.hop_length),
      fft_(config.nfft),
      window_(hann_window(config.window_size)),
      filterbank_(make_filterbank(config)) {}

Array Mel::operator()(const Context& context, std::span<const float> wav) const {
    const auto samples = static_cast<int64_t>(wav.size());
    if (samples < least_samples()) {
        throw InputError(message("mel: expected at least ", least_samples(), " samples, got ", samples,
                                 "; the recording is too short"));
    }
    const auto bad = std::find_if(wav.begin(), wav.end(), [](float v) { return !std::isfinite(v); });
    if (bad != wav.end()) {
        throw InputError(message("mel: expected finite samples, got ", *bad, " at sample ", bad - wav.begin()));
    }
    return frames(context, wav, 0, frames_of(samples));
}

int64_t Mel::frames_settled(int64_t samples) const {
    return samples < least_samples() ? 0 : (samples - fft_.size() / 2) / hop_length_ + 1;
}

Array Mel::frames(const Context& context, std::span<const float> wav, int64_t first, int64_t last) const {
    Array mel(last - first, filterbank_.cols);
    context.pool.run(mel.rows, 16, [&](int64_t begin, int64_t end) {
        const auto size = static_cast<size_t>(fft_.size());
        std::vector<std::complex<double>> in(size), out(size);
        std::vector<double> sums(static_cast<size_t>(mel.cols));
        for (int64_t frame = begin; frame < end; ++frame) {
            spectrum(wav, first + frame, in, out);
            std::fill(sums.begin(), sums.end(), 0.0);
            for (int64_t bin = 0; bin < filterbank_.rows; ++bin) {
                const double level = std::abs(out[static_cast<size_t>(bin)]);
                const float* weights = filterbank_.row(bin);
                for (int64_t m = 0; m < mel.cols; ++m) sums[static_cast<size_t>(m)] += level * weights[m];
            }
            for (int64_t m = 0; m < mel.cols; ++m) {
                mel.row(frame)[m] = std::log(std::max(static_cast<float>(sums[static_cast<size_t>(m)]), kFloor));
            }
        }
    });
    return mel;
}

// Spectrum of the frame centred on sample frame * hop; the window sits in the middle of the nfft samples.
void Mel::spectrum(std::span<const float> wav, int64_t frame, std::span<std::complex<double>> in,
                   std::span<std::complex<double>> out) const {
    const auto samples = static_cast<int64_t>(wav.size());
    const auto width = static_cast<int64_t>(window_.size());
    const int64_t margin = (fft_.size() - width) / 2;
    std::fill(in.begin(), in.end(), 0.0);
    for (int64_t n = 0; n < width; ++n) {
        int64_t at = frame * hop_length_ - fft_.size() / 2 + margin + n;
        if (at < 0) at = -at;  // reflect, the border sample not repeated
        if (at >= samples) at = 2 * (samples - 1) - at;
        in[static_cast<size_t>(margin + n)] =
            static_cast<double>(wav[static_cast<size_t>(at)]) * window_[static_cast<size_t>(n)];
    }
    fft_.forward(in, out);
}

}  // namespace mimo
