// The networks as TensorRT engines (mimo-edge build-engine), one a stage. trt_graph.cpp is compiled where NvInfer.h is
// found, written to the calls that TensorRT 10.3 and 11 share; no_trt.cpp elsewhere. Compiled, not run: no GPU yet.
#pragma once

#include <cstddef>
#include <map>

#include "backend/backend.h"

namespace mimo {

// The version of TensorRT's library as "10.3.0"; empty if this build has none.
std::string tensorrt_version();

// engines: stage -> serialised engine (profiles as in export/onnx/trt.py), whose identity the caller has checked; the
// bytes are needed during the call only. Throws DeviceError without TensorRT or GPU, for an engine that it refuses, or
// if the GPU's memory is full.
std::shared_ptr<const Backend> open_tensorrt(const std::map<std::string, std::span<const std::byte>>& engines);

}  // namespace mimo
