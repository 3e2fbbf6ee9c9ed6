#include "engine/generation.h"

#include <algorithm>

namespace mimo {
namespace {

constexpr int64_t kRepeatedPositions = 48;
constexpr int64_t kLongestPeriod = 8;

}  // namespace

bool repeats_itself(const Positions& positions, const LmConfig& lm) {
    const int64_t count = positions.count(), width = lm.group_size * lm.audio_channels;
    if (count < kRepeatedPositions) return false;
    for (int64_t period = 1; period <= kLongestPeriod; ++period) {
        const int64_t first = count - kRepeatedPositions;
        const auto same = [&](const std::vector<int32_t>& values, int64_t step) {
            return std::equal(values.begin() + (first + period) * step, values.end(), values.begin() + first * step);
        };
        if (same(positions.tokens, 1) && same(positions.codes, width)) return true;
    }
    return false;
}

Generation::Generation(std::shared_ptr<State> state, Positions prompt, GenerationOptions options)
    : state_(std::move(state)),
      unread_(std::move(prompt)),
      script_(options.script, state_->model().config.tokens),
      options_(std::move(options)) {
    if (options_.max_new < 1)
        throw InputError(message("generate: expected at least 1 new position, got ", options_.max_new));
    const int64_t vocabulary = state_->model().config.lm.vocab_size;
    const auto expect_known = [&](const char* what, std::span<const int32_t> tokens) {
        for (const int32_t token : tokens) {
            if (token < 0 || token >= vocabulary)
                throw InputError(message("generate: expected ", what, " from 0 to ", vocabulary - 1, ", got ", token));
        }
    };
    expect_known("stop tokens", options_.task.stop);
    expect_known("tokens of a script", options_.script);
}

std::optional<Generation::Step> Generation::next(const Tap& tap) {
    if (ending_ != Ending::none) return {};
    if (cancelled_) {
        ending_ = Ending::cancelled;
        return {};
    }
    for (const int32_t token : unread_.tokens) script_.follow(token);
    state_->prefill(unread_, tap, script_.due());
    const Config& config = state_->model().config;
    const Task& task = options_.task;
    const bool may_stop = reply_.count() >= options_.min_new;
    const std::vector<int32_t> removed = may_stop ? std::vector<int32_t>{} : task.stop;

    Step step = {.token = state_->sample_token(task.text, removed, tap), .patch = {}};
    if (step.token == config.tokens.empty) step.patch = state_->decode_patch(task.speech, tap);
    unread_ = {};
    append(unread_, step.token, step.patch ? &*step.patch : nullptr, config.lm);
    append(reply_, unread_);

    if (is_done(reply_.count(), step.token, task.stop, options_.min_new, 0)) {
        ending_ = Ending::stop_token;
    } else if (reply_.count() >= options_.max_new || state_->length() + 1 >= state_->capacity()) {
        ending_ = Ending::max_length;
    } else if (options_.guard && repeats_itself(reply_, config.lm)) {
        ending_ = Ending::guard;
    }
    return step;
}

}  // namespace mimo
