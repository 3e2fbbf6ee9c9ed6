"""What the layers of a model take in while it holds conversations: inputs, their ranges, by which smoothing goes, and
their second moments, by which GPTQ corrects.

    clips -> conversations (conversations.py) -> the core, tapped -> inputs of every layer, on disk -> X^T X, on demand

Inputs are kept in a scratch folder, so memory does not grow with how much is heard.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mimo_edge import Model
from mimo_edge.export.safetensors_io import Array
from mimo_edge.quantize.conversations import Clip, conversations, follow

MOST_ROWS = 6144  # inputs kept of a layer: several times the width of the widest test model, and the disk's patience
_BLOCK_ROWS = 512
_WAITING = 32  # arrays of a layer held in memory before they are written
# Layers that take in the same: what is kept of one serves all.
_SHARED = (
    (re.compile(r"\.(k|v)_proj\.weight$"), ".q_proj.weight"),
    (re.compile(r"\.up_proj\.weight$"), ".gate_proj.weight"),
)
_HIDDEN = ("lm_head.weight", "hidden_states_downcast.weight")  # take in the backbone's hidden states


class Calibration:
    """Inputs of layers, gathered by `hear`, as moments by the name of a layer's weight. Use it as a context manager."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="mimo-edge-calibration-")
        self._wanted = {source(name) for name in wanted}
        self._rows: dict[str, int] = {}
        self._columns: dict[str, int] = {}
        self._waiting: dict[str, list[Array]] = {}  # kept but not on disk yet
        self.conversations = 0

    def hear(self, model: Model, clips: Iterable[Clip], progress: Callable[[str], None] | None = None) -> None:
        """Hold the conversations about some clips and keep what the layers take in."""
        for clip in clips:
            codes = model.engine.core.encode(clip.wave, self._listen)
            model.engine.core.decode(np.ascontiguousarray(codes[: model.engine.facts.levels]), self._listen)
            for conversation in conversations(model, clip):
                if progress:
                    progress(conversation.name)
                for _ in follow(model, conversation, self._listen):
                    pass
                self.conversations += 1

    def moments(self, name: str) -> Array | None:
        """Return the sum of x x^T over the inputs x of a layer, float32 [K, K]; None if it was never reached."""
        inputs = self.inputs(name)
        if inputs is None:
            return None
        total = np.zeros((inputs.shape[1], inputs.shape[1]), np.float32)
        for block in _blocks(inputs):
            total += block.T @ block
        return total

    def ranges(self, name: str) -> Array | None:
        """Return the largest |x| of each input of a layer, float32 [K]; None if it was never reached."""
        inputs = self.inputs(name)
        return None if inputs is None else np.max([np.abs(block).max(axis=0) for block in _blocks(inputs)], axis=0)

    def inputs(self, name: str) -> Array | None:
        """Return the inputs kept of a layer, float32 [rows, K], on disk; None if it was never reached."""
        kept = source(name)
        if kept not in self._rows:
            return None
        self._flush(kept)
        return np.memmap(self._path(kept), "<f4", "r", shape=(self._rows[kept], self._columns[kept]))

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    def _listen(self, name: str, array: NDArray[np.float32]) -> None:
        if name == "backbone.hidden":
            self._keep(_HIDDEN[0], array)
        elif name.startswith("input:"):
            self._keep(name.removeprefix("input:"), array)

    def _keep(self, name: str, array: NDArray[np.float32]) -> None:
        rows = self._rows.get(name, 0)
        if name not in self._wanted or rows >= MOST_ROWS or not len(array):
            return
        kept = array[: MOST_ROWS - rows].copy()
        self._rows[name], self._columns[name] = rows + len(kept), kept.shape[1]
        waiting = self._waiting.setdefault(name, [])
        waiting.append(kept)
        if len(waiting) >= _WAITING:
            self._flush(name)

    def _flush(self, name: str) -> None:
        with open(self._path(name), "ab") as file:
            for kept in self._waiting.pop(name, []):
                file.write(kept.data)

    def _path(self, name: str) -> Path:
        return Path(self._scratch.name) / name


def _blocks(inputs: Array) -> Iterator[Array]:
    return (inputs[start : start + _BLOCK_ROWS] for start in range(0, len(inputs), _BLOCK_ROWS))


def source(name: str) -> str:
    """The layer whose inputs a layer shares."""
    if name in _HIDDEN:
        return _HIDDEN[0]
    for pattern, shared in _SHARED:
        name = pattern.sub(shared, name)
    return name
