"""Turns: a dialogue given whole, and a Conversation that keeps its place in the cache from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.audio import AudioInput, Recording
from mimo_edge.engine import Engine
from mimo_edge.generation import Generation
from mimo_edge.limits import ALLOWANCES, THINKING
from mimo_edge.reply import Codes, Ids
from mimo_edge.request import Options, Request

CoreTurn: TypeAlias = tuple[str, "str | None", "Codes | None"]
"""(role, text, codes [K, T']), as the core's prompt builders take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a dialogue. A user has text or audio; an assistant has text, with the audio it spoke if it spoke."""

    role: Literal["user", "assistant"]
    text: str | None = None
    audio: AudioInput | None = None


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A Turn whose audio has been checked but not encoded yet."""

    role: str
    text: str | None
    audio: Recording | None

    @staticmethod
    def check(engine: Engine, turn: Turn) -> OpenTurn:
        """Raises InputError for a turn that cannot be prompted."""
        if turn.text is None and turn.audio is None:
            raise InputError(f"turn: expected text or audio, got neither in a turn of the {turn.role}")
        if turn.role == "assistant" and turn.text is None:
            raise InputError("turn: expected the text of what the assistant said, got audio alone")
        return OpenTurn(turn.role, turn.text, None if turn.audio is None else engine.open_prompt_audio(turn.audio))

    def encode(self, engine: Engine) -> CoreTurn:
        return (self.role, self.text, None if self.audio is None else encode(engine, self.audio))

    @property
    def heard_s(self) -> float:
        return self.audio.seconds if self.audio else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How the assistant answers: in sound or in writing, after thinking or not, as whom, with which voice."""

    speaks: bool
    thinks: bool = False
    system: str | None = None
    voice: Recording | None = None

    def request(self, engine: Engine, ids: Ids, heard_s: float, voice: Codes | None) -> Request:
        """ids: int32 [K+1, G*P], the prompt. heard_s: seconds of sound in the question, 0 if it was written."""
        task = "spoken_dialogue" if self.speaks else "speech_to_text" if heard_s else "text_chat"
        allowance = ALLOWANCES[task].positions() + (THINKING.positions() if self.thinks else 0)
        return Request(
            task=task,
            ids=ids,
            allowance=allowance,
            heard_s=heard_s,
            speaks=self.speaks,
            thinks=self.thinks,
            voice=voice,
        )

    def opening(self, engine: Engine, turns: Sequence[CoreTurn], voice: Codes | None) -> Ids:
        """Return the prompt of a dialogue from its beginning. voice: codes int32 [K, T'] of `self.voice`."""
        return engine.core.prompt_dialogue(list(turns), self.system, voice, self.speaks, self.thinks)

    def followup(self, engine: Engine, turn: CoreTurn) -> Ids:
        """Return what a running dialogue gets for its next user turn."""
        return engine.core.prompt_dialogue([turn], None, None, self.speaks, self.thinks)


def encode(engine: Engine, recording: Recording) -> Codes:
    """Return a recording as patches, codes int32 [K, T']."""
    return engine.patches(engine.whole(recording))


def answer(engine: Engine, turns: Sequence[Turn], manner: Manner, options: Options) -> Generation:
    """Answer a dialogue that is given whole."""
    opened = [OpenTurn.check(engine, turn) for turn in turns]

    def requests() -> Iterator[Request]:
        voice = encode(engine, manner.voice) if manner.voice else None
        ids = manner.opening(engine, [turn.encode(engine) for turn in opened], voice)
        yield manner.request(engine, ids, sum(turn.heard_s for turn in opened if turn.role == "user"), voice)

    return Generation(engine, requests(), options)


class Conversation:
    """A dialogue that goes on: what was said stays in the cache, a turn costs only itself.

    After a spoken answer the model stops at <|eostm|>; before the next turn the markup it was trained with is
    completed by <|im_end|> and a line feed. In parity mode the reference's history is reproduced instead: the raw ids
    of all turns are put in front of the next prompt and prefilled again, nothing in between.
    """

    def __init__(self, engine: Engine, manner: Manner, options: Options) -> None:
        self._engine, self._manner, self._options = engine, manner, options
        self._state = _core.State(engine.core, options.seed)
        self._voice: Codes | None = None
        self._running: _Exchange | None = None
        self._last: _Exchange | None = None

    def respond(
        self, audio: AudioInput | None = None, *, text: str | None = None, options: Options | None = None
    ) -> Generation:
        """Say something and get the answer. A turn that fails leaves the conversation as it was.

        options: for this turn; None = the conversation's (the seed is always the conversation's).
        Raises InputError for what cannot be heard, and while the answer before is unfinished.
        """
        self._settle()
        turn = OpenTurn.check(self._engine, Turn(role="user", text=text, audio=audio))
        if self._engine.parity:
            self._state = _core.State(self._engine.core, self._options.seed)

        def requests() -> Iterator[Request]:
            if self._voice is None and self._manner.voice:
                self._voice = encode(self._engine, self._manner.voice)
            ids = self._prompt(turn.encode(self._engine))
            yield self._manner.request(self._engine, ids, turn.heard_s, self._voice)

        generation = Generation(self._engine, requests(), options or self._options, self._state)
        self._running = _Exchange(generation, self._state.length)
        return generation

    def _settle(self) -> None:
        """Take note of how the answer before has ended."""
        running = self._running
        if running and not running.generation.finished and not running.generation.failed:
            raise InputError(
                "conversation: expected the last answer to be complete, got a running one; take its result()"
            )
        if running and running.generation.failed:
            self._state.rewind(min(self._state.length, running.began_at))
        elif running:
            self._last = running
        self._running = None

    def _prompt(self, turn: CoreTurn) -> Ids:
        """Return the ids to prefill for `turn`, beginning with what the state has not seen of the turn before."""
        if self._last is None:
            return self._manner.opening(self._engine, [turn], self._voice)
        last, began_at = self._last.generation, self._last.began_at
        said = np.concatenate([last.prompt_ids, last.new_ids], axis=1)
        followup = self._manner.followup(self._engine, turn)
        if not self._engine.parity:
            said = said[:, (self._state.length - began_at) * self._engine.facts.group :]
            followup = np.concatenate([self._closing(last), followup], axis=1)
        return np.ascontiguousarray(np.concatenate([said, followup], axis=1))

    def _closing(self, last: Generation) -> Ids:
        """Return the ids that complete an answer's markup, whatever stopped it."""
        tokens = self._engine.facts.tokens
        stopped_at = int(last.new_ids[0, -1])
        if stopped_at == tokens["im_end"]:
            return self._engine.core.prompt_text("\n")
        unfinished = self._manner.speaks and stopped_at != tokens["eostm"]
        return self._engine.core.prompt_text("<|eostm|><|im_end|>\n" if unfinished else "<|im_end|>\n")


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A question with its answer. began_at: positions the state held before the question."""

    generation: Generation
    began_at: int
