// The compiler's vector types at the width of one instruction set (MIMO_VECTOR_BYTES), and how they meet memory.
#pragma once

#include <cstdint>
#include <cstring>

namespace mimo {
namespace {

constexpr int64_t kWidth = MIMO_VECTOR_BYTES / sizeof(float);

using Float = float __attribute__((vector_size(MIMO_VECTOR_BYTES)));
using Int = int32_t __attribute__((vector_size(MIMO_VECTOR_BYTES)));

template <typename V, typename T>
inline V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}

template <typename V, typename T>
inline V load_part(const T* p, int64_t n) {
    V v = {};
    std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
    return v;
}

template <typename V>
inline void store(float* p, const V& v) {
    std::memcpy(p, &v, sizeof(V));
}

}  // namespace
}  // namespace mimo
