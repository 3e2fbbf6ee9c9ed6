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

Resampler::Resampler(int64_t from_hz, int64_t to_hz) {
    if (from_hz < 1 || to_hz < 1 || from_hz > 10'000'000 || to_hz > 10'000'000) {
        throw InputError(message("resample: expected rates from 1 to 10000000 Hz, got ", from_hz, " and ", to_hz));
    }
    const int64_t common = std::gcd(from_hz, to_hz);
    from_ = from_hz / common;
    to_ = to_hz / common;
    if (from_ == to_) return;
    const double cutoff = kRolloff * static_cast<double>(std::min(from_, to_));
    // Output i lies at input position i * from / to; inputs within `reach` of it have a weight. They differ by phase, i
    // % to.
    const double reach = kFilterWidth * static_cast<double>(from_) / cutoff;
    taps_ = static_cast<int64_t>(2 * std::ceil(reach)) + 1;
    kernel_.resize(static_cast<size_t>(to_ * taps_));
    for (int64_t phase = 0; phase < to_; ++phase) {
        for (int64_t tap = 0; tap < taps_; ++tap) {
            const double distance = static_cast<double>(first_of(phase) + tap) / static_cast<double>(from_) -
                                    static_cast<double>(phase) / static_cast<double>(to_);
            kernel_[static_cast<size_t>(phase * taps_ + tap)] =
                weight(distance * cutoff, cutoff / static_cast<double>(from_));
        }
    }
}

int64_t Resampler::first_of(int64_t phase) const {
    if (from_ == to_) return 0;
    const double cutoff = kRolloff * static_cast<double>(std::min(from_, to_));
    const double reach = kFilterWidth * static_cast<double>(from_) / cutoff;
    const double centre = static_cast<double>(phase) * static_cast<double>(from_) / static_cast<double>(to_);
    return static_cast<int64_t>(std::ceil(centre - reach));
}

int64_t Resampler::make(int64_t known, int64_t samples, int64_t most, std::vector<float>& out) const {
    int64_t i = made_;
    for (; i < most; ++i) {
        const int64_t start = i / to_ * from_ + first_of(i % to_);
        if (start + taps_ > known) break;
        if (from_ == to_) {
            out.push_back(history_[static_cast<size_t>(start - dropped_)]);
            continue;
        }
        const float* taps_of = kernel_.data() + i % to_ * taps_;
        float sum = 0;
        for (int64_t tap = std::max<int64_t>(0, -start); tap < std::min(taps_, samples - start); ++tap)
            sum += history_[static_cast<size_t>(start + tap - dropped_)] * taps_of[tap];
        out.push_back(sum);
    }
    return i;
}

void Resampler::push(std::span<const float> wav, std::vector<float>& out) {
    history_.insert(history_.end(), wav.begin(), wav.end());
    const int64_t samples = dropped_ + static_cast<int64_t>(history_.size());
    made_ = make(samples, samples, (samples * to_ + from_ - 1) / from_, out);
    const int64_t needed = std::max<int64_t>(0, made_ / to_ * from_ + first_of(made_ % to_));
    const int64_t drop = std::clamp<int64_t>(needed - dropped_, 0, static_cast<int64_t>(history_.size()));
    history_.erase(history_.begin(), history_.begin() + drop);
    dropped_ += drop;
}

void Resampler::tail(std::vector<float>& out) const {
    const int64_t samples = dropped_ + static_cast<int64_t>(history_.size());
    make(samples + taps_ + from_, samples, (samples * to_ + from_ - 1) / from_, out);
}

std::vector<float> resample(std::span<const float> wav, int64_t from_hz, int64_t to_hz) {
    Resampler resampler(from_hz, to_hz);
    std::vector<float> out;
    resampler.push(wav, out);
    resampler.tail(out);
    return out;
}

}  // namespace mimo
