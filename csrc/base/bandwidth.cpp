#include "base/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/error.h"

namespace mimo {
namespace {

constexpr int64_t kBytes = int64_t{256} << 20, kPage = 4096;
constexpr int kPasses = 5;

using Words = uint64_t __attribute__((vector_size(64)));

}  // namespace

double read_bandwidth(const Pool& pool) {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw DeviceError(message("bandwidth: expected ", kBytes, " bytes of memory, got none"));
    madvise(memory, kBytes, MADV_HUGEPAGE);
    std::memset(memory, 1, kBytes);  // pages that are only reserved would all be the same one
    double best = 1e30;
    for (int pass = 0; pass < kPasses; ++pass) {
        std::atomic<uint64_t> total = 0;  // used, so that the reads stay
        const auto start = std::chrono::steady_clock::now();
        pool.run(kBytes / kPage, 1, [&](int64_t first, int64_t last) {
            Words sums[8] = {};
            const auto* end = static_cast<const uint8_t*>(memory) + last * kPage;
            for (const auto* p = static_cast<const uint8_t*>(memory) + first * kPage; p < end; p += sizeof(sums)) {
                for (size_t i = 0; i < 8; ++i) {
                    Words words;
                    std::memcpy(&words, p + i * sizeof(Words), sizeof(Words));
                    sums[i] += words;
                }
            }
            for (const Words& sum : sums) total += sum[0];
        });
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    munmap(memory, kBytes);
    return static_cast<double>(kBytes) / best;
}

}  // namespace mimo
