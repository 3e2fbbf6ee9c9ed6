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

// All lanes of v combined, half against half.
template <typename T, int64_t n = kWidth, typename V, typename Combine>
inline T fold(const V& v, Combine combine) {
    if constexpr (n == 2) {
        return combine(v[0], v[1]);
    } else {
        // not `using`: GCC ignores the attribute of a dependent type there
        typedef T Half __attribute__((vector_size(n / 2 * sizeof(T))));
        Half halves[2];
        std::memcpy(halves, &v, sizeof(halves));
        return fold<T, n / 2>(combine(halves[0], halves[1]), combine);
    }
}

template <typename V>
inline void store(float* p, const V& v) {
    std::memcpy(p, &v, sizeof(V));
}

}  // namespace
}  // namespace mimo
