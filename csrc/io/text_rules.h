// What the reference does to a text before it is spoken (upstream mimo_audio.py, preprocess_input and detect_language).
#pragma once

#include <string>
#include <string_view>

namespace mimo {

// Python's `t.capitalize() if t.isupper() or t.islower() else t`: a text in one case gets one capital letter, first.
// Throws InputError if text is not valid UTF-8.
std::string capitalize_text(std::string_view text);

// Whether a character from U+4E00 to U+9FFF occurs: the reference's test for Chinese.
bool has_han(std::string_view text);

}  // namespace mimo
