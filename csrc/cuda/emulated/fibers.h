// A launch on the host: blocks x threads fibers on one system thread, switched at barriers and shuffles. The order in
// which they run can be drawn at random, so that a missing barrier shows as a result that changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace mimo::gpu::fibers {

struct Fiber {
    int thread, threads, block, blocks;
    char* shared;
};

// The running fiber.
const Fiber& self();

// Runs body once for every thread; threads is a multiple of 32. Blocks have shared_bytes of memory each, filled with
// 0xFF (NaN to whoever reads before writing). order: 0 for turn by turn, else the seed of a random order. Throws
// DeviceError if the fibers wait for each other for ever.
void launch(int blocks, int threads, size_t shared_bytes, uint32_t order, const std::function<void()>& body);

void yield();
void note_progress();  // something happened that another fiber may be waiting for
void sync_block();
uint64_t exchange(uint64_t value, int mask);  // within a warp

}  // namespace mimo::gpu::fibers
