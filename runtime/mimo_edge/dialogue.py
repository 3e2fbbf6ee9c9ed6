"""A dialogue given whole: turns become a prompt, the prompt an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mimo_edge._core import InputError
from mimo_edge.audio import AudioInput, Recording
from mimo_edge.engine import Engine
from mimo_edge.generation import Generation
from mimo_edge.limits import ALLOWANCES, THINKING
from mimo_edge.reply import Codes, Ids, Norms
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
    """How the assistant answers: in sound or in writing, after thinking or not, as whom, with which voice.

    examples: turns that stand before every conversation, question and answer by turns.
    """

    speaks: bool
    thinks: bool = False
    system: str | None = None
    voice: Recording | None = None
    examples: tuple[OpenTurn, ...] = ()

    def request(self, ids: Ids, heard_s: float, norms: Norms | None) -> Request:
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
            norms=norms,
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
    """Answer a dialogue that is given whole. Raises InputError for turns that cannot be prompted."""
    if not turns:
        raise InputError("dialogue: expected at least one turn, got none")
    opened = [OpenTurn.check(engine, turn) for turn in turns]

    def requests() -> Iterator[Request]:
        voice = encode(engine, manner.voice) if manner.voice else None
        ids = manner.opening(engine, [turn.encode(engine) for turn in opened], voice)
        heard_s = sum(turn.heard_s for turn in opened if turn.role == "user")
        yield manner.request(ids, heard_s, engine.norms(voice))

    return Generation(engine, requests(), options)
