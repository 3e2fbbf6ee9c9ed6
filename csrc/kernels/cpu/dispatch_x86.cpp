// Chooses the widest instruction set this x86-64 processor has.
#include <initializer_list>
#include <string_view>

#include "kernels/kernels.h"

namespace mimo {

const Kernels& base_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

const Kernels& choose_kernels(const char* name) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (name == nullptr) return avx512 ? avx512_kernels() : avx2 ? avx2_kernels() : base_kernels();
    struct Choice {
        const Kernels& table;
        bool runs;
    };
    for (const Choice& choice : std::initializer_list<Choice>{
             {plain_kernels(), true}, {base_kernels(), true}, {avx2_kernels(), avx2}, {avx512_kernels(), avx512}}) {
        if (std::string_view(choice.table.name) != name) continue;
        if (!choice.runs) throw DeviceError(message("kernels: expected a processor with ", name, ", got one without"));
        return choice.table;
    }
    throw DeviceError(message("kernels: expected one of plain, base, avx2, avx512, got '", name, "'"));
}

}  // namespace mimo
