// A device as the host code sees it: memory, copies, launches. real/runtime.cu is CUDA, emulated/runtime.cpp the host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "cuda/layout.h"

namespace mimo::gpu {

struct Device {
    std::string name;
    int sm = 0;          // compute capability * 10
    int processors = 0;  // multiprocessors
    int64_t memory_bytes = 0;
    int64_t cache_bytes = 0;   // second level
    int64_t shared_bytes = 0;  // a block can have
    bool cooperative = false;  // one launch may have barriers of its whole grid
};

int device_count();  // 0 where there is no driver

// Makes the device current for this thread. Throws DeviceError if it is not there or too old.
Device use_device(int index);

// Memory of the current device, zeroed; freed at the end. Throws DeviceError if there is not enough.
class Memory {
public:
    Memory() = default;
    explicit Memory(int64_t bytes);

    template <typename T>
    T* as() const {
        return static_cast<T*>(data_.get());
    }
    int64_t bytes() const { return bytes_; }

private:
    struct Free {
        void operator()(void* p) const;
    };
    std::unique_ptr<void, Free> data_;
    int64_t bytes_ = 0;
};

// Host memory that copies need not stage.
class HostMemory {
public:
    explicit HostMemory(int64_t bytes);

    template <typename T>
    T* as() const {
        return static_cast<T*>(data_.get());
    }

private:
    struct Free {
        void operator()(void* p) const;
    };
    std::unique_ptr<void, Free> data_;
};

// How a list of jobs is launched.
struct Grid {
    int blocks = 0;
    int threads = 0;
    int64_t shared_bytes = 0;
    bool cooperative = false;  // else one launch a job
};

// The grid that fills the device.
Grid grid_of(const Device& device, int64_t shared_bytes);

// Threads of a block, before its shared memory is known.
int block_threads();

// Copies and launches, one after another, beside those of other streams.
class Stream {
public:
    Stream();
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    void copy_in(void* device, const void* host, int64_t bytes);
    void copy_out(void* host, const void* device, int64_t bytes);
    void copy(void* to, const void* from, int64_t bytes);  // on the device
    void run(const Program& program, int32_t row, const Grid& grid) { run(program, row, grid, 0, program.count()); }
    void run(const Program& program, int32_t row, const Grid& grid, int32_t first, int32_t last);  // jobs [first, last)
    void rvq_encode(const RvqJob& job, int blocks);
    void rvq_decode(const RvqJob& job, int blocks);
    void wait();  // until all is done; throws DeviceError if anything failed

    // The same work again and again: recorded the first time for its key, then launched as one graph. Its copies read
    // and write HostMemory, whose contents may change in between.
    void replay(int key, const std::function<void()>& work);

    // Milliseconds of device time that `work` takes.
    float time(const std::function<void()>& work);

private:
    struct Handles;
    std::unique_ptr<Handles> handles_;
};

}  // namespace mimo::gpu
