"""`mimo-edge listen`: a conversation through microphone and loudspeaker, or with files that play both in real time."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import queue
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile  # type: ignore[import-untyped]

import mimo_edge
from mimo_edge import _core, latency
from mimo_edge._core import InputError
from mimo_edge.audio import Wave, read_audio
from mimo_edge.loudspeaker import Loudspeaker
from mimo_edge.prefix_cache import PrefixCache
from mimo_edge.turns import TurnOptions, TurnTaker
from mimo_edge.voice_activity import VOICES

BLOCK_S = 0.01  # of the microphone and the loudspeaker
LOST_S = 0.2  # after which a microphone that gives nothing is heard as silence
LOUD = 0.02  # a file's speech ends where it is this loud for the last time
GAP_S = 0.6  # of silence before a simulated person speaks
QUIET_DB = -70.0  # of full scale: the noise of a simulated room
NOISE_S = 20  # of noise before it comes again
DEMO_CONTEXT = 160  # positions: the demo bundle was trained on dialogues of at most 200


class FilesAsMicrophone:
    """People who wait for their turn: each file is played once the taker waits, or into an answer.

    minutes: how long the files are played over and over, None = each once. interrupt_s: seconds of an answer after
    which every second file begins, None = nobody interrupts. noise_db: of the room, dB of full scale.
    """

    def __init__(
        self,
        waves: list[Wave],
        rate_hz: int,
        minutes: float | None = None,
        interrupt_s: float | None = None,
        noise_db: float = QUIET_DB,
    ) -> None:
        self._waves, self._rate_hz, self._minutes, self._interrupt_s = waves, rate_hz, minutes, interrupt_s
        self._noise, self._at = _pink(NOISE_S * rate_hz) * np.float32(10 ** (noise_db / 20)), 0
        self.said = 0
        """Files that were played."""
        self.cut_off = 0
        """Of them, those that were answered before they had ended."""

    def blocks(self, taker: TurnTaker, loudspeaker: Loudspeaker, now: Callable[[], float]) -> Iterator[Wave]:
        """Yield blocks [BLOCK_S] until the last file has been answered."""
        size, started = round(BLOCK_S * self._rate_hz), now()
        while self._goes_on(now() - started):
            wave = self._waves[self.said % len(self._waves)]
            interrupts = self._interrupt_s is not None and self.said % 2 == 1
            self.said += 1
            quiet_s = 0.0
            while quiet_s < GAP_S:
                yield self._silence(size)
                if interrupts and taker.state == "answering" and loudspeaker.played_s >= (self._interrupt_s or 0):
                    break
                quiet_s = quiet_s + BLOCK_S if taker.state == "waiting" else 0.0
            loud = np.flatnonzero(np.abs(wave) > LOUD)
            last = int(loud[-1]) if len(loud) else len(wave) - 1
            heard = cut_off = False
            for start in range(0, len(wave), size):
                block = self._silence(size)
                part = wave[start : start + size]
                block[: len(part)] += part
                yield block
                if start <= last < start + size:
                    taker.spoken_until = now() - (start + size - last) / self._rate_hz
                heard = heard or taker.state == "hearing"
                cut_off = cut_off or (heard and start + size <= last and taker.state == "answering")
            self.cut_off += cut_off
        while taker.state != "waiting":
            yield self._silence(size)

    def _goes_on(self, seconds: float) -> bool:
        return self.said < len(self._waves) if self._minutes is None else seconds < 60 * self._minutes

    def _silence(self, size: int) -> Wave:
        self._at = (self._at + size) % (len(self._noise) - size)
        noise: Wave = self._noise[self._at : self._at + size].copy()
        return noise


def _pink(samples: int) -> Wave:
    """Noise with as much power in every octave above 20 Hz as in any other, float32 [samples], mean power 1."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(size=samples))
    spectrum[1:] /= np.sqrt(np.maximum(np.arange(1, len(spectrum)), 20 * NOISE_S))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    noise_0_db: Wave = (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
    return noise_0_db


class RealTime:
    """The clock of a device: a block comes when it is due."""

    def __init__(self) -> None:
        self.late_s = 0.0
        """How late a block was at most."""

    now = staticmethod(time.perf_counter)

    def wait_until(self, due: float, taker: TurnTaker) -> None:
        time.sleep(max(0.0, due - self.now()))
        self.late_s = max(self.late_s, self.now() - due)


class FastTime:
    """The clock of a simulation: a block comes when all that the one before began is done, and that took no time."""

    def __init__(self) -> None:
        self.late_s, self._now = 0.0, 0.0

    def now(self) -> float:
        return self._now

    def wait_until(self, due: float, taker: TurnTaker) -> None:
        taker.wait()
        self._now = due


def run_files(
    microphone: FilesAsMicrophone,
    taker: TurnTaker,
    loudspeaker: Loudspeaker,
    rate_hz: int,
    clock: RealTime | FastTime,
    out: Path | None = None,
) -> None:
    """Play microphone and loudspeaker, what the loudspeaker plays into `out`."""
    started = clock.now()
    with contextlib.ExitStack() as stack:
        file = out and stack.enter_context(soundfile.SoundFile(out, "w", loudspeaker.rate_hz, 1, "PCM_16"))
        for count, block in enumerate(microphone.blocks(taker, loudspeaker, clock.now), start=1):
            clock.wait_until(started + count * BLOCK_S, taker)
            played = loudspeaker.take(round(BLOCK_S * loudspeaker.rate_hz))
            if file:
                file.write(np.clip(played, -1.0, 1.0))
            taker.hear(block, rate_hz)


def run_devices(taker: TurnTaker, loudspeaker: Loudspeaker, rate_hz: int) -> None:
    """Talk until Ctrl-C, or until the device ends (pip install sounddevice)."""
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except (ImportError, OSError) as error:  # OSError: the package without PortAudio
        raise InputError(f"listen: expected sounddevice with PortAudio, got: {error}; or use --simulate") from error
    heard: queue.SimpleQueue[Wave] = queue.SimpleQueue()

    def block(into: Any, out: Any, frames: int, when: Any, status: Any) -> None:
        heard.put(into[:, 0].copy())
        out[:, 0] = loudspeaker.take(frames)

    size = round(BLOCK_S * rate_hz)
    with sounddevice.Stream(samplerate=rate_hz, blocksize=size, channels=1, dtype="float32", callback=block) as stream:
        while stream.active or not heard.empty():
            try:
                taker.hear(heard.get(timeout=LOST_S), rate_hz)
            except queue.Empty:  # the microphone hangs; whoever spoke is answered all the same
                taker.hear(np.zeros(round(LOST_S * rate_hz), np.float32), rate_hz)


def run(arguments: argparse.Namespace) -> int:
    """Open the bundle, talk, report."""
    from mimo_edge.commands import (  # which the command line imports beside this module
        open_model,
        options_of,
        print_json,
    )

    for name in ("fast", "minutes", "interrupt", "out"):
        if getattr(arguments, name) and not arguments.simulate:
            raise InputError(f"listen: expected --simulate FILE with --{name}, got a microphone")
    model = open_model(arguments)
    waves = [_resampled(path, arguments.rate) for path in arguments.simulate or ()]
    talk = model.conversation(
        system=arguments.system, voice=arguments.voice, cache=PrefixCache(arguments.cache),
        context=arguments.context or (0 if arguments.bundle else DEMO_CONTEXT),
        options=options_of(model, "spoken_dialogue", arguments),
    )  # fmt: skip
    _warm_up(talk)
    clock = FastTime() if arguments.fast else RealTime()
    loudspeaker = Loudspeaker(model.rate_hz, clock.now)
    files = FilesAsMicrophone(waves, arguments.rate, arguments.minutes, arguments.interrupt, arguments.noise)
    show = _Show(files if arguments.simulate else None, quiet=arguments.json)
    turn_options = TurnOptions(end_s=arguments.end, half_duplex=arguments.half_duplex)
    taker = TurnTaker(
        talk, loudspeaker, VOICES[arguments.detector](), turn_options, listener=show, now=clock.now
    )  # fmt: skip
    taker.wait()
    started, cpu = time.perf_counter(), time.process_time()
    try:
        if arguments.simulate:
            run_files(files, taker, loudspeaker, arguments.rate, clock, arguments.out)
        else:
            run_devices(taker, loudspeaker, model.rate_hz)
    except KeyboardInterrupt:
        pass
    finally:
        taker.close()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    report = latency.summarise(taker.turns, loudspeaker.underruns, loudspeaker.silenced, wall_s, cpu_s)
    report |= {"detector": arguments.detector, "latest_block_ms": round(1000 * clock.late_s, 1)}
    if arguments.simulate:
        report |= {"said": files.said, "cut_off": files.cut_off}
    if arguments.fast:
        detect = {name: row for name, row in report["latency_ms"].items() if name == "detect"}  # the rest takes no time
        report |= {"latency_ms": detect, "cancel_to_silence_ms": [], "simulated_s": round(clock.now(), 1)}
    if arguments.report:
        latency.write(arguments.report, report, taker.turns)
    if arguments.plot:
        latency.plot(arguments.plot, taker.turns)
    if arguments.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    print("\n" + latency.table(report))
    rest = {name: value for name, value in report.items() if name != "latency_ms"}
    print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in rest.items()))


def _warm_up(talk: mimo_edge.Conversation) -> None:
    """Touch every weight once: the first turn is as fast as the others."""
    hearing = talk.listen()
    hearing.feed(np.zeros(24000, np.float32), 24000)
    for piece in (generation := hearing.respond()):
        if piece.audio is not None:
            generation.cancel()
    talk.forget()


def _resampled(path: str, rate_hz: int) -> Wave:
    wave, its_hz = read_audio(path)
    return _core.resample(wave, its_hz, rate_hz)


class _Show:
    """State, transcript and latency of every turn as they come: text on standard output, the rest on standard error.

    quiet: only how far a simulation has come, at every tenth turn.
    """

    def __init__(self, files: FilesAsMicrophone | None, quiet: bool) -> None:
        self._files, self._quiet, self._turns = files, quiet, 0

    def __call__(self, event: str, text: str) -> None:
        if event == "hearing":
            self._turns += 1
            text = f"turn {self._turns}" + (f", file {self._files.said}" if self._files else "")
        if self._quiet:
            if event == "hearing" and self._turns % 10 == 1:
                print(f"[{event}] {text}", file=sys.stderr, flush=True)
        elif event == "text":
            print(text, end="", flush=True)
        else:
            print(f"\n[{event}] {text}".rstrip(), file=sys.stderr, flush=True)
