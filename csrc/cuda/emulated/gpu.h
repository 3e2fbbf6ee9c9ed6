// What device code may ask of its platform, on the host: every thread of a launch is a fiber (fibers.h), so that
// kernels run unchanged, barriers, shuffles and all, under a debugger and the sanitizers.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cuda/emulated/fibers.h"

#define MIMO_DEVICE inline
#define MIMO_DEVICE_CALL inline

namespace mimo::gpu {

struct alignas(16) Quad {
    uint32_t word[4];
};

inline int thread() {
    return fibers::self().thread;
}
inline int threads() {
    return fibers::self().threads;
}
inline int block() {
    return fibers::self().block;
}
inline int blocks() {
    return fibers::self().blocks;
}
inline char* shared_memory() {
    return fibers::self().shared;
}
inline void sync() {
    fibers::sync_block();
}

template <typename T>
T shuffle_xor(T value, int mask) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = fibers::exchange(bits, mask);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
    for (int shift = 0; shift < 32; shift += 8)
        sum += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
    return sum;
}

inline Quad load_weights(const void* p) {
    Quad quad;
    std::memcpy(&quad, p, sizeof(quad));
    return quad;
}

inline float as_float(uint32_t bits) {
    return std::bit_cast<float>(bits);
}
inline uint32_t as_bits(float value) {
    return std::bit_cast<uint32_t>(value);
}
inline float fused(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline float round_even(float x) {
    return std::nearbyint(x);
}
inline float exponential(float x) {
    return std::exp(x);
}
inline float error_function(float x) {
    return std::erf(x);
}
inline double exponential(double x) {
    return std::exp(x);
}
inline double square_root(double x) {
    return std::sqrt(x);
}
inline float infinity() {
    return std::numeric_limits<float>::infinity();
}

inline uint32_t arrive(uint32_t* counter) {
    fibers::note_progress();
    return (*counter)++;
}
inline void wait_for(const uint32_t* counter, uint32_t count) {
    while (*counter < count) fibers::yield();
}
inline void add_bits(int32_t* to, int32_t bits) {
    *to |= bits;
}
inline void fence() {}

}  // namespace mimo::gpu
