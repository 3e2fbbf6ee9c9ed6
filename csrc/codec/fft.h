// Discrete Fourier transform of any length, in double, by decimation over its prime factors (960 = 2^6 · 3 · 5).
#pragma once

#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace mimo {

class Fft {
public:
    explicit Fft(int64_t size);

    int64_t size() const { return size_; }

    // out_k = sum_n in_n exp(-2 pi i n k / size). in and out: [size], not the same memory.
    void forward(std::span<const std::complex<double>> in, std::span<std::complex<double>> out) const;

private:
    void transform(const std::complex<double>* in, int64_t stride, std::complex<double>* out, int64_t n,
                   size_t factor) const;

    int64_t size_;
    std::vector<int64_t> factors_;             // falling, so that most butterflies are those of two points
    std::vector<std::complex<double>> roots_;  // exp(-2 pi i n / size)
};

// Periodic Hann window [size]: (1 - cos(2 pi n / size)) / 2, as torch.hann_window.
std::vector<float> hann_window(int64_t size);

}  // namespace mimo
