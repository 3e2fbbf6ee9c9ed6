// The one symbol of the CUDA module.
#include "cuda/open.h"
#include "cuda/sequence.h"

extern "C" __attribute__((visibility("default"))) std::shared_ptr<const mimo::Backend>* MIMO_CUDA_OPEN(
    const mimo::CudaRequest& request) {
    return new std::shared_ptr<const mimo::Backend>(std::make_shared<mimo::gpu::CudaBackend>(
        request.config, request.lm, request.pool, request.rest, request.device));
}
