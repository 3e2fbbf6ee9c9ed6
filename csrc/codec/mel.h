// wav -> log-mel: reflect-padded STFT, magnitude, HTK triangles without area norm, log(max(x, 1e-7)).
// Upstream: mimo_audio.py wav2mel on torchaudio MelSpectrogram(power=1, center=True).
#pragma once

#include "codec/fft.h"
#include "io/config.h"
#include "kernels/ops.h"

namespace mimo {

class Mel {
public:
    explicit Mel(const CodecConfig& config);

    // The shortest input: reflect padding by nfft / 2 must find that many samples beside the first.
    int64_t least_samples() const { return fft_.size() / 2 + 1; }

    int64_t frames_of(int64_t samples) const { return samples / hop_length_ + 1; }

    // wav: float32 [samples], 24 kHz mono. -> [1 + samples / hop, n_mels].
    // Throws InputError if wav is shorter than least_samples() or holds NaN or infinity.
    Array operator()(const Context& context, std::span<const float> wav) const;

    // Frames [first, last) of it, [last - first, n_mels]; of finite samples. A frame below frames_settled(samples)
    // stays as it is when more samples follow.
    Array frames(const Context& context, std::span<const float> wav, int64_t first, int64_t last) const;
    int64_t frames_settled(int64_t samples) const;

    const Array& filterbank() const { return filterbank_; }  // [nfft / 2 + 1, n_mels]
    const std::vector<float>& window() const { return window_; }

private:
    void spectrum(std::span<const float> wav, int64_t frame, std::span<std::complex<double>> in,
                  std::span<std::complex<double>> out) const;

    int64_t hop_length_;
    Fft fft_;
    std::vector<float> window_;  // [window_size]
    Array filterbank_;
};

}  // namespace mimo
