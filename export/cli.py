"""`mimo-edge build`: the arguments and the run; mimo_edge.cli calls both."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimo_edge.export.checkpoint import Source
    from mimo_edge.progress import ProgressBar


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge build`."""
    parser.description = "Make a bundle from released checkpoint folders, or from random weights."
    parser.add_argument("lm", metavar="LM_DIR", type=Path, nargs="?", help="folder of MiMo-Audio-7B-* or MiMo-V2.5-ASR")
    parser.add_argument("--codec", metavar="CODEC_DIR", type=Path, help="folder of MiMo-Audio-Tokenizer")
    parser.add_argument("-o", "--out", metavar="BUNDLE", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--dtype", choices=("auto", "bf16", "f32"), default="auto", help="auto keeps the released dtype"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing bundle once the new one is complete"
    )
    parser.add_argument("--random", metavar="SHAPE", help="random weights instead of a checkpoint: 7b or small")
    parser.add_argument("--seed", type=int, default=0, help="seed of --random (default 0)")


def run_build(args: argparse.Namespace) -> int:
    """Build the bundle the arguments ask for and print one line about it. Returns the exit status.

    Raises InputError or BundleError; the caller prints them.
    """
    from mimo_edge.export.bundle_writer import write_bundle
    from mimo_edge.progress import ProgressBar

    checkpoint = _open(args)
    for warning in checkpoint.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    bar: ProgressBar | None = None
    done = 0.0

    def progress(now: float, total: float, name: str) -> None:
        nonlocal bar, done
        if bar is None:
            bar = ProgressBar(total / 1e6, "MB", "build")
        bar.update((now - done) / 1e6)
        done = now

    try:
        write_bundle(checkpoint, args.out, dtype=args.dtype, overwrite=args.overwrite, progress=progress)
    except KeyboardInterrupt:
        print(f"build: interrupted; {args.out} is as it was", file=sys.stderr)
        return 130  # 128 + SIGINT, the shell's convention
    finally:
        if bar is not None:
            bar.close()
    print(_summary(args.out))
    return 0


def _open(args: argparse.Namespace) -> Source:
    from mimo_edge.export.checkpoint import Checkpoint, RandomCheckpoint
    from mimo_edge.export.safetensors_io import input_error

    if args.random is not None:
        if args.lm is not None or args.codec is not None:
            raise input_error("build: expected either folders or --random, got both")
        if args.random not in ("7b", "small"):
            raise input_error(f"build: --random: expected 7b or small, got {args.random!r}")
        return RandomCheckpoint(args.random, args.seed)
    if args.lm is None or args.codec is None:
        raise input_error("build: expected LM_DIR and --codec CODEC_DIR, or --random 7b")
    return Checkpoint.open(args.lm, args.codec)


def _summary(out: Path) -> str:
    bundle = json.loads((out / "bundle.json").read_bytes())
    total = sum(file["bytes"] for file in bundle["files"].values())
    weights = sum(bundle["parameters"].values())
    return f"{out}: {len(bundle['files']) + 1} files, {total:,} bytes, {weights:,} parameters"
