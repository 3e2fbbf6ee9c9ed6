"""Write a bundle: bundle.json, lm.safetensors, codec.safetensors, tokenizer.json (csrc/io/bundle reads it).

    source rows -> check finite -> F32 | BF16 -> stored layout -> file, hashed on the way

The folder is made beside its destination under another name and renamed when complete: a bundle is there whole or not
at all. Memory stays at a few blocks of rows, whatever the size of the model.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge.export.checkpoint import Source
from mimo_edge.export.safetensors_io import Array, SafetensorsWriter, f32_to_bf16, input_error, nbytes_of, to_f32
from mimo_edge.export.tensor_table import (
    Shapes,
    count_parameters,
    splits_by_rows,
    stays_f32,
    stored_layout,
    stored_shape,
)

REVISION = 1
FORMAT = "mimo-edge bundle"
DTYPES = ("auto", "bf16", "f32")
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being worked on

_BLOCK_BYTES = 8 << 20  # rows converted at a time: fits the cache, and keeps memory far below one tensor
_MARGIN_BYTES = 1 << 20  # headers and bundle.json, for the check of free space


def write_bundle(
    checkpoint: Source, out: Path, *, dtype: str = "auto", overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write `checkpoint` as a bundle folder `out`.

    dtype: "auto" keeps BF16 and widens F16 to F32; "bf16" rounds; "f32" widens. Vectors and codebooks are always F32.
    overwrite: replace an existing bundle, after the new one is complete.
    Raises InputError (wrong dtype, target in the way, NaN or infinity in a weight) or BundleError (disk full or not
    writable). Whatever is raised, KeyboardInterrupt too, nothing half-written stays and an old bundle is untouched.
    """
    if dtype not in DTYPES:
        raise input_error(f"build: dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    out = out.resolve()
    _check_target(out, overwrite)
    plans = {
        "lm": _plan(checkpoint, checkpoint.lm_tensors, dtype),
        "codec": _plan(checkpoint, checkpoint.codec_tensors, dtype),
    }
    needed = sum(nbytes_of(kind, stored_shape(name, shape)) for plan in plans.values() for name, kind, shape in plan)
    with _sentence_for_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out, needed + len(checkpoint.tokenizer.json) + _MARGIN_BYTES)
        partial = out.parent / f".{out.name}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier process with this number
        try:
            partial.mkdir()
            _fill(checkpoint, partial, plans, _Counter(progress, needed + _source_bytes(checkpoint)))
            _move(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class _Counter:
    """Count bytes for a progress callback."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def add(self, count: int, name: str) -> None:
        self._done += count
        if self._report is not None:
            self._report(self._done, self._total, name)


_Plan = list[tuple[str, str, tuple[int, ...]]]  # name, dtype in the bundle, released shape; in file order


def _plan(checkpoint: Source, tensors: Shapes, dtype: str) -> _Plan:
    """Order a file: F32 first, then BF16, each in order of flow, so that every tensor begins aligned to its values."""

    def stored_dtype(name: str, shape: tuple[int, ...]) -> str:
        if stays_f32(name, shape):
            return "F32"
        if dtype == "auto":
            return "BF16" if checkpoint.dtype(name) == "BF16" else "F32"
        return dtype.upper()

    plan = [(name, stored_dtype(name, shape), shape) for name, shape in tensors.items()]
    return sorted(plan, key=lambda entry: entry[1] != "F32")


def _fill(checkpoint: Source, folder: Path, plans: Mapping[str, _Plan], counter: _Counter) -> None:
    files: dict[str, Any] = {}
    for part, plan in plans.items():
        path = folder / f"{part}.safetensors"
        header = [(name, kind, stored_shape(name, shape)) for name, kind, shape in plan]
        with SafetensorsWriter(path, header) as writer:
            for name, kind, shape in plan:
                for block in _blocks(checkpoint, name, kind, shape):
                    counter.add(writer.write(name, block), name)
        files[path.name] = {"bytes": writer.bytes, "sha256": writer.sha256}
    text = checkpoint.tokenizer.json
    _write_file(folder / "tokenizer.json", text)
    files["tokenizer.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    description = _describe(checkpoint) | {"provenance": _provenance(checkpoint, counter), "files": files}
    _write_file(folder / "bundle.json", json.dumps(description, indent=1, ensure_ascii=False).encode() + b"\n")
    _sync_folder(folder)


def _blocks(checkpoint: Source, name: str, kind: str, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield a tensor in blocks of rows, converted and laid out as the bundle stores it."""
    source = checkpoint.dtype(name)
    row_bytes = 4 * math.prod(shape[1:])
    step = max(1, _BLOCK_BYTES // row_bytes) if splits_by_rows(name, shape) else shape[0]
    for start in range(0, shape[0], step):
        raw = checkpoint.rows(name, start, min(start + step, shape[0]))
        yield stored_layout(name, _converted(raw, source, kind, name))


def _converted(raw: Array, source: str, kind: str, name: str) -> Array:
    """Turn stored values into F32 or BF16 bits; InputError if one is not finite, before or after rounding."""
    _check_finite(raw, source, name, "in the checkpoint")
    if source == kind:
        return raw
    values = to_f32(raw, source)
    if kind == "F32":
        return values
    bits = f32_to_bf16(values)
    _check_finite(bits, "BF16", name, "after rounding to bf16; build with --dtype f32")
    return bits


def _check_finite(raw: Array, dtype: str, name: str, where: str) -> None:
    finite = bool(((raw & 0x7F80) != 0x7F80).all()) if dtype == "BF16" else bool(np.isfinite(raw).all())
    if not finite:
        raise input_error(f"build: {name}: expected finite weights, got NaN or infinity {where}")


def _describe(checkpoint: Source) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "revision": REVISION,
        "name": checkpoint.name,
        "variant": checkpoint.variant,
        "trained": checkpoint.trained,
        "producer": f"mimo-edge {metadata.version('mimo-edge')}",
        "codec": checkpoint.codec.as_json(),
        "lm": checkpoint.lm.as_json(),
        "tokens": checkpoint.tokenizer.ids,
        "parameters": count_parameters(checkpoint.lm_tensors | checkpoint.codec_tensors),
    }


def _source_bytes(checkpoint: Source) -> int:
    return sum(path.stat().st_size for paths in checkpoint.source_files.values() for path in paths)


def _provenance(checkpoint: Source, counter: _Counter) -> dict[str, Any]:
    """Name the released folders and hash every file the bundle was made from."""
    result: dict[str, Any] = {}
    for part, paths in checkpoint.source_files.items():
        hashes = {path.name: _sha256(path, counter) for path in paths}
        result[part] = {"folder": checkpoint.source_folders[part], "files": hashes}
    return result


def _sha256(path: Path, counter: _Counter) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            counter.add(len(block), f"hash of {path.name}")
    return digest.hexdigest()


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "bundle.json").is_file():
        raise input_error(f"build: {out}: expected a new folder, got something that is no bundle; choose another name")
    if not overwrite:
        raise input_error(f"build: {out}: expected a new folder, but a bundle is there; add --overwrite to replace it")


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise _bundle_error(f"build: {out}: expected {needed / 1e9:.2f} GB free on this disk, got {free / 1e9:.2f} GB")


def _move(partial: Path, out: Path) -> None:
    """Put the complete folder in place; an old bundle steps aside first and comes back if that fails."""
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    try:
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    _sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bundle_error(message: str) -> Exception:
    from mimo_edge import BundleError

    return BundleError(message)


@contextmanager
def _sentence_for_os_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space and build again" if full else str(error)
        raise _bundle_error(f"build: {out} could not be written: {what}") from error
