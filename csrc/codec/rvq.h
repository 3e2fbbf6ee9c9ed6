// Residual vector quantisation, always in float32: code k is the row of codebook k nearest to what levels 0..k-1 left
// over. Upstream: quantization.py EuclideanCodebook, ResidualVectorQuantization.
#pragma once

#include "io/bundle.h"
#include "kernels/ops.h"

namespace mimo {

class Rvq {
public:
    Rvq(const CodecConfig& config, const Weights& weights);

    // Throws ShapeError on no levels or too many, InputError on a code out of range.
    void check(const Codes& codes) const;

    int64_t levels() const { return static_cast<int64_t>(codebooks_.size()); }

    // hidden [T, D] -> codes [levels, T]. Squared Euclidean distance; ties go to the lowest index.
    Codes encode(const Context& context, const Array& hidden) const;

    // codes [n <= levels, T] -> sum of the rows [T, D]. Throws as check does.
    Array decode(const Codes& codes) const;

private:
    int64_t dim_;
    std::vector<Matrix> codebooks_;          // [bins, D] float32
    std::vector<std::vector<float>> norms_;  // |row|^2
};

}  // namespace mimo
