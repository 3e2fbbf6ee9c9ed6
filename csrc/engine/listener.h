// Hears a person while they speak: sound in any pieces and rates becomes positions of the conversation.
//
// The codec's encoder sees its whole segment in both directions, so every new sound changes all codes before it:
// nothing can be committed for good while a person speaks (docs/streaming.md has the measurement). What can be done
// early is done as the sound comes, resampling and mel; what cannot is done at a pause: settle() encodes exactly what
// an offline encode of the sound so far gives, rolls the conversation back to where it differs and reads the rest. If
// the person stays silent, the turn has been read by the time that is known; if they go on, the next settle() puts it
// right.
#pragma once

#include <optional>

#include "codec/resample.h"
#include "engine/state.h"

namespace mimo {

class Listener {
public:
    // before: the conversation up to the sound, <|sosp|> included; what is not read of it yet is read now, while nobody
    // waits. most_s: the longest sound that is heard, 0 for what the context holds. Throws InputError if it does not
    // fit.
    Listener(std::shared_ptr<State> state, Positions before, double most_s = 0);

    // wav: float32 [samples >= 0] at rate_hz; any length, any rate, which may change. NaN and infinity are heard as
    // silence and counted. Returns how many samples were taken: fewer than given when the longest sound is reached.
    int64_t feed(std::span<const float> wav, int64_t rate_hz);

    struct Report {
        int64_t positions = 0;               // of the conversation up to the end of the sound
        int64_t kept = 0;                    // of them, read before
        int64_t redone = 0;                  // of those read before, rolled back because their codes have changed
        double heard_s = 0;                  // seconds of sound so far
        int64_t broken_samples = 0;          // of them NaN or infinite
        double encode_s = 0, prefill_s = 0;  // how long it took
    };

    // Makes the conversation exactly `before` and the codes of all sound so far. Throws InputError, and changes
    // nothing, if there is too little sound or too much.
    Report settle();

    // The conversation as the last settle() left it; before the first, `before` alone.
    const Positions& positions() const { return settled_; }

    std::recursive_mutex& turn() const { return state_->turn(); }

    double heard_s() const;
    bool is_long_enough() const;  // for settle()

private:
    Codes encode();

    std::shared_ptr<State> state_;
    Positions before_, settled_;
    int64_t most_samples_;
    std::optional<Resampler> resampler_;
    int64_t rate_hz_ = 0;
    std::vector<float> wav_;  // at the codec's rate, all that no later sound changes
    Array mel_;               // of it, likewise
    Array hidden_;            // of whole segments of that
    int64_t segments_ = 0;
    bool dirty_ = true;  // sound came after codes_ was made
    Codes codes_;
    int64_t broken_ = 0;
};

}  // namespace mimo
