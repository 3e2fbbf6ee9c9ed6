"""`mimo-edge export-onnx`, `verify-onnx` and `build-engine`: the arguments and the runs; mimo_edge.cli calls them."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimo_edge.progress import ProgressBar

NEEDED = ("torch", "onnx", "onnxscript", "onnx_ir")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge export-onnx`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder made by mimo-edge build")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="folder to write (default: BUNDLE/onnx)")
    parser.add_argument(
        "--flavour", action="append", default=[], metavar="NAME", help="opset24: TensorRT 10.15 and later, ONNX "
        "Runtime; opset21: TensorRT 10.3; cpu: for ONNX Runtime's CPU provider (default: all; they share weights)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="f32", help="of weights and caches")
    parser.add_argument("--stage", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export once the new is complete")
    parser.add_argument("--json", action="store_true", help="print export.json")


def run_export(args: argparse.Namespace) -> int:
    """Export the graphs the arguments ask for, print a line a graph. Returns the exit status."""
    _need(NEEDED, "export-onnx")
    from mimo_edge.export.onnx.ops import FLAVOURS
    from mimo_edge.export.onnx.writer import export_onnx
    from mimo_edge.progress import ProgressBar

    out = args.out or args.bundle / "onnx"
    with ProgressBar(1, "files", "export-onnx") as bar:

        def progress(done: float, total: float, name: str) -> None:
            bar.total, bar.label = total, f"export-onnx {name}"
            bar.update(done - bar.done)

        described = export_onnx(
            args.bundle, out, flavours=args.flavour or tuple(FLAVOURS), dtype=args.dtype, only=args.stage,
            overwrite=args.overwrite, progress=progress,
        )  # fmt: skip
    if args.json:
        print(json.dumps(described, indent=1, ensure_ascii=False))
        return 0
    for graph in described["graphs"]:
        print(f"{out / graph['file']}: weights {graph['weights']['bytes']:,} bytes, {described['dtype']}")
    return 0


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge verify-onnx`."""
    parser.add_argument("graphs", metavar="DIR", type=Path, help="folder made by mimo-edge export-onnx")
    parser.add_argument("--bundle", metavar="BUNDLE", type=Path, required=True, help="the bundle it was made from")
    parser.add_argument("--goldens", metavar="GOLDENS_DIR", type=Path, help="compare with these arrays too")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="cores to use (default: all)")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")


def run_verify(args: argparse.Namespace) -> int:
    """Compare every graph with the executable spec and the goldens: 0 if all cases pass, 1 else."""
    _need(("torch", "onnxruntime"), "verify-onnx")
    from mimo_edge.export.onnx.verify import verify_onnx
    from mimo_edge.progress import ProgressBar

    with ProgressBar(None, "cases", "verify-onnx") as bar:
        reports = verify_onnx(args.graphs, args.bundle, args.goldens, args.threads, lambda _: bar.update(1))
    failed = [report.name for report in reports if not report.passed]
    if args.json:
        fields = ("name", "compared", "error", "limit", "passed", "note")
        print(json.dumps([{name: getattr(report, name) for name in fields} for report in reports], indent=1))
        return 1 if failed else 0
    for report in reports:
        print(report)
    values = sum(report.compared for report in reports)
    print(f"{len(reports) - len(failed)} of {len(reports)} cases passed, {values} values compared")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mimo-edge build-engine`."""
    parser.add_argument(
        "source", metavar="BUNDLE", type=Path, help="of mimo-edge build, exported first if need be; or of export-onnx"
    )
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="for the engines (default: BUNDLE/engines)")
    parser.add_argument("--target", metavar="smNN", action="append", required=True,
                        help="compute capability: sm86, sm89, sm120 ...; may be repeated")  # fmt: skip
    parser.add_argument("--flavour", choices=("opset24", "opset21"), default="opset24", help="opset21: TensorRT 10.3")
    parser.add_argument("--dtype", choices=("f16", "bf16"), default="f16", help="of weights and caches, if exported")
    parser.add_argument("--stage", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--capacity", type=int, default=8192, metavar="N", help="positions of a conversation")


def run_engine(args: argparse.Namespace) -> int:
    """Build the engines the arguments ask for, print a line an engine. Returns the exit status."""
    _need(("onnx",), "build-engine")
    from mimo_edge.engines import load_tensorrt
    from mimo_edge.export.onnx.trt import build_engine
    from mimo_edge.export.safetensors_io import input_error
    from mimo_edge.graphs import STAGES, read_export
    from mimo_edge.progress import ProgressBar

    targets = [target.removeprefix("sm") for target in args.target]
    if unknown := set(args.stage) - set(STAGES):
        raise input_error(f"build-engine: --stage: expected {', '.join(STAGES)}, got {min(unknown)!r}")
    if wrong := [target for target in targets if not (target.isascii() and target.isdigit())]:
        raise input_error(f"build-engine: --target: expected sm86, sm89, sm120 or alike, got {wrong[0]!r}")
    load_tensorrt()  # before anything is exported
    out = args.out or args.source / "engines"
    graphs = _graphs_for_engines(args, out)
    described = read_export(graphs)
    chosen = [
        graph
        for graph in described["graphs"]
        if graph["flavour"] == args.flavour and (not args.stage or graph["stage"] in args.stage)
    ]
    if not chosen:
        raise input_error(f"build-engine: {graphs}: expected graphs of {args.flavour}, got none; export them first")
    for target in targets:
        for graph in chosen:
            with ProgressBar(None, "steps", f"build-engine {graph['stage']} sm{target}") as bar:
                engine = build_engine(
                    graphs, graph, described, int(target), out, capacity=args.capacity,
                    progress=functools.partial(_phase, bar),
                )  # fmt: skip
            version = engine.identity["tensorrt"]["version"]
            print(f"{engine.path}: {engine.size:,} bytes, {described['dtype']}, {version}")
    return 0


def _graphs_for_engines(args: argparse.Namespace, out: Path) -> Path:
    """The folder of graphs to compile: the one given, or one of the bundle given, exported now if there is none yet."""
    from mimo_edge.graphs import STAGES, bundle_sha256, read_export

    if (args.source / "export.json").is_file():
        return Path(args.source)
    identity = bundle_sha256(args.source)
    for folder in (args.source / "onnx", out / "onnx"):
        if (folder / "export.json").is_file():
            described = read_export(folder)
            made = {graph["stage"] for graph in described["graphs"] if graph["flavour"] == args.flavour}
            wanted = set(args.stage or STAGES)
            if described["bundle"]["sha256"] == identity and described["dtype"] == args.dtype and wanted <= made:
                return Path(folder)
    words = [str(args.source), "-o", str(out / "onnx"), "--flavour", args.flavour, "--dtype", args.dtype, "--overwrite"]
    for stage in args.stage:
        words += ["--stage", stage]
    parser = argparse.ArgumentParser()
    add_export_arguments(parser)
    run_export(parser.parse_args(words))
    return Path(out / "onnx")


def _phase(bar: ProgressBar, _phase: str, done: int, _steps: int) -> None:
    """One of TensorRT's many small steps."""
    bar.update(float(done > 0))


def _need(packages: tuple[str, ...], command: str) -> None:
    """Say which package is missing before anything is read. Raises InputError."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        from mimo_edge.export.safetensors_io import input_error

        raise input_error(f"{command}: expected {', '.join(packages)}, but {', '.join(missing)} is not installed; "
                          "pip install 'mimo-edge[onnx]'")  # fmt: skip
