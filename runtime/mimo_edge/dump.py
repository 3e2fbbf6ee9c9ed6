"""Every stage of a run as files: 0001_wave.npy, 0002_mel.npy, ... in order of flow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_edge._core import InputError
from mimo_edge.audio import replace_file


class Dump:
    """A tap that writes each stage it sees, not the inputs of single layers.

    folder is made if absent and has to be empty.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"dump: expected a new or empty folder, got {folder}")
        folder.mkdir(exist_ok=True)
        self.folder, self.count = folder, 0

    def __call__(self, name: str, array: NDArray[Any]) -> None:
        if name.startswith("input:"):
            return
        self.count += 1
        buffer = io.BytesIO()
        np.save(buffer, array)
        replace_file(self.folder / f"{self.count:04d}_{name}.npy", buffer.getvalue())
