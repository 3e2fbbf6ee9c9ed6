"""One running answer: iterate it for pieces, cancel it from any thread, or ask for the whole reply."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.answer import Answer
from mimo_edge.engine import Engine
from mimo_edge.reply import Clock, Ids, Piece, Reply
from mimo_edge.request import Options, Request


class Generation:
    """The answer to one call, made while it is iterated or when `result` is asked for, by one thread.

    Iterating yields Pieces as they become certain; sound then comes from the streaming decoder, Reply.audio too.
    Without iterating, `result` decodes the sound in one go, as the reference does. Errors of the work are raised there.
    """

    def __init__(self, engine: Engine, requests: Iterator[Request], options: Options, state: _core.State | None = None):
        self._engine, self._requests, self._options, self._state = engine, requests, options, state
        self._answers: list[Answer] = []
        self._cancelled, self._failed = False, False
        self._pieces: Generator[Piece, None, None] | None = None
        self._reply: Reply | None = None
        self._watch: Callable[[Generation], None] | None = None
        self.clock = Clock()
        self.positions = 0
        """New positions so far."""

    def __iter__(self) -> Generator[Piece, None, None]:
        if self._pieces is None:
            self._pieces = self._guarded(streams=True)
        return self._pieces

    def cancel(self) -> None:
        """Stop within one position; what there is becomes the reply ("cancelled"). Any thread may call this."""
        self._cancelled = True
        for answer in self._answers:
            answer.cancel()

    def result(self, watch: Callable[[Generation], None] | None = None) -> Reply:
        """Run to the end and return the reply. watch: called after every position, e.g. for a progress bar."""
        self._watch = watch
        if self._pieces is None:
            self._pieces = self._guarded(streams=False)
        for _ in self._pieces:
            pass
        if self._reply is None:
            raise InputError("generation: expected a run that went to its end, got one that failed; start it again")
        return self._reply

    @property
    def finished(self) -> bool:
        """The reply is complete."""
        return self._reply is not None

    @property
    def failed(self) -> bool:
        """An error ended the run; there will be no reply."""
        return self._failed

    @property
    def heard_s(self) -> float:
        """Seconds of the question that are answered or being answered."""
        return sum(answer.request.heard_s for answer in self._answers)

    @property
    def prompt_ids(self) -> Ids:
        """int32 [K+1, G*P] of the last prompt."""
        return self._answers[-1].request.ids

    @property
    def new_ids(self) -> Ids:
        """int32 [K+1, G*N] generated after it."""
        return self._answers[-1].ids

    def _guarded(self, streams: bool) -> Generator[Piece, None, None]:
        try:
            yield from self._run(streams)
        except BaseException:  # Ctrl-C too
            self._failed = True
            raise

    def _run(self, streams: bool) -> Iterator[Piece]:
        self.clock.start()
        text = ""
        for request in self._requests:
            answer = Answer(self._engine, request, self._options, self._state, len(self._answers))
            self._answers.append(answer)
            before = text
            for piece in answer.pieces(streams, self._count):
                if before and piece.text:
                    piece = replace(piece, text=_joint(before, piece.text) + piece.text)
                    before = ""
                text += piece.text
                self.clock.saw(piece)
                yield piece
            if self._cancelled:
                break
        self._reply = self._whole(text)

    def _count(self, spoken: bool) -> None:
        self.clock.saw_position(spoken)
        self.positions += 1
        if self._cancelled:
            self._answers[-1].cancel()
        if self._watch:
            self._watch(self)

    def _whole(self, text: str) -> Reply:
        """Assemble the reply of all answers; only transcribing has more than one."""
        last = self._answers[-1]
        reasons = ["cancelled"] if self._cancelled else [answer.stop_reason for answer in self._answers]
        audio_s = len(last.audio) / self._engine.facts.rate_hz if last.audio is not None else self.heard_s
        return Reply(
            text=last.parity_text if self._engine.parity else text,
            audio=last.audio,
            codes=last.codes,
            timings=self.clock.timings(audio_s, last.underruns),
            stop_reason=next((reason for reason in reasons if reason != "stop token"), "stop token"),
            thinking=last.thinking,
        )


def _joint(before: str, after: str) -> str:
    """What stands between two transcribed pieces: a space, but nothing next to Chinese or Japanese."""
    return "" if _is_cjk(before[-1]) or _is_cjk(after[0]) else " "


def _is_cjk(character: str) -> bool:
    return any(
        low <= character <= high for low, high in (("\u3000", "\u30ff"), ("\u3400", "\u9fff"), ("\uff00", "\uffef"))
    )
