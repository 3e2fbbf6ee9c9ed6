"""The seam for hardware, as Python sees it: what an object must do to compute the networks in the core's place.

    _core.Model.open(folder, backend=...)      loop, sampler, RVQ, prompts stay the core's (csrc/backend/backend.h)

Floats are float32 arrays at the seam, whatever is computed inside; the core checks their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
SequenceTap: TypeAlias = Callable[[str, Array], None] | None
"""Called with (stage name, array); None = nobody listens."""


class BackendSequence(Protocol):
    """The networks of one conversation with their caches; one thread at a time."""

    def append(self, first: int, tokens: Array, codes: Array, tap: SequenceTap) -> Array:
        """Read positions first, first + 1, ..., forgetting what was there: tokens int32 [n], codes int32 [n, G*K].

        Returns hidden [1, hidden_size] of the last, after the final norm. If it raises, positions before `first` stay.
        """
        ...

    def text_logits(self) -> Array:
        """Scores [vocab_size] after the last position."""
        ...

    def local_hidden(self) -> Array:
        """The patch decoder's first input [1, local_dim] after the last position."""
        ...

    def local_step(self, step: int, made: Array, tap: SequenceTap) -> Sequence[Array]:
        """made: int32 [K], the codes of the step before, -1 = none; step 0 starts a patch. Returns scores a level."""
        ...


class Backend(Protocol):
    """Shared by all conversations and threads."""

    def sequence(self, capacity: int) -> BackendSequence:
        """Begin a conversation of at most `capacity` positions."""
        ...

    def encode(self, mel: Array, longest: int) -> Array:
        """One segment: mel [F, n_mels] -> hidden [T, D] before RVQ. longest: mel frames of the longest of its batch."""
        ...

    def decode(self, codes: Array) -> Array:
        """One piece: codes int32 [n, T] -> wav [S]."""
        ...
