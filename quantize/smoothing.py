"""SmoothQuant (Xiao et al. 2022): channels of a layer's inputs that are hard to round lend their size to its weights.

    rows of what gives the channels / s  ->  inputs / s  ->  columns of what takes them * s      s [K], one a channel

A norm gives, or the linear half of a gated MLP. The factors are powers of two, so that in floats the smoothed model is
the original bit for bit. After it, one fixed scale serves all inputs of a layer better: `input_scales`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mimo_edge.export.bundle import Part
from mimo_edge.export.packed import FORMATS, Format
from mimo_edge.export.safetensors_io import Array
from mimo_edge.quantize.calibration import Calibration, source
from mimo_edge.quantize.recipe import Recipe
from mimo_edge.quantize.rounding import best_scale

_ROWS = 512  # of a matrix looked at at once
_RATIOS = (1.0, 0.85, 0.7, 0.5, 0.35)  # scales tried, as shares of the largest input / the largest number
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_FEEDS = {  # what gives channels -> the matrices of its layer that take them in
    "input_layernorm": _ATTENTION,
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
    "self_attn_layer_norm": _ATTENTION,
    "final_layer_norm": ("fc1",),
}


@dataclass(slots=True)
class Gain:
    """What a tensor is multiplied by, float32: rows (of a vector, its numbers) by [N] or [1], columns by [K] or [1]."""

    rows: Array = field(default_factory=lambda: np.ones(1, np.float32))
    columns: Array = field(default_factory=lambda: np.ones(1, np.float32))


def gains(part: Part, recipe: Recipe, heard: Calibration | None) -> dict[str, Gain]:
    """The gains of a recipe with `smooth`, by tensor: columns by s, what feeds them by 1 / s.

    s = range of the input ^ smooth / range of the weights ^ (1 - smooth), to the nearest power of two. Channels are
    left alone where calibration heard nothing, a matrix that they touch stays in floats, or none has 8-bit inputs.
    """
    out: dict[str, Gain] = {}
    if heard is None or recipe.smooth is None:
        return out
    for name, giver, takers in feeds(part):
        inputs = heard.ranges(takers[0])
        touched = [*takers, name] if len(part.shapes[name]) == 2 else takers
        packed = all(recipe.rule(matrix, part.shapes[matrix]).weights != "float" for matrix in touched)
        if inputs is None or not packed or not any(_rounds_inputs(recipe, part, matrix) for matrix in takers):
            continue
        s = _factors(inputs, np.max([_column_range(part, matrix) for matrix in takers], axis=0), recipe.smooth)
        for matrix in takers:
            out.setdefault(matrix, Gain()).columns = s
        for fed_by in (f"{giver}.weight", f"{giver}.bias"):
            if fed_by in part.shapes:
                out.setdefault(fed_by, Gain()).rows = 1 / s
    return out


def input_scales(part: Part, recipe: Recipe, heard: Calibration | None, gain: dict[str, Gain]) -> dict[str, float]:
    """The scales of the inputs that a recipe with `static` rounds in graphs, of least squared error, by matrix."""
    out: dict[str, float] = {}
    found: dict[tuple[str, str], float | None] = {}  # layers that take in the same have one scale a format
    if heard is None or not recipe.static:
        return out
    for name in part.shapes:
        if not _rounds_inputs(recipe, part, name):
            continue
        form = FORMATS[recipe.rule(name, part.shapes[name]).weights]
        key = source(name), form.name
        if key not in found:
            found[key] = _fixed_scale(heard.inputs(name), gain.get(name, Gain()), form, recipe.group)
        if (scale := found[key]) is not None:
            out[name] = scale
    return out


def feeds(part: Part) -> list[tuple[str, str, list[str]]]:
    """What may lend its size to what: (a giving tensor, the same without ".weight", the matrices that take it in)."""
    out = []
    for name in part.shapes:
        for kind, takers in _FEEDS.items():
            giver = name.removesuffix(".weight")
            if name != giver and giver.endswith(f".{kind}"):
                out.append((name, giver, [f"{giver.removesuffix(kind)}{matrix}.weight" for matrix in takers]))
    return out


def _factors(inputs: Array, weights: Array, smooth: float) -> Array:
    known = (inputs > 0) & (weights > 0)
    exponent = smooth * np.log2(np.where(known, inputs, 1)) - (1 - smooth) * np.log2(np.where(known, weights, 1))
    factors: Array = np.exp2(np.rint(exponent)).astype(np.float32)
    return factors


def _fixed_scale(inputs: Array | None, gain: Gain, form: Format, group: int) -> float | None:
    if inputs is None:
        return None
    smoothed = (inputs / gain.columns).astype(np.float32, copy=False)
    scale = float(best_scale(smoothed.reshape(1, -1), form, group, ratios=_RATIOS)[0, 0])
    return scale if scale > 0 else None


def _rounds_inputs(recipe: Recipe, part: Part, name: str) -> bool:
    rule = recipe.rule(name, part.shapes[name])
    return rule.activations == 8 and rule.weights in ("int8", "fp8")


def _column_range(part: Part, name: str) -> Array:
    rows = part.shapes[name][0]
    blocks = [np.abs(part.rows(name, i, min(i + _ROWS, rows))).max(axis=0) for i in range(0, rows, _ROWS)]
    largest: Array = np.max(blocks, axis=0)
    return largest
