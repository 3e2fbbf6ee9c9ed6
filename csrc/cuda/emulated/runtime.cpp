// The host as a device: small grids of fibers, for tests.
#include "cuda/runtime.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "cuda/emulated/emulation.h"
#include "cuda/program.h"
#include "cuda/rvq.h"

namespace mimo::gpu {

Emulation& emulation() {
    static Emulation settings;
    return settings;
}

int device_count() {
    return 1;
}

Device use_device(int index) {
    if (index != 0) throw DeviceError(message("cuda: expected a device of index 0 to 0, got ", index));
    return {.name = "emulated",
            .sm = 0,
            .processors = emulation().blocks,
            .memory_bytes = int64_t{1} << 33,
            .cache_bytes = int64_t{1} << 22,
            .shared_bytes = emulation().shared_bytes,
            .cooperative = emulation().cooperative};
}

Memory::Memory(int64_t bytes) : data_(std::calloc(1, static_cast<size_t>(bytes > 0 ? bytes : 1))), bytes_(bytes) {}
void Memory::Free::operator()(void* p) const {
    std::free(p);
}

HostMemory::HostMemory(int64_t bytes) : data_(std::calloc(1, static_cast<size_t>(bytes))) {}
void HostMemory::Free::operator()(void* p) const {
    std::free(p);
}

int block_threads() {
    return emulation().threads;
}

Grid grid_of(const Device& device, int64_t shared_bytes) {
    if (shared_bytes > device.shared_bytes) {
        throw DeviceError(message("cuda: expected ", shared_bytes, " bytes of shared memory a block, got ",
                                  device.shared_bytes, " on ", device.name));
    }
    return {.blocks = device.processors,
            .threads = block_threads(),
            .shared_bytes = shared_bytes,
            .cooperative = device.cooperative};
}

struct Stream::Handles {};

Stream::Stream() = default;
Stream::~Stream() = default;

void Stream::copy_in(void* device, const void* host, int64_t bytes) {
    if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}
void Stream::copy_out(void* host, const void* device, int64_t bytes) {
    if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

void Stream::copy(void* to, const void* from, int64_t bytes) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
}

void Stream::run(const Program& program, int32_t row, const Grid& grid, int32_t first, int32_t last) {
    const auto launch = [&](const std::function<void()>& body) {
        fibers::launch(grid.blocks, grid.threads, static_cast<size_t>(grid.shared_bytes), emulation().order, body);
    };
    *program.arrived = 0;
    if (grid.cooperative) return launch([&] { run_program(program, row, first, last); });
    for (int32_t index = first; index < last; ++index) {
        launch([&] { run_program(program, row, index, index + 1); });
    }
}

void Stream::rvq_encode(const RvqJob& job, int blocks) {
    fibers::launch(blocks, block_threads(), static_cast<size_t>(rvq_bytes(job.dim)), emulation().order,
                   [&] { run_rvq_encode(job); });
}
void Stream::rvq_decode(const RvqJob& job, int blocks) {
    fibers::launch(blocks, block_threads(), 0, emulation().order, [&] { run_rvq_decode(job); });
}

void Stream::wait() {}

void Stream::replay(int, const std::function<void()>& work) {
    work();
}

float Stream::time(const std::function<void()>& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<float, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace mimo::gpu
