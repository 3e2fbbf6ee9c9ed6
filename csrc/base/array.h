// The two kinds of memory in the core: activations (owned, float32, row-major) and weights (viewed, mapped from a
// bundle, floats or packed integers).
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

// Element types of a bundle's tensors. i4: two in a byte, which files call U8.
enum class DType : uint8_t { f32, bf16, f16, i8, i4, f8_e4m3 };

inline int64_t bytes_of(DType type) {  // of one stored element; of a pair for i4
    return type == DType::f32 ? 4 : type == DType::bf16 || type == DType::f16 ? 2 : 1;
}

inline const char* name_of(DType type) {  // as safetensors spell it
    constexpr const char* names[] = {"F32", "BF16", "F16", "I8", "U8", "F8_E4M3"};
    return names[static_cast<size_t>(type)];
}

// Weights [rows, cols] in the bundle's own type. A view: the bundle's mapping outlives it.
// f32, bf16: row-major. i8, i4: packed in the layout of kernels/packed.h, with scales.
struct Matrix {
    const void* data = nullptr;
    int64_t rows = 0;
    int64_t cols = 0;
    DType type = DType::f32;
    const char* name = nullptr;    // in the bundle
    const void* scales = nullptr;  // packed: [ceil(rows / 16), ceil(cols / group), 16], f32 for i8 and f16 for i4
    int64_t group = 0;             // packed: columns that share a scale; i8: all
    int activation_bits = 16;      // packed: 8 or 16, how finely the inputs are rounded

    bool packed() const { return type == DType::i8 || type == DType::i4; }
};

using Vector = std::span<const float>;  // biases, norm weights

}  // namespace mimo
