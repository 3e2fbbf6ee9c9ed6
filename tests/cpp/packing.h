// Packs a matrix of floats as the quantiser does, by the text of kernels/packed.h alone: for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/packed.h"

namespace packing {

// Owns what its view looks at.
struct Packed {
    std::vector<uint8_t> data;
    std::vector<float> scales;
    std::vector<uint16_t> half_scales;
    int64_t rows, cols, group;
    mimo::DType type;
    int bits;

    mimo::Matrix view() const {
        const bool wide = type == mimo::DType::i8;
        const void* s = wide ? static_cast<const void*>(scales.data()) : half_scales.data();
        return {.data = data.data(),
                .rows = rows,
                .cols = cols,
                .type = type,
                .scales = s,
                .group = group,
                .activation_bits = bits};
    }
};

// w [rows, cols] row-major. group: of i4. i4 scales are powers of two, which half precision holds exactly.
inline Packed pack(const std::vector<float>& w, int64_t rows, int64_t cols, mimo::DType type, int64_t group, int bits) {
    const bool wide = type == mimo::DType::i8;
    if (wide) group = cols;
    const int64_t per_chunk = wide ? 4 : 8, chunks = (cols + per_chunk - 1) / per_chunk;
    const int64_t blocks = (rows + 15) / 16, groups = (cols + group - 1) / group;
    Packed p = {.data = std::vector<uint8_t>(static_cast<size_t>(blocks * chunks * 64), wide ? 0 : 0x88),
                .scales = std::vector<float>(static_cast<size_t>(blocks * groups * 16)),
                .half_scales = std::vector<uint16_t>(static_cast<size_t>(blocks * groups * 16)),
                .rows = rows,
                .cols = cols,
                .group = group,
                .type = type,
                .bits = bits};
    for (int64_t n = 0; n < rows; ++n) {
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t end = std::min(cols, (g + 1) * group);
            float most = 0;
            for (int64_t k = g * group; k < end; ++k)
                most = std::max(most, std::abs(w[static_cast<size_t>(n * cols + k)]));
            const int exponent = static_cast<int>(std::ceil(std::log2(std::max(most, 1e-3f) / 7)));
            const float scale = wide ? most / 127 : std::ldexp(1.0f, exponent);
            const auto at = static_cast<size_t>((n / 16 * groups + g) * 16 + n % 16);
            p.scales[at] = scale;
            p.half_scales[at] = static_cast<uint16_t>((exponent + 15) << 10);
            for (int64_t k = g * group; k < end; ++k) {
                const int q =
                    scale > 0 ? static_cast<int>(std::nearbyint(w[static_cast<size_t>(n * cols + k)] / scale)) : 0;
                const auto byte = static_cast<size_t>(((n / 16 * chunks + k / per_chunk) * 16 + n % 16) * 4 + k % 4);
                if (wide) {
                    p.data[byte] = static_cast<uint8_t>(q);
                } else {
                    const int shift = k % 8 < 4 ? 0 : 4;
                    p.data[byte] = static_cast<uint8_t>((p.data[byte] & ~(15 << shift)) | (q + 8) << shift);
                }
            }
        }
    }
    return p;
}

}  // namespace packing
