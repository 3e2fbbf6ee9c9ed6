"""`mimo-edge quantize`, `evaluate` and `plan`: the arguments and the runs; mimo_edge.cli calls them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mimo_edge
from mimo_edge.audio import replace_file
from mimo_edge.cli import output_file
from mimo_edge.export.bundle import Bundle
from mimo_edge.export.random_checkpoint import released_config
from mimo_edge.progress import ProgressBar
from mimo_edge.quantize.calibration import Calibration
from mimo_edge.quantize.conversations import Clip, recorded_clips, shipped_clips
from mimo_edge.quantize.evaluate import Report, evaluate
from mimo_edge.quantize.judge import Judge
from mimo_edge.quantize.plan import EFFICIENCY, THIS, Device, advice, device, devices, needs
from mimo_edge.quantize.quantizer import amend, check_request, quantize
from mimo_edge.quantize.recipe import Recipe, recipe_names
from mimo_edge.quantize.sensitivity import damage

_RTF = (("speech", False), ("with_text", True))


def add_quantize_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge quantize`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder made by mimo-edge build, in floats")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--recipe", default="edge", metavar="NAME", help=f"{', '.join(recipe_names())}, or a .json file"
    )
    parser.add_argument("--calibrate", metavar="FILE", type=Path, nargs="+", default=[],
                        help="recordings to calibrate with (default: those of the package)")  # fmt: skip
    parser.add_argument("--no-calibration", action="store_true", help="round to nearest whatever the recipe says")
    parser.add_argument("--no-check", action="store_true", help="do not measure the result")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle once the new one is complete")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="cores to use (default: all)")


def run_quantize(args: argparse.Namespace) -> int:
    """Quantise, measure, and say what came of it: 0 if every gate that was measured is passed, 1 else."""
    bundle, recipe, started = Bundle.open(args.bundle, "quantize"), Recipe.read(args.recipe), time.monotonic()
    check_request(bundle, args.out, args.overwrite)
    recipe = recipe.of_model(bundle.config)
    if idle := recipe.idle(bundle):
        print(f"note: recipe {recipe.name}: no matrix of {args.bundle} follows: {', '.join(idle)}", file=sys.stderr)
    with ProgressBar(sum(f["bytes"] for f in bundle.config["files"].values()) / 1e6, "MB", "reading") as bar:
        bundle.check("quantize", lambda count: bar.update(count / 1e6))
    trained = bundle.config.get("trained") is not False
    wants = recipe.method == "gptq" or recipe.smooth is not None or recipe.static
    listens = wants and not args.no_calibration and (trained or bool(args.calibrate))
    if wants and not listens:
        less = ", nothing is smoothed, graphs round no inputs" if recipe.smooth or recipe.static else ""
        print(f"note: no calibration: every matrix is rounded to nearest{less}", file=sys.stderr)
    original = mimo_edge.load(args.bundle, threads=args.threads) if listens or (trained and not args.no_check) else None
    wanted = [name for part in bundle.parts.values() for name, shape in part.shapes.items()
              if recipe.rule(name, shape).weights != "float"]  # fmt: skip
    with Calibration(wanted) as calibration:
        facts = None
        if listens and original is not None:
            clips = recorded_clips(original, args.calibrate) if args.calibrate else shipped_clips(original, "calibrate")
            with ProgressBar(3 * len(clips), "conversations", "calibrating") as bar:
                calibration.hear(original, clips, lambda _: bar.update(1))
            facts = {"clips": [clip.name for clip in clips], "conversations": calibration.conversations}
        with ProgressBar(None, "M weights", "quantizing") as bar:

            def progress(done: float, total: float, name: str) -> None:
                bar.total = total / 1e6
                bar.update(done / 1e6 - bar.done)

            config = quantize(bundle, recipe, args.out, heard=calibration, calibration=facts,
                              overwrite=args.overwrite, progress=progress)  # fmt: skip
    before, after = (sum(f["bytes"] for f in c["files"].values()) for c in (bundle.config, config))
    print(f"{args.out}: recipe {recipe.name}, {before:,} -> {after:,} bytes, {time.monotonic() - started:.0f} s")
    if args.no_check or original is None or not trained:
        why = "asked not to" if args.no_check else "the weights are random"
        print(f"not measured ({why}): run `mimo-edge evaluate {args.out} --against {args.bundle}` before shipping it")
        return 0
    model = mimo_edge.load(args.out, threads=args.threads)
    clips = shipped_clips(original, "evaluate")
    with _bar("checking") as say:
        report = evaluate(model, original, clips, free=False, progress=say)
    amend(args.out, {"report": report.as_json(recipe.gates)})
    return _verdict(report, recipe.gates, args.out)


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge evaluate`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--against", metavar="BUNDLE0", type=Path, help="the bundle it was made from")
    parser.add_argument("--recipe", metavar="NAME", help="whose gates count (default: the bundle's own)")
    parser.add_argument("--backend", choices=("native", "onnxruntime"), default="native", help="who computes BUNDLE")
    parser.add_argument("--graphs", metavar="DIR", help="of export-onnx (default: onnx in the bundle)")
    parser.add_argument("--clips", metavar="FILE", type=Path, nargs="+", default=[],
                        help="measure with these, x.txt says what x.wav does (default: the package's)")  # fmt: skip
    parser.add_argument("--forced-only", action="store_true", help="leave out what it writes and says by itself")
    parser.add_argument(
        "--sensitivity", action="store_true", help="rank groups of layers by the damage each does alone"
    )
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write everything measured there")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="cores to use (default: all)")


def run_evaluate(args: argparse.Namespace) -> int:
    """Measure and print one table: 0 if every gate that was measured is passed, 1 else."""
    if args.sensitivity and args.against is None:
        raise mimo_edge.InputError("evaluate: --sensitivity: expected --against BUNDLE0, got none")
    model = mimo_edge.load(args.bundle, threads=args.threads, backend=args.backend, graphs=args.graphs)
    original = mimo_edge.load(args.against, threads=args.threads) if args.against else None
    own = model.config.get("quantization", {})
    gates = Recipe.read(args.recipe).gates if args.recipe else own.get("gates", {})
    clips = _clips(model, args.clips)
    judge = Judge(domain=not args.clips) if Judge.installed() and not args.forced_only else None
    with _bar("evaluating") as say:
        report = evaluate(model, original, clips, free=not args.forced_only, judge=judge, progress=say)
    facts: dict[str, Any] = {"bundle": str(args.bundle), "recipe": own.get("recipe")} | report.as_json(gates)
    status = _verdict(report, gates, args.bundle)
    _write_json(args.json, facts)
    if args.sensitivity:
        _write_json(args.json, facts | {"sensitivity": _sensitivity(args, clips[:2])})
    return status


def _write_json(path: Path | None, facts: dict[str, Any]) -> None:
    if path is not None:
        replace_file(path, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


def _sensitivity(args: argparse.Namespace, clips: list[Clip]) -> list[dict[str, Any]]:
    with _bar("ranking") as say:
        ranks = damage(args.against, args.bundle, clips, args.threads, say)
    print("\ndamage of each group of layers alone, the worst first")
    for rank in ranks:
        print(f"{rank['group']:<44} {rank['bytes']:>12,} bytes  {rank['measure']} {rank['damage']:.3g}")
    return ranks


def _clips(model: mimo_edge.Model, paths: list[Path]) -> list[Clip]:
    return recorded_clips(model, paths) if paths else shipped_clips(model, "evaluate")


def _verdict(report: Report, gates: dict[str, float], bundle: Path) -> int:
    print(report.table(gates))
    failed = report.failures(gates)
    if failed:
        print(f"{bundle} SHOULD NOT BE SHIPPED: {'; '.join(failed)}")
    elif any(gate in report.values for gate in gates):
        print(f"{bundle}: every gate that was measured is passed")
    elif gates:
        print(f"{bundle}: no gate was measured; add --against BUNDLE0, and leave out --forced-only")
    return 1 if failed else 0


@contextmanager
def _bar(label: str) -> Iterator[Any]:
    with ProgressBar(None, "steps", label) as bar:

        def say(what: str) -> None:
            bar.label = f"{label}: {what},"
            bar.update(1)

        yield say


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge plan`."""
    names = ", ".join(entry.name for entry in devices())
    parser.add_argument("--device", required=True, metavar="NAME", help=f"{names}, or {THIS}: the machine at hand")
    parser.add_argument("--recipe", default="edge", metavar="NAME", help="or 'none': weights in BF16")
    parser.add_argument("--context", type=int, default=2048, metavar="N", help="positions of a conversation")
    parser.add_argument("--bundle", metavar="BUNDLE", type=Path, help="sizes of this bundle (default: the released 7B)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_plan(args: argparse.Namespace) -> int:
    """Print what is needed and whether it fits: 0 if it does, 1 else."""
    config = Bundle.open(args.bundle, "plan").config if args.bundle else released_config()
    recipe = None if args.recipe == "none" else Recipe.read(args.recipe)
    if "quantization" in config:
        raise mimo_edge.InputError("plan: expected a bundle in floats, got a quantised one; name the original")
    target = device(args.device)
    need = needs(config, recipe, args.context)
    wrong = advice(config, recipe, args.context, target)
    facts = {
        "device": target.name, "recipe": args.recipe, "context": args.context, "file_bytes": need.file,
        "weights_bytes": need.weights, "kv_bytes": need.kv, "workspace_bytes": need.workspace, "peak_bytes": need.peak,
        "usable_bytes": target.usable, "read_bytes_a_second": need.reads,
        "projected_rtf": {name: need.rtf(target.bandwidth_gb_s, text) for name, text in _RTF},
        "fits": wrong is None, "advice": wrong,
    }  # fmt: skip
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        _print_plan(target, args, need, wrong)
    return 0 if wrong is None else 1


def _print_plan(target: Device, args: argparse.Namespace, need: Any, wrong: str | None) -> None:
    gb = 1e9
    print(f"{target.about}: {target.memory_gb:g} GB, of which {target.usable / gb:.2f} GB for the model; "
          f"{target.bandwidth_gb_s:g} GB/s ({target.source})")  # fmt: skip
    print(f"recipe {args.recipe}, {args.context} positions of context")
    print(f"file                  {need.file / gb:7.3f} GB")
    print(f"weights in memory     {need.weights / gb:7.3f} GB   all but the text table, read row by row")
    print(f"keys and values       {need.kv / gb:7.3f} GB")
    print(f"workspace             {need.workspace / gb:7.3f} GB")
    print(f"peak                  {need.peak / gb:7.3f} GB")
    print("read a second of speech")
    for name, count in need.reads.items():
        print(f"  {name:<20}{count / gb:7.2f} GB")
    total = sum(need.reads.values())
    print(f"projected RTF = bytes a second / (bandwidth * {EFFICIENCY})  (projected; below 1 is faster than speech)")
    for label, bytes_read, value in (
        ("speech", total, need.rtf(target.bandwidth_gb_s, False)),
        ("with text between", total + need.more_reads, need.rtf(target.bandwidth_gb_s, True)),
    ):
        print(f"  {label:<20}{bytes_read / gb:7.2f} GB / ({target.bandwidth_gb_s:g} GB * {EFFICIENCY}) = {value:.2f}")
    print("it fits" if wrong is None else f"it does not fit: {wrong}")
