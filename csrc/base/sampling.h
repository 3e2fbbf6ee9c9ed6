// How one index is chosen from logits; lm/sampler.h does it on the host, cuda/sample.h on a device.
#pragma once

#include <cstdint>

namespace mimo {

struct Sampling {
    bool sample = false;  // false: the best candidate
    float temperature = 1.0f;
    int64_t top_k = 0;   // keep the k best and whatever ties with the last of them; 0: all
    float top_p = 0.0f;  // keep the best candidates that together reach p; outside (0, 1]: all
};

constexpr const char* kBrokenScores =
    "sample: expected finite logits, got NaN or infinity; the weights or the input are damaged, or the temperature is "
    "too near 0";

}  // namespace mimo
