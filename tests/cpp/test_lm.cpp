// Sampler, random numbers, stop rule and runaway guard.
#include <cmath>
#include <limits>

#include "check.h"
#include "engine/generation.h"
#include "engine/split.h"

using namespace mimo;

namespace {

constexpr float kOut = -std::numeric_limits<float>::infinity();

LmConfig two_levels() {
    LmConfig lm = {};
    lm.group_size = 2;
    lm.audio_channels = 2;
    lm.speech_zeroemb_idx = {9, 9};
    return lm;
}

}  // namespace

TEST(philox_gives_the_published_numbers) {  // known-answer vectors of Random123, philox4x32 10
    CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
          std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(draws_differ_in_every_key) {
    const Draw draw = {.seed = 1, .stream = 2, .position = 3, .step = 4, .level = 5};
    Draw other = draw;
    CHECK(other.uniform() == draw.uniform());
    for (uint32_t* key : {&other.stream, &other.position, &other.step, &other.level}) {
        ++*key;
        CHECK(other.uniform() != draw.uniform());
        --*key;
    }
    other.seed += uint64_t{1} << 32;
    CHECK(other.uniform() != draw.uniform());
}

TEST(filters_keep_what_the_rules_say) {
    const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
    const auto kept = [&](const Sampling& sampling) {
        std::vector<bool> out;
        for (const float score : filter_scores(logits, sampling)) out.push_back(score != kOut);
        return out;
    };
    CHECK(kept({}) == std::vector<bool>{true, true, true, true});
    CHECK(kept({.top_k = 2}) == std::vector<bool>{true, true, false, false});
    CHECK(kept({.top_p = 0.4f}) == std::vector<bool>{true, false, false, false});
    CHECK(kept({.top_p = 0.6f}) == std::vector<bool>{true, true, false, false});
    CHECK(kept({.top_p = 0.9f}) == std::vector<bool>{true, true, true, false});
    CHECK(kept({.top_p = 1.0f}) == std::vector<bool>{true, true, true, true});
    CHECK(kept({.top_p = 1.5f}) == std::vector<bool>{true, true, true, true});
    CHECK(filter_scores(logits, {.temperature = 0.5f})[0] == logits[0] / 0.5f);
    const std::vector<float> ties = {1, 2, 1, 1};
    CHECK(filter_scores(ties, {.top_k = 2}) == ties);  // all ties of the second best stay
}

TEST(sampling_refuses_nonsense) {
    const std::vector<float> logits = {0, 1};
    const std::vector<int32_t> both = {0, 1};
    CHECK_THROWS(filter_scores(logits, {.temperature = 0}), InputError, "above 0");
    CHECK_THROWS(filter_scores(std::vector<float>{0, NAN}, {}), InputError, "NaN");
    CHECK_THROWS(filter_scores(std::vector<float>{0, INFINITY}, {}), InputError, "infinity");
    CHECK_THROWS(filter_scores(logits, {.temperature = 1e-40f}), InputError, "too near 0");
    CHECK_EQ(filter_scores(std::vector<float>{0, -INFINITY}, {})[1], -INFINITY);
    CHECK_THROWS(sample(logits, {.sample = true}, both, {}), InputError, "at least one candidate");
    const std::vector<int32_t> best = {1};
    CHECK_EQ(sample(logits, {.sample = true, .top_p = 0.1f}, best, {}), 0);  // the filter kept only what is removed
    CHECK_EQ(sample(logits, {}, both, {}), 0);                               // as upstream's argmax over nothing
}

TEST(samples_follow_the_distribution) {
    const std::vector<double> p = {0.4, 0.25, 0.15, 0.1, 0.06, 0.04};
    std::vector<float> logits;
    for (const double v : p) logits.push_back(static_cast<float>(std::log(v)));
    const int draws = 60000;
    std::vector<int> counts(p.size());
    for (int i = 0; i < draws; ++i) {
        ++counts[static_cast<size_t>(
            sample(logits, {.sample = true}, {}, {.seed = 7, .position = static_cast<uint32_t>(i)}))];
    }
    double chi_square = 0;
    for (size_t i = 0; i < p.size(); ++i) chi_square += std::pow(counts[i] - draws * p[i], 2) / (draws * p[i]);
    CHECK(chi_square < 20.5);  // 5 degrees of freedom: exceeded once in a thousand seeds
}

TEST(stop_rule) {
    const std::vector<int32_t> stop = {7};
    CHECK(is_done(5, 7, stop, 0, 0));
    CHECK(!is_done(5, 7, stop, 6, 0));
    CHECK(!is_done(5, 1, stop, 0, 0));
    CHECK(is_done(5, 1, stop, 0, 5));
    CHECK(!is_done(5, 7, {}, 0, 6));
}

TEST(a_script_foresees_the_text_of_a_turn) {
    SpecialTokens tokens = {};
    tokens.empty = 90, tokens.sostm = 91, tokens.eot = 92;
    Script script({1, 2, 3, 4, 5, 6, 7}, tokens);
    const auto after = [&](std::initializer_list<int32_t> more) {
        for (const int32_t token : more) script.follow(token);
        const auto due = script.due();
        return std::vector<int32_t>(due.begin(), due.end());
    };
    const std::vector<int32_t> none, first = {1, 2, 3, 4, 5}, second = {6, 7, 92};
    CHECK(after({50, 3, 90}) == none);  // a prompt, which says nothing yet
    CHECK(after({91}) == first);
    CHECK(after({1}) == none);
    CHECK(after({2, 3, 4, 5}) == none);
    CHECK(after({90, 90, 90, 90}) == none);
    CHECK(after({90}) == second);
    CHECK(after({90}) == none);                                                          // it goes on speaking
    CHECK(after({91, 1, 2, 66, 4, 5, 90, 90, 90, 90, 90}) == second);                    // another word in place of one
    CHECK(after({91, 1, 3, 4, 5, 90, 90, 90, 90, 90}) == second);                        // one left out
    CHECK(after({91, 1, 2, 66, 3, 4, 90, 90, 90, 90, 90}) == std::vector{5, 6, 7, 92});  // one too many
    CHECK(after({91, 61, 62, 63, 64, 65, 90, 90, 90, 90, 90}) == first);
    CHECK(after({1, 2, 3, 4, 5, 90, 90, 90, 90, 90, 6, 7, 92, 90, 90, 90, 90, 90}) == none);  // all is said
    CHECK(Script({1, 2, 3, 4, 5}, tokens).due().empty());
    script = Script({}, tokens);
    CHECK(after({91}) == none);
    script = Script({1, 2, 3, 4, 5}, tokens);
    CHECK(after({91}) == (std::vector{1, 2, 3, 4, 5, 92}));
}

TEST(guard_stops_exact_repetition_only) {
    const LmConfig lm = two_levels();
    Positions positions;
    for (int i = 0; i < 47; ++i) append(positions, i % 3, nullptr, lm);
    CHECK(!repeats_itself(positions, lm));
    append(positions, 47 % 3, nullptr, lm);
    CHECK(repeats_itself(positions, lm));
    append(positions, 5, nullptr, lm);
    CHECK(!repeats_itself(positions, lm));

    Positions speech;  // the same token, another patch each time
    for (int32_t i = 0; i < 60; ++i) {
        Codes patch(2, 2);
        patch.at(1, 1) = i * i % 61;
        append(speech, 4, &patch, lm);
    }
    CHECK(!repeats_itself(speech, lm));
}

TEST(split_cuts_in_the_pause) {
    const int64_t rate = 1000;
    std::vector<float> wav(10 * rate, 0.5f);
    std::fill(wav.begin() + 4200, wav.begin() + 4500, 0.0f);  // a pause of 300 ms
    const auto pieces = split_at_pauses(wav, rate, 6);
    CHECK_EQ(pieces.size(), size_t{2});
    CHECK(pieces[0].begin == 0 && pieces[0].end > 4200 && pieces[0].end < 4500);
    CHECK(pieces[1].begin == pieces[0].end && pieces[1].end == 10 * rate);
    CHECK_EQ(split_at_pauses(wav, rate, 60).size(), size_t{1});
    CHECK_EQ(split_at_pauses(wav, rate, INFINITY).size(), size_t{1});
    CHECK_EQ(split_at_pauses(wav, int64_t{1} << 62, 2).size(), size_t{1});
    CHECK(split_at_pauses({}, rate, 60).empty());
    CHECK_THROWS(split_at_pauses(wav, rate, 0), InputError, "at least 1 s");
}
