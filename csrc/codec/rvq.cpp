#include "codec/rvq.h"

#include <algorithm>

namespace mimo {

Rvq::Rvq(const CodecConfig& config, const Weights& weights) : dim_(config.d_model) {
    for (int64_t level = 0; level < config.num_quantizers; ++level) {
        const int64_t bins = config.codebook_size[static_cast<size_t>(level)];
        const Matrix codebook = weights.under("vq.layers", level).matrix("_codebook.embed", {bins, dim_});
        if (codebook.type != DType::f32)
            throw BundleError(
                message("rvq: expected F32 codebooks, got ", name_of(codebook.type), "; build the bundle again"));
        const auto* rows = static_cast<const float*>(codebook.data);
        std::vector<float>& norms = norms_.emplace_back(static_cast<size_t>(bins));
        for (size_t i = 0; i < norms.size(); ++i) {
            double sum = 0;
            for (int64_t d = 0; d < dim_; ++d)
                sum += double{rows[static_cast<int64_t>(i) * dim_ + d]} * rows[static_cast<int64_t>(i) * dim_ + d];
            norms[i] = static_cast<float>(sum);
        }
        codebooks_.push_back(codebook);
    }
}

Codes Rvq::encode(const Context& context, const Array& hidden) const {
    if (hidden.cols != dim_) throw ShapeError(message("rvq_encode: expected ", dim_, " channels, got ", hidden.cols));
    Codes codes(levels(), hidden.rows);
    context.pool.run(hidden.rows, 8, [&](int64_t begin, int64_t end) {
        std::vector<float> residual(hidden.row(begin), hidden.row(begin) + (end - begin) * dim_);
        std::vector<float> dots;
        for (int64_t level = 0; level < levels(); ++level) {
            const Matrix& codebook = codebooks_[static_cast<size_t>(level)];
            const std::vector<float>& norms = norms_[static_cast<size_t>(level)];
            dots.resize(static_cast<size_t>((end - begin) * codebook.rows));
            context.kernels.linear(residual.data(), end - begin, dim_, codebook, nullptr, 0, codebook.rows, dots.data(),
                                   codebook.rows);
            for (int64_t t = begin; t < end; ++t) {
                const float* dot = dots.data() + (t - begin) * codebook.rows;
                int64_t best = 0;
                for (int64_t i = 1; i < codebook.rows; ++i) {
                    if (norms[static_cast<size_t>(i)] - 2 * dot[i] < norms[static_cast<size_t>(best)] - 2 * dot[best])
                        best = i;
                }
                codes.at(level, t) = static_cast<int32_t>(best);
                const float* row = static_cast<const float*>(codebook.data) + best * dim_;
                float* rest = residual.data() + (t - begin) * dim_;
                for (int64_t d = 0; d < dim_; ++d) rest[d] -= row[d];
            }
        }
    });
    return codes;
}

void Rvq::check(const Codes& codes) const {
    if (codes.levels < 1 || codes.levels > levels()) {
        throw ShapeError(message("rvq_decode: expected 1 to ", levels(), " levels, got ", codes.levels));
    }
    for (int64_t level = 0; level < codes.levels; ++level) {
        const int64_t bins = codebooks_[static_cast<size_t>(level)].rows;
        for (int64_t t = 0; t < codes.frames; ++t) {
            const int64_t code = codes.at(level, t);
            if (code < 0 || code >= bins) {
                throw InputError(
                    message("rvq_decode: expected codes from 0 to ", bins - 1, " at level ", level, ", got ", code));
            }
        }
    }
}

Array Rvq::decode(const Codes& codes) const {
    check(codes);
    Array hidden(codes.frames, dim_);
    for (int64_t level = 0; level < codes.levels; ++level) {
        const Matrix& codebook = codebooks_[static_cast<size_t>(level)];
        for (int64_t t = 0; t < codes.frames; ++t) {
            const float* row = static_cast<const float*>(codebook.data) + codes.at(level, t) * dim_;
            for (int64_t d = 0; d < dim_; ++d) hidden.row(t)[d] += row[d];
        }
    }
    return hidden;
}

}  // namespace mimo
