// Cuts a long recording where the speaker pauses: a single pass over more than a minute loses the thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mimo {

struct Stretch {
    int64_t begin, end;  // samples
};

// Pieces of at most max_seconds that cover the recording; each cut lies in the quietest 200 ms of the second half of
// its piece. wav: float32 [samples] at rate_hz. Throws InputError if max_seconds is below 1.
std::vector<Stretch> split_at_pauses(std::span<const float> wav, int64_t rate_hz, double max_seconds);

}  // namespace mimo
