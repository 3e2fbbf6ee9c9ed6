// One conversation: what the backbone has read so far, and what it thinks comes next. Not for two threads at once,
// unless they hold turn(); any number of States of one Model may run side by side.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "engine/model.h"

namespace mimo {

class State {
public:
    // seed, stream: of the random draws; conversations of one seed differ by stream. context: positions to make room
    // for, 0 for the model's own limit.
    explicit State(std::shared_ptr<const Model> model, uint64_t seed = 0, uint32_t stream = 0, int64_t context = 0);

    const Model& model() const { return *model_; }
    int64_t length() const { return positions_.count(); }  // positions read
    int64_t capacity() const { return capacity_; }

    // For threads that share the conversation, or what runs on it: each holds it while it calls.
    std::recursive_mutex& turn() const { return turn_; }

    // Reads more positions. Throws InputError, and changes nothing, if they are none, do not fit or hold unknown tokens
    // or codes. guesses: text tokens that probably come next. A backend that can reads them on the way, while nobody
    // taps, and reading the next position then costs nothing if it is the first of them; no result depends on them.
    void prefill(const Positions& positions, const Tap& tap = {}, std::span<const int32_t> guesses = {});

    // Forgets all positions from `length` on. prefill must follow.
    void rewind(int64_t length);

    const Positions& positions() const { return positions_; }  // all that was read

    // Forgets what is not the beginning of `wanted`, and returns how many of its positions are kept: never all, so that
    // reading the others makes the conversation exactly `wanted`.
    int64_t keep(const Positions& wanted);

    // Makes the conversation exactly `wanted`: keeps what it can and reads the rest. Returns how many were kept. Throws
    // InputError as prefill does, and changes nothing if `wanted` does not fit.
    int64_t become(const Positions& wanted);

    // The conversation as bytes, and back, bit for bit: the state of a process, a file, a mapping. note: carried along.
    // Only a model of the same weights, kernels and sizes restores it. Throws InputError for other bytes, altered ones
    // included, and changes nothing then; DeviceError if the backend cannot.
    std::string save(std::string_view note) const;
    std::string restore(std::span<const char> bytes);  // -> the note

    // After the last position read; each throws InputError if there is none.
    const Array& hidden() const;                                // [1, hidden_size], after the final norm
    std::vector<float> text_logits(const Tap& tap = {}) const;  // [vocab_size]
    Array local_hidden() const;                                 // [1, local_dim], the patch decoder's first input
    int32_t sample_token(const Sampling& sampling, std::span<const int32_t> removed, const Tap& tap = {}) const;
    Codes decode_patch(const Sampling& sampling, const Tap& tap = {}, const Codes* forced = nullptr);  // [K, G]

private:
    int64_t codes_of_position() const;
    Draw draw() const { return {.seed = seed_, .stream = stream_, .position = static_cast<uint32_t>(length())}; }

    std::shared_ptr<const Model> model_;
    mutable std::recursive_mutex turn_;
    uint64_t seed_;
    uint32_t stream_;
    int64_t capacity_;
    std::shared_ptr<Sequence> sequence_;
    Positions positions_;
    std::vector<int32_t> guessed_;  // text tokens that the sequence has read after them
    Array hidden_;                  // of the last position; empty before the first and after a rewind
};

}  // namespace mimo
