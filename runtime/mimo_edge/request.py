"""What is asked: a prompt to be continued, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mimo_edge._core import InputError, Sampling
from mimo_edge.reply import Ids, Norms

LOOK_AHEAD_FRAMES = 4  # one patch; chosen from the curve in docs/streaming.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to generate; the defaults are the reference's for each task.

    seed: the same seed gives the same reply on any number of threads. max_new_tokens, min_new_tokens: positions, i.e.
    text tokens and patches (None = the runaway guard's allowance, limits.py). text_sampling, speech_sampling: how
    tokens and codes are drawn (None = the task's own). look_ahead: code frames (40 ms) that streamed sound waits for.
    norms: where streamed sound takes the statistics of the codec's GroupNorms from (docs/streaming.md).
    """

    seed: int = 0
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    text_sampling: Sampling | None = None
    speech_sampling: Sampling | None = None
    look_ahead: int = LOOK_AHEAD_FRAMES
    norms: Literal["running", "seeded", "frozen"] = "seeded"

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"options: expected max_new_tokens of 1 or more, got {self.max_new_tokens}")
        if self.look_ahead < 0:
            raise InputError(f"options: expected look_ahead of 0 or more code frames, got {self.look_ahead}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to be continued.

    task: names the samplers and stop tokens (`_core.Model.task`). ids: int32 [K+1, G*P]. allowance: positions the
    runaway guard allows. heard_s: seconds of sound in the question. speaks: the reply is sound. thinks: it begins
    with thoughts. norms: statistics of the voice to speak with
    (Engine.norms), if one was given.
    """

    task: str
    ids: Ids
    allowance: int
    heard_s: float = 0.0
    speaks: bool = False
    thinks: bool = False
    norms: Norms | None = None
