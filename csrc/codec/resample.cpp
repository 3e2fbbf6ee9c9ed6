#include "codec/resample.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/error.h"

namespace mimo {
namespace {

constexpr double kFilterWidth = 6;  // zero crossings on each side
constexpr double kRolloff = 0.99;   // of the lower Nyquist frequency

}  // namespace

std::vector<float> resample(std::span<const float> wav, int64_t from_hz, int64_t to_hz) {
    if (from_hz < 1 || to_hz < 1 || from_hz > 10'000'000 || to_hz > 10'000'000) {
        throw InputError(message("resample: expected rates from 1 to 10000000 Hz, got ", from_hz, " and ", to_hz));
    }
    if (from_hz == to_hz) return {wav.begin(), wav.end()};
    const int64_t common = std::gcd(from_hz, to_hz);
    const int64_t from = from_hz / common, to = to_hz / common;
    const double cutoff = kRolloff * static_cast<double>(std::min(from, to));
    const auto width = static_cast<int64_t>(std::ceil(kFilterWidth * static_cast<double>(from) / cutoff));
    const int64_t taps = 2 * width + from;

    // kernel[phase, tap] = sinc(pi t) cos^2(pi t / 12) cutoff / from, t = (tap - width) / from - phase / to in units of
    // 1 / cutoff
    std::vector<float> kernel(static_cast<size_t>(to * taps));
    for (int64_t phase = 0; phase < to; ++phase) {
        for (int64_t tap = 0; tap < taps; ++tap) {
            double t = -static_cast<double>(phase) / static_cast<double>(to) +
                       static_cast<double>(tap - width) / static_cast<double>(from);
            t = std::clamp(t * cutoff, -kFilterWidth, kFilterWidth);
            const double window = std::pow(std::cos(t * std::numbers::pi / kFilterWidth / 2), 2);
            const double angle = t * std::numbers::pi;
            const double sinc = angle == 0 ? 1.0 : std::sin(angle) / angle;
            kernel[static_cast<size_t>(phase * taps + tap)] =
                static_cast<float>(sinc * window * cutoff / static_cast<double>(from));
        }
    }

    const auto samples = static_cast<int64_t>(wav.size());
    const int64_t length = (samples * to + from - 1) / from;
    std::vector<float> out(static_cast<size_t>(length));
    for (int64_t i = 0; i < length; ++i) {
        const int64_t start = i / to * from - width;
        const float* taps_of = kernel.data() + i % to * taps;
        float sum = 0;
        for (int64_t tap = std::max<int64_t>(0, -start); tap < std::min(taps, samples - start); ++tap) {
            sum += wav[static_cast<size_t>(start + tap)] * taps_of[tap];
        }
        out[static_cast<size_t>(i)] = sum;
    }
    return out;
}

}  // namespace mimo
