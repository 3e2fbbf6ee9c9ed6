// Micro-benchmarks of the kernels at the release's sizes, beside the read bandwidth of the same seconds.
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

// One position of the backbone's attention over a long past, in each type that a cache keeps.
void bench_attention(const Context& context) {
    constexpr int64_t kKeys = 2048, kHeads = 32, kSharing = 4, kDim = 128, kLayers = 12;  // layers: beyond the caches
    for (const DType type : {DType::f32, DType::f16, DType::i8}) {
        std::vector<KeyValues> layers;
        const Array past(kKeys, kHeads / kSharing * kDim), q(1, kHeads * kDim);
        for (int64_t i = 0; i < kLayers; ++i) {
            layers.emplace_back(kHeads / kSharing, kDim, kKeys, type);
            layers.back().write(context, 0, past, past);
        }
        const double time = best_of(5, [&] {
            for (const KeyValues& layer : layers) attention(context, q, layer, {{0, kKeys}});
        });
        const double bytes =
            2.0 * kLayers * static_cast<double>(past.data.size()) * static_cast<double>(bytes_of(type));
        std::printf("attention over %ld positions, %s: %6.0f us a layer, %5.1f GB/s\n", kKeys, name_of(type),
                    time / kLayers * 1e6, bytes / time / 1e9);
    }
}

// The codec's attention: 8 seconds of sound, of which each position sees all.
void bench_codec_attention(const Context& context) {
    constexpr int64_t kPositions = 400, kHeads = 20, kDim = 64;
    Array x(kPositions, kHeads * kDim);
    for (size_t i = 0; i < x.data.size(); ++i) x.data[i] = static_cast<float>(i % 101) / 101;
    KeyValues cache(kHeads, kDim, kPositions);
    const double written = best_of(9, [&] { cache.write(context, 0, x, x); });
    const std::vector<KeyRange> all(kPositions, {0, kPositions});
    const double time = best_of(9, [&] { attention(context, x, cache, all); });
    std::printf("attention of %ld positions: %.2f ms, %.0f GMAC/s; keys and values written in %.2f ms\n", kPositions,
                time * 1e3, 2.0 * kPositions * kPositions * kHeads * kDim / time / 1e9, written * 1e3);
}

// The kernels between the matrices, on one core and in its caches, each with a copy of its input.
void bench_rows(const Kernels& kernels) {
    constexpr int64_t kMost = 11008;
    const std::vector<float> y(kMost, 0.5f);
    std::vector<float> x(kMost), scales(kMost);
    std::vector<int8_t> values(2 * kMost);
    std::vector<int32_t> sums(kMost);
    const auto show = [&](const char* name, int64_t n, auto body) {
        const double time = best_of(9, [&] {
            for (int i = 0; i < 100; ++i) {
                std::copy_n(y.data(), n, x.data());  // what is changed in place would shrink to subnormal numbers
                body();
            }
        });
        std::printf("%-14s of %5ld values: %6.2f us\n", name, n, time * 1e4);
    };
    const Vector weight(y.data(), 4096), narrow(y.data(), 1280);
    show("rms_norm", 4096, [&] { kernels.rms_norm(x.data(), weight, 1e-6f, scales.data()); });
    show("layer_norm", 1280, [&] { kernels.layer_norm(x.data(), narrow, narrow, 1e-5f, scales.data()); });
    show("silu_multiply", 11008, [&] { kernels.silu_multiply(x.data(), y.data(), 11008); });
    show("gelu", 5120, [&] { kernels.gelu(x.data(), 5120); });
    for (const int planes : {1, 2}) {
        show(planes == 1 ? "round to 8 bit" : "round to 16", 4096,
             [&] { kernels.round_inputs(y.data(), 4096, 128, planes, values.data(), scales.data(), sums.data(), 1); });
    }
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
    bench_rows(kernels);
    bench_attention(context);
    bench_codec_attention(context);
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
