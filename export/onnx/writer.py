"""`mimo-edge export-onnx`: a bundle to ONNX graphs, one a stage and flavour, with their weights beside them.

    bundle -> weights of a stage (weights.py) -> graph of a flavour (trace.py) -> folder

The folder: `<stage>.<flavour>.onnx` (flavours: ops.py), `<stage>.weights` that they share, and `export.json`, which
says what bundle they come from and gives every file's hash. Stages, inputs and outputs: stages.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from mimo_edge.export.bundle import Bundle
from mimo_edge.export.new_folder import Counter, Progress, check_space, check_target, new_folder
from mimo_edge.export.onnx.ops import FLAVOURS
from mimo_edge.export.onnx.stages import Stage, stages
from mimo_edge.export.onnx.trace import trace
from mimo_edge.export.onnx.weights import offsets, stored, write_weights
from mimo_edge.export.safetensors_io import input_error
from mimo_edge.graphs import FORMAT, REVISION

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_MARGIN_BYTES = 64 << 20  # the graphs themselves


def export_onnx(
    bundle: Path,
    out: Path,
    *,
    flavours: Sequence[str] = tuple(FLAVOURS),
    dtype: str = "f32",
    only: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the graphs of `bundle` into the new folder `out` and return what export.json says.

    flavours: opset24, opset21, cpu (stages with caches alone have the last). dtype: of weights, caches and masks: f32,
    f16 or bf16 (waveforms, codes, scores and codebooks are not touched by it). only: names of stages, empty = all.
    overwrite: replace an earlier export.
    progress: of files: the bundle's hashes count as one, then weights and graphs, a flavour of a stage being a graph.
    Raises InputError (no or an altered bundle, target in the way, unknown word, disk full); nothing half-written stays.
    """
    if dtype not in DTYPES:
        raise input_error(f"export-onnx: dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    if unknown := [flavour for flavour in flavours if flavour not in FLAVOURS]:
        raise input_error(f"export-onnx: flavour: expected {', '.join(FLAVOURS)}, got {unknown[0]!r}")
    source, out = Bundle.open(bundle, "export-onnx"), out.resolve()
    every = stages(source.config, source.parts["codec"], source.parts["lm"], DTYPES[dtype])
    if unknown_names := set(only) - {stage.name for stage in every}:
        names = ", ".join(stage.name for stage in every)
        raise input_error(f"export-onnx: stage: expected {names}, got {min(unknown_names)}")
    chosen = [stage for stage in every if not only or stage.name in only]
    check_target(out, "export.json", "export", overwrite, _failure, bundle)
    check_space(out, _bytes_of(chosen), _failure, "free some space, or choose --dtype f16")
    wanted = sum(len(_flavours(stage, flavours)) for stage in chosen)
    if not wanted:
        raise input_error(f"export-onnx: expected a stage with caches for flavour cpu, got {', '.join(only)}")
    report = Counter(progress, 1 + len(chosen) + wanted)
    total = sum(entry["bytes"] for entry in source.config["files"].values())
    source.check("export-onnx", lambda count: report.add(count / total, "reading"))
    with new_folder(out, _failure) as folder:
        described = _describe(source, dtype)
        described["graphs"] = [
            graph for stage in chosen for graph in _export_stage(stage, flavours, described, folder, report)
        ]
        (folder / "export.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return described


def _flavours(stage: Stage, wanted: Sequence[str]) -> list[str]:
    """Those that a stage has: only one with caches has "cpu"."""
    return [flavour for flavour in wanted if flavour != "cpu" or stage.caches]


def _export_stage(
    stage: Stage, flavours: Sequence[str], described: dict[str, Any], folder: Path, report: Counter
) -> Iterator[dict[str, Any]]:
    """Write the weights of a stage and its graphs; yield their entries in export.json."""
    file, total = f"{stage.name}.weights", max(1, sum(weight.nbytes for weight in stored(stage.weights)))
    weights = write_weights(stage.weights, folder / file, lambda count: report.add(count / total, file))
    for flavour in _flavours(stage, flavours):
        name, graph = f"{stage.name}.{flavour}.onnx", stage.of(flavour)
        report.add(0, name)
        properties = {
            "mimo_edge.version": metadata.version("mimo-edge"),
            "mimo_edge.bundle": described["bundle"]["name"],
            "mimo_edge.bundle_sha256": described["bundle"]["sha256"],
            "mimo_edge.weights_sha256": weights,
            "mimo_edge.stage": stage.name,
            "mimo_edge.flavour": flavour,
            "mimo_edge.dtype": described["dtype"],
            "mimo_edge.caches": json.dumps(stage.caches),
        }
        ir.save(trace(graph, flavour, DTYPES[described["dtype"]], folder, properties), folder / name)
        report.add(1, name)
        yield {
            "stage": stage.name,
            "flavour": flavour,
            "opset": FLAVOURS[flavour],
            "file": name,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "weights": {"file": file, "bytes": (folder / file).stat().st_size, "sha256": weights},
            "inputs": {name: port for name, port in graph.inputs.items() if name not in graph.ignored},
            "outputs": graph.outputs,
            "caches": stage.caches,
            "limits": stage.limits,
        }


def _describe(source: Bundle, dtype: str) -> dict[str, Any]:
    config = source.config
    hashes = {name: entry["sha256"] for name, entry in config["files"].items()}
    return {
        "format": FORMAT,
        "revision": REVISION,
        "producer": f"mimo-edge {metadata.version('mimo-edge')}, torch {torch.__version__}",
        "bundle": {"name": config["name"], "sha256": source.sha256, "files": hashes},
        "dtype": dtype,
    }


def _bytes_of(chosen: Sequence[Stage]) -> int:
    """Size of the files of weights, and room for the graphs."""
    total = _MARGIN_BYTES
    for stage in chosen:
        last = stored(stage.weights)[-1]
        total += offsets(stage.weights)[last.name] + last.nbytes
    return total


def _failure(text: str) -> Exception:
    return input_error(f"export-onnx: {text}")
