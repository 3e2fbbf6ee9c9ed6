"""Turn taking: blocks of microphone sound in, turns of a conversation out, each answered into a Loudspeaker.

    waiting -> hearing -> (a pause: encode, prefill, begin to answer, unheard) -> answering -> waiting
                  ^ goes on: nothing was heard of the answer, it is taken back
                  ^ interrupts: the answer stops, what was not heard is taken back, a new turn begins

`TurnTaker.hear` is called with every block by whoever owns the microphone and never waits; one worker thread owns the
conversation. Voice activity, end of turn, wake word and echo cancellation are callables.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mimo_edge._core import InputError
from mimo_edge.audio import Wave
from mimo_edge.conversation import Conversation, Hearing
from mimo_edge.generation import Generation
from mimo_edge.latency import TurnTimes
from mimo_edge.loudspeaker import Loudspeaker
from mimo_edge.voice_activity import Voice

EndOfTurn: TypeAlias = Callable[[float, float], bool]
"""(seconds of speech, seconds of silence since) -> the person has finished. Asked with every silent block."""
WakeWord: TypeAlias = Callable[[Wave, int], bool]
"""(block, rate in Hz) -> the wake word has just ended."""
EchoCanceller: TypeAlias = Callable[[Wave, int, Wave, int], Wave]
"""(block, its rate in Hz, what the loudspeaker played since the last call, its rate) -> the block without the echo."""
Listener: TypeAlias = Callable[[str, str], None]
"""Called with (event, text): hearing, settled, answering, text, interrupted, retracted, done, failed."""

STEP_S = 0.02  # longer blocks are heard in parts


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """Seconds, unless said otherwise.

    threshold: probability from which a block is speech. start_s: speech that opens a turn. preroll_s: sound before it
    that belongs to it. settle_s: pause after which the turn so far is encoded, prefilled and answered, silently; the
    turn's sound ends there. end_s: pause that ends the turn; the answer is played from there on. most_s, least_s:
    longest turn; least speech, or it was a click. barge_s: speech that interrupts an answer. retract_s: an answer of
    which less was played counts as not heard. half_duplex: hear nothing while speaking nor guard_s after it, where
    there is no echo cancellation. awake_s: how long a wake word lasts.
    """

    threshold: float = 0.5
    start_s: float = 0.06
    preroll_s: float = 0.3
    settle_s: float = 0.1
    end_s: float = 0.2
    most_s: float = 30.0
    least_s: float = 0.15
    barge_s: float = 0.1
    retract_s: float = 0.2
    half_duplex: bool = False
    guard_s: float = 0.2
    awake_s: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.settle_s <= self.end_s:
            raise InputError(f"turns: expected 0 < settle_s <= end_s, got {self.settle_s} and {self.end_s}")


class TurnTaker:
    """One person, one conversation, one loudspeaker.

    ends: None = a pause of `options.end_s`. now: the clock of all moments; one that computing does not move makes a
    simulation (`wait` after every block).
    """

    def __init__(
        self,
        conversation: Conversation,
        loudspeaker: Loudspeaker,
        voice: Voice,
        options: TurnOptions | None = None,
        *,
        ends: EndOfTurn | None = None,
        wake_word: WakeWord | None = None,
        echo: EchoCanceller | None = None,
        listener: Listener | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.options = options = options or TurnOptions()
        self.turns: list[TurnTimes] = []
        """What every answered turn took."""
        self.spoken_until: float | None = None
        """When the person really stopped, where that is known (a simulated microphone); None = what `voice` says."""
        self._conversation, self._loudspeaker, self._voice = conversation, loudspeaker, voice
        self._ends = ends or (lambda spoken_s, silent_s: silent_s >= options.end_s)
        self._wake_word, self._echo, self._listener, self._now = wake_word, echo, listener, now
        self._voiced_s = self._spoken_s = self._silent_s = self._heard_s = self._awake_s = self._quiet_s = 0.0
        self._last_voice = 0.0
        self._preroll: deque[tuple[Wave, int]] = deque()
        self._held: list[tuple[Wave, int]] = []
        self._times: TurnTimes | None = None  # of the answer at hand
        self._settled = False
        self._hearing: Hearing | None = None
        self._generation: Generation | None = None
        self._answered = threading.Event()
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._worker = threading.Thread(target=self._run, daemon=True)
        self._worker.start()
        self._wait_for_speech()

    def hear(self, block: Wave, rate_hz: int) -> None:
        """block: float32 [S >= 0], what the microphone has just heard, any length. NaN and infinity are silence.

        Raises InputError for what is no block of sound, and hears nothing of it.
        """
        if block.ndim != 1 or rate_hz < 1:
            raise InputError(f"turns: expected samples [S] at 1 Hz or more, got {list(block.shape)} at {rate_hz} Hz")
        if not np.isfinite(block).all():
            block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
        if self._echo:
            block = self._echo(block, rate_hz, self._loudspeaker.since_last(), self._loudspeaker.rate_hz)
        step = max(1, round(STEP_S * rate_hz))
        for start in range(0, len(block), step):
            self._hear(block[start : start + step], rate_hz)

    def wait(self) -> None:
        """Return when all work that was begun is done."""
        self._work.join()

    def close(self) -> None:
        """Stop speaking and end."""
        self._stop_answer()
        self._work.put(None)
        self._worker.join()

    # on the microphone's thread

    def _hear(self, block: Wave, rate_hz: int) -> None:
        options, block_s = self.options, len(block) / rate_hz
        self._quiet_s = 0.0 if self._loudspeaker.active else self._quiet_s + block_s
        if options.half_duplex and self._quiet_s < options.guard_s and self.state == "answering":
            return
        voiced = self._voice(block, rate_hz) >= options.threshold
        self._voiced_s = self._voiced_s + block_s if voiced else max(0.0, self._voiced_s - block_s)
        if voiced:
            self._last_voice = self._now()
        self._awake_s = max(0.0, self._awake_s - block_s)
        if self._wake_word and self._wake_word(block, rate_hz):
            self._awake_s = options.awake_s
        self._preroll.append((block, rate_hz))
        while sum(len(wave) / rate for wave, rate in self._preroll) > options.preroll_s:
            self._preroll.popleft()
        if self.state == "waiting":
            if self._voiced_s >= options.start_s and (self._wake_word is None or self._awake_s > 0):
                self._open_turn()
        elif self.state == "hearing":
            self._turn_goes_on(block, rate_hz, block_s, voiced)
        elif self._voiced_s >= options.barge_s:
            played_s = self._stop_answer()
            self._work.put(lambda: self._interrupted(played_s))
            self._open_turn()
        elif self._answered.is_set() and not self._loudspeaker.active:
            self._tell("done", self._times.line() if self._times else "")
            self._wait_for_speech()

    def _wait_for_speech(self) -> None:
        """The next turn is prepared while nobody waits: what the conversation has not read yet, it reads now."""
        self.state = "waiting"
        self._work.put(self._begin_turn)

    def _open_turn(self) -> None:
        """Hear a turn from the preroll on."""
        self.state = "hearing"
        self._spoken_s, self._heard_s, self._silent_s, self._settled = self._voiced_s, 0.0, 0.0, False
        self._held, self._times, self.spoken_until = [], None, None
        self._feed(list(self._preroll))
        self._preroll.clear()
        self._tell("hearing")

    def _turn_goes_on(self, block: Wave, rate_hz: int, block_s: float, voiced: bool) -> None:
        options = self.options
        self._heard_s += block_s
        self._silent_s = 0.0 if voiced else self._silent_s + block_s
        self._spoken_s += block_s if voiced else 0.0
        self._held.append((block, rate_hz))
        if voiced and self._times:  # the person goes on
            self._stop_answer()
            self._work.put(self._retract)
            self._times = None
        if voiced or not self._settled:  # after a settled pause, silence is held back: it may not belong to the turn
            self._feed(self._held)
            self._held, self._settled = [], False
        ends = (not voiced and self._ends(self._spoken_s, self._silent_s)) or self._heard_s >= options.most_s
        if not self._settled and (self._silent_s >= options.settle_s or ends):
            self._settled = True
            self._work.put(self._settle)
            if self._spoken_s >= options.least_s:  # else a click
                self._begin_answer()
        if ends:
            self._end_turn()

    def _begin_answer(self) -> None:
        """Answer what was said so far, unheard until the turn is known to be over."""
        self._times = times = TurnTimes(speech_ended=0.0, detected=0.0)
        self._answered.clear()
        epoch = self._loudspeaker.open(times, held=True)
        self._work.put(lambda: self._answer(times, epoch))

    def _end_turn(self) -> None:
        self._voiced_s = 0.0
        if self._times is None:
            self._wait_for_speech()
            return
        self._times.speech_ended = self.spoken_until or self._last_voice
        self._times.detected = self._now()
        self._loudspeaker.release()
        self.state = "answering"

    def _stop_answer(self) -> float:
        played_s = self._loudspeaker.flush()
        generation = self._generation  # read once: the worker may take it away
        if generation:
            generation.cancel()
        return played_s

    def _feed(self, blocks: list[tuple[Wave, int]]) -> None:
        def feed() -> None:
            for block, rate_hz in blocks:
                if self._hearing:
                    self._hearing.feed(block, rate_hz)

        self._work.put(feed)

    # on the worker's thread

    def _run(self) -> None:
        while work := self._work.get():
            try:
                work()
            except Exception as error:  # this turn is lost, whatever went wrong; the conversation goes on as it was
                self._answered.set()
                with contextlib.suppress(Exception):  # the listener itself may be what is broken
                    self._tell("failed", f"{type(error).__name__}: {error}")
            finally:
                self._work.task_done()
        self._work.task_done()  # of the end, so that wait() returns

    def _begin_turn(self) -> None:
        self._hearing = None
        self._hearing = self._conversation.listen(most_s=self.options.most_s)

    def _settle(self) -> None:
        with contextlib.suppress(InputError):  # too little sound so far
            if self._hearing:
                report = self._hearing.settle()
                self._tell("settled", f"{report.heard_s:.1f} s, {report.kept} of {report.positions} positions kept")

    def _answer(self, times: TurnTimes, epoch: int) -> None:
        times.started = self._now()
        self._generation = None
        try:
            self._tell("answering")
            if self._hearing is None:
                raise InputError("turns: expected a conversation that can go on, got one that could not begin a turn")
            self._generation = generation = self._hearing.respond()
            if self._loudspeaker.epoch != epoch:  # interrupted before it began
                generation.cancel()
            with contextlib.closing(iter(generation)) as pieces:  # what fails here ends the generation too
                for piece in pieces:
                    if piece.audio is not None:
                        self._loudspeaker.put(piece.audio, epoch)
                    if piece.text:
                        self._tell("text", piece.text)
            reply = generation.result()
        finally:
            self._loudspeaker.finish(epoch)
            self._answered.set()
        times.settle(self._hearing.report, generation.clock, reply)
        if times.detected or self._loudspeaker.epoch == epoch:  # else it was taken back unheard
            self.turns.append(times)

    def _retract(self) -> None:
        if self._hearing:
            self._hearing.retract()
        self._tell("retracted")

    def _interrupted(self, played_s: float) -> None:
        if self._generation is None or not self._generation.finished:
            self._begin_turn()
        elif played_s < self.options.retract_s and self._hearing:  # nobody heard it: the same turn goes on
            self._retract()
        else:
            self._tell("interrupted", self._conversation.truncate(played_s))
            self._begin_turn()

    def _tell(self, event: str, text: str = "") -> None:
        if self._listener:
            self._listener(event, text)
