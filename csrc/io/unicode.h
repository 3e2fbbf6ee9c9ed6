// What the tokenizer and the text rules need of Unicode: UTF-8, the classes of \p{L} \p{N} \s, NFC, and letter case.
// All of it is a constant table (unicode_tables.inc, see make_unicode_tables.py) and a few loops; no locale.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mimo {

struct Utf8Step {
    char32_t code_point;
    size_t
        bytes;   // of the code point; if not valid, of the longest start of one (at least 1): what one U+FFFD replaces
    bool valid;  // shortest form, no surrogate (RFC 3629)
};

// text: at least one byte.
Utf8Step utf8_step(std::string_view text);
void append_utf8(std::string& out, char32_t code_point);

std::string to_utf8(std::u32string_view text);
// op: who asks, for the error. Throws InputError with the byte offset where text is not valid UTF-8.
std::u32string from_utf8(std::string_view text, std::string_view op);
// Every longest start of a code point that is not one becomes U+FFFD, as Rust's String::from_utf8_lossy.
std::string lossy_utf8(std::string_view bytes);

enum class CharClass : uint8_t { other, letter, number, space };  // not \p{L}\p{N}\s, \p{L}, \p{N}, \s
CharClass char_class(char32_t c);

// Normalisation form C.
std::u32string nfc(std::u32string_view text);

enum class LetterCase : uint8_t { none, lower, upper, title };
LetterCase letter_case(char32_t c);

enum class SigmaContext : uint8_t { other, ignorable, cased };  // Case_Ignorable; Cased and not Case_Ignorable
SigmaContext sigma_context(char32_t c);

// The full mappings of one code point: up to three code points.
void append_lower(std::u32string& out, char32_t c);
void append_title(std::u32string& out, char32_t c);

}  // namespace mimo
