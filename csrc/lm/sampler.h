// Logits -> one index: temperature, top-k, top-p, removal, then the best or a draw. In that order, as upstream's
// MiMoSampler.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/rng.h"
#include "base/sampling.h"

namespace mimo {

// Scaled logits, -infinity where a candidate is filtered. Throws InputError on a temperature that is not above 0.
std::vector<float> filter_scores(std::span<const float> logits, const Sampling& sampling);

// removed: indices that may not come out, taken away after the filters. If they were all that the filters kept, the
// best index is 0, as upstream, and a draw, where upstream fails, is the best of the others. Throws InputError on NaN
// and on infinity.
int32_t sample(std::span<const float> logits, const Sampling& sampling, std::span<const int32_t> removed,
               const Draw& draw);

}  // namespace mimo
