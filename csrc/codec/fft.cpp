#include "codec/fft.h"

#include <cmath>
#include <numbers>

namespace mimo {

Fft::Fft(int64_t size) : size_(size), roots_(static_cast<size_t>(size)) {
    for (int64_t n = 0; n < size; ++n) {
        roots_[static_cast<size_t>(n)] =
            std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(n) / static_cast<double>(size));
    }
    for (int64_t rest = size, p = 2; rest > 1; ++p) {
        for (; rest % p == 0; rest /= p) factors_.push_back(p);
    }
}

void Fft::forward(std::span<const std::complex<double>> in, std::span<std::complex<double>> out) const {
    transform(in.data(), 1, out.data(), size_, 0);
}

// p transforms of every p-th input, then n/p butterflies of p points.
void Fft::transform(const std::complex<double>* in, int64_t stride, std::complex<double>* out, int64_t n,
                    size_t factor) const {
    if (n == 1) {
        out[0] = in[0];
        return;
    }
    const int64_t p = factors_[factor], m = n / p;
    for (int64_t r = 0; r < p; ++r) transform(in + r * stride, stride * p, out + r * m, m, factor + 1);
    std::vector<std::complex<double>> points(static_cast<size_t>(p));
    for (int64_t k = 0; k < m; ++k) {
        for (int64_t r = 0; r < p; ++r) points[static_cast<size_t>(r)] = out[r * m + k];
        for (int64_t q = 0; q < p; ++q) {
            std::complex<double> sum = points[0];
            for (int64_t r = 1; r < p; ++r) {
                const int64_t turn = r * (k + q * m) % n * (size_ / n);
                sum += points[static_cast<size_t>(r)] * roots_[static_cast<size_t>(turn)];
            }
            out[q * m + k] = sum;
        }
    }
}

std::vector<float> hann_window(int64_t size) {
    std::vector<float> window(static_cast<size_t>(size));
    for (int64_t n = 0; n < size; ++n) {
        window[static_cast<size_t>(n)] = static_cast<float>(
            0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(n) / static_cast<double>(size)));
    }
    return window;
}

}  // namespace mimo
