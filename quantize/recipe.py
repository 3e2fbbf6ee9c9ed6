"""A recipe: which tensor is stored how, and what a bundle made by it must still be able to do. JSON, as data.

    {"name": "mine", "about": "one sentence", "group": 128, "method": "gptq", "kv": "f16",
     "rules": [{"tensors": "model.layers.*_proj.weight", "weights": "int4", "activations": 8}, ...],
     "gates": {"text_agreement": 0.97, "level_agreement": 0.95, ...}}

The first rule whose pattern (shell wildcards) fits a tensor's name decides; what no rule names stays as it is, and so
do vectors, codebooks and transposed convolutions. weights: int8, int4, fp8 or float. activations: bits of the inputs of
that matrix, 16 (default) or 8. A negative number of a layer of the backbone counts from its end, as in
"model.layers.-1.*". kv: how the backbone's keys and values are kept, f16 (default), f32 or int8, a scale for every
head and position; a stream of sound keeps its own as f16, unless kv is f32. method: gptq corrects rounding by what
calibration heard; rtn only rounds. smooth: SmoothQuant's alpha, 0 to 1 (smoothing.py). static: graphs round the 8-bit
inputs of int8 and fp8 matrices too, by one fixed scale that calibration measured (the core rounds those of int8 and
int4, by a scale a row found on the way).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from mimo_edge.export.bundle import Bundle
from mimo_edge.export.packed import FORMATS, GROUPS
from mimo_edge.export.safetensors_io import input_error, no_duplicates
from mimo_edge.export.tensor_table import is_transposed_conv, stays_f32

METHODS = ("rtn", "gptq")
KV_TYPES = ("f16", "f32", "int8")
_FROM_THE_END = re.compile(r"(?<=^model\.layers\.)-\d+")
GATES = {  # name -> whether the measured value must be at least (or else: at most) the limit
    "text_agreement": True,  # share of text positions with the same likeliest token, teacher-forced
    "level_agreement": True,  # the same of codes, of the worst level
    "text_kl": False,  # mean KL divergence of text, nats
    "level_kl": False,  # of the worst level
    "code_agreement": True,  # share of equal codes of the codec encoder, over the levels the LM reads
    "asr_points": False,  # word errors of transcripts, percentage points above the original's
    "speech_points": False,  # word errors of speech, as an independent judge hears it, likewise
    "mel_distance": False,  # of rebuilt sound, dB above the original's
    "stoi_loss": False,  # of rebuilt speech, below the original's
    "pesq_loss": False,  # likewise, MOS-LQO
    "runaway_rate": False,  # share of prompts stopped by the guard
}


def kv_bytes(kind: str | None, head_dim: int) -> float:
    """Bytes of a key or value of a head of head_dim; None: floats. int8 has a 2-byte scale a head and position."""
    return {"f16": 2.0, "int8": 1 + 2 / head_dim}.get(kind or "f32", 4.0)


@dataclass(frozen=True, slots=True)
class Rule:
    """tensors: a pattern of names; weights: int8, int4, fp8 or float; activations: bits, 16 or 8."""

    tensors: str
    weights: str
    activations: int = 16


FLOAT = Rule("*", "float")


@dataclass(frozen=True, slots=True)
class Recipe:
    """See the top of this file."""

    name: str
    about: str
    rules: tuple[Rule, ...]
    group: int = 128
    method: str = "rtn"
    kv: str = "f16"
    smooth: float | None = None
    static: bool = False
    gates: dict[str, float] = field(default_factory=dict)

    def rule(self, name: str, shape: tuple[int, ...]) -> Rule:
        """Return what happens to the tensor `name` of released shape `shape`."""
        if stays_f32(name, shape) or is_transposed_conv(name):
            return FLOAT
        return next((rule for rule in self.rules if fnmatchcase(name, rule.tensors)), FLOAT)

    def of_model(self, config: Mapping[str, Any]) -> Recipe:
        """The same recipe with the layers of the backbone counted from its beginning. config: bundle.json."""
        layers = config["lm"]["num_hidden_layers"]

        def counted(pattern: str) -> str:
            return _FROM_THE_END.sub(lambda found: str(layers + int(found[0])), pattern)

        return replace(self, rules=tuple(replace(rule, tensors=counted(rule.tensors)) for rule in self.rules))

    def idle(self, bundle: Bundle) -> list[str]:
        """Patterns that decide nothing of a bundle: mistyped, behind a wider one, or of layers it does not have."""
        followed = {self.rule(name, shape) for part in bundle.parts.values() for name, shape in part.shapes.items()}
        return [rule.tensors for rule in self.rules if rule not in followed]

    @staticmethod
    def read(name: str) -> Recipe:
        """Read a recipe by the name of one in the package, or by the path of a file.

        Raises InputError: neither exists, or the file says something that no recipe can say.
        """
        path = Path(name)
        if path.suffix == ".json":
            if not path.is_file():
                raise input_error(f"recipe: expected a file, got {name}, which does not exist")
            return _parsed(path.read_bytes(), str(path))
        if name not in recipe_names():
            raise input_error(f"recipe: expected {', '.join(recipe_names())} or a .json file, got {name!r}")
        return _parsed((_folder() / f"{name}.json").read_bytes(), name)


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def _folder() -> Any:
    return resources.files("mimo_edge.quantize") / "recipes"


def _parsed(text: bytes, where: str) -> Recipe:
    try:
        raw = json.loads(text, object_pairs_hook=no_duplicates)
        rules = tuple(Rule(**rule) for rule in raw.pop("rules"))
        recipe = Recipe(rules=rules, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise input_error(f"recipe: {where}: expected the fields {', '.join(Recipe.__slots__)}, got {error}") from error
    _check(recipe, where)
    return recipe


def _among(value: object, choices: tuple[int, ...]) -> bool:
    return isinstance(value, int) and value in choices


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(recipe: Recipe, where: str) -> None:
    """Raise InputError for a word or number that means nothing."""

    def expect(good: bool, what: str, got: object) -> None:
        if not good:
            raise input_error(f"recipe: {where}: expected {what}, got {got!r}")

    for word in ("name", "about"):
        expect(isinstance(getattr(recipe, word), str), f"{word} in quotes", getattr(recipe, word))
    expect(_among(recipe.group, GROUPS), f"group {', '.join(map(str, GROUPS))}", recipe.group)
    expect(recipe.method in METHODS, f"method {' or '.join(METHODS)}", recipe.method)
    expect(recipe.kv in KV_TYPES, f"kv {', '.join(KV_TYPES)}", recipe.kv)
    smooth = recipe.smooth
    expect(smooth is None or (_is_number(smooth) and 0 <= smooth <= 1), "smooth between 0 and 1", smooth)
    expect(isinstance(recipe.static, bool), "static true or false", recipe.static)
    for rule in recipe.rules:
        expect(isinstance(rule.tensors, str), "tensors: a pattern of names", rule.tensors)
        expect(rule.weights in (*FORMATS, "float"), f"weights {', '.join(FORMATS)} or float", rule.weights)
        expect(_among(rule.activations, (8, 16)), "activations 8 or 16", rule.activations)
    expect(isinstance(recipe.gates, dict), "gates: an object", recipe.gates)
    for gate, limit in recipe.gates.items():
        expect(gate in GATES, f"gates {', '.join(GATES)}", gate)
        expect(_is_number(limit), f"a number for {gate}", limit)
