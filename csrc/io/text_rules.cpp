#include "io/text_rules.h"

#include <algorithm>

#include "io/unicode.h"

namespace mimo {

namespace {

constexpr char32_t capital_sigma = U'\u03A3', small_sigma = U'\u03C3', final_sigma = U'\u03C2';

// Neither upper nor lower beside the other one, and no title case at all: str.isupper() or str.islower().
bool in_one_case(std::u32string_view text) {
    bool lower = false, upper = false;
    for (const char32_t c : text) {
        const LetterCase found = letter_case(c);
        if (found == LetterCase::title) return false;
        lower |= found == LetterCase::lower;
        upper |= found == LetterCase::upper;
    }
    return lower != upper;
}

// A sigma is final if a cased letter stands before it and none after, looking through ignorable ones (Unicode 3.13).
bool ends_word(std::u32string_view text, size_t sigma) {
    const auto shows = [](char32_t c) { return sigma_context(c) != SigmaContext::ignorable; };
    const std::u32string_view head = text.substr(0, sigma), tail = text.substr(sigma + 1);
    const auto before = std::find_if(head.rbegin(), head.rend(), shows);
    const auto after = std::find_if(tail.begin(), tail.end(), shows);
    return before != head.rend() && sigma_context(*before) == SigmaContext::cased &&
           (after == tail.end() || sigma_context(*after) != SigmaContext::cased);
}

}  // namespace

std::string capitalize_text(std::string_view text) {
    const std::u32string from = from_utf8(text, "capitalize_text");
    if (!in_one_case(from)) return std::string(text);
    std::u32string to;
    append_title(to, from[0]);
    for (size_t i = 1; i < from.size(); ++i) {
        if (from[i] == capital_sigma) {
            to += ends_word(from, i) ? final_sigma : small_sigma;
        } else {
            append_lower(to, from[i]);
        }
    }
    return to_utf8(to);
}

bool has_han(std::string_view text) {
    while (!text.empty()) {
        const Utf8Step step = utf8_step(text);
        if (step.code_point >= 0x4E00 && step.code_point <= 0x9FFF) return true;
        text.remove_prefix(step.bytes);
    }
    return false;
}

}  // namespace mimo
