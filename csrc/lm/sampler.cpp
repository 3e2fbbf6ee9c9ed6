#include "lm/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace mimo {
namespace {

constexpr float kRemoved = -std::numeric_limits<float>::infinity();

constexpr int64_t kFew = 64;  // candidates that are sorted rather than halved

// In lanes, so that a processor compares many at once. Scores hold no NaN.
float highest_of(std::span<const float> scores) {
    std::array<float, 16> lanes;
    lanes.fill(kRemoved);
    size_t i = 0;
    for (; i + lanes.size() <= scores.size(); i += lanes.size()) {
        for (size_t lane = 0; lane < lanes.size(); ++lane) lanes[lane] = std::max(lanes[lane], scores[i + lane]);
    }
    for (; i < scores.size(); ++i) lanes[0] = std::max(lanes[0], scores[i]);
    return *std::max_element(lanes.begin(), lanes.end());
}

void keep_top_k(std::vector<float>& scores, int64_t k) {
    if (k <= 0 || k >= static_cast<int64_t>(scores.size())) return;
    std::vector<float> sorted = scores;
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
    const float least = sorted[static_cast<size_t>(k - 1)];
    for (float& score : scores) {
        if (score < least) score = kRemoved;
    }
}

// Keeps the best candidates until their probability reaches p; the best one always stays.
void keep_top_p(std::vector<float>& scores, float p) {
    if (!(p > 0 && p <= 1)) return;
    const float best = highest_of(scores);
    std::vector<float> mass(scores.size());
    double total = 0;
    for (size_t i = 0; i < scores.size(); ++i) total += mass[i] = std::exp(scores[i] - best);
    if (p == 1) {  // removes only what is too unlikely for a float, as upstream
        for (size_t i = 0; i < scores.size(); ++i) scores[i] = mass[i] > 0 ? scores[i] : kRemoved;
        return;
    }
    // A candidate below (1 - p) / n of the mass cannot be kept: all such together are less than 1 - p.
    const double negligible = (1.0 - p) / static_cast<double>(scores.size()) * total;
    std::vector<size_t> order;
    for (size_t i = 0; i < scores.size(); ++i) {
        if (mass[i] > negligible) order.push_back(i);
    }
    // The border is looked for in halves: those before `begin` stay and have the mass `before`, those from `end` on go.
    const auto likelier = [&](size_t a, size_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a > b; };
    const double enough = p * total;
    double before = 0;
    auto begin = order.begin(), end = order.end();
    while (end - begin > kFew) {
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end, likelier);
        double with_half = before;
        for (auto i = begin; i != middle; ++i) with_half += mass[*i];
        if (with_half < enough) {
            before = with_half;
            begin = middle;
        } else {
            end = middle;
        }
    }
    std::sort(begin, end, likelier);
    for (; begin != end && (begin == order.begin() || before < enough); ++begin) before += mass[*begin];
    std::vector<float> filtered(scores.size(), kRemoved);
    for (auto i = order.begin(); i != begin; ++i) filtered[*i] = scores[*i];
    scores = std::move(filtered);
}

int32_t best_of(std::span<const float> scores) {
    return static_cast<int32_t>(std::find(scores.begin(), scores.end(), highest_of(scores)) - scores.begin());
}

bool none_left(std::span<const float> scores) {
    return std::all_of(scores.begin(), scores.end(), [](float score) { return score == kRemoved; });
}

std::vector<float> without(std::vector<float> scores, std::span<const int32_t> removed) {
    for (const int32_t index : removed) scores.at(static_cast<size_t>(index)) = kRemoved;
    return scores;
}

int32_t draw_from(std::span<const float> scores, const Draw& draw) {
    const float best = highest_of(scores);
    double total = 0;
    for (const float score : scores) {
        if (score != kRemoved) total += std::exp(static_cast<double>(score - best));
    }
    double rest = draw.uniform() * total;
    int32_t last = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
        if (scores[i] == kRemoved) continue;
        last = static_cast<int32_t>(i);
        rest -= std::exp(static_cast<double>(scores[i] - best));
        if (rest < 0) break;
    }
    return last;
}

}  // namespace

std::vector<float> filter_scores(std::span<const float> logits, const Sampling& sampling) {
    if (!(sampling.temperature > 0)) {
        throw InputError(message("sample: expected a temperature above 0, got ", sampling.temperature,
                                 "; for the likeliest candidate set sample to false (--greedy)"));
    }
    std::vector<float> scores(logits.size());
    int broken = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
        scores[i] = logits[i] / sampling.temperature;
        broken |= !(scores[i] < -kRemoved);
    }
    if (broken) throw InputError(kBrokenScores);
    if (scores.empty()) return scores;
    keep_top_k(scores, sampling.top_k);
    keep_top_p(scores, sampling.top_p);
    return scores;
}

int32_t sample(std::span<const float> logits, const Sampling& sampling, std::span<const int32_t> removed,
               const Draw& draw) {
    const std::vector<float> scores = without(filter_scores(logits, sampling), removed);
    if (!sampling.sample) return best_of(scores);
    if (!none_left(scores)) return draw_from(scores, draw);
    const std::vector<float> others = without({logits.begin(), logits.end()}, removed);
    if (none_left(others)) throw InputError("sample: expected at least one candidate, got none after removal");
    return best_of(others);
}

}  // namespace mimo
