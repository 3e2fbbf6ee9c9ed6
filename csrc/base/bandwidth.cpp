#include "base/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

#include "base/error.h"

namespace mimo {
namespace {

constexpr int64_t kBytes = int64_t{512} << 20, kPage = 4096;  // beyond the caches of most processors
constexpr int kPasses = 4;

// Reads are narrow, so that any processor has registers for them, and asked for so early that it is memory they wait
// for: without that, one core of a server reads half of what it can.
constexpr int64_t kAhead = 8192, kLine = 64;

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
            using Words = uint64_t __attribute__((vector_size(16)));
            Words sums[kLine / sizeof(Words)] = {};
            const auto* end = static_cast<const uint8_t*>(memory) + last * kPage;
            for (const auto* p = static_cast<const uint8_t*>(memory) + first * kPage; p < end; p += kLine) {
                __builtin_prefetch(p + kAhead, 0, 2);
                Words line[std::size(sums)];
                std::memcpy(line, p, kLine);
                for (size_t i = 0; i < std::size(sums); ++i) sums[i] += line[i];
            }
            for (const Words& sum : sums) total += sum[0] + sum[1];
        });
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    munmap(memory, kBytes);
    return static_cast<double>(kBytes) / best;
}

}  // namespace mimo
