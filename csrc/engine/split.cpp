#include "engine/split.h"

#include <algorithm>

#include "base/error.h"

namespace mimo {
namespace {

constexpr int64_t kSteps = 50;       // energies a second: steps of 20 ms
constexpr int64_t kPauseSteps = 10;  // 200 ms

// Where to cut [begin, begin + most): the middle of the quietest pause of its second half; the latest of equals.
int64_t quietest(std::span<const float> wav, int64_t begin, int64_t most, int64_t step) {
    int64_t best = begin + most;
    double least = -1;
    for (int64_t at = begin + most / 2; at + kPauseSteps * step <= begin + most; at += step) {
        double energy = 0;
        for (int64_t i = at; i < at + kPauseSteps * step; ++i)
            energy += double{wav[static_cast<size_t>(i)]} * wav[static_cast<size_t>(i)];
        if (least < 0 || energy <= least) {
            least = energy;
            best = at + kPauseSteps * step / 2;
        }
    }
    return best;
}

}  // namespace

std::vector<Stretch> split_at_pauses(std::span<const float> wav, int64_t rate_hz, double max_seconds) {
    if (rate_hz < kSteps || !(max_seconds >= 1)) {
        throw InputError(message("split: expected a rate of at least ", kSteps, " Hz and pieces of at least 1 s, got ",
                                 rate_hz, " Hz and ", max_seconds, " s"));
    }
    const auto samples = static_cast<int64_t>(wav.size());
    const auto most =
        static_cast<int64_t>(std::min(max_seconds * static_cast<double>(rate_hz), static_cast<double>(samples)));
    std::vector<Stretch> pieces;
    int64_t begin = 0;
    while (samples - begin > most) {
        const int64_t cut = quietest(wav, begin, most, rate_hz / kSteps);
        pieces.push_back({begin, cut});
        begin = cut;
    }
    if (begin < samples) pieces.push_back({begin, samples});
    return pieces;
}

}  // namespace mimo
