// What the reference samples and where it stops, task by task. Upstream: mimo_audio.py task_sampler_configs and the
// *_sft methods.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "io/config.h"
#include "lm/sampler.h"

namespace mimo {

struct Task {
    Sampling text, speech;
    std::vector<int32_t> stop;  // tokens that end a reply
};

// name: asr tts spoken_dialogue speech_to_text audio_understanding text_chat in_context continuation. Throws InputError
// on another.
Task task_of(std::string_view name, const SpecialTokens& tokens);

// Upstream MiMoStopper: a reply of `total` positions (prompt included) that ends in last_token is done.
// max_length 0: unlimited. A stop token counts from min_length positions on.
bool is_done(int64_t total, int32_t last_token, std::span<const int32_t> stop, int64_t min_length, int64_t max_length);

}  // namespace mimo
