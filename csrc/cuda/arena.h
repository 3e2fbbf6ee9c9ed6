// Many arrays in one allocation of a device: a first pass over who needs what counts, a second hands out the memory.
#pragma once

#include "cuda/runtime.h"

namespace mimo::gpu {

class Arena {
public:
    // [count] zeros, aligned to 256 bytes; while counting, an address that nobody may read.
    template <typename T>
    T* take(int64_t count) {
        char* data = (counting() ? reinterpret_cast<char*>(uintptr_t{256}) : memory_.as<char>()) + used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
        return reinterpret_cast<T*>(data);
    }

    bool counting() const { return memory_.bytes() == 0; }
    int64_t bytes() const { return used_; }

    void allocate() {
        memory_ = Memory(used_ + 256);
        used_ = 0;
    }

private:
    Memory memory_;
    int64_t used_ = 0;
};

}  // namespace mimo::gpu
