"""Where the goldens are, and a bundle built from them for tests that need a model.

tests/goldens ships with the repository. The larger folder (third parties' recordings, never copied here) is found by
the environment variable MIMO_GOLDENS or beside the checkout; MIMO_REQUIRE_GOLDENS=1 makes its absence a failure.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import pytest

from mimo_edge.verify import build_bundle

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "tests" / "goldens"


def large_goldens() -> Path:
    """Return the larger folder; skips the test, or fails it where the folder is required."""
    folder = Path(os.environ.get("MIMO_GOLDENS", ROOT.parent / "shared" / "goldens" / "pairA"))
    if not (folder / "prompts.json").is_file():
        reason = f"no goldens at {folder}; set MIMO_GOLDENS or put ../shared beside the checkout"
        if os.environ.get("MIMO_REQUIRE_GOLDENS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@functools.cache
def bundle_of(goldens: Path) -> Path:
    """Build the bundle of a goldens folder, once a test run."""
    scratch = tempfile.TemporaryDirectory(prefix="mimo-edge-tests-")
    _SCRATCH.append(scratch)
    return build_bundle(goldens, Path(scratch.name) / "bundle")


@functools.cache
def graphs_of(goldens: Path) -> Path:
    """Export the bundle of a goldens folder in every flavour, once a test run. Needs the extra [onnx]."""
    from mimo_edge.export.onnx.writer import export_onnx

    bundle = bundle_of(goldens)
    export_onnx(bundle, bundle.parent / "graphs")
    return bundle.parent / "graphs"


_SCRATCH: list[tempfile.TemporaryDirectory[str]] = []  # removed at exit
