// What a reply is to read aloud, and how far it has come: which text tokens probably come next. A spoken reply says
// kStreamTokens of its text, then as many patches (Prompts::stream); a reply to a text-to-speech prompt says that text.
#pragma once

#include <span>
#include <vector>

#include "io/config.h"

namespace mimo {

class Script {
public:
    // words: the text's tokens; empty: nothing is foreseen.
    Script(std::vector<int32_t> words, const SpecialTokens& tokens);

    void follow(int32_t token);            // the token of the next position, of the prompt or of the reply
    std::span<const int32_t> due() const;  // the text of the turn that begins now; empty within one, and after others

private:
    std::span<const int32_t> rest(int64_t most) const;  // words that did not come yet

    SpecialTokens tokens_;
    std::vector<int32_t> words_;  // then <|eot|>
    int64_t said_ = 0;
    int64_t patches_ = 0;    // since the last word
    bool speaking_ = false;  // <|sostm|> has come
};

}  // namespace mimo
