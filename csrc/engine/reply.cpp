#include "engine/reply.h"

#include <algorithm>
#include <array>

namespace mimo {
namespace {

// White space as Python's str.strip: in UTF-8, as strings.
constexpr std::array<std::string_view, 29> kSpaces = {
    " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",
    "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
    "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

std::string strip(std::string_view text) {
    for (bool found = true; found;) {
        found = false;
        for (const auto space : kSpaces) {
            if (text.starts_with(space)) text.remove_prefix(space.size()), found = true;
            if (text.ends_with(space)) text.remove_suffix(space.size()), found = true;
        }
    }
    return std::string(text);
}

void erase_all(std::string& text, std::string_view part) {
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at)) text.erase(at, part.size());
}

// Positions [begin, end) of speech.
struct Span {
    int64_t begin, end;
};

int64_t find_token(std::span<const int32_t> tokens, int32_t token) {
    return std::find(tokens.begin(), tokens.end(), token) - tokens.begin();
}

// Code frames of [span), those whose first level is empty left out.
Codes gather(const Model& model, const Positions& positions, Span span) {
    const LmConfig& lm = model.config.lm;
    std::vector<std::pair<int64_t, int64_t>> frames;
    for (int64_t i = span.begin; i < span.end; ++i) {
        const Codes patch = patch_of(positions, i, lm);
        for (int64_t t = 0; t < lm.group_size; ++t) {
            if (patch.at(0, t) != lm.speech_zeroemb_idx[0]) frames.emplace_back(i, t);
        }
    }
    Codes codes(lm.audio_channels, static_cast<int64_t>(frames.size()));
    for (int64_t t = 0; t < codes.frames; ++t) {
        const auto [position, frame] = frames[static_cast<size_t>(t)];
        const Codes patch = patch_of(positions, position, lm);
        for (int64_t level = 0; level < codes.levels; ++level) {
            const int64_t empty = lm.speech_zeroemb_idx[static_cast<size_t>(level)];
            if (patch.at(level, frame) >= empty) {
                throw InputError(message("reply: expected codes below ", empty, " at level ", level, ", got ",
                                         patch.at(level, frame)));
            }
            codes.at(level, t) = patch.at(level, frame);
        }
    }
    return codes;
}

}  // namespace

Reply extract_reply(const Model& model, const Positions& positions) {
    const SpecialTokens& t = model.config.tokens;
    const int64_t count = std::max<int64_t>(0, positions.count() - 1);
    const std::span<const int32_t> tokens(positions.tokens.data(), static_cast<size_t>(count));
    std::string text = strip(model.tokenizer.decode(tokens));
    for (const std::string_view mark : {"<|empty|>", "<|eot|>", "<|eostm|>"}) erase_all(text, mark);

    const int64_t start = find_token(tokens, t.sostm);
    const int64_t begin = start == count ? 0 : start + 1;
    const int64_t end = find_token(tokens, t.eostm);
    return {.text = text, .codes = gather(model, positions, {begin, std::max(begin, end)})};
}

}  // namespace mimo
