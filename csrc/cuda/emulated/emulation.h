// The size of the device that the host plays.
#pragma once

#include <cstdint>

namespace mimo::gpu {

struct Emulation {
    int blocks = 3;
    int threads = 64;
    uint32_t order = 0;  // of the threads (fibers.h)
    bool cooperative = true;
    int64_t shared_bytes = int64_t{160} << 10;
};

Emulation& emulation();

}  // namespace mimo::gpu
