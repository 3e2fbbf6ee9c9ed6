// device="cuda": the networks on an NVIDIA GPU. open.cpp loads the CUDA module when it is asked for; a build without
// CUDA has no_cuda.cpp instead.
#pragma once

#include "backend/backend.h"
#include "base/pool.h"
#include "io/bundle.h"

namespace mimo {

// What the module is handed. config and rest outlive what it makes; weights are copied.
struct CudaRequest {
    const Config& config;
    Weights lm;
    const Pool& pool;
    std::shared_ptr<const Backend> rest;  // the core, which computes what the device does not
    int device;                           // index
};

// Throws DeviceError if there is no module, no driver, no such device or too little memory.
std::shared_ptr<const Backend> open_cuda(const CudaRequest& request);

}  // namespace mimo
