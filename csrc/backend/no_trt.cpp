#include "backend/trt_graph.h"

namespace mimo {

std::string tensorrt_version() {
    return "";
}

std::shared_ptr<const Backend> open_tensorrt(const std::map<std::string, std::span<const std::byte>>&) {
    throw DeviceError(
        "tensorrt: expected a build with TensorRT, got one without; build where NvInfer.h is installed, or use the "
        "Python driver");
}

}  // namespace mimo
