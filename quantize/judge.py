"""An independent ear: what PocketSphinx (BSD, its model comes with the wheel) hears in a recording, and how well.

It listens with its general English model, or, for the clips of the package, with a bigram of their domain
(conversations/domain.arpa.gz of examples/nano/judge.py), which knows no sentence by heart.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import math
import tempfile
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge import _core
from mimo_edge.audio import Wave

SPHINX_HZ = PESQ_HZ = 16000
PAD_SAMPLES = 3200  # 0.2 s of silence on both sides
# words of the domain that the dictionary lacks
SAID = {"mimo": "M IY M OW", "defroster": "D IH F R AO S T ER", "podcast": "P AA D K AE S T"}


class Judge:
    """Hears words. domain: expect the vocabulary of the package's clips, not English at large."""

    def __init__(self, domain: bool) -> None:
        sphinx: Any = importlib.import_module("pocketsphinx")
        parts = {"hmm": "en-us/en-us", "dict": "en-us/cmudict-en-us.dict"}
        paths = {name: sphinx.get_model_path(path) for name, path in parts.items()}
        general = None if domain else sphinx.get_model_path("en-us/en-us.lm.bin")
        self._decoder = sphinx.Decoder(lm=general, loglevel="FATAL", **paths)
        if domain:
            for word, phones in SAID.items():
                if self._decoder.lookup_word(word) is None:
                    self._decoder.add_word(word, phones, True)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "domain.arpa"
                packed: Any = resources.files("mimo_edge.quantize") / "conversations" / "domain.arpa.gz"
                path.write_bytes(gzip.decompress(packed.read_bytes()))
                model = sphinx.NGramModel(self._decoder.config, self._decoder.logmath, str(path))
            self._decoder.add_lm("domain", model)
            self._decoder.activate_search("domain")

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("pocketsphinx") is not None

    def hear(self, wave: Wave, rate_hz: int) -> str:
        """wave float32 [samples] -> words."""
        if not len(wave):
            return ""
        sound = np.pad(_core.resample(np.ascontiguousarray(wave, np.float32), rate_hz, SPHINX_HZ), PAD_SAMPLES)
        noise = np.random.default_rng(0).standard_normal(sound.size) * 3  # digital silence upsets it
        self._decoder.reinit_feat()  # forgets its estimate of noise: what it heard before must not matter
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(sound, -1, 1) * 32000 + noise).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return str(found.hypstr) if found else ""


def sound_scores(recorded: Wave, rebuilt: Wave, rate_hz: int) -> dict[str, float]:
    """STOI (0 to 1) and wideband PESQ (MOS-LQO, 1 to 4.6) of rebuilt speech, each if pystoi or pesq is installed.

    Waves float32 [samples], compared over the length both have; NaN where they hold too little speech to compare.
    """
    count, out = min(len(recorded), len(rebuilt)), {}
    a, b = (_core.resample(np.ascontiguousarray(x[:count], np.float32), rate_hz, PESQ_HZ) for x in (recorded, rebuilt))
    if importlib.util.find_spec("pystoi"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # how it says that there is too little
            try:
                out["stoi"] = float(importlib.import_module("pystoi").stoi(a, b, PESQ_HZ))
            except RuntimeWarning:
                out["stoi"] = math.nan
    if importlib.util.find_spec("pesq"):
        pesq: Any = importlib.import_module("pesq")
        score = pesq.pesq(PESQ_HZ, a, b, "wb", on_error=pesq.PesqError.RETURN_VALUES)
        out["pesq"] = float(score) if score > 0 else math.nan
    return out


def words_of(text: str) -> list[str]:
    """Lower-case words without marks; Chinese and Japanese characters one by one."""
    spaced = "".join(f" {c} " if "\u3040" <= c <= "\u9fff" else c if c.isalnum() else " " for c in text.lower())
    return spaced.split()


def edits(a: list[str], b: list[str]) -> int:
    """The fewest substitutions, insertions and deletions that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Return (edits, words of `said`)."""
    a = words_of(said)
    return edits(a, words_of(heard)), len(a)
