// Reductions over a warp and over a block, in an order that is fixed by the block's size.
#pragma once

#include "cuda/layout.h"
#include "gpu.h"

namespace mimo::gpu {

MIMO_DEVICE int lane() {
    return thread() % kWarp;
}
MIMO_DEVICE int warp() {
    return thread() / kWarp;
}
MIMO_DEVICE int warps() {
    return threads() / kWarp;
}

template <typename T, typename Combine>
MIMO_DEVICE T reduce_warp(T value, Combine combine) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value = combine(value, shuffle_xor(value, mask));
    return value;
}

// The same value for every thread. scratch: one T a warp; it may be used again after the next barrier.
template <typename T, typename Combine>
MIMO_DEVICE T reduce_block(T value, Combine combine) {
    static_assert(sizeof(T) * kWarp <= kScratchBytes);
    T* scratch = reinterpret_cast<T*>(shared_memory());
    value = reduce_warp(value, combine);
    sync();  // whoever still reads the last result
    if (lane() == 0) scratch[warp()] = value;
    sync();
    value = scratch[0];
    for (int i = 1; i < warps(); ++i) value = combine(value, scratch[i]);
    return value;
}

struct Sum {
    template <typename T>
    MIMO_DEVICE T operator()(T a, T b) const {
        return a + b;
    }
};
struct Highest {
    template <typename T>
    MIMO_DEVICE T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};
struct Lowest {
    template <typename T>
    MIMO_DEVICE T operator()(T a, T b) const {
        return a < b ? a : b;
    }
};

}  // namespace mimo::gpu
