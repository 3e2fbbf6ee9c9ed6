// Sample-rate conversion by a Hann-windowed sinc, the formula and defaults of torchaudio.functional.resample
// (sinc_interp_hann, lowpass_filter_width 6, rolloff 0.99), which the reference uses.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mimo {

// A recording given in parts: however it is cut, the samples are those of resample().
class Resampler {
public:
    // Throws InputError on a rate below 1 or above 10 MHz.
    Resampler(int64_t from_hz, int64_t to_hz);

    // wav: float32 [samples] at from_hz. Appends to out the samples at to_hz that have become certain.
    void push(std::span<const float> wav, std::vector<float>& out);

    // Appends what is missing if the recording ends here; the resampler goes on as if it had not.
    void tail(std::vector<float>& out) const;

private:
    // Outputs from made_ on whose inputs all lie below `known`, inputs at `samples` and beyond being zero.
    int64_t make(int64_t known, int64_t samples, int64_t most, std::vector<float>& out) const;
    int64_t first_of(int64_t phase) const;  // input, relative to the phase's own

    int64_t from_, to_;  // without their common factor
    int64_t taps_ = 1;
    std::vector<float> kernel_;   // [to, taps]
    std::vector<float> history_;  // inputs from dropped_ on
    int64_t dropped_ = 0, made_ = 0;
};

// wav: float32 [samples] at from_hz. -> float32 [ceil(samples * to_hz / from_hz)] at to_hz. Throws InputError on a rate
// below 1.
std::vector<float> resample(std::span<const float> wav, int64_t from_hz, int64_t to_hz);

}  // namespace mimo
