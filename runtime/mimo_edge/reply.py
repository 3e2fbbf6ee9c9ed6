"""What a call returns: pieces while it runs, a Reply with its timings at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mimo_edge.audio import Wave

Codes: TypeAlias = NDArray[np.int32]
"""int32 [levels, code frames] at 25 Hz."""
Ids: TypeAlias = NDArray[np.int32]
"""int32 [levels + 1, G * positions]: row 0 the text ids (one a position, then filler), rows 1.. the codes."""


Norms: TypeAlias = Sequence[Sequence[float]]
"""[[mean, variance], [mean, variance]] of the codec decoder's two GroupNorms."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a running generation has just produced; each part may be empty.

    text: new characters of the reply. thinking: new characters of the thoughts before it.
    audio: float32 [samples] that continue the sound, or None.
    """

    text: str = ""
    thinking: str = ""
    audio: Wave | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds since the work began.

    prefill_s: until the first position was sampled (input encoding included). first_text_s, first_audio_s: until the
    first characters and the first sound, None if there were none. total_s: until the end.
    audio_s: length of the sound made or, where none is, of the sound heard. rtf: total_s / audio_s, None without sound.
    underruns: how often a listener to the streamed sound had heard all there was before more came.
    """

    prefill_s: float
    first_text_s: float | None
    first_audio_s: float | None
    total_s: float
    audio_s: float
    underruns: int = 0

    @property
    def rtf(self) -> float | None:
        return self.total_s / self.audio_s if self.audio_s > 0 else None


class Clock:
    """When things first happened, in seconds since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._position_s: float | None = None
        self._text_s: float | None = None
        self._audio_s: float | None = None
        self.first_patch_s: float | None = None

    def start(self) -> None:
        self._started = time.perf_counter()

    def saw_position(self, spoken: bool) -> None:
        self._position_s = self._position_s or self._now()
        if spoken:
            self.first_patch_s = self.first_patch_s or self._now()

    def saw(self, piece: Piece) -> None:
        if piece.text:
            self._text_s = self._text_s or self._now()
        if piece.audio is not None:
            self._audio_s = self._audio_s or self._now()

    def timings(self, audio_s: float, underruns: int = 0) -> Timings:
        return Timings(self._position_s or self._now(), self._text_s, self._audio_s, self._now(), audio_s, underruns)

    def _now(self) -> float:
        return time.perf_counter() - self._started


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished answer.

    text: what was said or written, without marks; in parity mode exactly the reference's string.
    thinking: the thoughts before it, None if the task has none.
    audio: float32 [samples] mono at the codec's rate (24 kHz), None if no sound was made.
    codes: int32 [levels, code frames] behind that sound, None likewise.
    stop_reason: "stop token", "max_length", "guard" (see limits.py) or "cancelled".
    """

    text: str
    audio: Wave | None
    codes: Codes | None
    timings: Timings
    stop_reason: str
    thinking: str | None = None
