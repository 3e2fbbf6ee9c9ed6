"""`mimo-edge verify-onnx`: every exported graph in ONNX Runtime, against the executable spec and golden arrays.

    export folder + bundle -> identity and hashes -> cases of every graph (cases.py) -> a report a graph and case

A report is as `mimo-edge verify` writes it: error, limit, number of values. NaN fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mimo_edge.export.onnx.cases import LIMITS, Subject, cases, facts_of
from mimo_edge.export.onnx.graph import Graph
from mimo_edge.export.onnx.writer import read_export
from mimo_edge.export.reference import Reference
from mimo_edge.export.safetensors_io import input_error
from mimo_edge.verify.goldens import Check, Goldens, StageReport


def verify_onnx(
    folder: Path,
    bundle: Path,
    goldens: Path | None = None,
    threads: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[StageReport]:
    """Check every graph of `folder`, made from `bundle`; a report a graph, case and kind of value, in order of flow.

    goldens: a folder of arrays of the same checkpoint. progress: called with the name of each case before it runs.
    Raises InputError if the export is of another bundle, or files are missing or altered.
    """
    described = open_export(folder, bundle)
    if described["dtype"] not in LIMITS:
        raise input_error(f"verify-onnx: expected graphs in {' or '.join(LIMITS)}, got {described['dtype']}, which "
                          "the CPU provider of ONNX Runtime cannot run; export again with --dtype f32")  # fmt: skip
    reference = Reference.open(bundle)
    arrays = Goldens(goldens or folder)  # the export's folder holds none
    check = Check(arrays)
    for entry in described["graphs"]:
        subject: Subject | None = None
        for case in cases(entry["stage"], goldens is not None):
            label = facts_of(entry, case)
            if progress:
                progress(label)
            with check.attempt(label):
                if subject is None:
                    graph = Graph(folder, entry, described["dtype"], threads)
                    subject = Subject(graph, reference, check, described["dtype"], arrays if goldens else None)
                subject.case = label
                case(subject)
    return [report for report in check.reports() if report.name != "ledger"]


def open_export(folder: Path, bundle: Path) -> dict[str, Any]:
    """Read export.json and hold it against the bundle and the files beside it. Raises InputError."""
    described = read_export(folder)
    try:
        identity = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    except OSError as error:
        raise input_error(f"verify-onnx: expected a bundle folder, got {bundle}: {error.strerror}") from error
    made_from = described["bundle"]
    if made_from["sha256"] != identity:
        raise input_error(f"verify-onnx: {folder} was made from bundle {made_from['name']!r} "
                          f"{made_from['sha256'][:12]}, but {bundle} is {identity[:12]}; "
                          "name the bundle it was made from, or export again")  # fmt: skip
    for file, expected in _files(described):
        path = folder / file
        got = _sha256(path) if path.is_file() else "no file"
        if got != expected:
            raise input_error(f"verify-onnx: {path}: expected sha256 {expected[:12]}, got {got[:12]}; export again")
    return described


def _files(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every file of an export once, with its hash."""
    graphs = described["graphs"]
    yield from {graph["weights"]["file"]: graph["weights"]["sha256"] for graph in graphs}.items()
    yield from ((graph["file"], graph["sha256"]) for graph in graphs)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
