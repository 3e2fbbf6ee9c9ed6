#include "cuda/open.h"

#include <dlfcn.h>

#include <filesystem>

namespace mimo {
namespace {

// The module lies beside the library or program that this function is in.
std::filesystem::path module_path() {
    Dl_info info = {};
    dladdr(reinterpret_cast<const void*>(&open_cuda), &info);
    return std::filesystem::path(info.dli_fname ? info.dli_fname : "").parent_path() / "libmimo_cuda.so";
}

}  // namespace

std::shared_ptr<const Backend> open_cuda(const CudaRequest& request) {
    const std::string path = module_path().string();
    void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // for the life of the process: its code is in use
    if (module == nullptr) {
        throw DeviceError(message("cuda: expected the module ", path, ", got: ", dlerror(),
                                  "; build with -DMIMO_CUDA=ON, docs/jetson.md says how"));
    }
    using Open = std::shared_ptr<const Backend>* (*)(const CudaRequest&);
    const auto open = reinterpret_cast<Open>(dlsym(module, MIMO_CUDA_OPEN));
    if (open == nullptr) {
        throw DeviceError(
            message("cuda: expected ", MIMO_CUDA_OPEN, " in ", path, ", got another version; build both together"));
    }
    const std::unique_ptr<std::shared_ptr<const Backend>> made(open(request));
    return *made;
}

}  // namespace mimo
