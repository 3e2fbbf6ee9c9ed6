"""Every stage of the core against a folder of golden arrays, made by the public reference.

    mimo-edge verify GOLDENS_DIR

builds a bundle from the folder's own lm/ and tokenizer_model/, compares, and prints a line a stage. It reads shapes,
names, ids and kinds of runs from the folder, so it works for any folder of that layout.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

from mimo_edge._core import InputError
from mimo_edge.hardware import open_core
from mimo_edge.progress import ProgressBar
from mimo_edge.verify.codec import check_decoder, check_encoder, check_frontend, check_lengths, check_streaming
from mimo_edge.verify.goldens import Check, Goldens, StageReport
from mimo_edge.verify.lm import check_forward, check_generations, check_informational, check_postprocess
from mimo_edge.verify.sampler import check_sampler
from mimo_edge.verify.stages import CoreStages, Stages
from mimo_edge.verify.text import check_prompts, check_tokenizer

__all__ = ["CoreStages", "StageReport", "Stages", "run_verify", "verify"]

CHECKS: list[Callable[[Stages, Goldens, Check], None]] = [
    check_lengths,
    check_frontend,
    check_encoder,
    check_decoder,
    check_streaming,
    check_tokenizer,
    check_prompts,
    check_forward,
    check_sampler,
    check_generations,
    check_postprocess,
    check_informational,
]


def verify(stages: Stages, goldens: Path, progress: Callable[[str], None] | None = None) -> list[StageReport]:
    """Compare every array of a goldens folder. Returns a report a stage, the ledger of arrays last.

    progress: called with the name of each part before it is checked. What raises counts as failed and the rest goes on.
    """
    folder = Goldens(goldens)
    check = Check(folder, getattr(stages, "sees_inside", True))
    for part in CHECKS:
        name = part.__name__.removeprefix("check_")
        if progress:
            progress(name)
        with check.attempt(name):
            part(stages, folder, check)
    return list(check.reports())


def run_verify(arguments: argparse.Namespace) -> int:
    """`mimo-edge verify`: 0 if every stage passed, 1 else. arguments: goldens, threads, device, kernels, json."""
    goldens = Path(arguments.goldens)
    for part in ("lm", "tokenizer_model"):
        if not (goldens / part).is_dir():
            raise InputError(f"verify: expected a goldens folder with {part}/, got {goldens}")
    with tempfile.TemporaryDirectory(prefix="mimo-edge-verify-") as scratch:
        bundle = build_bundle(goldens, Path(scratch) / "bundle")
        graphs = arguments.graphs
        if arguments.backend != "native" and graphs is None:
            graphs = Path(scratch) / "graphs"
            writer = importlib.import_module("mimo_edge.export.onnx.writer")
            writer.export_onnx(bundle, graphs, flavours=("opset24", "cpu"))
        core = open_core(
            bundle, arguments.backend, arguments.provider, graphs,
            arguments.threads, True, arguments.device, arguments.kernels,
        )  # fmt: skip
        stages = CoreStages(core, sees_inside=arguments.backend == "native" and arguments.device == "cpu")
        with ProgressBar(len(CHECKS), "parts", "verifying") as bar:
            reports = verify(cast(Stages, stages), goldens, lambda _: bar.update(1))
    _print(reports, arguments.json)
    return 0 if all(report.passed for report in reports) else 1


def build_bundle(goldens: Path, bundle: Path) -> Path:
    """Build a bundle from the checkpoint inside a goldens folder, as `mimo-edge build` does."""
    build = importlib.import_module("mimo_edge.export.cli")  # not at the top: the runtime does not depend on export
    parser = argparse.ArgumentParser()
    build.add_build_arguments(parser)
    parts = [str(goldens / "lm"), "--codec", str(goldens / "tokenizer_model"), "-o", str(bundle)]
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the reports
        failed = build.run_build(parser.parse_args(parts))
    if failed:
        raise InputError(f"verify: expected a checkpoint in {goldens}, got one that cannot be built")
    return bundle


def _print(reports: list[StageReport], as_json: bool) -> None:
    fields = ("name", "compared", "error", "limit", "passed", "note")
    if as_json:
        json.dump([{name: getattr(report, name) for name in fields} for report in reports], sys.stdout, indent=1)
        print()
        return
    for report in reports:
        print(report)
    failed = [report.name for report in reports if not report.passed]
    values = sum(report.compared for report in reports[:-1])
    print(f"{len(reports) - len(failed)} of {len(reports)} stages passed, {values} values compared")
    if failed:
        print(f"failed: {', '.join(failed)}")
