"""What each sub-command does: open the bundle, call one method of Model, write what comes back.

Results go to standard output or the named file, progress and timings to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import mimo_edge
from mimo_edge._core import InputError, Sampling
from mimo_edge.audio import open_audio, replace_file, write_wav
from mimo_edge.dump import Dump
from mimo_edge.generation import Generation
from mimo_edge.model import Example, Model
from mimo_edge.prefix_cache import PrefixCache
from mimo_edge.progress import ProgressBar
from mimo_edge.reply import Codes, Reply
from mimo_edge.request import Options

ENDINGS = {"max_length": "--max-new-tokens or a full context", "guard": "the runaway guard", "cancelled": "Ctrl-C"}


def demo(arguments: argparse.Namespace) -> int:
    """Hear a command, answer it in text and voice."""
    model = open_model(arguments)
    command = arguments.audio or str(mimo_edge.demo_command())
    arguments.stream = True  # the point of the demo is how soon it speaks
    _say(arguments, "heard:    ")
    heard = _finish(model.transcribe(command, options=options_of(model, "asr", arguments)), "listening", arguments)
    _stop_if_cancelled(heard)
    _say(arguments, "answered: ")
    generation = model.respond(command, options=options_of(model, "spoken_dialogue", arguments))
    answered = _finish(generation, "answering", arguments)
    facts = {"heard": heard.text, **_keep(arguments, model, answered)}
    if arguments.json:
        print_json(facts)
    elif model.config.get("trained") is False:
        print("note: this bundle holds random weights, so the words are chance and the voice is noise")
    _stop_if_cancelled(answered)
    return int(_owes_sound(arguments, answered))


def build(arguments: argparse.Namespace) -> int:
    """Make a bundle."""
    return int(importlib.import_module("mimo_edge.export.cli").run_build(arguments))  # a room of its own


def verify(arguments: argparse.Namespace) -> int:
    """Compare every stage with goldens."""
    from mimo_edge.verify import run_verify  # needs nothing at run time of the other commands

    return run_verify(arguments)


def bench(arguments: argparse.Namespace) -> int:
    """Measure the speed of the stages."""
    from mimo_edge.bench import run_bench  # needs nothing at run time of the other commands

    return run_bench(arguments)


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a bundle holds; opening it has checked it."""
    path = Path(arguments.bundle) if arguments.bundle else mimo_edge.demo_bundle()
    with ProgressBar(None, "", "checking"):
        config = mimo_edge.load(path, check=arguments.check).config
    if arguments.json:
        print_json(config)
        return 0
    print(f"{config['name']}: {config['variant']} model, {config['format']} revision {config['revision']}")
    print(f"folder     {path}\nmade by    {config['producer']}")
    _print_parameters(config["parameters"])
    _print_sizes("codec", config["codec"])
    _print_sizes("lm", config["lm"])
    print("tokens     " + "  ".join(f"{name} {id}" for name, id in config["tokens"].items()))
    for name, file in config["files"].items():
        print(f"file       {name:<20} {file['bytes']:>14,} bytes  sha256 {file['sha256']}")
    for part, source in config["provenance"].items():
        print(f"from       {part}: {source['folder']}, {len(source['files'])} files")
    print("checked    " + ("every file's sha256" if arguments.check else "sizes, tensors, sha256 of small files"))
    return 0


def calibrate(arguments: argparse.Namespace) -> int:
    """Store in a bundle what the codec decoder's norms see in typical speech, for streamed voices to begin with."""
    path = Path(arguments.bundle) / "bundle.json"
    model = mimo_edge.load(arguments.bundle, threads=arguments.threads)
    measured, seconds = [], []
    recordings = [open_audio(audio) for audio in arguments.audio]
    with ProgressBar(sum(r.seconds for r in recordings), "s", "measuring") as bar:
        for recording in recordings:
            for wave in model.engine.pieces(recording):
                codes = model.engine.codes(wave)[: model.engine.facts.levels]
                measured.append(model.engine.core.measure_norms(np.ascontiguousarray(codes)))
                seconds.append(len(wave) / model.rate_hz)
                bar.update(seconds[-1])
    moments = np.asarray(measured)  # [pieces, 2 norms, mean and variance]
    mean = np.average(moments[:, :, 0], axis=0, weights=seconds)
    square = np.average(moments[:, :, 1] + moments[:, :, 0] ** 2, axis=0, weights=seconds)
    norms = np.stack([mean, square - mean**2], axis=1).tolist()
    facts = {**model.config, "decoder_norms": norms}
    replace_file(path, (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode())
    if arguments.json:
        print_json(norms)
    else:
        print(f"calibrated {path} from {sum(seconds):.0f} s of speech")
    return 0


def transcribe(arguments: argparse.Namespace) -> int:
    """Write down what is said, file by file."""
    recordings = [(audio, open_audio(audio)) for audio in arguments.audio]  # a wrong one is told before the work
    model = open_model(arguments)
    options = options_of(model, "asr", arguments)
    several = len(recordings) > 1
    lines, results = [], []
    try:
        for audio, recording in recordings:
            _say(arguments, f"{audio}: " if several else "")
            generation = model.transcribe(audio, template=arguments.template, options=options)
            reply = _finish(generation, f"transcribing {audio}", arguments, recording.seconds)
            lines.append(f"{audio}: {reply.text}" if several else reply.text)
            results.append({"file": audio, **_facts(reply)})
            if not arguments.out and not arguments.json and not arguments.stream:
                print(lines[-1], flush=True)
            _report(reply)
            _stop_if_cancelled(reply)
    finally:  # whatever ends the work, what was written down is kept
        if lines and arguments.out:
            replace_file(arguments.out, ("\n".join(lines) + "\n").encode())
        if lines and arguments.json:
            print_json(results if several else results[0])
    return 0


def understand(arguments: argparse.Namespace) -> int:
    """Answer a question about a recording."""
    model = open_model(arguments)
    options = options_of(model, "audio_understanding", arguments)
    generation = model.understand(arguments.audio, arguments.question, thinking=arguments.thinking, options=options)
    return _deliver(arguments, model, _finish(generation, "listening", arguments))


def text(arguments: argparse.Namespace) -> int:
    """Write with the model: one message, or line by line on a terminal."""
    model = open_model(arguments)
    conversation = model.conversation(
        system=arguments.system,
        speaks=False,
        thinking=arguments.thinking,
        options=options_of(model, "text_chat", arguments),
    )
    interactive = arguments.message is None and sys.stdin.isatty()
    message = arguments.message if arguments.message is not None else "" if interactive else _standard_input()
    while interactive or message:
        if interactive and not (message := _ask()):
            return 0
        generation = conversation.respond(text=message)
        _deliver(arguments, model, _finish(generation, "thinking", arguments))
        if not interactive:
            return 0
    raise InputError("text: expected a message, got none")


def speak(arguments: argparse.Namespace) -> int:
    """Read text aloud."""
    model = open_model(arguments)
    generation = model.speak(
        _standard_input() if arguments.text == "-" else arguments.text,
        instruct=arguments.instruct,
        voice=arguments.voice,
        natural=arguments.natural,
        template=arguments.template,
        cache=PrefixCache(arguments.cache) if arguments.cache else None,
        options=options_of(model, "tts", arguments),
    )
    return _deliver(arguments, model, _finish(generation, "speaking", arguments))


def chat(arguments: argparse.Namespace) -> int:
    """Talk: every file is a turn."""
    model = open_model(arguments)
    task = "speech_to_text" if arguments.text_out else "spoken_dialogue"
    if arguments.thinking and not arguments.text_out:
        raise InputError("chat: expected --thinking together with --text-out; spoken answers do not think first")
    conversation = model.conversation(
        system=arguments.system,
        voice=arguments.voice,
        speaks=not arguments.text_out,
        thinking=arguments.thinking,
        options=options_of(model, task, arguments),
    )
    for audio in arguments.audio:
        model.engine.open_prompt_audio(audio)  # a wrong one is told before the work
    out: Path = arguments.out
    several, results, status = len(arguments.audio) > 1, [], 0
    try:
        for turn, audio in enumerate(arguments.audio, start=1):
            if several:
                arguments.out = out.with_name(f"{out.stem}-{turn}{out.suffix}")
            reply = _finish(conversation.respond(audio), f"answering {audio}", arguments)
            _print_text(arguments, reply)
            results.append({"file": audio, **_keep(arguments, model, reply)})
            status |= _owes_sound(arguments, reply)
            _stop_if_cancelled(reply)
    finally:
        if results and arguments.json:
            print_json(results if several else results[0])
    return status


def convert(arguments: argparse.Namespace) -> int:
    """Do to a recording what examples show."""
    model = open_model(arguments)
    examples = [Example(source, words, target) for source, words, target in arguments.example]
    options = options_of(model, "in_context", arguments)
    generation = model.convert(arguments.audio, examples, arguments.instruction, options=options)
    return _deliver(arguments, model, _finish(generation, "converting", arguments))


def continue_speech(arguments: argparse.Namespace) -> int:
    """Go on speaking where a recording stops."""
    model = open_model(arguments)
    options = options_of(model, "continuation", arguments)
    generation = model.continue_speech(arguments.audio, seconds=arguments.seconds, options=options)
    return _deliver(arguments, model, _finish(generation, "speaking", arguments))


def encode(arguments: argparse.Namespace) -> int:
    """Turn sound into codes."""
    model = open_model(arguments)
    with ProgressBar(None, "", "encoding"):
        codes = model.encode(arguments.audio)
    buffer = io.BytesIO()
    np.save(buffer, codes)
    replace_file(arguments.out, buffer.getvalue())
    _print_made(arguments, {"levels": codes.shape[0], "frames": codes.shape[1]})
    return 0


def decode(arguments: argparse.Namespace) -> int:
    """Turn codes back into sound."""
    codes = _read_codes(Path(arguments.codes))
    if arguments.levels and arguments.levels > len(codes):
        raise InputError(f"decode: expected --levels of at most {len(codes)}, which {arguments.codes} has")
    codes = codes[: arguments.levels]
    model = open_model(arguments)
    with ProgressBar(None, "", "decoding"):
        wave = model.decode(codes)
    write_wav(arguments.out, wave, model.rate_hz)
    _print_made(arguments, {"samples": len(wave), "seconds": round(len(wave) / model.rate_hz, 3)})
    return 0


def open_model(arguments: argparse.Namespace) -> Model:
    tap = Dump(arguments.dump) if arguments.dump else None
    parity = getattr(arguments, "parity", False)
    with ProgressBar(None, "", "opening the bundle"):
        return mimo_edge.load(
            arguments.bundle, threads=arguments.threads, parity=parity, tap=tap, device=arguments.device,
            backend=arguments.backend, providers=arguments.provider, graphs=arguments.graphs,
        )  # fmt: skip


def options_of(model: Model, task: str, arguments: argparse.Namespace) -> Options:
    """The command line's wishes, over the samplers of the task."""
    limits = {"seed": arguments.seed, "max_new_tokens": arguments.max_new_tokens, "look_ahead": arguments.look_ahead}
    drawn = arguments.temperature is not None or arguments.top_p is not None
    if arguments.greedy and drawn:
        raise InputError("expected either --greedy or --temperature and --top-p, got both")
    if arguments.greedy:
        return Options(text_sampling=Sampling(False), speech_sampling=Sampling(False), **limits)
    if not drawn:
        return Options(**limits)
    text = model.engine.core.task(task)[0]
    temperature = text.temperature if arguments.temperature is None else arguments.temperature
    top_p = text.top_p if arguments.top_p is None else arguments.top_p
    return Options(text_sampling=Sampling(True, temperature, text.top_k, top_p), **limits)


def _finish(generation: Generation, label: str, arguments: argparse.Namespace, total_s: float | None = None) -> Reply:
    """Run to the end, with the text as it comes (--stream) or a progress bar.

    The first Ctrl-C ends the answer with what there is of it, to be delivered; the second ends the command at once.
    total_s: length of the input where progress is measured in it, None to count positions.
    """
    with _interrupt_cancels(generation):
        return _run(generation, label, arguments, total_s)


@contextmanager
def _interrupt_cancels(generation: Generation) -> Iterator[None]:
    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        generation.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop_if_cancelled(reply: Reply) -> None:
    """Go on as Ctrl-C does, now that what there is has been delivered."""
    if reply.stop_reason == "cancelled":
        raise KeyboardInterrupt


def _run(generation: Generation, label: str, arguments: argparse.Namespace, total_s: float | None) -> Reply:
    if arguments.stream and not arguments.json:
        for piece in generation:
            print(piece.text, end="", flush=True)
        print()
        return generation.result()
    with ProgressBar(total_s, "s" if total_s else "positions", label) as bar:

        def watch(running: Generation) -> None:
            bar.update((running.heard_s if total_s else running.positions) - bar.done)

        for _ in generation if arguments.stream else ():
            watch(generation)
        return generation.result(watch)


def _deliver(arguments: argparse.Namespace, model: Model, reply: Reply) -> int:
    """Print what was said, keep the sound, report the timings. 0, or 1 where sound was asked for and none came."""
    _print_text(arguments, reply)
    facts = _keep(arguments, model, reply)
    if arguments.json:
        print_json(facts)
    _stop_if_cancelled(reply)
    return int(_owes_sound(arguments, reply))


def _keep(arguments: argparse.Namespace, model: Model, reply: Reply) -> dict[str, Any]:
    """Write the sound, if any, and report the timings; returns what --json shows."""
    facts, note = _facts(reply), None
    if reply.audio is not None:
        write_wav(arguments.out, reply.audio, model.rate_hz)
        facts["out"] = str(arguments.out)
        note = f"wrote {arguments.out}"
    elif _owes_sound(arguments, reply):
        note = f"no sound came, {arguments.out} was not written"
    _report(reply, note)
    return facts


def _owes_sound(arguments: argparse.Namespace, reply: Reply) -> bool:
    return reply.audio is None and hasattr(arguments, "out") and not getattr(arguments, "text_out", False)


def _print_text(arguments: argparse.Namespace, reply: Reply) -> None:
    """Print the reply unless it was shown as it came, or JSON follows; a sound without words prints nothing."""
    if not arguments.json and not arguments.stream and (reply.text or reply.audio is None):
        print(reply.text)


def _say(arguments: argparse.Namespace, label: str) -> None:
    """Print what stands before text that is shown as it comes."""
    if arguments.stream and not arguments.json:
        print(label, end="", flush=True)


def _facts(reply: Reply) -> dict[str, Any]:
    facts: dict[str, Any] = {"text": reply.text, "stop_reason": reply.stop_reason}
    if reply.thinking is not None:
        facts["thinking"] = reply.thinking
    timings = {**asdict(reply.timings), "rtf": reply.timings.rtf}
    return {**facts, "timings": {name: None if s is None else round(s, 4) for name, s in timings.items()}}


def _report(reply: Reply, note: str | None = None) -> None:
    """One line on standard error: how long it took, against how much sound, and what became of the sound."""
    t = reply.timings
    parts = [f"done in {t.total_s:.2f} s" if t.rtf is None else f"{t.audio_s:.2f} s of sound in {t.total_s:.2f} s"]
    if t.rtf is not None:
        parts.append(f"RTF {t.rtf:.3f}")
    if t.first_audio_s is not None:
        parts.append(f"first sound after {t.first_audio_s:.2f} s")
        if t.underruns:
            parts.append(f"{t.underruns} underruns")
    elif t.first_text_s is not None:
        parts.append(f"first text after {t.first_text_s:.2f} s")
    if reply.stop_reason != "stop token":
        parts.append(f"ended by {ENDINGS.get(reply.stop_reason, reply.stop_reason)}")
    if note:
        parts.append(note)
    print(", ".join(parts), file=sys.stderr)


def _print_made(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    if arguments.json:
        print_json({"out": str(arguments.out), **facts})
    else:
        print(f"wrote {arguments.out}: " + ", ".join(f"{value} {name}" for name, value in facts.items()))


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=1)
    print()


def _print_parameters(parameters: dict[str, int]) -> None:
    print(f"parameters {_short_count(sum(parameters.values()))} in all")
    for part, count in parameters.items():
        print(f"           {part.replace('_', ' '):<16} {_short_count(count):>8}  {count:>14,}")


def _print_sizes(part: str, sizes: dict[str, Any]) -> None:
    text = "  ".join(f"{name} {_plain(value)}" for name, value in sizes.items())
    print(textwrap.fill(f"{part:<10} {text}", width=110, subsequent_indent=" " * 11))


def _short_count(count: int) -> str:
    """6379560960 -> 6.38 B: three digits and the unit."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return str(count)


def _plain(value: Any) -> str:
    """Lists without blanks, so that a line breaks between names only."""
    return str(value).replace(" ", "")


def _ask() -> str:
    try:
        return input("> ")
    except EOFError:
        print()
        return ""


def _standard_input() -> str:
    try:
        (text := sys.stdin.read()).encode()
    except UnicodeError as error:
        raise InputError("expected text in UTF-8 on standard input, got other bytes") from error
    return text


def _read_codes(path: Path) -> Codes:
    try:
        codes = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"decode: expected an .npy file of codes, got {path}: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"decode: expected an .npy file of codes, got something else in {path}") from error
    if not isinstance(codes, np.ndarray) or codes.ndim == 0:
        raise InputError(f"decode: expected an .npy file of codes, got something else in {path}")
    return codes
