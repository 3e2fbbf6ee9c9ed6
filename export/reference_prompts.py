"""The prompts of the executable spec: text and codes -> ids [K+1, G*P] (app:316-1048, seg).

Row 0 holds a token per position, then -100 up to the next; rows 1..K the codes. Letters and "item n": see reference.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer

from mimo_edge.export.reference_ops import Array, Config

Turn = tuple[str, "str | None", "Array | None"]  # (role, text, codes [K, T])

STREAM_RUN = 5  # tokens, then patches, that alternate in streamed speech, seg:166


THINK_OFF, THINK_ON = "<think>\n\n</think>\n", "<think>\n"
TTS_SYSTEM = "你需要根据指定的风格指令和文本内容来生成语音。"
TTS_SYSTEM_VOICE = "你需要根据指定的风格指令和文本内容来生成和语音prompt具有相同音色的语音。你的音色应该是："
DIALOGUE_SYSTEM_VOICE = "Your voice should be:"


def capitalize_text(text: str) -> str:
    """Text in one letter case is capitalised, the rest lower-cased (app:284-288, item 30)."""
    return text.capitalize() if text.isupper() or text.islower() else text


def detect_language(text: str) -> str:
    """zh if any CJK ideograph U+4E00..U+9FFF occurs, else en (app:29-33)."""
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"


class Prompts:
    """Prompt builders (app:316-1040). A string is tokenised on its own, never joined with its neighbour (item 24)."""

    def __init__(self, lm: Config, tokens: Mapping[str, int], tokenizer: Tokenizer) -> None:
        self.patch: int = lm["group_size"]
        self.empty_codes: list[int] = lm["speech_zeroemb_idx"]
        self.tokens, self.tokenizer = tokens, tokenizer

    def tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def positions(self, tokens: Sequence[int], codes: Array | None = None, empty: Sequence[int] | None = None) -> Array:
        """tokens [P] and codes [K, G*P] (None: all empty) -> ids [K+1, G*P]; text row: token, then -100s (item 25)."""
        filler = np.asarray(self.empty_codes if empty is None else empty, np.int32)
        ids = np.full((1 + len(filler), self.patch * len(tokens)), -100, np.int32)
        ids[0, :: self.patch] = tokens
        ids[1:] = filler[:, None] if codes is None else codes
        return ids

    def text(self, text: str) -> Array:
        return self.positions(self.tokenize(text))

    def audio(self, audio: Array, marks: bool = True, empty: Sequence[int] | None = None) -> Array:
        """codes [K, T] -> patches, between <|sosp|> and <|eosp|> if marks (item 26)."""
        levels = len(self.empty_codes)
        if audio.ndim != 2 or audio.shape[0] != levels or audio.shape[1] % self.patch:
            raise ValueError(f"prompt_audio: expected codes [{levels}, {self.patch} * P], got {list(audio.shape)}; "
                             "repeat the last code frame up to a whole patch")  # fmt: skip
        patches = self.positions([self.tokens["empty"]] * (audio.shape[1] // self.patch), audio, empty)
        if not marks:
            return patches
        opening, closing = (self.positions([self.tokens[name]], None, empty) for name in ("sosp", "eosp"))
        return np.concatenate([opening, patches, closing], axis=1)

    def stream(self, text: str, audio: Array) -> Array:
        """Spoken text: <|sostm|>, 5 tokens and 5 patches in turn, what is left of either, <|eostm|> (seg:201-276).
        <|eot|> joins the last run of tokens, which may thus have 6; an empty text is <|eot|> alone."""
        tokens, run = self.tokenize(text), STREAM_RUN * self.patch
        texts = [tokens[i : i + STREAM_RUN] for i in range(0, len(tokens), STREAM_RUN)] or [[]]
        texts[-1] = [*texts[-1], self.tokens["eot"]]
        audios = [audio[:, i : i + run] for i in range(0, audio.shape[1], run)]
        parts = [self.positions([self.tokens["sostm"]])]
        for i in range(max(len(texts), len(audios))):
            parts += [self.positions(texts[i])] if i < len(texts) else []
            parts += [self.audio(audios[i], marks=False)] if i < len(audios) else []
        return np.concatenate([*parts, self.positions([self.tokens["eostm"]])], axis=1)

    def join(self, *parts: str | Array | None) -> Array:
        """Strings become text, codes [K, T] marked audio, ids [K+1, ...] stay; None is skipped."""
        levels = len(self.empty_codes)
        ids = [
            self.text(part) if isinstance(part, str) else self.audio(part) if part.shape[0] == levels else part
            for part in parts
            if part is not None
        ]
        return np.concatenate(ids, axis=1)

    def asr(self, audio: Array, template: str) -> Array:
        return self.understanding(audio, template, thinking=False)  # same layout: audio before the request (item 28)

    def understanding(self, audio: Array, text: str, thinking: bool) -> Array:
        think = THINK_ON if thinking else THINK_OFF
        return self.join("<|im_start|>user\n", audio, text, "<|im_end|>\n", "<|im_start|>assistant\n", think)

    def tts(
        self, text: str, template: str, instruct: str | None, voice: Array | None, read_only: bool, parity: bool
    ) -> Array:
        """Plain, instructed and natural-instruction TTS (app:346-507, items 28-32).

        Plain: no instruct, read_only. The reference then ignores the voice (parity); otherwise the voice is put into
        the system turn as in the other two.
        """
        plain = read_only and instruct is None
        text = capitalize_text(text)
        user = f"{template}: {text}" if plain else f"{template}: {text}({instruct})" if read_only else text
        parts: list[str | Array | None] = []
        if not plain or (voice is not None and not parity):
            parts = ["<|im_start|>system\n", TTS_SYSTEM if voice is None else TTS_SYSTEM_VOICE, voice, "<|im_end|>\n"]
        opening = "<|im_start|>assistant\n" + ("<|sostm|>" if plain else THINK_ON)
        return self.join(*parts, f"<|im_start|>user\n{user}<|im_end|>\n", opening)

    def turn(self, turn: Turn, system: str | None) -> list[str | Array | None]:
        """One chat turn; `system` stands inside a user turn, followed by a blank line (item 32)."""
        role, text, audio = turn
        if role == "user":
            before = [system, "\n\n"] if system else []
            return ["<|im_start|>user\n", *before, audio, text, "<|im_end|>\n"]
        if role != "assistant" or text is None:
            raise ValueError(
                f"prompt: expected a user or an assistant turn with text, got role {role!r}, text {text!r}"
            )
        content = text if audio is None else self.stream(text, audio)
        return ["<|im_start|>assistant\n", content, "<|im_end|>\n"]

    def reply(self, speech_out: bool, thinking: bool) -> list[str]:
        if speech_out:
            return ["<|im_start|>assistant\n<|sostm|>"]
        return ["<|im_start|>assistant\n", THINK_ON if thinking else THINK_OFF]

    def dialogue(
        self, turns: Sequence[Turn], system: str | None, voice: Array | None, speech_out: bool, thinking: bool
    ) -> Array:
        """All chat forms: speech or text in, speech or text out, one turn or many (app:566-985)."""
        parts: list[str | Array | None] = []
        if voice is not None:
            parts = ["<|im_start|>system\n", DIALOGUE_SYSTEM_VOICE, voice, "<|im_end|>\n"]
        for i, turn in enumerate(turns):
            parts += self.turn(turn, system if i == 0 else None)
        return self.join(*parts, *self.reply(speech_out, thinking))

    def in_context(self, instruction: str, examples: Sequence[tuple[Array, str, Array]], audio: Array) -> Array:
        """Few-shot speech to speech without chat markup, for the Base model (app:988-1048, item 34)."""
        parts: list[str | Array | None] = [f"[Int]:{instruction}\n"]
        for heard, transcription, spoken in examples:
            parts += [heard, "\n", self.stream(transcription, spoken), " \n\n"]
        return self.join(*parts, audio, "\n", "<|sostm|>")
