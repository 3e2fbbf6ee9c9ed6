"""A quantised bundle of random weights, written directly: to measure a recipe at full size without a checkpoint.

Packed numbers are windows of one pool of random bytes, their scales one number a tensor, so that a matrix [N, K] has
the spread of a trained one, 1/sqrt(K). Vectors and what the recipe leaves in floats come from RandomCheckpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge.export.bundle import FORMAT, REVISION
from mimo_edge.export.new_folder import Counter, Progress, check_space, check_target, new_folder, write_file
from mimo_edge.export.packed import FORMATS, Format
from mimo_edge.export.random_checkpoint import RandomCheckpoint
from mimo_edge.export.safetensors_io import NUMPY_DTYPES, Array, SafetensorsWriter, input_error, nbytes_of, to_f32
from mimo_edge.export.tensor_table import Shapes, count_parameters, stays_f32, stored_layout, stored_shape
from mimo_edge.quantize.recipe import Recipe

_POOL_BYTES = (32 << 20) - 5  # odd, so that repeats of the pool never line up with blocks of rows
_MARGIN_BYTES = 1 << 20  # headers and bundle.json

_Plan = list[tuple[str, str, tuple[int, ...]]]  # name, dtype, shape in the file, in its order


def write_random_bundle(shape: str, recipe: Recipe, out: Path, *, progress: Progress | None = None) -> None:
    """Write a bundle of random weights of a shape ("7b", "small") as `recipe` would store it.

    Raises InputError: unknown shape, target in the way, disk full. Nothing half-written stays.
    """
    source = RandomCheckpoint(shape)
    out = out.resolve()
    check_target(out, "bundle.json", "bundle", False, _failure)
    parts = {"lm": source.lm_tensors, "codec": source.codec_tensors}
    plans = {part: _plan(shapes, recipe) for part, shapes in parts.items()}
    total = sum(nbytes_of(kind, stored) for plan in plans.values() for _, kind, stored in plan)
    check_space(out, total + _MARGIN_BYTES, _failure)
    counter = Counter(progress, total)
    high, low = np.random.default_rng(0).integers(1, 16, (2, _POOL_BYTES), np.uint8)  # no nibble 0, no byte -128
    pool = high << 4 | low
    files: dict[str, Any] = {}
    with new_folder(out, _failure) as folder:
        for part, plan in plans.items():
            path = folder / f"{part}.safetensors"
            with SafetensorsWriter(path, plan) as writer:
                for name, kind, stored in plan:
                    for block in _blocks(source, parts[part], name, kind, stored, pool):
                        counter.add(writer.write(name, block), name)
            files[path.name] = {"bytes": writer.bytes, "sha256": writer.sha256}
        tokenizer = source.tokenizer.json
        write_file(folder / "tokenizer.json", tokenizer)
        files["tokenizer.json"] = {"bytes": len(tokenizer), "sha256": hashlib.sha256(tokenizer).hexdigest()}
        released = source.lm_tensors | source.codec_tensors
        rules = {name: recipe.rule(name, shape) for name, shape in released.items()}
        bits = {name: rule.activations for name, rule in rules.items() if rule.weights != "float"}
        config = {
            "format": FORMAT,
            "revision": REVISION,
            "name": f"{source.name}-{recipe.name}",
            "variant": source.variant,
            "trained": False,
            "producer": f"mimo-edge {metadata.version('mimo-edge')}",
            "codec": source.codec.as_json(),
            "lm": source.lm.as_json(),
            "tokens": source.tokenizer.ids,
            "parameters": count_parameters(released),
            "quantization": {"recipe": recipe.name, "group": recipe.group, "kv": recipe.kv, "activation_bits": bits},
            "provenance": {part: {"folder": source.name, "files": {}} for part in parts},
            "files": files,
        }
        write_file(folder / "bundle.json", json.dumps(config, indent=1).encode() + b"\n")


def _failure(sentence: str) -> Exception:
    return input_error(f"bench: {sentence}")


def _format(recipe: Recipe, name: str, shape: tuple[int, ...]) -> Format | None:
    return FORMATS.get(recipe.rule(name, shape).weights)


def _plan(shapes: Shapes, recipe: Recipe) -> _Plan:
    """Packed matrices, then scales and floats by falling alignment."""
    packed: _Plan = []
    others: _Plan = []
    for name, shape in shapes.items():
        stored = stored_shape(name, shape)
        form = _format(recipe, name, shape)
        if form is None:
            others.append((name, "F32" if stays_f32(name, shape) else "BF16", stored))
            continue
        rows, columns = stored[0], math.prod(stored[1:])
        packed.append((name, form.dtype, form.shape(rows, columns)))
        others.append((f"{name}_scale", form.scale_dtype, form.scale_shape(rows, columns, recipe.group)))
    return packed + sorted(others, key=lambda entry: entry[1] != "F32")


def _blocks(
    source: RandomCheckpoint, shapes: Shapes, name: str, kind: str, stored: tuple[int, ...], pool: Array
) -> Iterator[Array]:
    """Yield a tensor of the file in blocks of its first axis."""
    if name in shapes and kind in ("F32", "BF16"):
        raw = stored_layout(name, source.read(name))
        yield to_f32(raw, "BF16") if kind == "F32" else raw
    elif name.endswith("_scale"):
        columns = math.prod(shapes[name.removesuffix("_scale")][1:])
        spread = 73.0 if kind == "F32" else 4.3  # standard deviation of the random integers
        yield np.full(stored, 1 / (spread * math.sqrt(columns)), NUMPY_DTYPES[kind])
    else:
        row = math.prod(stored[1:])
        first = zlib.crc32(name.encode()) % _POOL_BYTES
        step = max(1, (4 << 20) // row)
        for start in range(0, stored[0], step):
            count = min(step, stored[0] - start) * row
            at = (first + start * row) % _POOL_BYTES
            block = np.resize(np.concatenate([pool[at : at + count], pool[: max(0, at + count - _POOL_BYTES)]]), count)
            yield block.view(NUMPY_DTYPES[kind]).reshape(-1, *stored[1:])
