"""Which layers does quantising hurt? Each group of layers alone takes the quantised numbers, the rest stays original.

    group = attention or feed-forward of one layer, or a matrix outside the layers
    LM:       mean KL divergence of codes and text, teacher-forced, nats a choice
    encoder:  share of codes that change
    decoder:  error of the waveform relative to the wave, as a power ratio

Every group costs one bundle of the original's size on the disk, in a scratch folder, and one run.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mimo_edge
from mimo_edge import Model
from mimo_edge.export.bundle import Bundle, Part
from mimo_edge.export.safetensors_io import SafetensorsWriter, TensorInfo
from mimo_edge.quantize.conversations import Clip, Conversation, conversations
from mimo_edge.quantize.evaluate import Forced, Pairing
from mimo_edge.quantize.smoothing import feeds

_LAYER = re.compile(r"(.*\.layers\.\d+)\.(self_attn|mlp|fc)")


def groups(bundle: Bundle) -> dict[str, list[str]]:
    """Names of packed matrices by group, in order of flow."""
    out: dict[str, list[str]] = {}
    for part in bundle.parts.values():
        for name in part.shapes:
            if part.is_packed(name):
                found = _LAYER.match(name)
                key = f"{found[1]}.{found[2]}" if found else name.removesuffix(".weight")
                out.setdefault(re.sub(r"^(speech_embeddings|local_transformer_lm_heads)\.\d+$", r"\1", key), []).append(
                    name
                )
    return out


def damage(
    original: Path, quantised: Path, clips: Sequence[Clip], threads: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure every group alone; the worst first, LM, encoder and decoder each by its own measure."""
    before, after = Bundle.open(original, "evaluate"), Bundle.open(quantised, "evaluate")
    reference = mimo_edge.load(original, threads=threads)
    talks = [talk for clip in clips for talk in conversations(reference, clip)]
    ranks = []
    for group, names in groups(after).items():
        progress(group)
        with tempfile.TemporaryDirectory(prefix="mimo-edge-sensitivity-") as scratch:
            _mix(before, after, set(names), Path(scratch))
            measure, value = _damage(reference, mimo_edge.load(scratch, threads=threads), group, talks, clips)
        size = sum(info.nbytes for part in after.parts.values() for info in _stored(part, names))
        ranks.append({"group": group, "measure": measure, "damage": value, "bytes": size})
    order = {"KL": 0, "codes": 1, "wave": 2}
    return sorted(ranks, key=lambda rank: (order[str(rank["measure"])], -float(str(rank["damage"]))))


def _damage(
    reference: Model, mixed: Model, group: str, talks: Sequence[Conversation], clips: Sequence[Clip]
) -> tuple[str, float]:
    if group.startswith("encoder."):
        levels = reference.engine.facts.levels
        pairs = [[m.engine.core.encode(clip.wave)[:levels] for m in (reference, mixed)] for clip in clips]
        return "codes", float(np.mean([np.mean(a != b) for a, b in pairs]))
    if group.startswith("decoder."):
        error = power = 0.0
        for clip in clips:
            codes = np.ascontiguousarray(reference.engine.core.encode(clip.wave)[: reference.engine.facts.levels])
            a, b = (m.engine.core.decode(codes).astype(np.float64) for m in (reference, mixed))
            error, power = error + float(np.square(a - b).sum()), power + float(np.square(a).sum())
        return "wave", error / power
    forced = Forced.compare(reference, mixed, talks, Pairing())
    choices = [forced.text, *forced.levels]
    return "KL", sum(c.divergence for c in choices) / sum(c.count for c in choices)


def _mix(before: Bundle, after: Bundle, names: set[str], folder: Path) -> None:
    """Write a bundle whose matrices `names` and the norms before them are those of `after`, all others of `before`."""
    files: dict[str, Any] = {}
    for part, old in before.parts.items():
        new = after.parts[part]
        givers = [giver for _, giver, takers in feeds(new) if names & set(takers)]  # SmoothQuant moved columns there
        taken = names | {f"{giver}.{kind}" for giver in givers for kind in ("weight", "bias")}
        chosen = [(new, info) for info in _stored(new, taken)]
        chosen += [(old, info) for info in old.file.tensors.values() if info.name not in taken]
        chosen.sort(key=lambda entry: (len(entry[1].shape) != 4, entry[1].dtype != "F32"))  # aligned, as quantizer.py
        path = folder / f"{part}.safetensors"
        with SafetensorsWriter(path, [(info.name, info.dtype, info.shape) for _, info in chosen]) as writer:
            for source, info in chosen:
                writer.write(info.name, source.file.read(info.name))
        files[path.name] = {"bytes": writer.bytes, "sha256": writer.sha256}
    tokenizer = (before.path / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    files["tokenizer.json"] = before.config["files"]["tokenizer.json"]
    (folder / "bundle.json").write_text(json.dumps(after.config | {"files": files}), "utf-8")


def _stored(part: Part, names: Sequence[str] | set[str]) -> list[TensorInfo]:
    wanted = {key for name in names for key in (name, f"{name}_scale")}
    return [info for name, info in part.file.tensors.items() if name in wanted]
