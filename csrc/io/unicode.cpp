#include "io/unicode.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <vector>

#include "base/error.h"

namespace mimo {

namespace {

struct Range {  // the code points first, first + step, … last have the value
    uint32_t first, last;
    uint8_t step;
    int32_t value;
};
struct Pair {  // composite <-> first + second
    uint32_t composite, first, second;
};
struct Expansion {  // a mapping to several code points, filled up with 0
    uint32_t code_point, mapped[3];
};

#include "io/unicode_tables.inc"

template <size_t N>
int32_t lookup(const Range (&ranges)[N], char32_t c) {
    const Range* after =
        std::upper_bound(ranges, ranges + N, c, [](char32_t value, const Range& range) { return value < range.first; });
    if (after == ranges) return 0;
    const Range& range = after[-1];
    return c <= range.last && (c - range.first) % range.step == 0 ? range.value : 0;
}

// Hangul syllables are laid out lead, vowel, trail (Unicode 3.12).
constexpr char32_t syllable_base = 0xAC00, lead_base = 0x1100, vowel_base = 0x1161, trail_base = 0x11A7;
constexpr char32_t vowels = 21, trails = 28, syllables = 19 * vowels * trails;

int combining_class(char32_t c) {
    return c < 0x300 ? 0 : lookup(combining_ranges, c);
}

void append_decomposed(std::u32string& out, char32_t c) {
    if (c < 0xC0) {
        out += c;
        return;
    }
    if (c - syllable_base < syllables) {
        const char32_t index = c - syllable_base;
        out += lead_base + index / (vowels * trails);
        out += vowel_base + index % (vowels * trails) / trails;
        if (index % trails != 0) out += trail_base + index % trails;
        return;
    }
    const Pair* pair = std::lower_bound(std::begin(decompositions), std::end(decompositions), c,
                                        [](const Pair& left, char32_t right) { return left.composite < right; });
    if (pair == std::end(decompositions) || pair->composite != c) {
        out += c;
        return;
    }
    append_decomposed(out, pair->first);
    if (pair->second != 0) append_decomposed(out, pair->second);
}

// 0 if the two do not compose.
char32_t composed(char32_t first, char32_t second) {
    if (first - lead_base < 19 && second - vowel_base < vowels) {
        return syllable_base + ((first - lead_base) * vowels + (second - vowel_base)) * trails;
    }
    if (first - syllable_base < syllables && (first - syllable_base) % trails == 0 && second > trail_base &&
        second < trail_base + trails) {
        return first + (second - trail_base);
    }
    const Pair* pair =
        std::lower_bound(std::begin(compositions), std::end(compositions), std::pair(first, second),
                         [](const Pair& left, const std::pair<char32_t, char32_t>& right) {
                             return std::tuple(left.first, left.second) < std::tuple(right.first, right.second);
                         });
    const bool found = pair != std::end(compositions) && pair->first == first && pair->second == second;
    return found ? pair->composite : 0;
}

struct Mark {
    char32_t code_point;
    int combining;
};

// Canonical decomposition, each run of marks in order of combining class.
std::vector<Mark> decomposed(std::u32string_view text) {
    std::u32string all;
    all.reserve(text.size());
    for (const char32_t c : text) append_decomposed(all, c);
    std::vector<Mark> marks;
    marks.reserve(all.size());
    for (const char32_t c : all) marks.push_back({c, combining_class(c)});
    for (auto at = marks.begin(); at != marks.end();) {
        const auto is_starter = [](const Mark& mark) { return mark.combining == 0; };
        const auto start = std::find_if_not(at, marks.end(), is_starter);
        at = std::find_if(start, marks.end(), is_starter);
        std::stable_sort(start, at, [](const Mark& a, const Mark& b) { return a.combining < b.combining; });
    }
    return marks;
}

template <size_t N>
void append_mapped(std::u32string& out, char32_t c, const Expansion (&expansions)[N], int32_t offset) {
    const Expansion* found = std::lower_bound(
        expansions, expansions + N, c, [](const Expansion& left, char32_t right) { return left.code_point < right; });
    if (found == expansions + N || found->code_point != c) {
        out += static_cast<char32_t>(static_cast<int32_t>(c) + offset);
        return;
    }
    for (const uint32_t mapped : found->mapped) {
        if (mapped != 0) out += mapped;
    }
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    const uint32_t lead = byte(0);
    if (lead < 0x80) return {lead, 1, true};
    const size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4) return {0, 1, false};
    uint32_t code_point = lead & (0x7Fu >> bytes);
    for (size_t i = 1; i < bytes; ++i) {
        // The second byte also excludes long forms, surrogates and what lies beyond U+10FFFF.
        const uint32_t low = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const uint32_t high = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (byte(i) < low || byte(i) > high) return {0, i, false};
        code_point = code_point << 6 | (byte(i) & 0x3F);
    }
    return {code_point, bytes, true};
}

void append_utf8(std::string& out, char32_t code_point) {
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (code_point >> shift & 0x3F)); };
    if (code_point < 0x80) {
        out += static_cast<char>(code_point);
        return;
    }
    if (code_point < 0x800) {
        out += static_cast<char>(0xC0 | code_point >> 6);
    } else {
        if (code_point < 0x10000) {
            out += static_cast<char>(0xE0 | code_point >> 12);
        } else {
            out += static_cast<char>(0xF0 | code_point >> 18);
            tail(12);
        }
        tail(6);
    }
    tail(0);
}

std::string to_utf8(std::u32string_view text) {
    std::string out;
    out.reserve(text.size());
    for (const char32_t c : text) append_utf8(out, c);
    return out;
}

std::u32string from_utf8(std::string_view text, std::string_view op) {
    std::u32string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
        const Utf8Step step = utf8_step(text.substr(at));
        if (!step.valid) {
            const auto byte = static_cast<unsigned char>(text[at]);
            constexpr char hex[] = "0123456789abcdef";
            throw InputError(
                message(op, ": expected valid UTF-8, got byte 0x", hex[byte >> 4], hex[byte & 15], " at byte ", at));
        }
        out += step.code_point;
        at += step.bytes;
    }
    return out;
}

std::string lossy_utf8(std::string_view bytes) {
    std::string out;
    out.reserve(bytes.size());
    for (size_t at = 0; at < bytes.size();) {
        const Utf8Step step = utf8_step(bytes.substr(at));
        if (step.valid) {
            out.append(bytes, at, step.bytes);
        } else {
            append_utf8(out, 0xFFFD);
        }
        at += step.bytes;
    }
    return out;
}

CharClass char_class(char32_t c) {
    return static_cast<CharClass>(lookup(class_ranges, c));
}

std::u32string nfc(std::u32string_view text) {
    std::u32string out;
    // Nothing below U+0300 combines or decomposes to anything but what it composes from.
    if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; })) return out = text;
    size_t starter = out.npos;  // index in out of the last starter
    int last = 0;               // combining class of the last mark kept after it
    for (const auto& [c, combining] : decomposed(text)) {
        // A mark reaches the starter unless one of the same or a higher class, or another starter, stands between.
        const bool reaches = starter != out.npos && (starter + 1 == out.size() || last < combining);
        if (const char32_t whole = reaches ? composed(out[starter], c) : 0; whole != 0) {
            out[starter] = whole;
            continue;
        }
        if (combining == 0) starter = out.size();
        last = combining;
        out += c;
    }
    return out;
}

LetterCase letter_case(char32_t c) {
    if (lookup(small_ranges, c) != 0) return LetterCase::lower;
    if (lookup(capital_ranges, c) != 0) return LetterCase::upper;
    return lookup(title_case_ranges, c) != 0 ? LetterCase::title : LetterCase::none;
}

SigmaContext sigma_context(char32_t c) {
    return static_cast<SigmaContext>(lookup(sigma_ranges, c));
}

void append_lower(std::u32string& out, char32_t c) {
    append_mapped(out, c, lower_expansions, lookup(lower_ranges, c));
}

void append_title(std::u32string& out, char32_t c) {
    append_mapped(out, c, title_expansions, lookup(title_ranges, c));
}

}  // namespace mimo
