"""MiMo-Audio's prompt layouts as training samples: which positions are text, which are patches, which are learnt.

The strings, their cutting into separately tokenised segments and the 5 : 5 interleave of text and patches are
protocol: the public reference's src/mimo_audio/mimo_audio.py (get_*_prompt), process_speechdata.py and
templates.py. Codes are int [T, K] here (time first), T a multiple of G = 4; P positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from mimo_edge.templates import ASR_TEMPLATES, TTS_TEMPLATES

G, K = 4, 8
EMPTY = np.array([1024, 1024, 128, 128, 128, 128, 128, 128])  # speech_zeroemb_idx
THINK_OFF, THINK_ON = "<think>\n\n</think>\n", "<think>\n"
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
STYLE = "你需要根据指定的风格指令和文本内容来生成语音。"
STYLE_VOICE = "你需要根据指定的风格指令和文本内容来生成和语音prompt具有相同音色的语音。你的音色应该是："
VOICE = "Your voice should be:"
ASR, TTS = ASR_TEMPLATES, TTS_TEMPLATES["en"]


@dataclass(slots=True)
class Audio:
    """A clip's codes int16 [T, K] and, where known, when (in code frames) each word of its text and each phone is said.

    words: (start, stop) of each; phones: (id, start, stop) of each.
    """

    codes: np.ndarray
    text: str = ""
    words: list[tuple[float, float]] | None = None
    phones: list[tuple[int, float, float]] | None = None


@dataclass(slots=True)
class Sample:
    """One conversation. All lists have one entry a position.

    ids: token (the <|empty|> id at a patch); learnt: 1 where the token (and patch) is the model's own; patches: rows
    of codes in order of the patch positions. heard: (first position, last + 1, text) of every audio whose text is
    known, for CTC. phones: for learnt patches the phone said in each of its G frames. points: (query position, [key
    positions]) pairs for guided attention.
    """

    ids: list[int] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)
    heard: list[tuple[int, int, str]] = field(default_factory=list)
    phones: dict[int, list[int]] = field(default_factory=dict)
    points: list[tuple[int, list[int]]] = field(default_factory=list)


class Builder:
    """Appends segments to a Sample."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=100000)(self._encode)
        self.empty, self.eot = (tokenizer.token_to_id(t) for t in ("<|empty|>", "<|eot|>"))
        self.s = Sample()

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def start(self) -> Sample:
        self.s = Sample()
        return self.s

    def text(self, text: str, learnt: bool = False) -> range:
        """One segment of text; returns its positions."""
        ids = self.encode(text)
        return self.tokens(ids, learnt)

    def tokens(self, ids: list[int], learnt: bool) -> range:
        first = len(self.s.ids)
        self.s.ids += ids
        self.s.learnt += [int(learnt)] * len(ids)
        return range(first, first + len(ids))

    def patch(self, codes: np.ndarray, learnt: bool) -> int:
        self.s.ids.append(self.empty)
        self.s.learnt.append(int(learnt))
        self.s.patches.append(codes)
        return len(self.s.ids) - 1

    def audio(self, a: Audio) -> range:
        """<|sosp|> patches <|eosp|>; returns the patch positions."""
        self.text("<|sosp|>")
        first = len(self.s.ids)
        for i in range(0, len(a.codes), G):
            self.patch(a.codes[i : i + G], learnt=False)
        self.s.heard.append((first, len(self.s.ids), a.text))
        where = range(first, len(self.s.ids))
        self.text("<|eosp|>")
        return where

    def stream(self, text: str, a: Audio, learnt: bool, opened: bool) -> None:
        """<|sostm|> (unless the prompt opened it), 5 tokens / 5 patches in turn, leftovers, <|eostm|>."""
        if not opened:
            self.text("<|sostm|>", learnt)
        ids = self.encode(text)
        chunks = [ids[i : i + 5] for i in range(0, len(ids), 5)] or [[]]
        chunks[-1] = [*chunks[-1], self.eot]
        groups = [a.codes[i : i + G] for i in range(0, len(a.codes), G)]
        rows = [list(range(i, min(i + 5, len(groups)))) for i in range(0, len(groups), 5)]
        token_at: list[int] = []
        patch_at: list[int] = []
        for i in range(max(len(chunks), len(rows))):
            if i < len(chunks):
                token_at += self.tokens(chunks[i], learnt)
            if i < len(rows):
                patch_at += [self.patch(groups[j], learnt) for j in rows[i]]
        self.text("<|eostm|>", learnt)
        if learnt and a.words:
            self._plan(text, a, token_at, patch_at)

    def _plan(self, text: str, a: Audio, token_at: list[int], patch_at: list[int]) -> None:
        """Fill phones and points: what each spoken patch says, and which tokens of the stream it says."""
        spans = word_tokens(self.tokenizer, text)
        if not a.words or len(spans) != len(a.words):
            return
        for p, position in enumerate(patch_at):
            frames = [p * G + g + 0.5 for g in range(G)]
            if a.phones:
                self.s.phones[position] = [next((i for i, _, b in a.phones if f < b), a.phones[-1][0]) for f in frames]
            said = [w for w, (first, last) in enumerate(a.words) if any(first <= f < last for f in frames)]
            keys = sorted({token_at[t] for w in said for t in spans[w] if token_at[t] < position})
            if keys:
                self.s.points.append((position - 1, keys))

    def point_back(self, text: str, tokens: range, a: Audio, patches: range) -> None:
        """Transcripts: the position before each token looks at the patches in which its word is heard."""
        spans = word_tokens(self.tokenizer, text)
        if not a.words or len(spans) != len(a.words):
            return
        for (first, last), span in zip(a.words, spans, strict=True):
            keys = [patches[min(len(patches) - 1, p)] for p in range(int(first) // G, int(last - 0.01) // G + 1)]
            self.s.points += [(tokens[t] - 1, sorted(set(keys))) for t in span]

    # The tasks. Each returns a whole Sample.

    def transcribe(self, a: Audio, written: str, template: str) -> Sample:
        s = self.start()
        self.text(USER)
        patches = self.audio(a)
        for text in (template, END, ASSISTANT, THINK_OFF):
            self.text(text)
        tokens = self.text(written, learnt=True)
        self.text("<|im_end|>", learnt=True)
        self.point_back(written, tokens, a, patches)
        return s

    def understand(self, a: Audio, question: str, thought: str, answer: str) -> Sample:
        """thought "": without thinking."""
        s = self.start()
        self.text(USER)
        patches = self.audio(a)
        for text in (question, END, ASSISTANT):
            self.text(text)
        self.text(THINK_ON if thought else THINK_OFF)
        if thought:
            tokens = self.text(thought, learnt=True)
            self.point_back(thought, tokens, a, patches)
            self.text("\n</think>\n", learnt=True)
        self.text(answer, learnt=True)
        self.text("<|im_end|>", learnt=True)
        return s

    def chat(self, turns: list[tuple[Audio | str, str]]) -> Sample:
        """Speech- or text-to-text: (what the user says, what the assistant writes) in turn, all learnt."""
        s = self.start()
        for i, (user, reply) in enumerate(turns):
            last = i == len(turns) - 1
            self.text(USER)
            if isinstance(user, str):
                self.text(user)
            else:
                self.audio(user)
            self.text(END)
            self.text(ASSISTANT)
            if last:
                self.text(THINK_OFF)
            self.text(reply, learnt=last)
            self.text("<|im_end|>" if last else END, learnt=last)
        return s

    def speak(self, text: str, written: str, a: Audio, template: str, instruct: str, voice: Audio | None) -> Sample:
        """text as the prompt has it, written as it is streamed. instruct "": plain."""
        s = self.start()
        if instruct or voice:
            self.text("<|im_start|>system\n")
            self.text(STYLE_VOICE if voice else STYLE)
            if voice:
                self.audio(voice)
            self.text(END)
        style = f"({instruct})" if instruct else ""
        self.text(f"{USER}{template}: {text}{style}{END}")
        if instruct:
            self.text(ASSISTANT + THINK_ON)
            self.text(f"{instruct}\n</think>\n", learnt=True)
            self.stream(written, a, learnt=True, opened=False)
        else:
            self.text(ASSISTANT + "<|sostm|>")
            self.stream(written, a, learnt=True, opened=True)
        return s

    def dialogue(self, turns: list[tuple[Audio, str, Audio]], voice: Audio | None) -> Sample:
        """Spoken dialogue: (user's speech, reply, reply's speech) in turn; every reply is learnt."""
        s = self.start()
        if voice:
            self.text("<|im_start|>system\n")
            self.text(VOICE)
            self.audio(voice)
            self.text(END)
        for i, (user, reply, said) in enumerate(turns):
            self.text((END if i else "") + USER)
            self.audio(user)
            self.text(END + ASSISTANT + "<|sostm|>")
            self.stream(reply, said, learnt=True, opened=True)
        return s


def text_words(text: str) -> list[str]:
    """Lower-case words as the speech has them."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


@lru_cache(maxsize=100000)
def word_tokens(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """For each word of text the indices of the tokens that spell it."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    spans, at = [], 0
    for word in text_words(text):
        first = text.lower().index(word, at)
        at = first + len(word)
        spans.append([i for i, (a, b) in enumerate(offsets) if a < at and b > first])
    return spans
