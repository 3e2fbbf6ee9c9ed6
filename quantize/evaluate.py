"""What a bundle can still do, beside the one it was made from: one table, one JSON, gates.

    stages           cosine and signal-to-error ratio (dB) at every boundary between stages, same input
    teacher-forced   same conversation fed to both: share of positions with the same likeliest token or code, KL
    free-running     word errors of transcripts; word errors of speech as an independent judge hears it (judge.py); mel
                     distance, STOI and PESQ of rebuilt sound; share of prompts that the runaway guard had to stop

A gate is a limit in the recipe (recipe.py, GATES); a value that could not be measured is left out, passes no gate and
fails none. NaN fails: the original could be measured there, this bundle could not.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_edge import Model, Options
from mimo_edge.engine import Tap
from mimo_edge.export.safetensors_io import input_error
from mimo_edge.quantize.conversations import GREEDY, Clip, Conversation, Step, conversations, follow
from mimo_edge.quantize.judge import Judge, sound_scores, word_errors
from mimo_edge.quantize.recipe import GATES

Array = NDArray[Any]
Progress = Callable[[str], None]
SHOWN = (  # boundaries in the table; the JSON has all
    "codec_encoder.norm", "codec_encoder.hidden", "patch_encoder.out", "backbone.embeds", "backbone.hidden",
    "patch_decoder.hidden", "codec_decoder.layer_norm", "codec_decoder.coarse_mel", "vocoder.norm",
)  # fmt: skip
SPOKEN_SEEDS = 2  # how often each text is read aloud in free-running speech


@dataclass
class Likeness:
    """Sums for the cosine and the signal-to-error ratio of two signals that arrive in pieces."""

    cross: float = 0.0
    first: float = 0.0
    second: float = 0.0
    error: float = 0.0

    def add(self, a: Array, b: Array) -> None:
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        self.cross, self.first = self.cross + float(x @ y), self.first + float(x @ x)
        self.second, self.error = self.second + float(y @ y), self.error + float(np.square(x - y).sum())

    @property
    def cosine(self) -> float:
        return float(self.cross / math.sqrt(self.first * self.second)) if self.first * self.second else math.nan

    @property
    def sqnr_db(self) -> float:
        return 10 * math.log10(self.first / self.error) if self.error and self.first else math.inf


@dataclass
class Agreement:
    """How often two distributions have the same likeliest entry, and their mean KL divergence in nats."""

    same: int = 0
    count: int = 0
    divergence: float = 0.0

    def add(self, a: Array, b: Array) -> None:
        """a, b: logits [..., V] of the original and the other."""
        p, q = _log_softmax(a), _log_softmax(b)
        self.same += int((a.argmax(-1) == b.argmax(-1)).sum())
        self.count += math.prod(a.shape[:-1])
        self.divergence += float((np.exp(p) * (p - q)).sum())

    @property
    def share(self) -> float:
        return self.same / self.count if self.count else math.nan

    @property
    def kl(self) -> float:
        return self.divergence / self.count if self.count else math.nan


class Pairing:
    """Takes the arrays of two runs at the same boundaries and adds up their likeness. A backend of graphs shows fewer
    boundaries than the core; what only one of the two shows is left out."""

    def __init__(self) -> None:
        self.likeness: dict[str, Likeness] = {}
        self._seen: dict[str, deque[Array]] = {}

    def run(self, original: Model, model: Model, work: Callable[[Model, Tap], Any]) -> Any:
        """Do the same work with both; returns both results."""
        self._seen.clear()
        return work(original, self._first), work(model, self._second)

    def _first(self, name: str, array: Array) -> None:
        if not name.startswith("input:") and ".rope_" not in name:
            self._seen.setdefault(name, deque()).append(array)

    def _second(self, name: str, array: Array) -> None:
        if name not in self._seen:
            return
        expected = self._seen[name].popleft()
        if expected.shape != array.shape:
            raise ValueError(f"evaluate: expected {name} {expected.shape}, got {array.shape}")
        self.likeness.setdefault(name, Likeness()).add(expected, array)


@dataclass
class Forced:
    """Teacher-forced agreement: of text, and of every level of codes."""

    text: Agreement
    levels: list[Agreement]

    @staticmethod
    def compare(
        original: Model, other: Model, talks: Sequence[Conversation], pairing: Pairing, progress: Progress | None = None
    ) -> Forced:
        """Lead both models along the same conversations. The empty code is never made, so it does not compete."""
        empties = original.config["lm"]["speech_zeroemb_idx"]
        forced = Forced(Agreement(), [Agreement() for _ in empties])
        for talk in talks:
            if progress:
                progress(f"forced {talk.name}")
            for a, b in zip(*pairing.run(original, other, functools.partial(_followed, talk)), strict=True):
                forced.add(a, b, empties)
        return forced

    def add(self, a: Step, b: Step, empties: Sequence[int]) -> None:
        self.text.add(a.text[None], b.text[None])
        if a.levels is None or b.levels is None:
            return
        for agreement, empty, x, y in zip(self.levels, empties, a.levels, b.levels, strict=True):
            agreement.add(np.delete(x, empty, axis=1), np.delete(y, empty, axis=1))


@dataclass
class Report:
    """Everything measured. values: what gates look at; stages: boundary -> (cosine, dB); notes: what was left out."""

    values: dict[str, float] = field(default_factory=dict)
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    levels: list[tuple[float, float]] = field(default_factory=list)
    free: dict[str, dict[str, float]] = field(default_factory=dict)  # "original", "this" -> measure -> value
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def failures(self, gates: dict[str, float]) -> list[str]:
        """Sentences about the gates that are not passed."""
        out = []
        for gate, limit in gates.items():
            value = self.values.get(gate)
            if value is None:
                continue
            good = value >= limit if GATES[gate] else value <= limit
            if not good:
                out.append(f"{gate}: expected {'at least' if GATES[gate] else 'at most'} {limit:g}, got {value:.4g}")
        return out

    def as_json(self, gates: dict[str, float]) -> dict[str, Any]:
        return {
            "values": {name: _plain(value) for name, value in self.values.items()},
            "gates": gates,
            "failed": self.failures(gates),
            "text": {name: _plain(self.values[name]) for name in ("text_agreement", "text_kl") if name in self.values},
            "levels": [{"agreement": _plain(share), "kl": _plain(kl)} for share, kl in self.levels],
            "stages": {name: {"cosine": _plain(c), "sqnr_db": _plain(db)} for name, (c, db) in self.stages.items()},
            "free_running": {
                who: {name: _plain(value) for name, value in measures.items()} for who, measures in self.free.items()
            },
            "counts": self.counts,
            "notes": self.notes,
        }

    def table(self, gates: dict[str, float]) -> str:
        """The report for people."""
        lines = []
        for name in [name for name in SHOWN if name in self.stages]:
            cosine, db = self.stages[name]
            lines.append((name, f"cosine {cosine:.5f}", f"{db:.1f} dB"))
        if "text_agreement" in self.values:
            agreement, kl = self.values["text_agreement"], self.values.get("text_kl", math.nan)
            lines.append(("text, teacher-forced", f"{100 * agreement:.2f} % same", f"KL {kl:.2g}"))
        for level, (share, kl) in enumerate(self.levels):
            lines.append((f"level {level}, teacher-forced", f"{100 * share:.2f} % same", f"KL {kl:.2g}"))
        if "code_agreement" in self.values:
            lines.append(("codes of the encoder", f"{100 * self.values['code_agreement']:.2f} % same", ""))
        for name in self.free.get("this", {}):
            original = self.free.get("original", {}).get(name)
            was = f"original {original:.4g}" if original is not None else ""
            lines.append((name.replace("_", " "), f"{self.free['this'][name]:.4g}", was))
        text = [f"{name:<28} {value:<18} {other}".rstrip() for name, value, other in lines]
        text += [f"note: {note}" for note in self.notes]
        failed = self.failures(gates)
        text += [f"gate failed: {sentence}" for sentence in failed]
        passed = len([gate for gate in gates if gate in self.values]) - len(failed)
        return "\n".join([*text, f"{passed} of {len(gates)} gates passed, {len(failed)} failed"])


def evaluate(
    model: Model,
    original: Model | None,
    clips: Sequence[Clip],
    *,
    free: bool = True,
    judge: Judge | None = None,
    longest: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure `model`, beside `original` where there is one (of the same sizes; InputError else).

    free: let it speak and write by itself too, not only teacher-forced. judge: hears its speech (None: nobody does).
    longest: positions of what it says by itself (None: what the runaway guard allows).
    """
    report = Report(counts={"clips": len(clips)})
    if original is not None:
        _check_pair(original, model)
        talks = [talk for clip in clips for talk in conversations(original, clip)]
        pairing = Pairing()
        report.values["code_agreement"] = _codec(pairing, original, model, clips, progress)
        forced = Forced.compare(original, model, talks, pairing, progress)
        report.stages = {name: (sums.cosine, sums.sqnr_db) for name, sums in pairing.likeness.items()}
        report.values |= {"text_agreement": forced.text.share, "text_kl": forced.text.kl}
        report.counts |= {"conversations": len(talks), "text_positions": forced.text.count,
                          "codes_a_level": min(level.count for level in forced.levels)}  # fmt: skip
        if report.counts["codes_a_level"]:
            report.levels = [(level.share, level.kl) for level in forced.levels]
            report.values["level_agreement"] = min(share for share, _ in report.levels)
            report.values["level_kl"] = max(kl for _, kl in report.levels)
    else:
        report.notes.append("no --against: agreement, stages and differences are not measured")
    if free:
        for who, which in (("original", original), ("this", model)):
            if which is not None:
                report.free[who] = _free(which, clips, judge, longest, progress)
        _differences(report)
        if judge is None:
            report.notes.append("pocketsphinx is not installed: nobody heard the speech")
        for name, package in (("stoi", "pystoi"), ("pesq", "pesq")):
            if name not in report.free["this"]:
                report.notes.append(f"{package} is not installed: no {name.upper()}")
    return report


def _check_pair(original: Model, model: Model) -> None:
    for part in ("lm", "codec", "tokens"):
        if original.config[part] != model.config[part]:
            raise input_error(f"evaluate: expected two bundles of the same model, but their {part} sizes differ")


def _codec(pairing: Pairing, original: Model, model: Model, clips: Sequence[Clip], progress: Progress | None) -> float:
    """Encode the same mel and decode the same codes with both; the share of equal codes."""
    levels, same, count = original.engine.facts.levels, 0, 0
    for clip in clips:
        if progress:
            progress(f"codec {clip.name}")
        mel = original.engine.core.mel(clip.wave)
        (_, a), (_, b) = pairing.run(original, model, functools.partial(_encoded, mel))
        same, count = same + int((a == b)[:levels].sum()), count + a[:levels].size
        pairing.run(original, model, functools.partial(_decoded, np.ascontiguousarray(a[:levels])))
    return same / count


def _encoded(mel: Array, model: Model, tap: Tap) -> tuple[Array, Array]:
    return model.engine.core.encode_mel(mel, tap)


def _decoded(codes: Array, model: Model, tap: Tap) -> Array:
    return model.engine.core.decode(codes, tap)


def _followed(talk: Conversation, model: Model, tap: Tap) -> list[Step]:
    return list(follow(model, talk, tap))


def _free(
    model: Model, clips: Sequence[Clip], judge: Judge | None, longest: int | None, progress: Progress | None
) -> dict[str, float]:
    """Let a model write, speak and rebuild by itself."""
    wrote, spoke = [0, 0], [0, 0]
    rebuilt: list[dict[str, float]] = []
    runaways = asked = 0
    levels = model.engine.facts.levels
    for clip in clips:
        if progress:
            progress(f"free {clip.name}")
        codes = np.ascontiguousarray(model.engine.core.encode(clip.wave)[:levels])
        sound = model.engine.core.decode(codes)
        rebuilt.append({"mel_distance_db": _mel_distance_db(model, clip.wave, sound)})
        rebuilt[-1] |= sound_scores(clip.wave, sound, model.rate_hz)
        replies = [model.respond((clip.wave, model.rate_hz), options=Options(seed=1, max_new_tokens=longest)).result()]
        if clip.text is not None:
            heard = model.transcribe(
                (clip.wave, model.rate_hz), template=12, options=Options(text_sampling=GREEDY, max_new_tokens=longest)
            )
            _add(wrote, word_errors(clip.text, heard.result().text))
            for seed in range(SPOKEN_SEEDS):
                replies.append(model.speak(clip.text, options=Options(seed=seed, max_new_tokens=longest)).result())
                audio = replies[-1].audio
                if judge is not None:
                    said = judge.hear(audio, model.rate_hz) if audio is not None else ""
                    _add(spoke, word_errors(clip.text, said))
        runaways, asked = runaways + sum(r.stop_reason != "stop token" for r in replies), asked + len(replies)
    out = {name: float(np.mean([scores[name] for scores in rebuilt])) for name in rebuilt[0]}
    out["runaway_rate"] = runaways / asked
    for name, (edits, words) in (("asr_word_errors", wrote), ("speech_word_errors", spoke)):
        if words:
            out[name] = edits / words
    return out


def _add(total: list[int], more: tuple[int, int]) -> None:
    total[0], total[1] = total[0] + more[0], total[1] + more[1]


def _differences(report: Report) -> None:
    """Turn free-running measures into what gates look at."""
    this, original = report.free["this"], report.free.get("original")
    report.values["runaway_rate"] = this["runaway_rate"]
    if original is None:
        return
    for gate, name in (("mel_distance", "mel_distance_db"), ("stoi_loss", "stoi"), ("pesq_loss", "pesq")):
        if math.isfinite(original.get(name, math.nan)):
            change = this[name] - original[name]
            report.values[gate] = -change if gate.endswith("_loss") else change
        elif name in original:
            report.notes.append(f"{name}: a clip has too little speech to compare")
    for gate, name in (("asr_points", "asr_word_errors"), ("speech_points", "speech_word_errors")):
        if name in this and name in original:
            report.values[gate] = 100 * (this[name] - original[name])


def _mel_distance_db(model: Model, wave: Array, rebuilt: Array) -> float:
    """Mean distance of log-mel spectra, in dB, over the length both have."""
    least = max(model.engine.facts.least_samples, 1)
    if min(len(wave), len(rebuilt)) < least:
        return math.nan
    a, b = (model.engine.core.mel(np.ascontiguousarray(x, np.float32)) for x in (wave, rebuilt))
    frames = min(len(a), len(b))
    floor = math.log(1e-5)  # below this a frame is silence, whose exact depth nobody hears
    distance = np.abs(np.maximum(a[:frames], floor) - np.maximum(b[:frames], floor)).mean()
    return float(distance) * 20 / math.log(10)


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    out: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def _plain(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
