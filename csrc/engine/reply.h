// Positions of a finished reply -> what upstream makes of them. (What users get: runtime/mimo_edge/answer.py.)
#pragma once

#include <string>

#include "engine/model.h"

namespace mimo {

struct Reply {
    std::string text;
    Codes codes;  // [K, T]; T = 0 if nothing was spoken
};

// What upstream's MimoAudio.forward returns, its bugs included: the last position is always cut from text and audio, a
// character that speech interrupts becomes U+FFFD, thoughts and <|sostm|> stay in the text. Throws InputError on a
// half-empty code frame.
Reply extract_reply(const Model& model, const Positions& positions);

}  // namespace mimo
