"""A folder of exported graphs, made by `mimo-edge export-onnx`: what it says, and whether it is of a given bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mimo_edge._core import InputError

FORMAT, REVISION = "mimo-edge onnx", 1
STAGES = ("codec_encoder", "codec_decoder", "patch_encoder", "backbone", "patch_decoder_step")


def read_export(folder: Path) -> dict[str, Any]:
    """Return what export.json of `folder` says. Raises InputError if it is none, or of another revision."""
    try:
        described: dict[str, Any] = json.loads((folder / "export.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"onnx: expected a folder made by mimo-edge export-onnx, got {folder}: {error}") from error
    if described.get("format") != FORMAT or described.get("revision") != REVISION:
        got = f"{described.get('format')!r} revision {described.get('revision')!r}"
        raise InputError(f"onnx: {folder}: expected {FORMAT!r} revision {REVISION}, got {got}; export again")
    return described


def bundle_sha256(bundle: Path) -> str:
    """The identity of a bundle: the sha256 of bundle.json, which holds those of its files. Raises InputError."""
    try:
        return hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"onnx: expected a bundle folder, got {bundle}: {error.strerror}") from error


def check_source(folder: Path, described: dict[str, Any], bundle: Path) -> None:
    """Raise InputError, naming both, if the graphs of `folder` were made from another bundle."""
    source, identity = described["bundle"], bundle_sha256(bundle)
    if source["sha256"] != identity:
        raise InputError(
            f"onnx: {folder} was made from bundle {source['name']!r} {source['sha256'][:12]}, but {bundle} is "
            f"{identity[:12]}; name the bundle it was made from, or export again"
        )


def check_files(folder: Path, graphs: list[dict[str, Any]], weights: bool) -> None:
    """Hold the files of graphs (entries of export.json) against their hashes. Raises InputError.

    weights: hash the files of weights too, which are large; else only their sizes count.
    """
    for entry in graphs:
        _check_hash(folder / entry["file"], entry["sha256"])
    for file in {entry["weights"]["file"]: entry["weights"] for entry in graphs}.values():
        path = folder / file["file"]
        size = path.stat().st_size if path.is_file() else "no file"
        if size != file["bytes"]:
            raise InputError(f"onnx: {path}: expected {file['bytes']} bytes, got {size}; export again")
        if weights:
            _check_hash(path, file["sha256"])


def _check_hash(path: Path, expected: str) -> None:
    got = _sha256(path) if path.is_file() else "no file"
    if got != expected:
        raise InputError(f"onnx: {path}: expected sha256 {expected[:12]}, got {got[:12]}; export again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
