// CUDA: the kernels and the calls of its runtime. Nothing newer than CUDA 12.6 (JetPack 6).
#include <map>

#include "base/error.h"
#include "cuda/program.h"
#include "cuda/runtime.h"
#include "cuda/rvq.h"

namespace mimo::gpu {
namespace {

constexpr int kThreads = 512;      // 16 warps, 128 registers each
constexpr int kOldestDevice = 80;  // asynchronous barriers and the integer dot product at full rate

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // so that the next call does not see it
    throw DeviceError(message("cuda: expected ", what, ", got: ", cudaGetErrorString(status)));
}

// Thread mapping of both: one block of kThreads a multiprocessor; program.h and the jobs say who does what.
__global__ void __launch_bounds__(kThreads, 1) list_kernel(Program program, int32_t row, int32_t first, int32_t last) {
    run_program(program, row, first, last);
}

__global__ void __launch_bounds__(kThreads, 1) rvq_encode_kernel(RvqJob job) {
    run_rvq_encode(job);
}

__global__ void __launch_bounds__(kThreads, 1) rvq_decode_kernel(RvqJob job) {
    run_rvq_decode(job);
}

int attribute(cudaDeviceAttr name, int index) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, index), "an attribute of the device");
    return value;
}

// A stream's device, for whichever thread calls.
void make_current(int device) {
    check(cudaSetDevice(device), "to use the device");
}

// All a block can have: the limit is the kernel's, whichever sequence launches it.
void allow_shared(const void* kernel, size_t bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "shared memory for a kernel");
}

}  // namespace

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return count;
}

Device use_device(int index) {
    const int count = device_count();
    if (index < 0 || index >= count) {
        throw DeviceError(message("cuda: expected a device of index 0 to ", count - 1, ", got ", index,
                                  count == 0 ? "; there is no device or no driver" : ""));
    }
    check(cudaSetDevice(index), "to use the device");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "the device's properties");
    const int sm = properties.major * 10 + properties.minor;
    if (sm < kOldestDevice) throw DeviceError(message("cuda: expected SM ", kOldestDevice, " or newer, got SM ", sm));
    allow_shared(reinterpret_cast<const void*>(list_kernel), properties.sharedMemPerBlockOptin);
    allow_shared(reinterpret_cast<const void*>(rvq_encode_kernel), properties.sharedMemPerBlockOptin);
    return {.name = properties.name,
            .sm = sm,
            .processors = properties.multiProcessorCount,
            .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
            .cache_bytes = properties.l2CacheSize,
            .shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin),
            .cooperative = attribute(cudaDevAttrCooperativeLaunch, index) != 0};
}

Memory::Memory(int64_t bytes) : bytes_(bytes) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1));
    if (status != cudaSuccess) {
        cudaGetLastError();
        throw DeviceError(message("cuda: expected ", bytes, " bytes of device memory, got: ",
                                  cudaGetErrorString(status), "; use a smaller context or a quantised bundle"));
    }
    data_.reset(data);
    check(cudaMemset(data, 0, static_cast<size_t>(bytes)), "zeroed memory");
    check(cudaStreamSynchronize(nullptr), "zeroed memory");  // no stream of ours waits for that of cudaMemset
}

void Memory::Free::operator()(void* p) const {
    cudaFree(p);
}

HostMemory::HostMemory(int64_t bytes) {
    void* data = nullptr;
    check(cudaMallocHost(&data, static_cast<size_t>(bytes)), "page-locked memory");
    data_.reset(data);
}

void HostMemory::Free::operator()(void* p) const {
    cudaFreeHost(p);
}

int block_threads() {
    return kThreads;
}

Grid grid_of(const Device& device, int64_t shared_bytes) {
    if (shared_bytes > device.shared_bytes) {
        throw DeviceError(message("cuda: expected ", shared_bytes, " bytes of shared memory a block, got ",
                                  device.shared_bytes, " on ", device.name));
    }
    return {.blocks = device.processors,
            .threads = kThreads,
            .shared_bytes = shared_bytes,
            .cooperative = device.cooperative};
}

struct Stream::Handles {
    int device = 0;
    cudaStream_t stream = nullptr;
    std::map<int, cudaGraphExec_t> graphs;
    bool records = true;  // false where the driver cannot record our launches
};

Stream::Stream() : handles_(std::make_unique<Handles>()) {
    check(cudaGetDevice(&handles_->device), "a device");
    check(cudaStreamCreateWithFlags(&handles_->stream, cudaStreamNonBlocking), "a stream");
}

Stream::~Stream() {
    for (const auto& [key, graph] : handles_->graphs) cudaGraphExecDestroy(graph);
    cudaStreamDestroy(handles_->stream);
}

void Stream::copy_in(void* device, const void* host, int64_t bytes) {
    make_current(handles_->device);
    check(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, handles_->stream),
          "a copy to the device");
}

void Stream::copy_out(void* host, const void* device, int64_t bytes) {
    make_current(handles_->device);
    check(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, handles_->stream),
          "a copy from the device");
}

void Stream::copy(void* to, const void* from, int64_t bytes) {
    make_current(handles_->device);
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, handles_->stream), "a copy");
}

void Stream::run(const Program& program, int32_t row, const Grid& grid, int32_t first, int32_t last) {
    make_current(handles_->device);
    const dim3 blocks(static_cast<unsigned>(grid.blocks)), threads(static_cast<unsigned>(grid.threads));
    const auto shared = static_cast<size_t>(grid.shared_bytes);
    check(cudaMemsetAsync(program.arrived, 0, sizeof(*program.arrived), handles_->stream), "the barrier at zero");
    if (grid.cooperative) {
        Program list = program;
        void* arguments[] = {&list, &row, &first, &last};
        return check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(list_kernel), blocks, threads, arguments,
                                                 shared, handles_->stream),
                     "to launch the list of jobs");
    }
    for (; first < last; ++first) {
        list_kernel<<<blocks, threads, shared, handles_->stream>>>(program, row, first, first + 1);
        check(cudaGetLastError(), "to launch a job");
    }
}

void Stream::rvq_encode(const RvqJob& job, int blocks) {
    make_current(handles_->device);
    const auto shared = static_cast<size_t>(rvq_bytes(job.dim));
    rvq_encode_kernel<<<static_cast<unsigned>(blocks), kThreads, shared, handles_->stream>>>(job);
    check(cudaGetLastError(), "to launch rvq_encode");
}

void Stream::rvq_decode(const RvqJob& job, int blocks) {
    make_current(handles_->device);
    rvq_decode_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, handles_->stream>>>(job);
    check(cudaGetLastError(), "to launch rvq_decode");
}

void Stream::wait() {
    make_current(handles_->device);
    check(cudaStreamSynchronize(handles_->stream), "the work to end well");
}

void Stream::replay(int key, const std::function<void()>& work) {
    make_current(handles_->device);
    Handles& h = *handles_;
    const auto found = h.graphs.find(key);
    if (found != h.graphs.end()) return check(cudaGraphLaunch(found->second, h.stream), "to launch a graph");
    if (!h.records) return work();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check(cudaStreamBeginCapture(h.stream, cudaStreamCaptureModeThreadLocal), "to record");
    bool recorded = true;
    try {
        work();
    } catch (...) {  // the recording is ended first; what throws again below is told
        recorded = false;
    }
    recorded = cudaStreamEndCapture(h.stream, &graph) == cudaSuccess && recorded;
    if (recorded) recorded = cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess;
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (!recorded) {  // then launch by launch, with the same result
        cudaGetLastError();
        h.records = false;
        return work();
    }
    h.graphs[key] = executable;
    check(cudaGraphLaunch(executable, h.stream), "to launch a graph");
}

float Stream::time(const std::function<void()>& work) {
    make_current(handles_->device);
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin), "an event");
    check(cudaEventCreate(&end), "an event");
    check(cudaEventRecord(begin, handles_->stream), "to record an event");
    work();
    check(cudaEventRecord(end, handles_->stream), "to record an event");
    check(cudaEventSynchronize(end), "the work to end well");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "the time between two events");
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return ms;
}

}  // namespace mimo::gpu
