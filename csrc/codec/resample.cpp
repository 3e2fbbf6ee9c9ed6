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

// scale * sinc(t) * cos^2(pi t / (2 * width)) at t zero crossings from the centre, 0 beyond the width.
float weight(double t, double scale) {
    if (std::abs(t) >= kFilterWidth) return 0;
    const double angle = t * std::numbers::pi;
    const double window = std::cos(angle / kFilterWidth / 2);
    const double sinc = angle == 0 ? 1.0 : std::sin(angle) / angle;
    return static_cast<float>(sinc * window * window * scale);
}

}  // namespace

std::vector<float> resample(std::span<const float> wav, int64_t from_hz, int64_t to_hz) {
    if (from_hz < 1 || to_hz < 1 || from_hz > 10'000'000 || to_hz > 10'000'000) {
        throw InputError(message("resample: expected rates from 1 to 10000000 Hz, got ", from_hz, " and ", to_hz));
    }
    if (from_hz == to_hz) return {wav.begin(), wav.end()};
    const int64_t common = std::gcd(from_hz, to_hz);
    const int64_t from = from_hz / common, to = to_hz / common;
    const double cutoff = kRolloff * static_cast<double>(std::min(from, to));
    // Output i lies at input position i * from / to; inputs within `reach` of it have a weight. They differ by phase, i
    // % to.
    const double reach = kFilterWidth * static_cast<double>(from) / cutoff;
    const auto taps = static_cast<int64_t>(2 * std::ceil(reach)) + 1;
    const auto first_of = [&](int64_t phase) {
        const double centre = static_cast<double>(phase) * static_cast<double>(from) / static_cast<double>(to);
        return static_cast<int64_t>(std::ceil(centre - reach));
    };
    std::vector<float> kernel(static_cast<size_t>(to * taps));
    for (int64_t phase = 0; phase < to; ++phase) {
        for (int64_t tap = 0; tap < taps; ++tap) {
            const double distance = static_cast<double>(first_of(phase) + tap) / static_cast<double>(from) -
                                    static_cast<double>(phase) / static_cast<double>(to);
            kernel[static_cast<size_t>(phase * taps + tap)] =
                weight(distance * cutoff, cutoff / static_cast<double>(from));
        }
    }

    const auto samples = static_cast<int64_t>(wav.size());
    const int64_t length = (samples * to + from - 1) / from;
    std::vector<float> out(static_cast<size_t>(length));
    for (int64_t i = 0; i < length; ++i) {
        const int64_t start = i / to * from + first_of(i % to);
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
