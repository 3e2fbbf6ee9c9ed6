// Micro-benchmarks of the packed kernels beside the read bandwidth of the same seconds.
//   cmake -S . -B build/bench -DMIMO_BENCH=ON && cmake --build build/bench && build/bench/mimo_bench_kernels [THREADS]
//   [TABLE]
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/bandwidth.h"
#include "kernels/ops.h"

using namespace mimo;

namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Random bytes without a file, as large as asked, on large pages where the system gives them.
uint8_t* random_bytes(size_t n) {
    void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) std::abort();
    madvise(p, n, MADV_HUGEPAGE);
    auto* words = static_cast<uint64_t*>(p);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < n / 8; ++i) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        words[i] = state & 0x7F7F7F7F7F7F7F7Fu;  // int8 weights stay above -128
    }
    return static_cast<uint8_t*>(p);
}

template <typename Body>
double best_of(int runs, Body body) {
    double best = 1e30;
    for (int i = 0; i < runs; ++i) {
        const double start = seconds();
        body();
        best = std::min(best, seconds() - start);
    }
    return best;
}

}  // namespace

int main(int argc, char** argv) {
    const Pool pool(argc > 1 ? std::atoi(argv[1]) : 2);
    const Kernels& kernels = choose_kernels(argc > 2 ? argv[2] : nullptr);
    const Context context = {pool, kernels};
    constexpr size_t kBytes = size_t{512} << 20;  // far beyond the caches
    const uint8_t* data = random_bytes(kBytes);
    // Scales of a sensible size: random ones would be subnormal now and then, which some processors multiply slowly.
    const std::vector<float> wide_scales(size_t{1} << 24, 0.01f);
    const std::vector<uint16_t> half_scales(size_t{1} << 24, 0x2222);  // 0.012
    std::printf("%s, %d threads\nread %.1f GB/s\n", kernels.name, pool.threads(), read_bandwidth(pool) / 1e9);
    struct Shape {
        int64_t n, k;
    };
    for (const Shape shape :
         {Shape{4096, 4096}, Shape{11008, 4096}, Shape{4096, 11008}, Shape{4096, 1024}, Shape{5120, 1280}}) {
        for (const DType type : {DType::i4, DType::i8}) {
            for (const int bits : {8, 16}) {
                const int64_t group = type == DType::i4 ? 128 : shape.k;
                const double weight_bytes = static_cast<double>(shape.n * shape.k) / (type == DType::i4 ? 2 : 1);
                std::printf("%5ld x %5ld %s a%-2d", shape.n, shape.k, type == DType::i4 ? "i4" : "i8", bits);
                for (const int64_t rows : {1, 4, 60, 256}) {
                    const auto copies =
                        std::max<int64_t>(1, rows > 4 ? 1 : static_cast<int64_t>(kBytes / weight_bytes));
                    Array x(rows, shape.k);
                    for (size_t i = 0; i < x.data.size(); ++i) x.data[i] = static_cast<float>(i % 101) - 50;
                    const double time =
                        best_of(3,
                                [&] {
                                    for (int64_t copy = 0; copy < copies; ++copy) {
                                        const Matrix w = {.data = data + copy * static_cast<int64_t>(weight_bytes),
                                                          .rows = shape.n,
                                                          .cols = shape.k,
                                                          .type = type,
                                                          .scales = type == DType::i4
                                                                        ? static_cast<const void*>(half_scales.data())
                                                                        : wide_scales.data(),
                                                          .group = group,
                                                          .activation_bits = bits};
                                        linear(context, x, Linear{w, {}});
                                    }
                                }) /
                        static_cast<double>(copies);
                    if (rows <= 4) {
                        std::printf("  %ld: %5.1f GB/s", rows, weight_bytes / time / 1e9);
                    } else {
                        std::printf("  %ld: %5.0f GMAC/s", rows,
                                    static_cast<double>(rows * shape.n * shape.k) / time / 1e9);
                    }
                }
                std::printf("\n");
                std::fflush(stdout);
            }
        }
    }
    return 0;
}
