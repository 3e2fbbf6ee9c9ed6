"""TensorRT engines on disk: what the file beside each says of it, held against what is about to load it.

<stage>.sm86.engine, <stage>.sm86.json (identity: checkpoint, TensorRT's package and version, SM, precision, capacity)
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from mimo_edge._core import InputError

FORMAT, REVISION = "mimo-edge engine", 1


def load_tensorrt() -> ModuleType:
    """Import `tensorrt`, or `tensorrt_rtx`. Raises InputError if neither is installed."""
    for name in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise InputError(
        "tensorrt: expected tensorrt or tensorrt_rtx, but neither is installed; pip install tensorrt-rtx-cu13"
    )


def find_engine(folder: Path, stage: str, sm: int) -> Path:
    """Return the engine of a stage. Raises InputError naming the engines of other targets, if there are any."""
    path = folder / f"{stage}.sm{sm}.engine"
    if not path.is_file():
        others = ", ".join(sorted(found.name for found in folder.glob(f"{stage}.*.engine"))) or "none"
        raise InputError(f"engine: {folder}: expected {path.name}, got {others}; "
                         f"mimo-edge build-engine BUNDLE -o {folder} --target sm{sm}")  # fmt: skip
    return path


def check_identity(engine: Path, bundle_sha256: str, sm: int, package: str, version: str) -> dict[str, Any]:
    """Read the identity beside `engine` and hold it against what is about to load it. Raises InputError naming both."""
    try:
        identity: dict[str, Any] = json.loads(engine.with_suffix(".json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"engine: {engine}: expected an identity file beside it: {error}; build it again") from error
    if identity.get("format") != FORMAT or identity.get("revision") != REVISION:
        got = f"{identity.get('format')!r} revision {identity.get('revision')!r}"
        raise InputError(f"engine: {engine.name}: expected {FORMAT!r} revision {REVISION}, got {got}; build it again")
    size = engine.stat().st_size if engine.is_file() else "no file"
    built = dict(identity["tensorrt"])
    if version.count(".") == 2:  # the C++ library says 10.3.0, the package 10.3.0.26
        built["version"] = ".".join(built["version"].split(".")[:3])
    facts = {
        "bundle": (bundle_sha256[:12], identity["bundle"]["sha256"][:12]),
        "SM": (sm, identity["sm"]),
        "TensorRT": (f"{package} {version}", f"{built['package']} {built['version']}"),
        "bytes": (identity["engine"]["bytes"], size),
    }
    for what, (expected, got) in facts.items():
        if expected != got:
            raise InputError(f"engine: {engine.name}: expected {what} {expected}, got {got}; build it for this device")
    return identity
