"""One request while it is answered: prompt -> [token -> text | patch -> sound] * n."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.audio import Wave
from mimo_edge.engine import Engine, Tap
from mimo_edge.reply import Codes, Ids, Piece
from mimo_edge.request import Options, Request
from mimo_edge.sound_stream import SoundStream
from mimo_edge.text_stream import TextStream


class Answer:
    """The work behind one request; its pieces are made as they are asked for.

    state: of the conversation it belongs to, None for a fresh one with just the room it needs. stream: tells apart the
    random draws of answers that share a seed.
    """

    def __init__(self, engine: Engine, request: Request, options: Options, state: _core.State | None, stream: int):
        self.request, self._engine = request, engine
        self.thinking = "" if request.thinks and not engine.parity else None
        self.audio: Wave | None = None
        self.codes: Codes | None = None
        self.parity_text = ""
        self.underruns = 0
        self._options = options
        text, speech, stop = engine.core.task(request.task)
        text, speech = options.text_sampling or text, options.speech_sampling or speech
        limit, self._limit_is_guard = self._limit(options, state)
        if state is None:
            positions = request.ids.shape[1] // engine.facts.group
            state = _core.State(engine.core, options.seed, stream, min(engine.facts.context, positions + limit))
        self._core = _core.Generation(
            state, request.ids, text, speech, stop, limit, options.min_new_tokens, not engine.parity, request.script
        )

    def cancel(self) -> None:
        self._core.cancel()

    @property
    def ids(self) -> Ids:
        return self._core.ids()

    @property
    def stop_reason(self) -> str:
        reason = self._core.reason
        return "guard" if reason == "max_length" and self._limit_is_guard else reason

    def pieces(self, streams: bool, count: Callable[[bool], None]) -> Iterator[Piece]:
        """Generate; yield what becomes certain. count is called after every position: was it speech?

        Patches are sound from <|sostm|> on, which stands in the prompt unless the model thinks first, up to <|eostm|>.
        """
        facts, core, request = self._engine.facts, self._engine.core, self.request
        text = TextStream(request.thinks)
        sound = SoundStream(self._engine, self._options, request.norms) if streams and request.speaks else None
        tokens = facts.tokens
        speaks_after = {tokens["sostm"]: request.speaks, tokens["eostm"]: False, tokens["eosp"]: False}
        speaking = request.speaks and not request.thinks
        patches = [np.zeros((facts.levels, 0), np.int32)]
        first, spoken = True, False
        while (step := self._core.next(self._listener(first, spoken))) is not None:
            token, patch = step
            first, spoken = False, spoken or patch is not None
            count(patch is not None)
            speaking = speaks_after.get(token, speaking)
            if token not in facts.marks:
                yield from self._certain(text.feed(core.token_bytes(token)))
            elif patch is not None and speaking and (patch := patch[:, patch[0] != facts.empty_code]).size:
                patches.append(patch)
                if sound:
                    yield from self._certain(Piece(audio=sound.feed(patch)))
        yield from self._certain(text.close())
        codes = np.concatenate(patches, axis=1)
        if self._engine.parity:
            self.parity_text, codes = core.extract(self.ids)
        if sound:
            yield from self._certain(Piece(audio=sound.close()))
            self.underruns = sound.playback.underruns
        if request.speaks and codes.size:
            self.codes = codes
            if not sound:
                yield from self._certain(Piece(audio=self._engine.sound(codes)))

    def _certain(self, piece: Piece) -> Iterator[Piece]:
        if self.thinking is not None:
            self.thinking += piece.thinking
        if piece.audio is not None:
            self.audio = piece.audio if self.audio is None else np.concatenate([self.audio, piece.audio])
        if piece.text or piece.thinking or piece.audio is not None:
            yield piece

    def _limit(self, options: Options, state: _core.State | None) -> tuple[int, bool]:
        """Return how many positions may be added, and whether it is the runaway guard that says so."""
        capacity, held = (state.capacity, state.length) if state else (self._engine.facts.context, 0)
        positions = held + self.request.ids.shape[1] // self._engine.facts.group
        room = capacity - positions
        if room < 1:
            raise InputError(f"prompt: expected fewer than {capacity} positions, got {positions}; shorten the input")
        if options.max_new_tokens is not None or self._engine.parity:
            return min(room, options.max_new_tokens or room), False
        return min(room, self.request.allowance), self.request.allowance < room

    def _listener(self, first: bool, spoken: bool) -> Tap | None:
        """Who listens to the next position: a tap sees all of the first one, and the first patch."""
        tap = self._engine.tap
        if tap is None or first or spoken:
            return tap if first else None
        return lambda name, array: tap(name, array) if name.startswith("patch_decoder.") else None
