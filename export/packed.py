"""Packed weight matrices: the layouts that the kernels read, and what the numbers in them mean.

    X.weight_scale F32 | F16 [ceil(N/16), groups, 16]   value[n, k] = q[n, k] * scale[n, k // group]
    int8   X.weight I8      [ceil(N/16), ceil(K/4), 16, 4]   q of (n, k) at [n/16, k/4, n%16, k%4], in [-127, 127]
    fp8    X.weight F8_E4M3 [ceil(N/16), ceil(K/4), 16, 4]   likewise, bit patterns (uint8 here)
    int4   X.weight U8      [ceil(N/16), ceil(K/8), 16, 4]   a byte holds k = 8c + j low, 8c + 4 + j high; nibble q + 8

int8 and fp8 have one group, the whole row; int4 has groups of 128, 64 or 32 columns. Padding holds q = 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimo_edge.export.safetensors_io import Array

ROWS = 16  # output channels that lie together
INT8_MAX, INT4_MAX, FP8_MAX = 127, 7, 448.0
GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix. dtype, scale_dtype: safetensors names; columns: weights of one row per 4 bytes;
    largest: the largest |q|; bits: of one weight."""

    name: str
    dtype: str
    scale_dtype: str
    columns: int
    largest: float
    bits: int

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of X.weight for a matrix [rows, columns]."""
        return -(-rows // ROWS), -(-columns // self.columns), ROWS, 4

    def groups(self, columns: int, group: int) -> int:
        """How many scales a row has."""
        return -(-columns // group) if self.bits == 4 else 1

    def scale_shape(self, rows: int, columns: int, group: int) -> tuple[int, ...]:
        """The shape of X.weight_scale."""
        return -(-rows // ROWS), self.groups(columns, group), ROWS


FORMATS = {
    "int8": Format("int8", "I8", "F32", 4, INT8_MAX, 8),
    "fp8": Format("fp8", "F8_E4M3", "F32", 4, FP8_MAX, 8),
    "int4": Format("int4", "U8", "F16", 8, INT4_MAX, 4),
}
BY_DTYPE = {form.dtype: form for form in FORMATS.values()}


@dataclass(frozen=True, slots=True)
class Quantised:
    """A matrix as numbers and scales. q: int8 [N, K], or uint8 E4M3 bit patterns; scale float32 [N, groups]."""

    form: Format
    group: int
    q: Array
    scale: NDArray[np.float32]

    def values(self) -> NDArray[np.float32]:
        """Return what the numbers mean, float32 [N, K]."""
        numbers = fp8_values(self.q) if self.form.name == "fp8" else self.q.astype(np.float32)
        columns = self.q.shape[1]
        if self.scale.shape[1] == 1:
            return numbers * self.scale
        return numbers * np.repeat(self.scale, self.group, axis=1)[:, :columns]

    def packed(self) -> tuple[Array, Array]:
        """Return X.weight and X.weight_scale as the bundle stores them."""
        rows, groups = self.scale.shape
        scale = np.zeros((-(-rows // ROWS) * ROWS, groups), "<f2" if self.form.bits == 4 else "<f4")
        scale[:rows] = self.scale
        weight = pack_int4(self.q) if self.form.bits == 4 else pack_bytes(self.q)
        return weight, np.ascontiguousarray(scale.reshape(-1, ROWS, groups).transpose(0, 2, 1))

    @staticmethod
    def unpack(form: Format, weight: Array, scale: Array, shape: tuple[int, int], group: int) -> Quantised:
        """The inverse of `packed`. shape: [N, K] without padding."""
        q = unpack_int4(weight, shape) if form.bits == 4 else unpack_bytes(weight, shape)
        scales = scale.transpose(0, 2, 1).reshape(-1, scale.shape[1])[: shape[0]]
        return Quantised(form, group, q, np.ascontiguousarray(scales, np.float32))


def pack_bytes(q: Array) -> Array:
    """[N, K] of one byte each -> [ceil(N/16), ceil(K/4), 16, 4], padded with zero bytes."""
    rows, columns = q.shape
    padded = np.zeros((-(-rows // ROWS) * ROWS, -(-columns // 4) * 4), q.dtype)
    padded[:rows, :columns] = q
    return np.ascontiguousarray(padded.reshape(-1, ROWS, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3))


def unpack_bytes(packed: Array, shape: tuple[int, int]) -> Array:
    """The inverse of `pack_bytes`. shape: [N, K] without padding."""
    return np.ascontiguousarray(_rows(packed)[: shape[0], : shape[1]])


def pack_int4(q: Array) -> NDArray[np.uint8]:
    """int8 [N, K] in [-7, 7] -> uint8 [ceil(N/16), ceil(K/8), 16, 4], two to a byte, padded with q = 0."""
    rows, columns = q.shape
    padded = np.full((-(-rows // ROWS) * ROWS, -(-columns // 8) * 8), 8, np.uint8)
    padded[:rows, :columns] = (q + 8).astype(np.uint8)
    halves = padded.reshape(-1, ROWS, padded.shape[1] // 8, 2, 4)
    return np.ascontiguousarray((halves[..., 0, :] | (halves[..., 1, :] << 4)).transpose(0, 2, 1, 3))


def unpack_int4(packed: Array, shape: tuple[int, int]) -> NDArray[np.int8]:
    """The inverse of `pack_int4`: int8 [N, K]."""
    both = np.stack([packed & 15, packed >> 4], axis=3)  # [N/16, K/8, 16, half, 4]
    q = both.transpose(0, 2, 1, 3, 4).reshape(packed.shape[0] * ROWS, -1)[: shape[0], : shape[1]]
    signed: NDArray[np.int8] = q.astype(np.int8) - np.int8(8)
    return signed


def _rows(packed: Array) -> Array:
    """[R, C, 16, 4] -> [16 R, 4 C]."""
    rows: Array = packed.transpose(0, 2, 1, 3).reshape(packed.shape[0] * ROWS, -1)
    return rows


def fp8_bits(values: Array) -> NDArray[np.uint8]:
    """Round float32 to E4M3 (FN) bit patterns as ONNX does: to nearest, ties to even, saturating at 448; NaN is 0x7F.

    A finite value is m * 2^(e - 3), with m below 16 and e from -6 (subnormal where m < 8) to 8.
    """
    x = np.asarray(values, np.float32)
    size = np.minimum(np.abs(x), np.float32(FP8_MAX))
    exponent = np.where(size >= 2.0**-6, np.frexp(size)[1] - 1, -6)
    mantissa = np.rint(np.ldexp(size, 3 - exponent))  # a power of two: exact before the rounding
    with np.errstate(invalid="ignore"):
        bits = ((exponent + 6) * 8 + mantissa).astype(np.uint8)  # m = 16 carries into the exponent
    bits = np.where(np.isnan(x), 0x7F, bits)
    signed: NDArray[np.uint8] = (bits | (np.signbit(x) << np.uint8(7))).astype(np.uint8)
    return signed


def fp8_values(bits: Array) -> NDArray[np.float32]:
    """E4M3 (FN) bit patterns (uint8) -> float32, exactly."""
    return _fp8_table()[bits]


@functools.cache
def _fp8_table() -> NDArray[np.float32]:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    size[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -size, size).astype(np.float32)
