// Chooses the widest instruction set this x86-64 processor has.
#include <cpuid.h>

#include <initializer_list>
#include <string_view>

#include "kernels/kernels.h"

namespace mimo {

const Kernels& base_kernels();
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512vnni_kernels();

namespace {

bool has_avxvnni() {  // __builtin_cpu_supports knows it in new compilers only
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

}  // namespace

const Kernels& choose_kernels(const char* name) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avxvnni = avx2 && has_avxvnni();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    struct Choice {
        const Kernels& table;
        bool runs;
    };
    const std::initializer_list<Choice> slowest_first = {{plain_kernels(), true},    {base_kernels(), true},
                                                         {avx2_kernels(), avx2},     {avxvnni_kernels(), avxvnni},
                                                         {avx512_kernels(), avx512}, {avx512vnni_kernels(), vnni}};
    if (name == nullptr) {
        const Kernels* fastest = &base_kernels();
        for (const Choice& choice : slowest_first) fastest = choice.runs ? &choice.table : fastest;
        return *fastest;
    }
    for (const Choice& choice : slowest_first) {
        if (std::string_view(choice.table.name) != name) continue;
        if (!choice.runs) throw DeviceError(message("kernels: expected a processor with ", name, ", got one without"));
        return choice.table;
    }
    throw DeviceError(
        message("kernels: expected one of plain, base, avx2, avxvnni, avx512, avx512vnni, got '", name, "'"));
}

}  // namespace mimo
