// A reply being made: read the prompt, then position after position a token, and a patch of speech where the token is
// <|empty|>.
#pragma once

#include <atomic>
#include <optional>

#include "engine/state.h"
#include "lm/script.h"
#include "lm/task.h"

namespace mimo {

struct GenerationOptions {
    Task task;
    int64_t max_new = 0;               // positions; the reply also ends where the context does
    int64_t min_new = 0;               // positions before a stop token may come
    bool guard = true;                 // end a reply that repeats itself (repeats_itself below)
    std::vector<int32_t> script = {};  // text that the reply probably reads aloud: it comes sooner, and is no other
};

enum class Ending : uint8_t { none, stop_token, max_length, guard, cancelled };

// The runaway guard: the last 48 positions are one stretch of at most 8 positions, repeated exactly, tokens and codes
// alike.
bool repeats_itself(const Positions& positions, const LmConfig& lm);

class Generation {
public:
    // Throws InputError if max_new is below 1, or a stop token or one of the script is not in the vocabulary.
    Generation(std::shared_ptr<State> state, Positions prompt, GenerationOptions options);

    struct Step {
        int32_t token;
        std::optional<Codes> patch;  // [K, G] if token is <|empty|>
    };

    // The next position, or nothing when the reply has ended. The last position made is not read by the state until it
    // is asked for more. If it throws, the reply is lost.
    std::optional<Step> next(const Tap& tap = {});

    void cancel() { cancelled_ = true; }  // from any thread; the reply ends before its next position

    const Model& model() const { return state_->model(); }
    const Positions& positions() const { return reply_; }
    std::recursive_mutex& turn() const { return state_->turn(); }
    Ending ending() const { return ending_; }

private:
    std::shared_ptr<State> state_;
    Positions unread_;  // the prompt, then the last position made
    Script script_;
    Positions reply_;
    GenerationOptions options_;
    std::atomic<bool> cancelled_{false};
    Ending ending_ = Ending::none;
};

}  // namespace mimo
