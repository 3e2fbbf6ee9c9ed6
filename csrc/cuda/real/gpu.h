// What device code may ask of its platform, on a GPU. emulated/gpu.h is the same on the host; the include path chooses.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define MIMO_DEVICE __device__ __forceinline__
#define MIMO_DEVICE_CALL __device__ __noinline__  // compiled on its own: it has all registers

namespace mimo::gpu {

struct alignas(16) Quad {
    uint32_t word[4];
};

MIMO_DEVICE int thread() {
    return static_cast<int>(threadIdx.x);
}
MIMO_DEVICE int threads() {
    return static_cast<int>(blockDim.x);
}
MIMO_DEVICE int block() {
    return static_cast<int>(blockIdx.x);
}
MIMO_DEVICE int blocks() {
    return static_cast<int>(gridDim.x);
}

// The block's dynamic shared memory.
MIMO_DEVICE char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

MIMO_DEVICE void sync() {
    __syncthreads();
}

template <typename T>
MIMO_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

// sum + the dot product of four signed bytes.
MIMO_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
    return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

// Weights: read once, so they need not stay in the first-level cache.
MIMO_DEVICE Quad load_weights(const void* p) {
    const uint4 v = __ldcs(static_cast<const uint4*>(p));
    return {{v.x, v.y, v.z, v.w}};
}

MIMO_DEVICE float as_float(uint32_t bits) {
    return __uint_as_float(bits);
}
MIMO_DEVICE uint32_t as_bits(float value) {
    return __float_as_uint(value);
}
MIMO_DEVICE float fused(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
MIMO_DEVICE float round_even(float x) {
    return rintf(x);
}
MIMO_DEVICE float exponential(float x) {
    return expf(x);
}
MIMO_DEVICE float error_function(float x) {
    return erff(x);
}
MIMO_DEVICE double exponential(double x) {
    return exp(x);
}
MIMO_DEVICE double square_root(double x) {
    return sqrt(x);
}
MIMO_DEVICE float infinity() {
    return __int_as_float(0x7F800000);
}

// Counts one in `counter`, after all that this thread wrote is visible to the device; returns what was there.
MIMO_DEVICE uint32_t arrive(uint32_t* counter) {
    __threadfence();
    return atomicAdd(counter, 1u);
}

// Waits until `counter` is at least `count`; what was written before those arrivals is visible after.
MIMO_DEVICE void wait_for(const uint32_t* counter, uint32_t count) {
    while (*static_cast<const volatile uint32_t*>(counter) < count) {
    }
    __threadfence();
}

MIMO_DEVICE void add_bits(int32_t* to, int32_t bits) {
    atomicOr(to, bits);
}

MIMO_DEVICE void fence() {
    __threadfence();
}

}  // namespace mimo::gpu
