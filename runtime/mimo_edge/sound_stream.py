"""Patches in, sound out while the model still speaks.

The codec's stateful decoder gives every patch its sound once `look_ahead` more code frames are there, whatever the
cutting (csrc/codec/decoder_stream.h). So the cutting follows the listener: the first patch is decoded at once, and the
fuller the playback buffer, the more patches are collected, which reads the decoder's weights less often. In parity mode
it is the reference's streaming_decode: every push decodes up to 250 code frames of the past again and keeps back 40.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.audio import Wave
from mimo_edge.engine import Engine
from mimo_edge.reply import Codes, Norms
from mimo_edge.request import Options

LEFT_OVERLAP_FRAMES, RIGHT_OVERLAP_FRAMES = 250, 40  # defaults of streaming_decode upstream
PARITY_PATCHES = 12  # collected for a push of it; 1.9 s
MOST_PATCHES = 12  # collected for a push while the listener has enough to hear
SEED_FRAMES = 25.0  # code frames a seeded norm counts its prior for: docs/streaming.md
NORM_WEIGHTS = {"running": 0.0, "seeded": SEED_FRAMES, "frozen": math.inf}


class Playback:
    """Where a listener is who hears everything as soon as it is made. Counts how often they heard nothing."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._ends: float | None = None  # when all that was made has been heard
        self.underruns = 0

    def add(self, seconds: float) -> None:
        now = self._now()
        if self._ends is not None and now > self._ends:
            self.underruns += 1
        self._ends = max(now, self._ends or now) + seconds

    @property
    def buffered_s(self) -> float:
        """Seconds of sound made and not heard yet."""
        return 0.0 if self._ends is None else max(0.0, self._ends - self._now())


class SoundStream:
    """One reply's sound. norms: of the voice, None = those in the bundle; without either the norms run."""

    def __init__(self, engine: Engine, options: Options, norms: Norms | None = None) -> None:
        self._facts = engine.facts
        self._push = _parity_push(engine) if engine.parity else _push(engine, options, norms)
        self._parity = engine.parity
        self._pending: list[Codes] = []
        self.playback = Playback()

    def feed(self, patch: Codes) -> Wave | None:
        """patch int32 [K, G] without empty frames. Returns the sound that is certain, None while it is collected."""
        if self._parity:  # one patch is kept back, so that the last push has something to decode
            sound = self._collected(last=False) if len(self._pending) == PARITY_PATCHES else None
            self._pending.append(patch)
            return sound
        self._pending.append(patch)
        enough = self.playback.buffered_s / 2 / self._facts.patch_s
        return self._collected(last=False) if len(self._pending) >= min(enough, MOST_PATCHES) else None

    def close(self) -> Wave | None:
        """Return the rest of the sound, None if there was none."""
        return self._collected(last=True) if not self._parity or self._pending else None

    def _collected(self, last: bool) -> Wave | None:
        none = np.zeros((1, 0), np.int32)
        chunk = np.ascontiguousarray(np.concatenate(self._pending, axis=1)) if self._pending else none
        self._pending = []
        sound = self._push(chunk, last)
        if sound is None or len(sound) == 0:
            return None
        self.playback.add(len(sound) / self._facts.rate_hz)
        return sound


def _push(engine: Engine, options: Options, norms: Norms | None) -> Callable[[Codes, bool], Wave | None]:
    prior = norms or engine.facts.norms
    weight = NORM_WEIGHTS[options.norms]
    if prior is None and options.norms == "frozen":
        raise InputError("speech: expected a voice or a calibrated bundle for frozen norms; run mimo-edge calibrate")
    return _core.DecoderStream(
        engine.core, prior, weight if prior else 0.0, LEFT_OVERLAP_FRAMES, options.look_ahead
    ).push


def _parity_push(engine: Engine) -> Callable[[Codes, bool], Wave | None]:
    decoder = _core.StreamingDecoder(engine.core, LEFT_OVERLAP_FRAMES, RIGHT_OVERLAP_FRAMES)
    return lambda chunk, last: decoder.push([chunk], last)[0]
