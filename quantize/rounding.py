"""Round a matrix to few bits: to nearest with the best scale, or with the error spread over what calibration heard.

    nearest:  scale of a row and group = the candidate absmax * ratio / largest with the least squared error
    gptq:     columns one after another; the error of each is undone by the columns still to come, as far as the inputs
              that calibration saw are correlated (Frantar et al. 2022, "GPTQ"; columns in order of falling energy)

Both work on blocks of rows, which do not know of each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimo_edge.export.packed import Format, Quantised, fp8_bits, fp8_values
from mimo_edge.export.safetensors_io import Array

Floats = NDArray[np.float32]

# Scales tried, as shares of absmax / largest: a smaller scale clips the largest weights and is finer for the others.
RATIOS = {"int4": np.linspace(1.0, 0.65, 11), "int8": np.linspace(1.0, 0.85, 4), "fp8": np.ones(1)}
DAMPING = 0.01  # of the mean energy of an input, added to each: keeps the inverse finite, as in the paper's code
_BLOCK = 64  # columns whose corrections are applied at once


def nearest(weight: Floats, form: Format, group: int, energy: Floats | None = None) -> Quantised:
    """Round float32 [N, K] to nearest. energy [K]: how much an error of each column counts (None: all alike)."""
    scale = best_scale(weight, form, group, energy)
    return Quantised(form, group, _rounded(weight, scale, form, group), scale)


def best_scale(
    weight: Floats,
    form: Format,
    group: int,
    energy: Floats | None = None,
    ratios: Iterable[float] | None = None,
) -> Floats:
    """Return the scales [N, groups] of least squared error, exact in the dtype they are stored in.

    ratios: the scales tried, as shares of absmax / largest (None: RATIOS, for weights).
    """
    blocks = _by_group(weight, form, group)  # [N, groups, columns of a group]
    counts = np.float32(1) if energy is None else _by_group(energy[None], form, group)
    absmax = np.abs(blocks).max(axis=2)
    best: Floats = np.zeros_like(absmax)
    least = np.full(absmax.shape, np.inf, np.float32)
    for ratio in RATIOS[form.name] if ratios is None else ratios:
        scale = _storable(absmax * np.float32(ratio / form.largest), form)
        error = _to_grid(blocks, scale[..., None], form)
        error *= scale[..., None]
        error -= blocks
        np.square(error, out=error)
        loss = (error * counts).sum(axis=2) if energy is not None else error.sum(axis=2)
        better = loss < least
        np.copyto(best, scale, where=better)
        np.copyto(least, loss, where=better)
    return best


@dataclass(frozen=True, slots=True)
class Correction:
    """How GPTQ spreads errors over the columns of a matrix, made once a matrix.

    order [K]: columns by falling energy; root [K, K]: upper triangular U with U^T U the inverse of the inputs' second
    moments in that order; energy [K]: the diagonal of the moments, in the matrix's own order.
    """

    order: NDArray[np.intp]
    root: Floats
    energy: Floats

    @staticmethod
    def of(moments: Array) -> Correction:
        """moments [K, K]: sum over inputs x of x x^T."""
        energy = moments.diagonal().copy()
        order = np.argsort(-energy, kind="stable")
        damped = moments[np.ix_(order, order)].astype(np.float64)
        damped[np.diag_indices_from(damped)] += DAMPING * energy.mean() + np.finfo(np.float32).tiny
        # H = R R^T with R upper triangular is a Cholesky decomposition read backwards; U = R^-1
        backwards = np.linalg.cholesky(damped[::-1, ::-1])
        return Correction(order, np.linalg.inv(backwards[::-1, ::-1]).astype(np.float32), energy.astype(np.float32))


def gptq(weight: Floats, form: Format, group: int, correction: Correction) -> Quantised:
    """Round float32 [N, K] column by column; see the top of this file."""
    scale = best_scale(weight, form, group, correction.energy)
    order, root, columns = correction.order, correction.root, weight.shape[1]
    rest = np.ascontiguousarray(weight.T[order])  # [K, N], what is left to be said by the columns to come
    of_group = order // group if form.bits == 4 else np.zeros_like(order)
    rounded = np.empty((columns, len(weight)), np.uint8 if form.name == "fp8" else np.int8)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty((stop - start, len(weight)), np.float32)
        for j in range(start, stop):
            step = scale[:, of_group[j]]
            numbers = _to_grid(rest[j], step, form)
            rounded[order[j]] = fp8_bits(numbers) if form.name == "fp8" else numbers
            errors[j - start] = (rest[j] - numbers * step) / root[j, j]
            rest[j + 1 : stop] -= root[j, j + 1 : stop, None] * errors[j - start]
        rest[stop:] -= root[start:stop, stop:].T @ errors
    return Quantised(form, group, np.ascontiguousarray(rounded.T), scale)


def _rounded(weight: Floats, scale: Floats, form: Format, group: int) -> Array:
    numbers = _to_grid(_by_group(weight, form, group), scale[..., None], form)
    numbers = numbers.reshape(len(weight), -1)[:, : weight.shape[1]]
    return fp8_bits(numbers) if form.name == "fp8" else numbers.astype(np.int8)


def _to_grid(values: Floats, scale: Floats, form: Format) -> Floats:
    """The nearest numbers of the format to values / scale; 0 where the scale is."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    numbers = values * inverse
    if form.name == "fp8":
        return fp8_values(fp8_bits(numbers))
    np.rint(numbers, out=numbers)
    return np.clip(numbers, -form.largest, form.largest, out=numbers)


def _by_group(values: Floats, form: Format, group: int) -> Floats:
    """[N, K] -> [N, groups, columns of a group], padded with zeros."""
    rows, columns = values.shape
    if form.bits != 4:
        return values[:, None]
    missing = -columns % group
    padded = np.pad(values, ((0, 0), (0, missing))) if missing else values
    return padded.reshape(rows, -1, group)


def _storable(scale: Floats, form: Format) -> Floats:
    return scale.astype(np.float16).astype(np.float32) if form.bits == 4 else scale
