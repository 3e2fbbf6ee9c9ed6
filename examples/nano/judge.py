"""Word errors of speech as PocketSphinx (BSD, model in the wheel) hears it, with a bigram made from the grammar.

The bigram is estimated from grammar sentences: it knows the domain but no sentence by heart.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import grammar
import numpy as np
from pocketsphinx import Decoder, NGramModel, get_model_path
from voices import RATE_HZ, to_rate

SPHINX_HZ = 16000
SAID = {"mimo": "M IY M OW", "defroster": "D IH F R AO S T ER", "podcast": "P AA D K AE S T"}


def sentences(count: int) -> list[list[str]]:
    r, out = random.Random(17), []
    while len(out) < count:
        t = grammar.turn(r)
        out += [t.text.split(), t.reply.split()]
        if t.intent == "missing":
            a = grammar.answer(t, r)
            out += [a.text.split(), a.reply.split()]
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
def decoder(folder: str) -> Decoder:
    """PocketSphinx with the domain's bigram; folder takes the ARPA file."""
    path = Path(folder) / "grammar.arpa"
    path.write_text(bigram(sentences(40000)))
    d = Decoder(
        hmm=get_model_path("en-us/en-us"), lm=None, dict=get_model_path("en-us/cmudict-en-us.dict"), loglevel="FATAL"
    )
    for word, phones in SAID.items():
        if d.lookup_word(word) is None:
            d.add_word(word, phones, True)
    d.add_lm("grammar", NGramModel(d.config, d.logmath, str(path)))
    d.activate_search("grammar")
    return d


def hear(wave: np.ndarray, folder: Path) -> str:
    """wave float32 [samples] at 24 kHz -> words."""
    d = decoder(str(folder))
    wave = np.pad(to_rate(wave, RATE_HZ, SPHINX_HZ), 3200)  # 0.2 s of silence on both sides
    noise = np.random.default_rng(0).standard_normal(wave.size) * 3  # a floor of three steps: digital silence upsets it
    d.start_utt()
    d.process_raw((np.clip(wave, -1, 1) * 32000 + noise).astype("<i2").tobytes(), full_utt=True)
    d.end_utt()
    found = d.hyp()
    return grammar.spoken(found.hypstr) if found else ""


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """(edits, words) between two lower-case texts."""
    a, b = said.split(), heard.split()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1], len(a)


class Score:
    """Adds up word errors."""

    def __init__(self) -> None:
        self.edits = self.words = self.exact = self.count = 0

    def add(self, said: str, heard: str) -> None:
        edits, words = word_errors(said, heard)
        self.edits, self.words = self.edits + edits, self.words + words
        self.exact, self.count = self.exact + (edits == 0), self.count + 1

    def __str__(self) -> str:
        return (
            f"word error {100 * self.edits / max(1, self.words):.1f} %  "
            f"exact {100 * self.exact / max(1, self.count):.0f} %  ({self.count} clips)"
        )
