"""`mimo-edge export-onnx`: a bundle to ONNX graphs, one a stage and flavour, with their weights beside them.

    bundle -> weights of a stage (onnx_weights.py) -> graph of a flavour (onnx_trace.py) -> folder

The folder: `<stage>.opset24.onnx`, `<stage>.opset21.onnx`, `<stage>.weights` that both read, and `export.json`, which
says what bundle they come from and gives every file's hash. It is made beside its destination and renamed when
complete. Stages, inputs and outputs: onnx_stages.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from mimo_edge.export.onnx_ops import FLAVOURS
from mimo_edge.export.onnx_stages import Stage, stages
from mimo_edge.export.onnx_trace import trace
from mimo_edge.export.onnx_weights import offsets, write_weights
from mimo_edge.export.safetensors_io import SafetensorsFile, input_error

FORMAT, REVISION = "mimo-edge onnx", 1
DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
Progress = Callable[[float, int, str], None]  # graphs and weight files done, in all, what is being worked on
_MARGIN_BYTES = 64 << 20  # the graphs themselves


@dataclass(frozen=True, slots=True)
class Source:
    """An opened bundle: bundle.json, its sha256 (the checkpoint's identity), the two files of weights."""

    config: dict[str, Any]
    sha256: str
    codec: SafetensorsFile
    lm: SafetensorsFile

    @staticmethod
    def open(path: Path) -> Source:
        """Open a bundle folder, revision 1. Raises InputError if it is none, or its files have another size."""
        try:
            raw = (path / "bundle.json").read_bytes()
            config = json.loads(raw)
        except (OSError, ValueError) as error:
            raise input_error(f"export-onnx: expected a bundle folder, got {path}: {error}") from error
        if config.get("format") != "mimo-edge bundle" or config.get("revision") != 1:
            got = f"{config.get('format')!r} revision {config.get('revision')!r}"
            raise input_error(f"export-onnx: {path}: expected 'mimo-edge bundle' revision 1, got {got}; build it again")
        for name, entry in config["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else 0
            if size != entry["bytes"]:
                raise input_error(f"export-onnx: {path / name}: expected {entry['bytes']} bytes, got {size}; "
                                  "build or copy the bundle again")  # fmt: skip
        files = (SafetensorsFile(path / f"{part}.safetensors") for part in ("codec", "lm"))
        return Source(config, hashlib.sha256(raw).hexdigest(), *files)


def export_onnx(
    bundle: Path,
    out: Path,
    *,
    flavours: Sequence[int] = FLAVOURS,
    dtype: str = "f32",
    only: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the graphs of `bundle` into the new folder `out` and return what export.json says.

    flavours: opsets, 24 and 21. dtype: of weights, caches and masks: f32, f16 or bf16 (waveforms, codes, scores and
    codebooks are not touched by it). only: names of stages, empty = all. overwrite: replace an earlier export.
    Raises InputError (no bundle, target in the way, unknown word, disk full); nothing half-written stays.
    """
    if dtype not in DTYPES:
        raise input_error(f"export-onnx: dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    if unknown := [opset for opset in flavours if opset not in FLAVOURS]:
        raise input_error(f"export-onnx: flavour: expected opset 24 or 21, got {unknown[0]}")
    source, out = Source.open(bundle), out.resolve()
    every = stages(source.config, source.codec, source.lm, DTYPES[dtype])
    if unknown_names := set(only) - {stage.name for stage in every}:
        names = ", ".join(stage.name for stage in every)
        raise input_error(f"export-onnx: stage: expected {names}, got {min(unknown_names)}")
    chosen = [stage for stage in every if not only or stage.name in only]
    _check_target(out, overwrite)
    with _sentence_for_os_errors(out), _new_folder(out) as folder:
        _check_space(folder, chosen)
        report = _Steps(progress, len(chosen) * (1 + len(flavours)))
        described = _describe(source, dtype)
        described["graphs"] = [
            graph for stage in chosen for graph in _export_stage(stage, flavours, described, folder, report)
        ]
        (folder / "export.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return described


def read_export(folder: Path) -> dict[str, Any]:
    """Return what export.json of `folder` says. Raises InputError if it is none, or of another revision."""
    try:
        described: dict[str, Any] = json.loads((folder / "export.json").read_bytes())
    except (OSError, ValueError) as error:
        raise input_error(f"onnx: expected a folder made by mimo-edge export-onnx, got {folder}: {error}") from error
    if described.get("format") != FORMAT or described.get("revision") != REVISION:
        got = f"{described.get('format')!r} revision {described.get('revision')!r}"
        raise input_error(f"onnx: {folder}: expected {FORMAT!r} revision {REVISION}, got {got}; export again")
    return described


def _export_stage(
    stage: Stage, flavours: Sequence[int], described: dict[str, Any], folder: Path, report: _Steps
) -> Iterator[dict[str, Any]]:
    """Write the weights of a stage and its graphs; yield their entries in export.json."""
    file, total = f"{stage.name}.weights", max(1, sum(weight.nbytes for weight in stage.weights))
    weights = write_weights(stage.weights, folder / file, lambda count: report.add(count / total, file))
    for opset in flavours:
        name = f"{stage.name}.opset{opset}.onnx"
        report.add(0.0, name)
        properties = {
            "mimo_edge.version": metadata.version("mimo-edge"),
            "mimo_edge.bundle": described["bundle"]["name"],
            "mimo_edge.bundle_sha256": described["bundle"]["sha256"],
            "mimo_edge.weights_sha256": weights,
            "mimo_edge.stage": stage.name,
            "mimo_edge.flavour": f"opset{opset}",
            "mimo_edge.dtype": described["dtype"],
            "mimo_edge.caches": json.dumps(stage.caches),
        }
        ir.save(trace(stage, opset, DTYPES[described["dtype"]], folder, properties), folder / name)
        report.add(1.0, name)
        yield {
            "stage": stage.name,
            "opset": opset,
            "file": name,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "weights": {"file": file, "bytes": (folder / file).stat().st_size, "sha256": weights},
            "inputs": stage.inputs,
            "outputs": stage.outputs,
            "caches": stage.caches,
            "limits": stage.limits,
        }


class _Steps:
    """Count weight files and graphs for a progress callback."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0.0

    def add(self, amount: float, name: str) -> None:
        self._done += amount
        if self._report is not None:
            self._report(self._done, self._total, name)


def _describe(source: Source, dtype: str) -> dict[str, Any]:
    config = source.config
    hashes = {name: entry["sha256"] for name, entry in config["files"].items()}
    return {
        "format": FORMAT,
        "revision": REVISION,
        "producer": f"mimo-edge {metadata.version('mimo-edge')}, torch {torch.__version__}",
        "bundle": {"name": config["name"], "sha256": source.sha256, "files": hashes},
        "dtype": dtype,
    }


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "export.json").is_file():
        raise input_error(f"export-onnx: {out}: expected a new folder, got something else; choose another name")
    if not overwrite:
        raise input_error(f"export-onnx: {out}: expected a new folder, but graphs are there; add --overwrite")


def _check_space(folder: Path, chosen: Sequence[Stage]) -> None:
    needed = _MARGIN_BYTES + sum(
        offsets(stage.weights)[stage.weights[-1].name] + stage.weights[-1].nbytes for stage in chosen
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise input_error(f"export-onnx: expected {needed / 1e9:.2f} GB free on this disk, got {free / 1e9:.2f} GB; "
                          "free some space, or choose --dtype f16")  # fmt: skip


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, or vanishes if anything is raised."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (out.parent / f".{out.name}.{word}-{os.getpid()}" for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _sentence_for_os_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space and export again" if full else str(error)
        raise input_error(f"export-onnx: {out} could not be written: {what}") from error
