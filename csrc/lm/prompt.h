// Prompts of every task, as the model was trained on them. Each segment is tokenised on its own: joining neighbours
// would merge across the seam and give other tokens. Upstream: mimo_audio.py get_*_prompt, process_speechdata.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "lm/patch.h"

namespace mimo {

// Of a spoken message: text tokens, then patches, in turn. Upstream: StreamingInputSegment.
inline constexpr int64_t kStreamTokens = 5;
inline constexpr int64_t kStreamPatches = 5;

// One message of a dialogue. A user speaks or writes; an assistant writes, or speaks and writes at once.
struct Turn {
    bool user = true;
    std::optional<std::string> text;
    std::optional<Codes> audio;
};

// A solved example for in-context learning.
struct Example {
    Codes input;
    std::string transcription;  // of the output
    Codes output;
};

// Audio arguments are codes [>= K, T >= 1]; the first K levels are used, the last frame is repeated to fill a patch.
class Prompts {
public:
    Prompts(const Config& config, const Tokenizer& tokenizer) : config_(config), tokenizer_(tokenizer) {}

    // Segments.
    Positions text(std::string_view text) const;
    // marks: between <|sosp|> and <|eosp|>. empty: the codes of the marks' own positions, [K]; null for the model's
    // empty codes.
    Positions audio(const Codes& codes, bool marks = true, const std::vector<int64_t>* empty = nullptr) const;
    Positions stream(std::string_view text, const Codes& codes) const;  // five tokens, five patches, in turn

    // Tasks.
    Positions asr(const Codes& audio, std::string_view instruction) const;
    // instruct: style in words, or null. voice: codes of the voice to imitate, or null. parity: a plain prompt drops
    // the voice, as upstream.
    Positions tts(std::string_view text, std::string_view instruction, const std::string* instruct, const Codes* voice,
                  bool parity) const;
    // text says both how to speak and what.
    Positions tts_natural(std::string_view text, const Codes* voice) const;
    Positions understanding(const Codes& audio, std::string_view question, bool thinking) const;
    // speech_out: the answer is spoken; else it is text, after a short thought if thinking.
    Positions dialogue(const std::vector<Turn>& turns, const std::string* system, const Codes* voice, bool speech_out,
                       bool thinking) const;
    Positions in_context(std::string_view instruction, const std::vector<Example>& examples, const Codes& audio) const;
    Positions continuation(const Codes& audio) const;  // speech to go on from: <|sosp|> and patches

private:
    Positions join(std::initializer_list<Positions> parts) const;
    Positions mark(int32_t token) const;
    Positions system_voice(std::string_view text, const Codes* voice) const;
    std::string_view thought(bool thinking) const;

    const Config& config_;
    const Tokenizer& tokenizer_;
};

}  // namespace mimo
