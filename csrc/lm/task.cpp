#include "lm/task.h"

#include <algorithm>

#include "base/error.h"

namespace mimo {

Task task_of(std::string_view name, const SpecialTokens& tokens) {
    const std::vector<int32_t> text_stop = {tokens.eos, tokens.im_end};
    const std::vector<int32_t> speech_stop = {tokens.eos, tokens.eostm, tokens.im_end};
    const Sampling best = {};
    const Sampling speech = {.sample = true, .temperature = 0.9f, .top_p = 0.95f};
    const auto text = [](float temperature, float top_p) {
        return Sampling{.sample = true, .temperature = temperature, .top_p = top_p};
    };

    if (name == "asr") return {best, speech, text_stop};
    if (name == "tts") return {text(0.6f, 1.0f), speech, speech_stop};
    if (name == "spoken_dialogue") return {text(0.6f, 0.95f), speech, speech_stop};
    if (name == "speech_to_text") return {text(0.6f, 0.95f), speech, text_stop};
    if (name == "audio_understanding") return {text(0.3f, 0.95f), speech, text_stop};
    if (name == "text_chat") return {text(0.4f, 0.95f), speech, text_stop};
    if (name == "in_context") return {best, speech, {tokens.eos, tokens.eostm}};
    if (name == "continuation") {  // upstream's sampler for tasks it has no entry for
        const auto open = [](float temperature) {
            return Sampling{.sample = true, .temperature = temperature, .top_k = 50, .top_p = 0.95f};
        };
        return {open(0.6f), open(0.9f), {tokens.eos, tokens.eosp, tokens.eostm}};
    }
    throw InputError(message(
        "task: expected asr, tts, spoken_dialogue, speech_to_text, audio_understanding, text_chat, in_context or "
        "continuation, got '",
        name, "'"));
}

bool is_done(int64_t total, int32_t last_token, std::span<const int32_t> stop, int64_t min_length, int64_t max_length) {
    if (max_length != 0 && total >= max_length) return true;
    return total >= min_length && std::find(stop.begin(), stop.end(), last_token) != stop.end();
}

}  // namespace mimo
