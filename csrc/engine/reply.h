// Positions of a finished reply -> what the user gets: text and codes.
#pragma once

#include <string>

#include "engine/model.h"

namespace mimo {

struct Reply {
    std::string text;
    Codes codes;  // [K, T]; T = 0 if nothing was spoken
};

// The text without thoughts, marks and broken characters; every complete patch between <|sostm|> (or the start) and
// <|eostm|>.
Reply extract_reply(const Model& model, const Positions& positions);

// What upstream's MimoAudio.forward returns, its bugs included: the last position is always cut from text and audio, a
// character that speech interrupts becomes U+FFFD, thoughts and <|sostm|> stay in the text. Throws InputError on a
// half-empty code frame.
Reply extract_reply_as_upstream(const Model& model, const Positions& positions);

}  // namespace mimo
