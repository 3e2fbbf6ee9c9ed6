"""Write a bundle: bundle.json, lm.safetensors, codec.safetensors, tokenizer.json (csrc/io/bundle reads it).

    source rows -> check finite -> F32 | BF16 -> stored layout -> file, hashed on the way

A bundle is there whole or not at all (new_folder.py). Memory stays at a few blocks of rows, whatever the size of the
model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge.export.checkpoint import Source
from mimo_edge.export.new_folder import Counter, Progress, check_space, check_target, new_folder, write_file
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

_BLOCK_BYTES = 8 << 20  # rows converted at a time: fits the cache, and keeps memory far below one tensor
_MARGIN_BYTES = 1 << 20  # headers and bundle.json, for the check of free space


def write_bundle(
    checkpoint: Source, out: Path, *, dtype: str = "auto", overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write `checkpoint` as a bundle folder `out`.

    dtype: "auto" keeps BF16 and widens F16 to F32; "bf16" rounds; "f32" widens. Vectors and codebooks are always F32.
    overwrite: replace an existing bundle, after the new one is complete. progress: of bytes.
    Raises InputError (wrong dtype, target in the way, NaN or infinity in a weight) or BundleError (disk full or not
    writable). Whatever is raised, KeyboardInterrupt too, nothing half-written stays and an old bundle is untouched.
    """
    if dtype not in DTYPES:
        raise input_error(f"build: dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    out = out.resolve()
    check_target(out, "bundle.json", "bundle", overwrite, lambda text: input_error(f"build: {text}"))
    plans = {
        "lm": _plan(checkpoint, checkpoint.lm_tensors, dtype),
        "codec": _plan(checkpoint, checkpoint.codec_tensors, dtype),
    }
    needed = sum(nbytes_of(kind, stored_shape(name, shape)) for plan in plans.values() for name, kind, shape in plan)
    check_space(out, needed + len(checkpoint.tokenizer.json) + _MARGIN_BYTES, _bundle_error)
    with new_folder(out, _bundle_error) as folder:
        _fill(checkpoint, folder, plans, Counter(progress, needed + _source_bytes(checkpoint)))


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


def _fill(checkpoint: Source, folder: Path, plans: Mapping[str, _Plan], counter: Counter) -> None:
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
    write_file(folder / "tokenizer.json", text)
    files["tokenizer.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    description = _describe(checkpoint) | {"provenance": _provenance(checkpoint, counter), "files": files}
    write_file(folder / "bundle.json", json.dumps(description, indent=1, ensure_ascii=False).encode() + b"\n")


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


def _provenance(checkpoint: Source, counter: Counter) -> dict[str, Any]:
    """Name the released folders and hash every file the bundle was made from."""
    result: dict[str, Any] = {}
    for part, paths in checkpoint.source_files.items():
        hashes = {path.name: _sha256(path, counter) for path in paths}
        result[part] = {"folder": checkpoint.source_folders[part], "files": hashes}
    return result


def _sha256(path: Path, counter: Counter) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            counter.add(len(block), f"hash of {path.name}")
    return digest.hexdigest()


def _bundle_error(text: str) -> Exception:
    from mimo_edge import BundleError

    return BundleError(f"build: {text}")
