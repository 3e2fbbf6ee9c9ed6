#include "codec/fft.h"

#include <cmath>
#include <numbers>

namespace mimo {
namespace {

// operator* looks for NaN and infinity, which costs more than the product.
std::complex<double> product(std::complex<double> a, std::complex<double> b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

}  // namespace

Fft::Fft(int64_t size) : size_(size), roots_(static_cast<size_t>(size)) {
    for (int64_t n = 0; n < size; ++n) {
        roots_[static_cast<size_t>(n)] =
            std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(n) / static_cast<double>(size));
    }
    for (int64_t rest = size, p = 2; rest > 1; ++p) {
        for (; rest % p == 0; rest /= p) factors_.insert(factors_.begin(), p);
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
    const int64_t p = factors_[factor], m = n / p, turns = size_ / n;
    for (int64_t r = 0; r < p; ++r) transform(in + r * stride, stride * p, out + r * m, m, factor + 1);
    if (p == 2) {
        for (int64_t k = 0; k < m; ++k) {
            const std::complex<double> even = out[k];
            const std::complex<double> odd = product(out[m + k], roots_[static_cast<size_t>(k * turns)]);
            out[k] = even + odd;
            out[m + k] = even - odd;
        }
        return;
    }
    std::vector<std::complex<double>> points(static_cast<size_t>(p));
    for (int64_t k = 0; k < m; ++k) {
        for (int64_t r = 0; r < p; ++r) points[static_cast<size_t>(r)] = out[r * m + k];
        for (int64_t q = 0; q < p; ++q) {
            std::complex<double> sum = points[0];
            for (int64_t r = 1; r < p; ++r)
                sum +=
                    product(points[static_cast<size_t>(r)], roots_[static_cast<size_t>(r * (k + q * m) % n * turns)]);
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
