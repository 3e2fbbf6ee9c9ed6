// Sample-rate conversion by a Hann-windowed sinc, the formula and defaults of torchaudio.functional.resample
// (sinc_interp_hann, lowpass_filter_width 6, rolloff 0.99), which the reference uses.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mimo {

// wav: float32 [samples] at from_hz. -> float32 [ceil(samples * to_hz / from_hz)] at to_hz. Throws InputError on a rate
// below 1.
std::vector<float> resample(std::span<const float> wav, int64_t from_hz, int64_t to_hz);

}  // namespace mimo
