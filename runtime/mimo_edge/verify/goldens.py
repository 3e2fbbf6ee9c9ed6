"""A folder of golden arrays, and the comparison with them: nothing is compared twice by accident, nothing is left out.

Layout and tolerances: MANIFEST.md beside the folder. Every array has to be claimed: compared with an output, used as
an input, or told apart as diagnostic; the ledger lists those that were not. NaN fails every comparison: limits are
written `not (difference <= limit)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EXACT = 0.0  # limit of integers and strings: no difference at all
HIDDEN = 1e-4  # hidden states from golden inputs
HIDDEN_OWN_MEL = 2e-3  # hidden states from our own mel
WAVE = 1e-4  # waveform from golden codes
LOGITS = 2e-4  # scores from golden ids
EMBEDS = 5e-5  # a wrong rms_norm_eps shows here first
WINDOW = 1e-6  # window of the STFT
FILTERBANK = 1e-5  # torch's float 10^x may miss by one ulp: 0.001 Hz of a corner at 12 kHz, over a spacing of 190 Hz
SCORE = 1e-5  # filtered scores from golden logits
MEL_STRAY = 1e-2  # every bin of log-mel
MEL_USUAL, MEL_STRAYS = 1e-3, 1e-3  # all bins but a thousandth
CODES_DIFFER = 1e-3  # share of all codes, near ties included


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage's comparison.

    compared: how many values. error: the largest difference; the number or share of values that differ where they have
    to be equal. limit: what error may be. note: what failed, or what there is to know.
    """

    name: str
    compared: int
    error: float
    limit: float
    passed: bool
    note: str

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        figures = f"error {self.error:<9.3g} limit {self.limit:<7.3g} {self.compared:>9} values"
        return f"{verdict} {self.name:<48} {figures}" + (f"  ({self.note})" if self.note else "")


class Goldens:
    """The folder. Arrays are named "<file>:<array>", e.g. "encoder:zh_m.hidden"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {path.stem: np.load(path) for path in sorted(folder.glob("*.npz"))}
        self._claimed: set[str] = set()

    def json(self, file: str) -> Any:
        """Return <file>.json."""
        return json.loads((self.folder / f"{file}.json").read_text(encoding="utf-8"))

    def cases(self, file: str) -> dict[str, Any]:
        """Return the cases of <file>.json; keys that begin with "_" are not cases."""
        return {key: value for key, value in self.json(file).items() if not key.startswith("_")}

    def names(self, file: str) -> list[str]:
        """Return the names of the arrays in <file>.npz."""
        return list(self._files[file].files) if file in self._files else []

    def has(self, key: str) -> bool:
        file, name = key.split(":")
        return name in self.names(file)

    def input(self, key: str) -> Array:
        """Return an array that is fed in, or whose values decide what is compared (margins); claims it."""
        self.claim(key)
        return self.peek(key)

    def peek(self, key: str) -> Array:
        """Return an array without claiming it."""
        file, name = key.split(":")
        array: Array = self._files[file][name]
        return array

    def claim(self, key: str) -> None:
        self._claimed.add(key)

    def unclaimed(self) -> list[str]:
        every = [f"{file}:{name}" for file in self._files for name in self.names(file)]
        return [key for key in every if key not in self._claimed]


@dataclass(slots=True)
class _Tally:
    """What a stage has come to so far."""

    limit: float
    compared: int = 0
    error: float = 0.0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Check:
    """Collects comparisons under the names of stages, in order."""

    def __init__(self, goldens: Goldens, sees_inside: bool = True) -> None:
        """sees_inside: taps inside the networks have to speak; else they may, and what they do not say is left out."""
        self.goldens, self.sees_inside = goldens, sees_inside
        self._tallies: dict[str, _Tally] = {}

    def close(
        self, stage: str, key: str, actual: Array, limit: float, pick: Callable[[Array], Array] | None = None
    ) -> None:
        """Compare with the golden array `key`, or the part of it that `pick` takes, within `limit`."""
        expected = self.goldens.input(key)
        self.near(stage, key, expected if pick is None else pick(expected), actual, limit)

    def near(self, stage: str, label: str, expected: Array, actual: Array, limit: float) -> None:
        """Compare two float arrays within `limit`."""
        tally = self._tally(stage, limit)
        if expected.shape != np.shape(actual):
            tally.failures.append(f"{label}: expected shape {list(expected.shape)}, got {list(np.shape(actual))}")
            return
        tally.compared += expected.size
        if expected.size == 0:
            return
        error = float(np.max(np.abs(expected.astype(np.float64) - actual)))
        tally.error = float(np.maximum(tally.error, error))  # keeps NaN
        if not error <= limit:
            tally.failures.append(f"{label}: {error:.3g}")

    def equal(self, stage: str, label: str, expected: Any, actual: Any) -> None:
        """Compare integers, strings, or lists of them: a single difference fails."""
        tally = self._tally(stage, EXACT)
        tally.compared += 1
        if expected != actual:
            tally.error += 1
            tally.failures.append(f"{label}: expected {_short(expected)}, got {_short(actual)}")

    def same(self, stage: str, key: str, actual: Array, pick: Callable[[Array], Array] | None = None) -> None:
        """Compare with the integers of the golden array `key`, or the part of it that `pick` takes."""
        expected = self.goldens.input(key)
        expected = expected if pick is None else pick(expected)
        tally = self._tally(stage, EXACT)
        if expected.shape != np.shape(actual):
            tally.failures.append(f"{key}: expected shape {list(expected.shape)}, got {list(np.shape(actual))}")
            return
        different = int(np.sum(expected != actual))
        tally.compared += expected.size
        tally.error += different
        if different:
            tally.failures.append(f"{key}: {different} of {expected.size} differ")

    def mel(self, key: str, actual: Array) -> None:
        """Compare log-mel: single bins of little energy may stray, because the logarithm magnifies rounding."""
        expected = self.goldens.input(key)
        self.near("mel", key, expected, actual, MEL_STRAY)
        if expected.shape == actual.shape:
            self.share(f"mel, share beyond {MEL_USUAL}", ~(np.abs(expected - actual) <= MEL_USUAL), MEL_STRAYS)

    def codes(self, stage: str, key: str, actual: Array, margins: Array, tau: float) -> None:
        """Compare RVQ codes [K, T] where they are certain.

        A code frame counts from level 0 up to the first level whose margin (distance between the best two rows) is at
        most tau: there and after it, rounding decides. All codes together still have to agree to 99.9 %.
        """
        expected = self.goldens.input(key)
        tally = self._tally(stage, EXACT)
        if expected.shape != actual.shape:
            tally.failures.append(f"{key}: expected shape {list(expected.shape)}, got {list(actual.shape)}")
            return
        certain = np.logical_and.accumulate(margins > tau, axis=0)
        differs = expected != actual
        wrong = int(np.sum(differs & certain))
        tally.compared += int(np.sum(certain))
        tally.error += wrong
        if wrong:
            tally.failures.append(f"{key}: {wrong} of {int(np.sum(certain))} certain codes differ")
        self.share(f"{stage}, share of all that differ", differs, CODES_DIFFER)

    def share(self, stage: str, wrong: Array, limit: float) -> None:
        """Count values that are `wrong`; their share over all calls has to stay within `limit`."""
        tally = self._tally(stage, limit)
        tally.compared += wrong.size
        tally.wrong += int(np.sum(wrong))
        tally.error = tally.wrong / max(1, tally.compared)

    def scores(
        self, stage: str, label: str, expected: Array, actual: Array, either: Array, limit: float = SCORE
    ) -> None:
        """Compare filtered scores [V]: the same candidates kept, except where `either` is true, and their scores."""
        kept, got = np.isfinite(expected), np.isfinite(actual)
        tally = self._tally(stage, limit)
        wrong = np.flatnonzero((kept != got) & ~either)
        if wrong.size:
            tally.failures.append(f"{label}: {wrong.size} candidates kept or dropped wrongly, first {wrong[0]}")
        both = kept & got
        self.near(stage, label, expected[both], actual[both], limit)
        tally.compared += int(np.sum(~both & ~either))

    def has_tap(self, stage: str, key: str, seen: Mapping[str, Any], tap: str) -> bool:
        """Whether a tap arrived; if not, the golden array `key` cannot be compared, which is a failure if it should."""
        if tap not in seen and not self.sees_inside:
            self.goldens.claim(key)
        elif tap not in seen:
            self.fail(stage, f"{key}: expected a tap {tap}, got none")
        return tap in seen

    @contextmanager
    def attempt(self, stage: str) -> Iterator[None]:
        """What raises inside is a failure of the stage, not the end of the comparison."""
        try:
            yield
        except Exception as error:
            self.fail(stage, f"{type(error).__name__}: {error}")

    def fail(self, stage: str, why: str) -> None:
        self._tally(stage, EXACT).failures.append(why)

    def note(self, stage: str, text: str) -> None:
        self._tally(stage, EXACT).notes.append(text)

    def reports(self) -> Iterator[StageReport]:
        """Yield one report a stage, and the ledger of what nobody looked at."""
        for name, tally in self._tallies.items():
            yield _report(name, tally)
        unclaimed = self.goldens.unclaimed()
        note = (
            f"nothing looked at {_short(unclaimed)}" if unclaimed else "every array is compared, an input or diagnostic"
        )
        yield StageReport("ledger", len(self.goldens._claimed), len(unclaimed), EXACT, not unclaimed, note)

    def _tally(self, stage: str, limit: float) -> _Tally:
        return self._tallies.setdefault(stage, _Tally(limit))


def _report(name: str, tally: _Tally) -> StageReport:
    failures = tally.failures + ([] if tally.compared else ["nothing was compared"])
    passed = not failures and tally.error <= tally.limit
    note = _short(failures) if failures else "; ".join(tally.notes)
    return StageReport(name, tally.compared, tally.error, tally.limit, passed, note)


def _short(value: Any, most: int = 300) -> str:
    """Return a value as text of bounded length; lists of strings are joined, and counted if they are cut."""
    strings = isinstance(value, list) and len(value) > 0 and isinstance(value[0], str)
    text = "; ".join(value) if strings else str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(value)} in all)" if strings else f"{text[:most]}…"
