// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A draw is a pure function of (seed, stream, position, step, level), so it cannot depend on threads or on call order.
#pragma once

#include <array>
#include <cstdint>

namespace mimo {

constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * counter[0];
        const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
        counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    return counter;
}

// Where in a conversation a draw belongs.
struct Draw {
    uint64_t seed = 0;
    uint32_t stream = 0;    // conversation
    uint32_t position = 0;  // backbone position being made
    uint32_t step = 0;      // local step of the patch decoder; 0 for text
    uint32_t level = 0;     // RVQ level + 1; 0 for text

    // Uniform in [0, 1) with 53 random bits.
    constexpr double uniform() const {
        const auto r = philox4x32({stream, position, step, level},
                                  {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
        const uint64_t bits = (uint64_t{r[0]} << 32 | r[1]) >> 11;
        return static_cast<double>(bits) * 0x1p-53;
    }
};

}  // namespace mimo
