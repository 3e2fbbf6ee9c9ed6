#include "lm/script.h"

#include <algorithm>

#include "lm/prompt.h"

namespace mimo {

Script::Script(std::vector<int32_t> words, const SpecialTokens& tokens) : tokens_(tokens), words_(std::move(words)) {
    if (!words_.empty()) words_.push_back(tokens_.eot);
}

void Script::follow(int32_t token) {
    if (token == tokens_.sostm) {
        speaking_ = true;
        said_ = 0;
        patches_ = kStreamPatches;
    } else if (token == tokens_.empty) {
        ++patches_;
    } else if (speaking_) {
        patches_ = 0;
        const auto soon = rest(kStreamTokens);  // a word may be left out, or another may stand in its place
        const auto found = std::find(soon.begin(), soon.end(), token);
        if (found != soon.end()) said_ += found - soon.begin() + 1;
    }
}

std::span<const int32_t> Script::due() const {
    if (!speaking_ || patches_ != kStreamPatches) return {};
    const bool last_turn = std::ssize(words_) - said_ <= kStreamTokens + 1;  // which has <|eot|> too
    return rest(kStreamTokens + last_turn);
}

std::span<const int32_t> Script::rest(int64_t most) const {
    const auto rest = std::span(words_).subspan(static_cast<size_t>(said_));
    return rest.first(std::min(rest.size(), static_cast<size_t>(most)));
}

}  // namespace mimo
