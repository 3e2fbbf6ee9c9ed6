"""`mimo-edge verify-onnx`: every exported graph in ONNX Runtime, against the executable spec and golden arrays.

    export folder + bundle -> identity and hashes -> cases of every graph (cases.py) -> a report a graph and case

A report is as `mimo-edge verify` writes it: error, limit, number of values. NaN fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mimo_edge.export.onnx.cases import LIMITS, Subject, cases, facts_of
from mimo_edge.export.onnx.graph import Graph
from mimo_edge.export.reference import Reference
from mimo_edge.export.safetensors_io import input_error
from mimo_edge.graphs import check_files, check_source, read_export
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
    described = read_export(folder)
    check_source(folder, described, bundle)
    check_files(folder, described["graphs"], weights=True)
    if described["dtype"] not in LIMITS:
        raise input_error(f"verify-onnx: expected graphs in {' or '.join(LIMITS)}, got {described['dtype']}, which "
                          "the CPU provider of ONNX Runtime cannot run; export again with --dtype f32")  # fmt: skip
    reference = Reference.open(bundle)
    scales = reference.config.get("quantization", {}).get("input_scales", {})
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
                    _check_input_scales(check, f"{entry['stage']} {entry['flavour']} input scales", graph, scales)
                    subject = Subject(graph, reference, check, described["dtype"], arrays if goldens else None)
                subject.case = label
                case(subject)
    reports = [report for report in check.reports() if report.name != "ledger"]
    if not reports:
        raise input_error(f"verify-onnx: {folder}: expected graphs, got none; export again")
    return reports


def _check_input_scales(check: Check, label: str, graph: Graph, scales: dict[str, float]) -> None:
    """Those inputs are rounded whose scales the bundle has, by these scales, and no others."""
    here = {name: scale for name, scale in scales.items() if f"{name}_quantized" in graph.constants}
    expected = {name: float(np.array(scale, graph.dtype)) for name, scale in here.items()}
    if expected or graph.input_scales:
        check.equal(label, "by weight", expected, graph.input_scales)
