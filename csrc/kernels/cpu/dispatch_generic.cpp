// Processors with one instruction set to choose from: the compiler's baseline (NEON on Arm).
#include <string_view>

#include "kernels/kernels.h"

namespace mimo {

const Kernels& base_kernels();

const Kernels& choose_kernels(const char* name) {
    if (name == nullptr || std::string_view(name) == "base") return base_kernels();
    if (std::string_view(name) == "plain") return plain_kernels();
    throw DeviceError(message("kernels: expected plain or base, got '", name, "'"));
}

}  // namespace mimo
