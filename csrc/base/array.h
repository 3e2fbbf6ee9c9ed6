// The two kinds of memory in the core: activations (owned, float32, row-major) and weights (viewed, mapped from a
// bundle).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"

namespace mimo {

// A dense float32 array [rows, cols], row-major: what flows between stages. Time is the row.
struct Array {
    int64_t rows = 0;
    int64_t cols = 0;
    std::vector<float> data;

    Array() = default;
    Array(int64_t rows, int64_t cols) : rows(rows), cols(cols), data(static_cast<size_t>(rows * cols)) {}

    float* row(int64_t i) { return data.data() + i * cols; }
    const float* row(int64_t i) const { return data.data() + i * cols; }
};

// RVQ indices [levels, frames], row-major: code of level k in code frame t.
struct Codes {
    int64_t levels = 0;
    int64_t frames = 0;
    std::vector<int32_t> data;

    Codes() = default;
    Codes(int64_t levels, int64_t frames)
        : levels(levels), frames(frames), data(static_cast<size_t>(levels * frames)) {}

    int32_t& at(int64_t level, int64_t frame) { return data[static_cast<size_t>(level * frames + frame)]; }
    int32_t at(int64_t level, int64_t frame) const { return data[static_cast<size_t>(level * frames + frame)]; }
};

enum class DType : uint8_t { f32, bf16 };

inline int64_t bytes_of(DType type) {
    return type == DType::f32 ? 4 : 2;
}

// Weights [rows, cols], row-major, in the bundle's own type. A view: the bundle's mapping outlives it.
struct Matrix {
    const void* data = nullptr;
    int64_t rows = 0;
    int64_t cols = 0;
    DType type = DType::f32;
};

using Vector = std::span<const float>;  // biases, norm weights

}  // namespace mimo
