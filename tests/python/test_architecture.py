"""Who may import whom (the rooms of the house), in C++ and in Python."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# base <- io, kernels, backend <- codec | lm <- engine <- capi, bindings
BELOW = {"base": set(), "io": {"base"}, "kernels": {"base"}, "backend": {"base"}}
BELOW["codec"] = BELOW["lm"] = {"base", "io", "kernels", "backend"}
BELOW["cuda"] = {*BELOW["codec"], "codec", "lm"}
BELOW["engine"] = {*BELOW["codec"], "codec", "lm", "cuda"}
BELOW["capi"] = BELOW["bindings"] = {*BELOW["engine"], "engine"}

HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "transformers", "tokenizers")
WORKSHOPS = ("mimo_edge.export", "mimo_edge.quantize")


@pytest.mark.parametrize(
    "room", sorted(p.name for p in (ROOT / "csrc").iterdir() if p.is_dir() and p.name != "include")
)
def test_cpp_room_includes_only_what_is_below(room: str) -> None:
    allowed = {room, *BELOW[room]}
    wrong = []
    for path in [*(ROOT / "csrc" / room).rglob("*.h"), *(ROOT / "csrc" / room).rglob("*.cpp")]:
        for included in re.findall(r'^#include "(\w+)/', path.read_text(encoding="utf-8"), re.MULTILINE):
            if included not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} includes {included}/")
    assert not wrong


def test_only_bindings_see_python_and_only_io_opens_files() -> None:
    for path in [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")]:
        text, room = path.read_text(encoding="utf-8"), path.relative_to(ROOT / "csrc").parts[0]
        if room != "bindings":
            assert "pybind11" not in text, path
        if room != "io":
            assert "#include <fstream>" not in text, path


def test_runtime_module_level_imports() -> None:
    wrong = []
    for path in (ROOT / "runtime").rglob("*.py"):
        for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name.split(".")[0] in HEAVY or name.startswith(WORKSHOPS):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_workshops_are_imported_by_their_full_names_and_export_knows_no_quantize() -> None:
    for room in ("export", "quantize"):
        for path in (ROOT / room).rglob("*.py"):
            for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
                assert name.split(".")[0] not in ("export", "quantize"), path
                assert room == "quantize" or not name.startswith("mimo_edge.quantize"), path


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = "import mimo_edge, mimo_edge.cli, sys; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mimo_edge._core" in out
    loaded = [name for name in out if name.split(".")[0] in HEAVY or name.startswith(WORKSHOPS)]
    assert not loaded


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names of all modules imported anywhere in a file; importlib.import_module is the sanctioned lazy way."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
