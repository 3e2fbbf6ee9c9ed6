#include "cuda/open.h"

namespace mimo {

std::shared_ptr<const Backend> open_cuda(const CudaRequest&) {
    throw DeviceError(
        "cuda: expected a build with CUDA, got one without; build with -DMIMO_CUDA=ON, docs/jetson.md says how");
}

}  // namespace mimo
