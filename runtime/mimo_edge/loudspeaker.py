"""What is about to be heard: sound goes in as it is made, blocks come out as the device asks, and both sides know how
much has been played."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from mimo_edge.audio import Wave
from mimo_edge.latency import TurnTimes


class Loudspeaker:
    """A queue of sound, one answer at a time, between a worker that speaks and a device that plays."""

    def __init__(self, rate_hz: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.rate_hz, self._now = rate_hz, now
        self.epoch = 0
        """Number of the answer at hand; sound of another is not taken."""
        self.underruns = 0
        self.silenced: list[float] = []
        """Seconds from every flush of an answer to the first block without it."""
        self._lock = threading.Lock()
        self._queue: deque[Wave] = deque()
        self._times: TurnTimes | None = None
        self._played = 0
        self._complete, self._held = True, False
        self._flushed: float | None = None
        self._since: deque[Wave] = deque()

    def open(self, times: TurnTimes | None = None, held: bool = False) -> int:
        """Begin an answer; returns its number. times: gets the moment its first sound is played. held: not before
        `release`."""
        with self._lock:
            self._held = held
            self.epoch += 1
            self._queue.clear()
            self._times, self._played, self._complete = times, 0, False
            return self.epoch

    def release(self) -> None:
        """Play what was held."""
        with self._lock:
            self._held = False

    def put(self, wave: Wave, epoch: int) -> None:
        """wave: float32 [S], the next sound of answer `epoch`."""
        with self._lock:
            if epoch == self.epoch and len(wave):
                self._queue.append(wave)

    def finish(self, epoch: int) -> None:
        """Answer `epoch` is complete: silence after it is no underrun."""
        with self._lock:
            if epoch == self.epoch:
                self._complete = True

    def flush(self) -> float:
        """Be silent from the next block on; returns the seconds of the answer that were played."""
        with self._lock:
            if self._queue and self._played:
                self._flushed = self._now()
            self.epoch += 1
            self._queue.clear()
            self._complete = True
            return self._played / self.rate_hz

    @property
    def active(self) -> bool:
        """There is something to hear, or there will be."""
        with self._lock:
            return bool(self._queue) or not self._complete

    @property
    def played_s(self) -> float:
        """Seconds of the answer at hand that were played."""
        with self._lock:
            return self._played / self.rate_hz

    def take(self, samples: int) -> Wave:
        """Return the next `samples` to play, float32; silence where there is nothing."""
        block = np.zeros(samples, np.float32)
        with self._lock:
            if self._flushed is not None:
                self.silenced.append(self._now() - self._flushed)
                self._flushed = None
            at = 0
            while at < samples and self._queue and not self._held:
                head = self._queue.popleft()
                part = head[: samples - at]
                block[at : at + len(part)] = part
                at += len(part)
                if len(part) < len(head):
                    self._queue.appendleft(head[len(part) :])
            if at and self._played == 0 and self._times:
                self._times.played = self._now()
            if at < samples and self._played and not self._complete:
                self.underruns += 1
            self._played += at
            self._since.append(block)
            while sum(map(len, self._since)) - len(self._since[0]) >= self.rate_hz:
                self._since.popleft()
        return block

    def since_last(self) -> Wave:
        """Return what was played since the last call, at most the last second: an echo canceller's reference."""
        with self._lock:
            played = np.concatenate([np.zeros(0, np.float32), *self._since])
            self._since.clear()
        return played
