"""Bundle -> smaller bundle, a block of rows at a time.

    float rows -> rounded (rounding.py) -> packed (export/packed.py) -> file, hashed on the way

A file holds the packed matrices first (each a multiple of 64 bytes: all begin at a cache line), then their scales, then
what stays in floats. The folder appears when it is complete. Memory: a few blocks of rows and the scales of one file;
GPTQ adds about seven times the moments of one matrix, 4 bytes * K * K (3.4 GB for the 7B's widest).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge.export.bundle import Bundle, Part, expected_tensors
from mimo_edge.export.new_folder import Counter, Progress, check_space, check_target, new_folder, write_file
from mimo_edge.export.packed import FORMATS, ROWS, Format, Quantised
from mimo_edge.export.safetensors_io import SafetensorsWriter, input_error, nbytes_of
from mimo_edge.quantize.calibration import Calibration
from mimo_edge.quantize.recipe import Recipe
from mimo_edge.quantize.rounding import Correction, gptq, nearest
from mimo_edge.quantize.smoothing import Gain, gains, input_scales

_BLOCK_BYTES = 4 << 20  # float32 rows worked on at a time by a thread
_MARGIN_BYTES = 1 << 20  # headers and bundle.json


@dataclass(frozen=True, slots=True)
class Plan:
    """What one file will hold. packed: name -> format; kept: names that stay in floats."""

    part: Part
    packed: dict[str, Format]
    kept: list[str]

    @staticmethod
    def of(part: Part, recipe: Recipe) -> Plan:
        packed: dict[str, Format] = {}
        for name, shape in part.shapes.items():
            weights = recipe.rule(name, shape).weights
            if weights != "float":
                packed[name] = FORMATS[weights]
        return Plan(part, packed, [name for name in part.shapes if name not in packed])

    def header(self, group: int) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) in file order: matrices, F32 scales, F16 scales, F32, 16-bit floats."""
        infos = self.part.file.tensors
        rows: list[tuple[str, str, tuple[int, ...]]] = []
        for name, form in self.packed.items():
            rows.append((name, form.dtype, form.shape(*self.part.matrix_shape(name))))
        scales = [
            (f"{name}_scale", form.scale_dtype, form.scale_shape(*self.part.matrix_shape(name), group))
            for name, form in self.packed.items()
        ]
        rows += sorted(scales, key=lambda entry: entry[1] != "F32")
        kept = [(name, infos[name].dtype, infos[name].shape) for name in self.kept]
        return rows + sorted(kept, key=lambda entry: entry[1] != "F32")


def quantize(
    bundle: Bundle,
    recipe: Recipe,
    out: Path,
    *,
    heard: Calibration | None = None,
    calibration: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `bundle`, quantised by `recipe`, as the new folder `out`; return its bundle.json.

    heard: what its layers took in; without it, matrices are rounded to nearest and nothing is smoothed or static.
    calibration: facts about it for bundle.json. progress: (weights done, weights in all, tensor).
    Raises InputError: already quantised, no rule that fits, target in the way, disk full. Nothing half-written stays.
    """
    check_request(bundle, out, overwrite)
    out, recipe = out.resolve(), recipe.of_model(bundle.config)
    plans = {name: Plan.of(part, recipe) for name, part in bundle.parts.items()}
    if not any(plan.packed for plan in plans.values()):
        raise input_error(f"quantize: recipe {recipe.name}: expected rules that fit tensors of {bundle.path}, got none")
    tokenizer = (bundle.path / "tokenizer.json").read_bytes()
    size = sum(nbytes_of(kind, shape) for plan in plans.values() for _, kind, shape in plan.header(recipe.group))
    weights = sum(math.prod(shape) for part in bundle.parts.values() for shape in part.shapes.values())
    counter = Counter(progress, weights)
    files: dict[str, Any] = {}
    scales: dict[str, float] = {}
    check_space(out, size + len(tokenizer) + _MARGIN_BYTES, _failure)
    with new_folder(out, _failure) as folder:
        for name, plan in plans.items():
            path = folder / f"{name}.safetensors"
            with SafetensorsWriter(path, plan.header(recipe.group)) as writer:
                gain = gains(plan.part, recipe, heard)
                scales |= input_scales(plan.part, recipe, heard, gain)
                _fill(plan, recipe, heard, gain, writer, counter)
            files[path.name] = {"bytes": writer.bytes, "sha256": writer.sha256}
        write_file(folder / "tokenizer.json", tokenizer)
        files["tokenizer.json"] = bundle.config["files"]["tokenizer.json"]
        config = bundle.config | {
            "producer": f"mimo-edge {metadata.version('mimo-edge')}",
            "quantization": _describe(bundle, recipe, calibration, scales),
            "files": files,
        }
        write_file(folder / "bundle.json", as_json(config))
    return config


def check_request(bundle: Bundle, out: Path, overwrite: bool) -> None:
    """Refuse, before anything long begins, a bundle that is already quantised and a target in the way: InputError."""
    if "quantization" in bundle.config:
        raise input_error(f"quantize: {bundle.path}: expected a bundle in floats, got one quantised by recipe "
                          f"{bundle.config['quantization']['recipe']}; quantize the original")  # fmt: skip
    check_target(out.resolve(), "bundle.json", "bundle", overwrite, _failure, bundle.path)


def _failure(sentence: str) -> Exception:
    return input_error(f"quantize: {sentence}")


def as_json(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def amend(out: Path, facts: dict[str, Any]) -> None:
    """Add facts (the report of what it cost) to "quantization" in a bundle's bundle.json, in one step."""
    config = json.loads((out / "bundle.json").read_bytes())
    config["quantization"] |= facts
    partial = out / f".bundle.json.{os.getpid()}"
    write_file(partial, as_json(config))
    partial.replace(out / "bundle.json")


def _fill(
    plan: Plan,
    recipe: Recipe,
    heard: Calibration | None,
    gain: dict[str, Gain],
    writer: SafetensorsWriter,
    counter: Counter,
) -> None:
    part, scales = plan.part, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, form in plan.packed.items():
            columns, made = part.matrix_shape(name)[1], []
            for block in _rounded(part, name, form, recipe, heard, gain.get(name), pool):
                weight, scale = block.packed()
                writer.write(name, weight)
                made.append(scale)
                counter.add(len(block.q) * columns, name)
            scales[name] = np.concatenate(made)
    for name in sorted(plan.packed, key=lambda packed: plan.packed[packed].scale_dtype != "F32"):
        writer.write(f"{name}_scale", scales.pop(name))
    infos = part.file.tensors
    for name in sorted(plan.kept, key=lambda kept: infos[kept].dtype != "F32"):
        values = part.file.read(name)
        writer.write(name, values * gain[name].rows if name in gain else values)  # a norm is F32
        counter.add(math.prod(infos[name].shape), name)


def _rounded(
    part: Part,
    name: str,
    form: Format,
    recipe: Recipe,
    heard: Calibration | None,
    gain: Gain | None,
    pool: ThreadPoolExecutor,
) -> Iterator[Quantised]:
    """Yield a matrix times its gain in blocks of rows, in order, rounded by the threads of the pool."""
    rows, columns = part.matrix_shape(name)
    moments = heard.moments(name) if heard and recipe.method == "gptq" else None
    if moments is not None and gain is not None:
        moments /= gain.columns * gain.columns[:, None]
    correction = None if moments is None else Correction.of(moments)
    step = max(ROWS, _BLOCK_BYTES // (4 * columns) // ROWS * ROWS)

    def work(start: int) -> Quantised:
        weight = part.rows(name, start, min(start + step, rows))
        if not np.isfinite(weight).all():
            raise input_error(f"quantize: {name}: expected finite weights, got NaN or infinity")
        if gain is not None:
            weight = weight * gain.columns * np.broadcast_to(gain.rows, rows)[start : start + step, None]
        if correction is not None:
            return gptq(weight, form, recipe.group, correction)
        return nearest(weight, form, recipe.group)

    waiting: list[Future[Quantised]] = []
    for start in range(0, rows, step):
        waiting.append(pool.submit(work, start))
        if len(waiting) > 2 * (os.cpu_count() or 1):
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _describe(
    bundle: Bundle, recipe: Recipe, calibration: dict[str, Any] | None, scales: dict[str, float]
) -> dict[str, Any]:
    released = {name: shape for shapes in expected_tensors(bundle.config).values() for name, shape in shapes.items()}
    rules = {name: recipe.rule(name, shape) for name, shape in released.items()}
    bits = {name: rule.activations for name, rule in rules.items() if rule.weights != "float"}
    eight, sixteen = ([name for name in bits if bits[name] == count] for count in (8, 16))
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "group": recipe.group,
        "kv": recipe.kv,
        "smooth": recipe.smooth if calibration else None,
        "method": recipe.method if calibration else "rtn",
        "calibration": calibration,
        "activation_bits": dict.fromkeys(_prefixes(eight, sixteen), 8),
        "input_scales": scales,
        "rules": [{"tensors": r.tensors, "weights": r.weights, "activations": r.activations} for r in recipe.rules],
        "gates": recipe.gates,
        "source": {"name": bundle.config["name"], "sha256": bundle.sha256},
    }


def _prefixes(chosen: list[str], others: list[str]) -> list[str]:
    """The shortest prefixes, cut at dots, that name all of `chosen` and none of `others`."""
    taken = {prefix for name in others for prefix in _cuts(name)}
    return list(dict.fromkeys(next(p for p in _cuts(name) if p not in taken) for name in chosen))


def _cuts(name: str) -> Iterator[str]:
    words = name.split(".")
    for count in range(1, len(words)):
        yield ".".join(words[:count]) + "."
    yield name
