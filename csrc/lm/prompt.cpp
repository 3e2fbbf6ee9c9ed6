#include "lm/prompt.h"

#include <algorithm>

#include "io/text_rules.h"

namespace mimo {
namespace {

constexpr std::string_view kUser = "<|im_start|>user\n";
constexpr std::string_view kAssistant = "<|im_start|>assistant\n";
constexpr std::string_view kSystem = "<|im_start|>system\n";
constexpr std::string_view kEnd = "<|im_end|>\n";
constexpr std::string_view kSpeak = "<|im_start|>assistant\n<|sostm|>";
constexpr std::string_view kThink = "<|im_start|>assistant\n<think>\n";

// Upstream's system texts, word for word.
constexpr std::string_view kStyle = "你需要根据指定的风格指令和文本内容来生成语音。";
constexpr std::string_view kStyleAndVoice =
    "你需要根据指定的风格指令和文本内容来生成和语音prompt具有相同音色的语音。你的音色应该是：";
constexpr std::string_view kDialogueVoice = "Your voice should be:";

std::string concat(std::initializer_list<std::string_view> parts) {
    std::string text;
    for (const auto part : parts) text += part;
    return text;
}

}  // namespace

Positions Prompts::text(std::string_view text) const {
    Positions positions;
    for (const int32_t token : tokenizer_.encode(text)) append(positions, token, nullptr, config_.lm);
    return positions;
}

Positions Prompts::mark(int32_t token) const {
    Positions positions;
    append(positions, token, nullptr, config_.lm);
    return positions;
}

Positions Prompts::join(std::initializer_list<Positions> parts) const {
    Positions all;
    for (const Positions& part : parts) append(all, part);
    return all;
}

Positions Prompts::audio(const Codes& codes, bool marks, const std::vector<int64_t>* empty) const {
    LmConfig lm = config_.lm;
    if (empty) {
        bool sensible = empty->size() == lm.speech_vocab_size.size();
        for (size_t k = 0; sensible && k < empty->size(); ++k)
            sensible = (*empty)[k] >= 0 && (*empty)[k] < lm.speech_vocab_size[k];
        if (!sensible) {
            throw InputError(message("prompt: expected one empty code for each of ", lm.audio_channels,
                                     " levels, within its vocabulary, got others"));
        }
        lm.speech_zeroemb_idx = *empty;
    }
    if (codes.levels < lm.audio_channels || codes.frames < 1) {
        throw ShapeError(message("prompt: expected audio codes [at least ", lm.audio_channels, ", at least 1], got [",
                                 codes.levels, ", ", codes.frames, "]"));
    }
    Positions positions;
    if (marks) append(positions, config_.tokens.sosp, nullptr, lm);
    Codes patch(lm.audio_channels, lm.group_size);
    for (int64_t first = 0; first < codes.frames; first += lm.group_size) {
        for (int64_t level = 0; level < lm.audio_channels; ++level) {
            for (int64_t i = 0; i < lm.group_size; ++i)
                patch.at(level, i) = codes.at(level, std::min(first + i, codes.frames - 1));
        }
        append(positions, config_.tokens.empty, &patch, lm);
    }
    if (marks) append(positions, config_.tokens.eosp, nullptr, lm);
    return positions;
}

Positions Prompts::stream(std::string_view text, const Codes& codes) const {
    const LmConfig& lm = config_.lm;
    const Positions words = this->text(text), speech = audio(codes, false);
    Positions positions = mark(config_.tokens.sostm);
    const int64_t turns = std::max<int64_t>(1, (words.count() + kStreamTokens - 1) / kStreamTokens);
    for (int64_t turn = 0; turn < turns || turn * kStreamPatches < speech.count(); ++turn) {
        for (int64_t i = turn * kStreamTokens; i < std::min(words.count(), (turn + 1) * kStreamTokens); ++i) {
            append(positions, words.tokens[static_cast<size_t>(i)], nullptr, lm);
        }
        if (turn == turns - 1)
            append(positions, config_.tokens.eot, nullptr, lm);  // closes the last text, which may be empty
        for (int64_t i = turn * kStreamPatches; i < std::min(speech.count(), (turn + 1) * kStreamPatches); ++i) {
            const Codes patch = patch_of(speech, i, lm);
            append(positions, config_.tokens.empty, &patch, lm);
        }
    }
    append(positions, config_.tokens.eostm, nullptr, lm);
    return positions;
}

std::string_view Prompts::thought(bool thinking) const {
    return thinking ? "<think>\n" : "<think>\n\n</think>\n";
}

Positions Prompts::asr(const Codes& audio, std::string_view instruction) const {
    return understanding(audio, instruction, false);
}

Positions Prompts::understanding(const Codes& audio, std::string_view question, bool thinking) const {
    return join(
        {text(kUser), this->audio(audio), text(question), text(kEnd), text(kAssistant), text(thought(thinking))});
}

// The system message that sets style and voice.
Positions Prompts::system_voice(std::string_view words, const Codes* voice) const {
    return join({text(kSystem), text(words), voice ? audio(*voice) : Positions{}, text(kEnd)});
}

Positions Prompts::tts(std::string_view words, std::string_view instruction, const std::string* instruct,
                       const Codes* voice, bool parity) const {
    const std::string spoken = concat({instruction, ": ", capitalize_text(words)});
    if (instruct) {
        return join({system_voice(voice ? kStyleAndVoice : kStyle, voice),
                     text(concat({kUser, spoken, "(", *instruct, ")", kEnd})), text(kThink)});
    }
    const Positions plain = join({text(concat({kUser, spoken, kEnd})), text(kSpeak)});
    return voice && !parity ? join({system_voice(kStyleAndVoice, voice), plain}) : plain;
}

Positions Prompts::tts_natural(std::string_view words, const Codes* voice) const {
    return join({system_voice(voice ? kStyleAndVoice : kStyle, voice),
                 text(concat({kUser, capitalize_text(words), kEnd})), text(kThink)});
}

Positions Prompts::dialogue(const std::vector<Turn>& turns, const std::string* system, const Codes* voice,
                            bool speech_out, bool thinking) const {
    Positions positions = voice ? system_voice(kDialogueVoice, voice) : Positions{};
    for (size_t i = 0; i < turns.size(); ++i) {
        const Turn& turn = turns[i];
        if (!turn.text && !turn.audio)
            throw InputError(message("dialogue: expected text or audio in turn ", i + 1, ", got neither"));
        append(positions, text(turn.user ? kUser : kAssistant));
        if (i == 0 && turn.user && system) append(positions, join({text(*system), text("\n\n")}));
        if (turn.user) {
            append(positions, turn.audio ? audio(*turn.audio) : text(*turn.text));
        } else {
            append(positions, turn.audio ? stream(turn.text.value_or(""), *turn.audio) : text(*turn.text));
        }
        append(positions, text(kEnd));
    }
    append(positions, speech_out ? text(kSpeak) : join({text(kAssistant), text(thought(thinking))}));
    return positions;
}

Positions Prompts::in_context(std::string_view instruction, const std::vector<Example>& examples,
                              const Codes& audio) const {
    Positions positions = text(concat({"[Int]:", instruction, "\n"}));
    for (const Example& example : examples) {
        append(positions, join({this->audio(example.input), text("\n"), stream(example.transcription, example.output),
                                text(" \n\n")}));
    }
    append(positions, join({this->audio(audio), text("\n"), mark(config_.tokens.sostm)}));
    return positions;
}

Positions Prompts::continuation(const Codes& audio) const {
    return join({mark(config_.tokens.sosp), this->audio(audio, false)});
}

}  // namespace mimo
