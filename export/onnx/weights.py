"""The weights of an exported stage: taken from the bundle, laid out as ONNX wants them, streamed into one file.

    bundle tensor -> layout -> dtype -> <stage>.weights, block by block, hashed on the way

Both flavours of a stage name the same file, and no more than a block of it is ever in memory (the source is mapped one
tensor at a time). Initialisers carry the released names. Layouts: linear [in, out] (the B of MatMul), convolution
[out, in, k], transposed convolution [in, out, k]; embeddings, codebooks and the text head as in the bundle.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mimo_edge.export.bundle import Part
from mimo_edge.export.reference_ops import Weights
from mimo_edge.export.safetensors_io import Array, input_error

PAGE_BYTES = 4096  # larger tensors begin at a page: a runtime can map them where they lie
LINE_BYTES = 64  # smaller ones at a cache line
_BLOCK_BYTES = 16 << 20

# I8, I4 and F8 are stored as the bundle's quantised numbers, two I4 to a byte, the first in the low half
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
_ITEM_BITS = {"F32": 32, "F16": 16, "BF16": 16, "I32": 32, "I8": 8, "F8": 8, "I4": 4}
_NUMBERS = {"int8": "I8", "int4": "I4", "fp8": "F8"}
_ROWS = re.compile(r"(^model\.embed_tokens|^lm_head|^speech_embeddings\.\d+)\.weight$|\._codebook\.embed$")


@dataclass(frozen=True, slots=True)
class Weight:
    """One initialiser. read: its values in final layout, mapped or computed, of dtype `source`; stored as `dtype`.

    dequantized: None, or what is stored in its place and what DequantizeLinear makes it from.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    dtype: str
    read: Callable[[], Array]
    dequantized: Dequantized | None = None

    @property
    def nbytes(self) -> int:
        return -(-int(np.prod(self.shape, dtype=np.int64)) * _ITEM_BITS[self.dtype] // 8)

    def blocks(self) -> Iterator[Array]:
        """Yield the stored bytes in order, a few rows at a time."""
        values = self.read()
        if values.shape != self.shape:
            raise input_error(f"export-onnx: {self.name}: expected {list(self.shape)}, got {list(values.shape)}")
        step = max(1, _BLOCK_BYTES // max(1, self.nbytes // max(1, self.shape[0])))
        step += step % 2  # I4: a block ends with a byte
        for start in range(0, self.shape[0], step):
            yield self._stored(values[start : start + step])

    def _stored(self, block: Array) -> Array:
        """Values as uint8, C order. torch converts and transposes several times faster than numpy."""
        if self.dtype in ("I8", "F8"):
            return np.ascontiguousarray(block).reshape(-1).view(np.uint8)
        if self.dtype == "I4":
            return _nibbles(block)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the source is mapped read-only and only read
            values = torch.from_numpy(block)
        if self.source == "BF16":
            values = values.view(torch.bfloat16)
        converted = values.to(TORCH_DTYPES[self.dtype]).contiguous()
        if self.dtype == "F16" and not bool(converted.isfinite().all()):
            raise input_error(f"export-onnx: {self.name}: expected values below 65504 for f16, got "
                              f"{float(values.abs().max()):.3g}; use --dtype bf16 or f32")  # fmt: skip
        raw: Array = converted.reshape(-1).view(torch.uint8).numpy()
        return raw


@dataclass(frozen=True, slots=True)
class Dequantized:
    """DequantizeLinear(numbers, scale, axis, block_size): what a packed weight of the bundle means.

    block_size: of consecutive numbers along `axis` that share a scale; 0: one scale for each index of `axis`.
    input_scale: QuantizeLinear and DequantizeLinear by it stand before the other factor; None: nothing does.
    """

    numbers: Weight
    scale: Weight
    axis: int
    block_size: int
    input_scale: float | None


def stored(weights: Sequence[Weight]) -> list[Weight]:
    """What is written for a list of weights: themselves, or the numbers and scales they are made from."""
    parts = (
        (weight,) if weight.dequantized is None else (weight.dequantized.numbers, weight.dequantized.scale)
        for weight in weights
    )
    return list(itertools.chain.from_iterable(parts))


def bundle_weights(file: Part, prefixes: Sequence[str], dtype: str) -> list[Weight]:
    """Take the tensors of a bundle's file whose names begin with one of `prefixes`. Codebooks stay F32."""
    return [
        _from_bundle(file, name, "F32" if name.endswith("._codebook.embed") else dtype)
        for name in file.shapes
        if name.startswith(tuple(prefixes))
    ]


def computed(name: str, values: Array, dtype: str) -> Weight:
    """A table made here: float32, stored as `dtype`; or int32 with dtype I32."""
    return Weight(name, values.shape, "I32" if dtype == "I32" else "F32", dtype, lambda: values)


def _from_bundle(file: Part, name: str, dtype: str) -> Weight:
    stored_as = file.shapes[name]
    axes = _axes(name, len(stored_as))
    shape = tuple(stored_as[axis] for axis in axes)
    if file.is_packed(name):

        def values() -> Array:
            whole: Array = file.values(name).transpose(axes)
            return whole

        return Weight(name, shape, "F32", dtype, values, _dequantized(file, name, dtype, axes, shape))

    def read() -> Array:
        raw: Array = file.file.read(name).transpose(axes)
        return raw

    return Weight(name, shape, file.file.tensors[name].dtype, dtype, read)


def _dequantized(
    file: Part, name: str, dtype: str, axes: tuple[int, ...], shape: tuple[int, ...]
) -> Dequantized | None:
    """How a packed weight is made in a graph; None for one whose scales no axis of its ONNX layout has.

    The numbers lie as the weight does. A row of the bundle's matrix is an output channel: axis 1 of a linear layer
    [in, out], axis 0 elsewhere. Groups of columns become blocks of the other axis, which only a matrix has.
    """
    form, scale_shape = file.form(name), file.file.tensors[f"{name}_scale"].shape
    groups = scale_shape[1]
    if groups > 1 and len(shape) != 2:
        return None
    rows = axes.index(0)

    def numbers() -> Array:
        q: Array = file.quantised(name).q.reshape(file.shapes[name]).transpose(axes)
        return q

    def scales() -> Array:
        scale = file.quantised(name).scale
        return scale[:, 0] if groups == 1 else scale.transpose(axes)

    kind = _NUMBERS[form.name]
    length = (shape[rows],) if groups == 1 else tuple(groups if axis == 1 - rows else shape[axis] for axis in (0, 1))
    return Dequantized(
        Weight(f"{name}_quantized", shape, kind, kind, numbers),
        Weight(f"{name}_scale", length, "F32", dtype, scales),
        rows if groups == 1 else 1 - rows,
        0 if groups == 1 else file.group,
        file.input_scales.get(name),
    )


def _nibbles(q: Array) -> Array:
    """int8 in [-8, 7] -> uint8, two to a byte, the first in the low half."""
    flat = q.astype(np.int8).reshape(-1).view(np.uint8) & np.uint8(15)
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    packed: Array = flat[::2] | (flat[1::2] << np.uint8(4))
    return packed


def _axes(name: str, rank: int) -> tuple[int, ...]:
    """The permutation from the bundle's layout to ONNX's."""
    if rank == 2 and not _ROWS.search(name):
        return 1, 0  # linear [out, in] -> [in, out]
    if rank == 3:  # transposed convolution [k, out, in] -> [in, out, k]; convolution [out, k, in] -> [out, in, k]
        return (2, 1, 0) if re.search(r"\.dconv\d\.conv\.weight$", name) else (0, 2, 1)
    return tuple(range(rank))


def offsets(weights: Sequence[Weight]) -> dict[str, int]:
    """Where each weight begins in the file of its stage, in bytes."""
    table, end = {}, 0
    for weight in stored(weights):
        table[weight.name] = end = end + -end % (PAGE_BYTES if weight.nbytes >= PAGE_BYTES else LINE_BYTES)
        end += weight.nbytes
    return table


def write_weights(weights: Sequence[Weight], path: Path, progress: Callable[[int], None]) -> str:
    """Write the file of a stage; progress gets the bytes of every block. Returns the file's sha256 in hex."""
    digest, table, end = hashlib.sha256(), offsets(weights), 0
    with open(path, "xb") as file:
        for weight in stored(weights):
            gap = bytes(table[weight.name] - end)
            file.write(gap)
            digest.update(gap)
            for block in weight.blocks():
                file.write(block.data)
                digest.update(block.data)
                progress(block.nbytes)
            end = table[weight.name] + weight.nbytes
    return digest.hexdigest()


class ModuleWeights(Weights):
    """`Weights` of the spec whose tensors are parameters of a module: torch.export sees them, by released name."""

    def __init__(self, root: nn.Module, weights: Sequence[Weight]) -> None:
        super().__init__()
        self._root = root
        self._names = {weight.name for weight in weights}
        for weight in weights:
            *path, leaf = weight.name.split(".")
            home = functools.reduce(_child, path, root)
            empty = torch.empty(weight.shape, dtype=TORCH_DTYPES[weight.dtype])
            home.register_parameter(leaf, nn.Parameter(empty, requires_grad=False))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = functools.reduce(getattr, name.split("."), self._root)  # type: ignore[assignment]
        return tensor

    def get(self, name: str, default: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        return self[name] if name in self._names else default

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]; the weight lies as [in, out] here."""
        y, bias = x @ self[f"{name}.weight"], self.get(f"{name}.bias")
        return y if bias is None else y + bias


def _child(module: nn.Module, name: str) -> nn.Module:
    if name not in module._modules:
        module.add_module(name, nn.Module())
    child = module._modules[name]
    assert child is not None
    return child
