#include "lm/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace mimo {
namespace {

constexpr float kRemoved = -std::numeric_limits<float>::infinity();

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
    const float best = *std::max_element(scores.begin(), scores.end());
    std::vector<double> mass(scores.size());
    double total = 0;
    for (size_t i = 0; i < scores.size(); ++i) total += mass[i] = std::exp(scores[i] - best);
    if (p == 1) {  // removes only what is too unlikely for a float, as upstream
        for (size_t i = 0; i < scores.size(); ++i) scores[i] = mass[i] > 0 ? scores[i] : kRemoved;
        return;
    }
    // A candidate below (1 - p) / n of the mass cannot be kept: all such together are less than 1 - p. This leaves few
    // to sort.
    const double negligible = (1.0 - p) / static_cast<double>(scores.size()) * total;
    std::vector<size_t> order;
    for (size_t i = 0; i < scores.size(); ++i) {
        if (mass[i] > negligible) order.push_back(i);
    }
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a > b; });
    double before = 0;
    size_t kept = 0;
    for (; kept < order.size() && (kept == 0 || before < p * total); ++kept) before += mass[order[kept]];
    std::vector<float> filtered(scores.size(), kRemoved);
    for (size_t i = 0; i < kept; ++i) filtered[order[i]] = scores[order[i]];
    scores = std::move(filtered);
}

int32_t best_of(std::span<const float> scores) {
    return static_cast<int32_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

bool none_left(std::span<const float> scores) {
    return std::all_of(scores.begin(), scores.end(), [](float score) { return score == kRemoved; });
}

std::vector<float> without(std::vector<float> scores, std::span<const int32_t> removed) {
    for (const int32_t index : removed) scores.at(static_cast<size_t>(index)) = kRemoved;
    return scores;
}

int32_t draw_from(std::span<const float> scores, const Draw& draw) {
    const float best = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (const float score : scores) total += std::exp(static_cast<double>(score - best));
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
    std::vector<float> scores(logits.begin(), logits.end());
    for (float& score : scores) {
        score /= sampling.temperature;
        if (!(score < -kRemoved)) throw InputError(kBrokenScores);
    }
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
