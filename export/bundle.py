"""Read a bundle: what bundle.json says, and every tensor by name, whether it is stored as floats or packed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_edge.export.config import CodecConfig, LmConfig
from mimo_edge.export.packed import BY_DTYPE, Format, Quantised
from mimo_edge.export.safetensors_io import Array, SafetensorsFile, input_error, to_f32
from mimo_edge.export.tensor_table import Shapes, codec_tensors, lm_tensors, stored_shape

FORMAT, REVISION = "mimo-edge bundle", 1


@dataclass(frozen=True, slots=True)
class Part:
    """One file of weights. shapes: name -> the stored shape of the tensor it means, packed or not; group: columns that
    share a scale in int4; input_scales: of matrices whose inputs graphs round."""

    file: SafetensorsFile
    shapes: Shapes
    group: int
    input_scales: dict[str, float]

    def is_packed(self, name: str) -> bool:
        return f"{name}_scale" in self.file.tensors

    def form(self, name: str) -> Format:
        """How a packed matrix is stored."""
        return BY_DTYPE[self.file.tensors[name].dtype]

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """[N, K] of a tensor as the kernels see it: all but the first axis are columns."""
        rows, *rest = self.shapes[name]
        return rows, math.prod(rest)

    def quantised(self, name: str) -> Quantised:
        """Return a packed matrix as numbers and scales."""
        weight, scale = self.file.read(name), self.file.read(f"{name}_scale")
        return Quantised.unpack(self.form(name), weight, scale, self.matrix_shape(name), self.group)

    def values(self, name: str) -> NDArray[np.float32]:
        """Return what a tensor means, float32 in its stored shape."""
        if self.is_packed(name):
            return self.quantised(name).values().reshape(self.shapes[name])
        return to_f32(self.file.read(name), self.file.tensors[name].dtype)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Copy rows [start, stop) of a float tensor as float32 [stop - start, K], reading nothing else."""
        raw = self.file.rows(name, start, stop)
        return to_f32(raw, self.file.tensors[name].dtype).reshape(stop - start, -1)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle folder. config: bundle.json; sha256: of bundle.json, the identity of the bundle."""

    path: Path
    config: dict[str, Any]
    sha256: str
    parts: dict[str, Part]  # "lm", "codec"

    @staticmethod
    def open(path: Path, command: str) -> Bundle:
        """Open the folder `path`. Raises InputError if it is no bundle, newer, or its files have another size."""
        try:
            raw = (path / "bundle.json").read_bytes()
            config = json.loads(raw)
        except (OSError, ValueError) as error:
            raise input_error(f"{command}: expected a bundle folder, got {path}: {error}") from error
        if config.get("format") != FORMAT or config.get("revision") != REVISION:
            got = f"{config.get('format')!r} revision {config.get('revision')!r}"
            raise input_error(f"{command}: {path}: expected {FORMAT!r} revision {REVISION}, got {got}; build it again")
        for name, entry in config["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else 0
            if size != entry["bytes"]:
                raise input_error(f"{command}: {path / name}: expected {entry['bytes']} bytes, got {size}; "
                                  "build or copy the bundle again")  # fmt: skip
        quantization = config.get("quantization", {})
        facts = quantization.get("group", 128), quantization.get("input_scales", {})
        parts = {
            name: Part(SafetensorsFile(path / f"{name}.safetensors"), _stored(shapes), *facts)
            for name, shapes in expected_tensors(config).items()
        }
        return Bundle(path, config, hashlib.sha256(raw).hexdigest(), parts)

    def check(self, command: str, progress: Callable[[int], object] = bool) -> None:
        """Hold every file against its sha256, so that what is made of them is of them. progress: of bytes read.

        Raises InputError naming the first that was altered.
        """
        for name, entry in self.config["files"].items():
            digest = hashlib.sha256()
            with open(self.path / name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    progress(len(block))
            if digest.hexdigest() != entry["sha256"]:
                raise input_error(f"{command}: {self.path / name}: expected sha256 {entry['sha256'][:12]}, got "
                                  f"{digest.hexdigest()[:12]}; build or copy the bundle again")  # fmt: skip


def expected_tensors(config: dict[str, Any]) -> dict[str, Shapes]:
    """The tensors that bundle.json promises: part -> name -> released shape."""

    def fields(part: str) -> dict[str, Any]:
        return {name: tuple(v) if isinstance(v, list) else v for name, v in config[part].items()}

    return {"lm": lm_tensors(LmConfig(**fields("lm"))), "codec": codec_tensors(CodecConfig(**fields("codec")))}


def _stored(shapes: Shapes) -> Shapes:
    return {name: stored_shape(name, shape) for name, shape in shapes.items()}
