// The two kinds of memory in the core: activations (owned, float32, row-major) and weights (viewed, mapped from a
// bundle, floats or packed integers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <vector>

#include "base/error.h"

namespace mimo {

inline constexpr int64_t kLine = 64;  // bytes of a cache line, and of the widest vectors

// A vector on whole cache lines, whose new elements, if no value is given, are what the memory holds.
template <typename T>
struct OnLines {
    using value_type = T;

    OnLines() = default;
    template <typename U>
    OnLines(const OnLines<U>&) {}

    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{kLine})); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{kLine}); }
    template <typename U>
    void construct(U* p) noexcept {
        ::new (static_cast<void*>(p)) U;
    }
    bool operator==(const OnLines&) const = default;
};
template <typename T>
using Unfilled = std::vector<T, OnLines<T>>;

// A dense float32 array [rows, cols], row-major: what flows between stages. Time is the row.
struct Array {
    int64_t rows = 0;
    int64_t cols = 0;
    Unfilled<float> data;

    Array() = default;
    Array(int64_t rows, int64_t cols) : rows(rows), cols(cols), data(static_cast<size_t>(rows * cols), 0.0f) {}

    Array(int64_t rows, int64_t cols, std::span<const float> values)
        : rows(rows), cols(cols), data(values.begin(), values.end()) {}

    // For a maker that writes all of it: zeros would cost a twentieth of the codec's time.
    static Array unfilled(int64_t rows, int64_t cols) {
        Array x;
        x.rows = rows;
        x.cols = cols;
        x.data.resize(static_cast<size_t>(rows * cols));
        return x;
    }

    std::vector<float> values() const { return {data.begin(), data.end()}; }
    Array part(int64_t first, int64_t count) const {  // rows
        return {count, cols, {row(first), static_cast<size_t>(count * cols)}};
    }
    float* row(int64_t i) { return data.data() + i * cols; }
    const float* row(int64_t i) const { return data.data() + i * cols; }
};

// The first rows of x, zero rows added if it has fewer.
inline Array resized(Array x, int64_t rows) {
    x.data.resize(static_cast<size_t>(rows * x.cols), 0.0f);
    x.rows = rows;
    return x;
}

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
