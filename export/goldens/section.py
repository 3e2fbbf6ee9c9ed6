"""What the makers of goldens share: a section is one pair of files, <name>.npz and <name>.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mimo_edge.export.reference_ops import Array


@dataclass
class Section:
    """The arrays and the description of one file pair <name>.npz, <name>.json."""

    arrays: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Taps:
    """Keeps what passes a tap: name -> values in order of arrival."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Array]] = {}

    def __call__(self, name: str, value: Array) -> None:
        self.seen.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> Array:
        return self.seen[name][-1]


def random_codes(rng: np.random.Generator, sizes: Sequence[int], frames: int) -> Array:
    return np.stack([rng.integers(0, size, frames) for size in sizes]).astype(np.int32)
