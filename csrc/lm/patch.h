// A prompt or a reply is a sequence of positions. A position is a text token, or a patch of speech under the token
// <|empty|>.
#pragma once

#include <vector>

#include "base/array.h"
#include "io/config.h"

namespace mimo {

struct Positions {
    std::vector<int32_t> tokens;  // [P]
    std::vector<int32_t> codes;   // [P, G, K]; a text position holds the empty code of each level

    int64_t count() const { return static_cast<int64_t>(tokens.size()); }
};

// The G code frames of one position, [K, G].
Codes patch_of(const Positions& positions, int64_t index, const LmConfig& lm);

// Appends one position. patch: [K, G], or null for text.
void append(Positions& positions, int32_t token, const Codes* patch, const LmConfig& lm);
void append(Positions& positions, const Positions& more);

// Throws InputError on a token, or on a code of a patch, that the model's tables lack.
void check(const Positions& positions, const Config& config);

}  // namespace mimo
