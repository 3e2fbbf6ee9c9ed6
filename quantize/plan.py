"""What a bundle needs on a device, before anything is built: memory, bytes read a second of speech, projected speed.

    memory  = weights (all but the text table, whose rows are read as they are used) + keys and values + workspace
    reading = sum over stacks of bytes of weights * runs a second of speech, + keys and values at every position
    RTF     = reading / (bandwidth * EFFICIENCY)            below 1: faster than real time; projected, not measured

Devices are data: devices.json, which says of each bandwidth where it was found. reserved_gb is an estimate.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from mimo_edge.export.bundle import expected_tensors
from mimo_edge.export.packed import FORMATS
from mimo_edge.export.safetensors_io import input_error, nbytes_of
from mimo_edge.export.tensor_table import stays_f32, stored_shape
from mimo_edge.quantize.recipe import Recipe, kv_bytes, recipe_names

EFFICIENCY = 0.75  # of the bandwidth that speech reaches; 0.71 (int4) to 0.93 was measured on 2 CPU cores
PREFILL_ROWS = 120  # positions the core computes at once (kPrefillRows of csrc/engine/native.cpp)
BF16_BYTES = 2  # of a number in matrices that stay floats
PROCESS_BYTES = 90e6  # Python, numpy, the core and the text tokenizer
STREAM_S = 2.0  # sound decoded at once while it streams
INTERLEAVED = 2  # positions a patch while text and speech alternate 5 : 5
THIS = "this"


@dataclass(frozen=True, slots=True)
class Device:
    """memory_gb: in all; reserved_gb: what the system and its display take; sm: of its GPU (0: none); source: who says
    what the bandwidth is."""

    name: str
    about: str
    memory_gb: float
    reserved_gb: float
    bandwidth_gb_s: float
    sm: int
    source: str

    @property
    def usable(self) -> float:
        """Bytes left for the model."""
        return (self.memory_gb - self.reserved_gb) * 1e9


def devices() -> list[Device]:
    """The table of the package."""
    text = (resources.files("mimo_edge.quantize") / "devices.json").read_text("utf-8")
    return [Device(**entry) for entry in json.loads(text)]


def device(name: str) -> Device:
    """A device by name; "this" measures the machine at hand. Raises InputError for an unknown name."""
    if name == THIS:
        return _this_machine()
    table = {entry.name: entry for entry in devices()}
    if name not in table:
        raise input_error(f"plan: --device: expected {', '.join(table)} or {THIS}, got {name!r}")
    return table[name]


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes. file: all weights; weights: of them, what stays in memory; kv, workspace: of one conversation.

    reads: stack -> bytes read a second of speech, once text no longer interleaves; more_reads: what is added while it
    does.
    """

    file: float
    weights: float
    kv: float
    workspace: float
    reads: dict[str, float]
    more_reads: float

    @property
    def peak(self) -> float:
        return self.weights + self.kv + self.workspace

    def rtf(self, bandwidth_gb_s: float, interleaved: bool) -> float:
        """Seconds of work a second of speech: projected."""
        read = sum(self.reads.values()) + (self.more_reads if interleaved else 0)
        return read / (bandwidth_gb_s * 1e9 * EFFICIENCY)


def stored_bytes(config: Mapping[str, Any], recipe: Recipe | None) -> dict[str, int]:
    """Bytes of every tensor, its scales included, as `recipe` stores it (None: floats). config: bundle.json."""
    out: dict[str, int] = {}
    recipe = recipe and recipe.of_model(config)
    for shapes in expected_tensors(dict(config)).values():
        for name, released in shapes.items():
            shape = stored_shape(name, released)
            weights = "float" if recipe is None else recipe.rule(name, shape).weights
            if weights == "float" or recipe is None:
                out[name] = math.prod(shape) * (4 if stays_f32(name, shape) else BF16_BYTES)
                continue
            form, rows, columns = FORMATS[weights], shape[0], math.prod(shape[1:])
            out[name] = nbytes_of(form.dtype, form.shape(rows, columns))
            out[name] += nbytes_of(form.scale_dtype, form.scale_shape(rows, columns, recipe.group))
    return out


def needs(config: Mapping[str, Any], recipe: Recipe | None, context: int) -> Needs:
    """What one conversation of `context` positions needs. Raises InputError if the model has no such context."""
    lm, codec = config["lm"], config["codec"]
    if not 1 <= context <= lm["max_position_embeddings"]:
        raise input_error(f"plan: --context: expected 1 to {lm['max_position_embeddings']} positions, got {context}")
    stored = stored_bytes(config, recipe)

    def total(*prefixes: str) -> float:
        return float(sum(size for name, size in stored.items() if name.startswith(prefixes)))

    head = "model.embed_tokens." if lm["tie_word_embeddings"] else "lm_head."
    text_table = 0.0 if lm["tie_word_embeddings"] else total("model.embed_tokens.")
    cached = 2 * lm["num_hidden_layers"] * lm["num_key_value_heads"] * lm["head_dim"] * context
    kv = cached * kv_bytes(recipe.kv if recipe else None, lm["head_dim"])
    patches = 1 / (codec["hop_length"] * codec["stride_size"] * codec["avg_pooler"] * lm["group_size"]
                   / codec["sampling_rate"])  # fmt: skip
    steps = lm["group_size"] + max(lm["delay_pattern"])
    backbone = total("model.layers.", "model.norm.", head, "hidden_states_downcast.")
    reads = {
        "backbone and text head": backbone * patches,
        "keys and values": kv / 2 * patches,  # a conversation is half full on average
        "patch decoder": total("local_transformer") * steps * patches,
        "patch encoder": total("input_local_transformer.", "speech_group_downcast.") * patches,
        "codec decoder": total("decoder.") / STREAM_S,
    }
    file = float(sum(stored.values()))
    return Needs(
        file, file - text_table, kv, _workspace(lm, codec), reads, (backbone + kv / 2) * (INTERLEAVED - 1) * patches
    )


def _workspace(lm: Mapping[str, Any], codec: Mapping[str, Any]) -> float:
    """Activations of the widest moment, a block of prefill or a piece of sound in the codec; and the process."""
    width, ffn = lm["hidden_size"], lm["intermediate_size"]
    prefill = PREFILL_ROWS * (4 * width + 3 * ffn) * 4 + lm["vocab_size"] * 4
    mel_frames = 60 * codec["sampling_rate"] / codec["hop_length"]
    wide = max(
        codec["encoder_ffn_dim"] / 2, codec["decoder_ffn_dim"] / 2, codec["vocoder_intermediate_dim"], codec["nfft"]
    )
    sound = mel_frames * (wide + 4 * codec["d_model"] / 2) * 4
    return float(max(prefill, sound) + PROCESS_BYTES)


def advice(config: Mapping[str, Any], recipe: Recipe | None, context: int, target: Device) -> str | None:
    """None if it fits; else one sentence: why not, and the change that would make it fit."""
    need = needs(config, recipe, context)
    if recipe is not None and any(rule.weights == "fp8" for rule in recipe.rules) and 0 < target.sm < 89:
        return f"{target.about} has SM {target.sm}: E4M3 needs SM 89; use --recipe int8"
    if need.peak <= target.usable:
        return None
    over = f"{need.peak / 1e9:.2f} GB are needed, {target.about} leaves {target.usable / 1e9:.2f} GB"
    room = target.usable - (need.peak - need.kv)
    fits = int(room / (need.kv / context)) if room > 0 else 0
    if fits >= 256:
        return f"{over}; use --context {fits // 256 * 256}"
    for name in recipe_names():
        other = Recipe.read(name)
        if _would_fit(config, other, context, target):
            return f"{over}; use --recipe {name}"
    least = next((d.name for d in sorted(devices(), key=lambda d: d.usable) if need.peak <= d.usable), None)
    return f"{over}; use a larger device" + (f", the next is {least}" if least else "")


def _would_fit(config: Mapping[str, Any], recipe: Recipe, context: int, target: Device) -> bool:
    """Tell whether another recipe would fit, and could run there."""
    runs = target.sm >= 89 or target.sm == 0 or all(rule.weights != "fp8" for rule in recipe.rules)
    return runs and needs(config, recipe, context).peak <= target.usable


def _this_machine() -> Device:
    """Memory of the machine, and what all cores together read of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = os.cpu_count() or 1
    parts = [np.ones(32 << 20, np.float32) for _ in range(cores)]  # 128 MB each: far beyond any cache
    with ThreadPoolExecutor(cores) as pool:
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return Device(
        THIS, "this machine", round(total, 1), 1.0, round(cores * parts[0].nbytes / best / 1e9, 1), 0, "measured now"
    )
