"""What is asked: a prompt to be continued, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from mimo_edge._core import InputError, Sampling
from mimo_edge.reply import Ids, Norms

LOOK_AHEAD_FRAMES = 4  # one patch; chosen from the curve in docs/streaming.md
MOST = 2**31 - 1  # of what is counted; no context holds more

NormStart: TypeAlias = Literal["running", "seeded", "frozen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to generate; the defaults are the reference's for each task.

    seed: the same seed gives the same reply on any number of threads. max_new_tokens, min_new_tokens: positions, i.e.
    text tokens and patches (None = the runaway guard's allowance, limits.py). text_sampling, speech_sampling: how
    tokens and codes are drawn (None = the task's own). look_ahead: code frames (40 ms) that streamed sound waits for.
    norms: where streamed sound takes the statistics of the codec's GroupNorms from (docs/streaming.md).
    Raises InputError for values that cannot be.
    """

    seed: int = 0
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    text_sampling: Sampling | None = None
    speech_sampling: Sampling | None = None
    look_ahead: int = LOOK_AHEAD_FRAMES
    norms: NormStart = "seeded"

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("seed", self.seed, 0, 2**64 - 1),
            ("max_new_tokens", 1 if self.max_new_tokens is None else self.max_new_tokens, 1, MOST),
            ("min_new_tokens", self.min_new_tokens, 0, MOST),
            ("look_ahead", self.look_ahead, 0, MOST),
        ):
            if not least <= value <= most:
                raise InputError(f"options: expected {name} from {least} to {most}, got {value}")
        if self.norms not in get_args(NormStart):
            raise InputError(f"options: expected norms of {' or '.join(get_args(NormStart))}, got {self.norms!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to be continued.

    task: names the samplers and stop tokens (`_core.Model.task`). ids: int32 [K+1, G*P]. allowance: positions the
    runaway guard allows. heard_s: seconds of sound in the question. speaks: the reply is sound. thinks: it begins
    with thoughts. norms: statistics of the voice to speak with (Engine.norms), if one was given. script: tokens of the
    text that the reply is to read aloud: known beforehand they are read five at a time, which changes no reply.
    """

    task: str
    ids: Ids
    allowance: int
    heard_s: float = 0.0
    speaks: bool = False
    thinks: bool = False
    norms: Norms | None = None
    script: Sequence[int] = ()
