"""Patches in, sound out while the model still speaks.

Every push decodes up to 250 code frames of the past again and keeps back the last 40 (the reference's
streaming_decode), so patches are collected first: 12 of them, 1.9 s, give the first 0.3 s of sound, each further 12
give 1.9 s. GroupNorm then sees the window of the push instead of the whole reply; this is the stated approximation.
"""

from __future__ import annotations

import numpy as np

from mimo_edge import _core
from mimo_edge.audio import Wave
from mimo_edge.engine import Engine
from mimo_edge.reply import Codes

LEFT_OVERLAP_FRAMES, RIGHT_OVERLAP_FRAMES = 250, 40  # defaults of streaming_decode upstream
CHUNK_PATCHES = 12


class SoundStream:
    """One reply's sound."""

    def __init__(self, engine: Engine) -> None:
        self._decoder = _core.StreamingDecoder(engine.core, LEFT_OVERLAP_FRAMES, RIGHT_OVERLAP_FRAMES)
        self._empty = engine.facts.empty_code
        self._pending: list[Codes] = []

    def feed(self, patch: Codes) -> Wave | None:
        """patch int32 [K, G]. Returns the sound that has become certain, None while it is collected."""
        spoken = patch[:, patch[0] != self._empty]
        if spoken.shape[1] == 0:
            return None
        sound = self._push(last=False) if len(self._pending) == CHUNK_PATCHES else None
        self._pending.append(spoken)
        return sound

    def close(self) -> Wave | None:
        """Return the rest of the sound, None if there was none at all."""
        return self._push(last=True) if self._pending else None

    def _push(self, last: bool) -> Wave | None:
        chunk = np.ascontiguousarray(np.concatenate(self._pending, axis=1))
        self._pending = []
        return self._decoder.push([chunk], last)[0]
