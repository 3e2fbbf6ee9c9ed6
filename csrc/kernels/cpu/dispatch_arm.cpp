// Chooses between the baseline of 64-bit Arm and the dot-product instructions.
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include <string_view>

#include "kernels/kernels.h"

namespace mimo {

const Kernels& base_kernels();
const Kernels& dotprod_kernels();

const Kernels& choose_kernels(const char* name) {
    const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    if (name == nullptr) return dotprod ? dotprod_kernels() : base_kernels();
    const std::string_view asked = name;
    if (asked == "plain") return plain_kernels();
    if (asked == "base") return base_kernels();
    if (asked != "dotprod") throw DeviceError(message("kernels: expected plain, base or dotprod, got '", name, "'"));
    if (!dotprod) throw DeviceError("kernels: expected a processor with dotprod, got one without");
    return dotprod_kernels();
}

}  // namespace mimo
