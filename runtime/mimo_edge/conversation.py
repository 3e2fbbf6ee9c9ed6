"""A conversation that goes on: it keeps its place in the cache from turn to turn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mimo_edge import _core
from mimo_edge._core import Heard, InputError
from mimo_edge.audio import AudioInput, Wave
from mimo_edge.dialogue import CoreTurn, Manner, OpenTurn, Turn
from mimo_edge.engine import Engine
from mimo_edge.generation import Generation
from mimo_edge.prefix_cache import PrefixCache
from mimo_edge.reply import Ids, Norms
from mimo_edge.request import Options, Request
from mimo_edge.text_stream import TextStream

USER = "<|im_start|>user\n"  # the head of a question (csrc/lm/prompt.cpp)
ROOM = 512  # positions kept free for a question's answer; old turns leave for it


class Conversation:
    """A dialogue that goes on: what was said stays in the cache, a turn costs only itself.

    The state holds the beginning (system prompt, voice), then turn after turn, each a question and what was heard of
    its answer, with the markup the model was trained with completed after it. Whatever has to change, an answer cut
    short, a turn taken back, old turns that leave, the state keeps the positions that stay true and reads the rest
    anew, so that it always equals a state that has read nothing else. When the next turn might not fit, whole turns
    leave, the oldest first, until half of the context is free; the beginning stays.

    In parity mode the reference's history is reproduced instead: the raw ids of all turns are put in front of the next
    prompt and prefilled again, nothing in between.
    """

    def __init__(
        self,
        engine: Engine,
        manner: Manner,
        options: Options,
        context: int = 0,
        cache: PrefixCache | None = None,
    ) -> None:
        self._engine, self._manner, self._options, self._context = engine, manner, options, context
        self._cache = cache or PrefixCache()
        self._state = _core.State(engine.core, options.seed, 0, context)
        self._head = engine.core.prompt_text(USER)
        self._beginning: Ids | None = None
        self._norms: Norms | None = None
        self._turns: list[Ids] = []
        self._history_columns = 0  # of ids before the question at hand
        self._running: _Exchange | None = None

    def respond(
        self, audio: AudioInput | None = None, *, text: str | None = None, options: Options | None = None
    ) -> Generation:
        """Say something and get the answer. A turn that fails leaves the conversation as it was.

        options: for this turn; None = the conversation's (the seed is always the conversation's).
        Raises InputError for what cannot be heard, and while the answer before is unfinished.
        """
        self._settle()
        turn = OpenTurn.check(self._engine, Turn(role="user", text=text, audio=audio))
        return self._answer(lambda: self._question(turn.encode(self._engine)), turn.heard_s, options)

    def listen(self, *, most_s: float = 30.0) -> Hearing:
        """Begin to hear a turn while it is spoken; at most `most_s` seconds of it, 0 for what the context holds.

        Raises InputError as `respond` does.

        Whatever of the conversation is not read yet, the beginning, what stays when old turns leave, is read here: call
        it while nobody waits.
        """
        if not most_s >= 0:
            raise InputError(f"conversation: expected a longest turn of 0 or more seconds, got {most_s}")
        self._settle()
        sosp, _ = self._around_sound()
        coming = round(min((most_s or math.inf) / self._engine.facts.patch_s, self._state.capacity // 4))
        before = np.concatenate([self._history(coming), sosp], axis=1)
        return Hearing(self, _core.Listener(self._state, np.ascontiguousarray(before), most_s))

    def truncate(self, heard_s: float) -> str:
        """Take back what was not heard of the last answer, and return the text that is left of it.

        heard_s: seconds of its sound that were played. The answer ends with the last patch heard whole. Raises
        InputError if there is no complete answer.
        """
        if not heard_s >= 0:
            raise InputError(f"conversation: expected 0 or more seconds that were heard, got {heard_s}")
        last, facts = self._running, self._engine.facts
        if last is None or not last.generation.finished:
            raise InputError("conversation: expected a complete answer to cut, got none; cancel it and take its result")
        ids = last.generation.new_ids
        patches = np.flatnonzero(ids[0, :: facts.group] == facts.tokens["empty"])
        heard = int(min(heard_s / facts.patch_s + 1e-6, len(patches)))
        if heard < len(patches):
            ids = ids[:, : 0 if heard == 0 else (int(patches[heard - 1]) + 1) * facts.group]
            last.said = np.ascontiguousarray(ids)
        words = [self._engine.core.token_bytes(token) for token in ids[0, :: facts.group] if token not in facts.marks]
        text = TextStream(self._manner.thinks)
        return text.feed(b"".join(words)).text + text.close().text

    def forget(self) -> None:
        """Take back the last question and its answer, as if neither had been said."""
        if self._running is None and self._turns:
            self._turns.pop()
        self._running = None

    @property
    def length(self) -> int:
        """Positions that the conversation holds now."""
        return self._state.length

    def _answer(self, question: Callable[[], Ids], heard_s: float, options: Options | None) -> Generation:
        """question: the ids of the whole conversation up to the answer, made when the work begins."""
        group = self._engine.facts.group

        def requests() -> Iterator[Request]:
            ids = question()
            exchange.question = ids[:, self._history_columns :]
            if self._engine.parity:
                self._state.rewind(0)
            kept = self._state.keep(ids)
            yield self._manner.request(np.ascontiguousarray(ids[:, kept * group :]), heard_s, self._norms)

        generation = Generation(self._engine, requests(), options or self._options, self._state)
        self._running = exchange = _Exchange(generation)
        return generation

    def _settle(self) -> None:
        """Take note of how the answer before has ended."""
        running = self._running
        if running and not running.generation.finished and not running.generation.failed:
            raise InputError(
                "conversation: expected the last answer to be complete, got a running one; take its result()"
            )
        if running and running.generation.finished:
            said = running.generation.new_ids if running.said is None else running.said
            parts = [running.question, said] + ([] if self._engine.parity else [self._closing(said)])
            self._turns.append(np.ascontiguousarray(np.concatenate(parts, axis=1)))
        self._running = None

    def _question(self, turn: CoreTurn) -> Ids:
        """Return the ids of the conversation up to the answer to `turn`."""
        body = self._manner.followup(self._engine, turn)[:, self._head.shape[1] :]
        history = self._history(body.shape[1] // self._engine.facts.group)
        return np.ascontiguousarray(np.concatenate([history, body], axis=1))

    def _history(self, coming: int) -> Ids:
        """Return all that stands before the next question, whose prompt has `coming` positions; make room for it."""
        beginning, group = self._begin(), self._engine.facts.group
        capacity, turns = self._state.capacity, self._turns
        columns = beginning.shape[1] + sum(turn.shape[1] + self._head.shape[1] for turn in turns)
        fits = beginning.shape[1] // group + coming < capacity  # else the turn fails, and nothing is to be lost for it
        if not self._engine.parity and fits and columns // group + coming + min(ROOM, capacity // 4) > capacity:
            while turns and columns // group + coming > capacity // 2:
                columns -= turns.pop(0).shape[1] + self._head.shape[1]
        parts = [beginning]
        for turn in turns:
            parts += [turn, self._head]
        history = np.ascontiguousarray(np.concatenate(parts, axis=1))
        self._history_columns = history.shape[1]
        return history

    def _begin(self) -> Ids:
        """Return the beginning, system prompt and voice and the head of the first turn; prefill it once."""
        if self._beginning is not None:
            return self._beginning
        engine, manner = self._engine, self._manner
        sounds = [manner.voice, *(turn.audio for turn in manner.examples)]
        waves = [engine.whole(sound) if sound else None for sound in sounds]
        words = [(turn.role, turn.text) for turn in manner.examples]
        key = PrefixCache.key(json.dumps([manner.system, manner.speaks, manner.thinks, words]), waves)
        caches = (manner.system or manner.voice or manner.examples) and not engine.parity
        note = self._cache.restore(key, self._state) if caches else None
        if note is not None:
            self._norms = json.loads(note)
            self._beginning = self._state.ids()
            return self._beginning
        voice, *examples = [None if wave is None else engine.patches(wave) for wave in waves]
        self._norms = engine.norms(voice)
        anything: CoreTurn = ("user", "a", None)
        turns = [(role, text, codes) for (role, text), codes in zip(words, examples, strict=True)]
        follow = manner.followup(engine, anything).shape[1] - self._head.shape[1]
        self._beginning = np.ascontiguousarray(manner.opening(engine, [*turns, anything], voice)[:, :-follow])
        if caches:
            self._state.prefill(self._beginning)
            self._cache.keep(key, self._state, json.dumps(self._norms))
        return self._beginning

    def _around_sound(self) -> tuple[Ids, Ids]:
        """What stands between the head of a spoken question and its sound, and between the sound and the answer."""
        group = self._engine.facts.group
        silence = np.zeros((self._engine.facts.levels, group), np.int32)
        body = self._manner.followup(self._engine, ("user", None, silence))[:, self._head.shape[1] :]
        return body[:, :group], body[:, 2 * group :]

    def _closing(self, said: Ids) -> Ids:
        """Return the ids that complete an answer's markup, whatever stopped it."""
        tokens = self._engine.facts.tokens
        stopped_at = int(said[0, -1]) if said.shape[1] else -1
        if stopped_at == tokens["im_end"]:
            return self._engine.core.prompt_text("\n")
        unfinished = self._manner.speaks and stopped_at != tokens["eostm"]
        return self._engine.core.prompt_text("<|eostm|><|im_end|>\n" if unfinished else "<|im_end|>\n")


class Hearing:
    """A turn being heard. Sound goes in as it comes; `settle` at a pause does the work that the answer needs."""

    def __init__(self, conversation: Conversation, listener: _core.Listener) -> None:
        self._conversation, self._listener = conversation, listener
        self.report = Heard()
        """Of the last settle: what was read, what of it had to be read again, and how long it took."""

    def feed(self, wave: Wave, rate_hz: int) -> int:
        """wave float32 [S], any length and rate. Returns the samples taken, fewer when the longest turn is reached."""
        return self._listener.feed(wave, rate_hz)

    @property
    def heard_s(self) -> float:
        return self._listener.heard_s

    def settle(self) -> Heard:
        """Encode and prefill what has been heard, exactly as if the turn ended here; it may go on. Any number of times.

        Raises InputError if there is too little sound for one frame of it.
        """
        self.report = self._listener.settle()
        return self.report

    def respond(self, options: Options | None = None) -> Generation:
        """End the turn here and answer it. If the person goes on all the same, `retract` and feed on."""
        conversation = self._conversation
        conversation._settle()

        def question() -> Ids:
            self.settle()
            _, after = conversation._around_sound()
            return np.ascontiguousarray(np.concatenate([conversation._state.ids(), after], axis=1))

        return conversation._answer(question, self.heard_s, options)

    def retract(self) -> None:
        """Take back the answer of which nothing was heard; the turn goes on."""
        self._conversation.forget()


@dataclass(slots=True)
class _Exchange:
    """A question with its answer: ids of both. said: the part of the answer that was heard, None = all of it."""

    generation: Generation
    question: Ids = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    said: Ids | None = None
