"""What every conversation of a kind begins with, system prompt, voice and examples, prefilled once.

Kept in memory and, with a folder, on disk, where another process maps it: the bytes are those of the core's State.save,
which restores bit for bit and refuses another checkpoint, recipe or set of kernels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mimo_edge import _core
from mimo_edge._core import DeviceError, InputError
from mimo_edge.audio import Wave, replace_file

Saved: TypeAlias = "bytes | NDArray[np.uint8]"

MOST_IN_MEMORY = 8


class PrefixCache:
    """Beginnings by what they were made of; one cache may serve any number of conversations and voices.

    folder: where they outlive the process, made when the first is kept; None = in memory alone.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._memory: dict[str, Saved] = {}

    @staticmethod
    def key(words: str, waves: Sequence[Wave | None]) -> str:
        """Return the name of a beginning: what is said in it, and the samples of the voice and the examples."""
        digest = hashlib.sha256(words.encode())
        for wave in waves:
            digest.update(f"|{-1 if wave is None else len(wave)}|".encode() + (b"" if wave is None else wave.tobytes()))
        return digest.hexdigest()

    def restore(self, key: str, state: _core.State) -> str | None:
        """Bring `state` to the beginning `key` and return its note; None, and nothing changed, if it is not here."""
        for saved in (self._memory.get(key), self._map(key)):
            try:
                if saved is not None:
                    note = state.restore(saved)
                    self._remember(key, saved)
                    return note
            except InputError:  # of another model or another release; it will be written anew
                continue
        return None

    def keep(self, key: str, state: _core.State, note: str) -> None:
        """Keep what `state` has read, with a note; nothing where the backend cannot save a conversation."""
        try:
            saved = state.save(note)
        except DeviceError:
            return
        self._remember(key, saved)
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._path(key), saved)

    def _remember(self, key: str, saved: Saved) -> None:
        self._memory.pop(key, None)
        self._memory[key] = saved
        while len(self._memory) > MOST_IN_MEMORY:
            self._memory.pop(next(iter(self._memory)))

    def _map(self, key: str) -> Saved | None:
        path = self._path(key) if self._folder else None
        if path is None or not path.exists() or path.stat().st_size == 0:
            return None
        return np.memmap(path, np.uint8, mode="r")

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.conversation"
