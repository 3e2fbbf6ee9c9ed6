"""The cases of `mimo-edge verify-onnx`: what is fed to each graph, and with what of the spec or goldens it is compared.

Lengths 1 and odd ones, beyond both ends of the attention windows, every way a segment can end; caches fed singly and in
runs, filled to the last position, under masks as wide as needed, wider, and as wide as the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from mimo_edge.export.onnx.graph import Graph
from mimo_edge.export.onnx.lm import local_steps
from mimo_edge.export.reference import Reference, Sampling, State
from mimo_edge.export.reference_codec import Codec
from mimo_edge.export.reference_ops import Array, numpy, silent
from mimo_edge.verify.goldens import Check, Goldens

# Largest difference; f16: over the root mean square of what is expected, two to three times what was seen (the golden
# model and the one of the demo, in floats and in int8a8: 0.025, 0.015, 0.014).
LIMITS = {
    "f32": {"wav": 1e-4, "logits": 2e-4, "hidden": 1e-4},
    "f16": {"wav": 0.06, "logits": 0.04, "hidden": 0.04},
}
MARGIN = 1e-3  # a code whose two best rows are nearer than this is decided by rounding
LENGTHS = (1, 2, 3, 5, 31, 32, 33, 257)
GREEDY = Sampling(sample=False)


class Subject:
    """A graph under test, with the spec it is held against. goldens: None if no folder was given."""

    def __init__(self, graph: Graph, reference: Reference, check: Check, dtype: str, goldens: Goldens | None) -> None:
        self.graph, self.reference, self.check, self.goldens = graph, reference, check, goldens
        self.exact, self.limits = dtype == "f32", LIMITS[dtype]
        self.codec, self.lm = reference.config["codec"], reference.config["lm"]
        self.random = np.random.default_rng(0)
        self.case = ""

    def near(self, kind: str, label: str, expected: Array, actual: Array) -> None:
        """kind: wav, logits or hidden."""
        if not self.exact:
            size = np.sqrt(np.mean(np.square(expected, dtype=np.float64))) or 1.0
            expected, actual = expected / size, actual / size
        self.check.near(f"{self.case} {kind}", label, expected, actual, self.limits[kind])

    def codes(self, label: str, expected: Array, actual: Array, margins: Array) -> None:
        """Codes [Q, T], equal up to the first level that is decided by rounding."""
        certain = np.logical_and.accumulate(margins > MARGIN, axis=0)
        if expected.shape == actual.shape:
            expected, actual = expected[certain], actual[certain]
        self.check.near(f"{self.case} codes", label, expected, actual, 0.0)

    def ids(self, positions: int, kind: str = "mixed") -> Array:
        """Random ids int32 [K+1, G*P]: tokens and patches, some codes empty."""
        group, empty = self.lm["group_size"], self.reference.tokens["empty"]
        tokens = self.random.integers(0, self.lm["vocab_size"], positions)
        patches = np.full(positions, kind == "patches") if kind != "mixed" else self.random.random(positions) < 0.5
        tokens = np.where(patches, empty, np.where(tokens == empty, 0, tokens))
        ids = np.full((self.lm["audio_channels"] + 1, group * positions), -100, np.int32)
        ids[0, ::group] = tokens
        for level, size in enumerate(self.lm["speech_vocab_size"]):
            ids[level + 1] = self.random.integers(0, size, group * positions)
        return ids

    def golden_ids(self) -> Iterator[tuple[str, Array]]:
        """Cases of lm_forward and their prompts."""
        if self.goldens is not None:
            for case, facts in self.goldens.cases("lm_forward").items():
                yield case, self.goldens.peek(facts["prompt"].replace(".npz:", ":"))


def codec_encoder_lengths(s: Subject) -> None:
    for frames in LENGTHS:
        mel = s.random.normal(-4.0, 3.0, (frames, s.codec["n_mels"])).astype(np.float32)
        _encoded(s, f"{frames} mel frames", mel, *s.reference.encode_mel(mel))


def codec_encoder_segments(s: Subject) -> None:
    """The segments of a file, with what a batch does to their ends (the segment is 33 frames here)."""
    segment = 33
    codec = Codec(s.codec, s.reference.codec.w, segment)
    for frames in (2 * segment, 2 * segment + 1, 2 * segment + 20, 3 * segment - 1):
        mel = s.random.normal(-4.0, 3.0, (frames, s.codec["n_mels"])).astype(np.float32)
        expected = numpy(codec.encode(torch.from_numpy(mel), silent))
        parts = [
            s.graph(mel=part, padded=np.array([len(part) < segment]), batched=np.ones(1))["hidden"]
            for part in (mel[start : start + segment] for start in range(0, frames, segment))
        ]
        s.near("hidden", f"{frames} mel frames", expected, np.concatenate(parts))


def codec_encoder_goldens(s: Subject) -> None:
    assert s.goldens is not None
    for clip in s.goldens.json("wav_index"):
        if s.goldens.has(f"frontend:{clip}.mel"):
            hidden, codes = (s.goldens.peek(f"encoder:{clip}.{what}") for what in ("hidden", "codes"))
            _encoded(s, clip, s.goldens.peek(f"frontend:{clip}.mel"), hidden, codes)


def _encoded(s: Subject, label: str, mel: Array, hidden: Array, codes: Array) -> None:
    """One segment alone: hidden states against `hidden`; codes against those of the spec from the graph's own hidden
    states, and in float32 against `codes`."""
    got = s.graph(mel=mel, padded=np.zeros(1), batched=np.zeros(1))
    s.near("hidden", label, hidden, got["hidden"])
    own = s.reference.rvq_encode(got["hidden"])
    s.codes(label, own, got["codes"], rvq_margins(s.reference.codec, got["hidden"]))
    if s.exact:
        s.codes(label, codes, got["codes"], rvq_margins(s.reference.codec, hidden))


def rvq_margins(codec: Codec, hidden: Array) -> Array:
    """hidden [T, D] -> [Q, T]: by how much the nearest row is nearer than the second, in squared distance."""
    rest, margins = torch.from_numpy(hidden), []
    for level in range(codec.c["num_quantizers"]):
        rows = codec.codebook(level)
        best = torch.cdist(rest.double(), rows.double()).square().topk(2, dim=1, largest=False)
        margins.append(best.values[:, 1] - best.values[:, 0])
        rest = rest - rows[best.indices[:, 0]]
    return numpy(torch.stack(margins))


def codec_decoder_lengths(s: Subject) -> None:
    sizes = np.array(s.codec["codebook_size"])[:, None]
    for frames in LENGTHS:
        levels = 1 if frames == 3 else len(sizes) - frames % 2
        codes = s.random.integers(0, sizes[:levels], (levels, frames)).astype(np.int32)
        label = f"{levels} levels, {frames} code frames"
        s.near("wav", label, s.reference.decode(codes), s.graph(codes=codes)["wav"])


def codec_decoder_goldens(s: Subject) -> None:
    assert s.goldens is not None
    for name in s.goldens.names("decoder"):
        if name.endswith(".codes"):
            wav = s.graph(codes=s.goldens.peek(f"decoder:{name}"))["wav"]
            s.near("wav", name, s.goldens.peek(f"decoder:{name[:-6]}.wav"), wav)


def patch_encoder_positions(s: Subject) -> None:
    for positions, kind in ((1, "text"), (1, "patches"), (2, "mixed"), (33, "mixed"), (31, "text"), (32, "patches")):
        ids = s.ids(positions, kind)
        s.near("hidden", f"{positions} {kind}", numpy(s.reference.lm.embed(torch.from_numpy(ids).long(), silent)),
               _embedded(s, ids))  # fmt: skip


def patch_encoder_goldens(s: Subject) -> None:
    assert s.goldens is not None
    for case, ids in s.golden_ids():
        s.near("hidden", case, s.goldens.peek(f"lm_forward:{case}.inputs_embeds"), _embedded(s, ids))


def _embedded(s: Subject, ids: Array) -> Array:
    group = s.lm["group_size"]
    codes = ids[1:].reshape(len(ids) - 1, -1, group)
    embeds: Array = s.graph(tokens=ids[0, ::group], codes=codes)["embeds"][0]
    return embeds


def backbone_runs(s: Subject) -> None:
    """The same positions at once, singly and in runs: a cache that ends up full, masks of three widths."""
    for positions, run in ((1, 1), (2, 1), (33, 33), (33, 1), (33, 7), (32, 5)):
        ids = s.ids(positions)
        for width in ("needed", "rounded", "capacity"):
            _fed(s, f"{positions} by {run}, mask {width}", ids, run, width)


def backbone_goldens(s: Subject) -> None:
    """Prompts of the goldens at once, then their forced positions one by one."""
    assert s.goldens is not None
    for case, ids in s.golden_ids():
        group, forced = s.lm["group_size"], s.goldens.peek(f"lm_forward:{case}.forced_ids")
        every = np.concatenate([ids, forced], axis=1)
        embeds = numpy(s.reference.lm.embed(torch.from_numpy(every).long(), silent))[None]
        prompt = ids.shape[1] // group
        s.graph.reset(embeds.shape[1])
        for start, stop in [(0, prompt), *((i, i + 1) for i in range(prompt, embeds.shape[1]))]:
            got = s.graph.step(stop - start, embeds=embeds[:, start:stop])
            for what, key, kind in (
                ("logits", "text_logits", "logits"), ("hidden", "hidden_last", "hidden"),
                ("local_hidden", "local_hidden_states", "hidden"),
            ):  # fmt: skip
                golden = s.goldens.peek(f"lm_forward:{case}.{'forced_' * (start > 0)}{key}")
                expected = golden[start - prompt] if start else golden
                last = got[what].reshape(-1, got[what].shape[-1])[-1]
                s.near(kind, f"{case} {what} {stop}", expected.reshape(-1), last)


def _fed(s: Subject, label: str, ids: Array, run: int, width: str) -> None:
    """Feed `run` positions at a time; every one is compared with the spec's forward of the whole."""
    seen: dict[str, Array] = {}
    state = s.reference.forward(ids, lambda name, value: seen.__setitem__(name, value))
    embeds, hidden = seen["backbone.embeds"][None], seen["backbone.hidden"]
    positions = len(hidden)
    s.graph.reset(positions)
    for start in range(0, positions, run):
        stop = min(start + run, positions)
        attended = {"needed": stop, "rounded": min(-(-stop // 8) * 8, positions), "capacity": positions}[width]
        got = s.graph.step(stop - start, attended, embeds=embeds[:, start:stop])
        s.near("hidden", f"{label} at {start}", hidden[start:stop], got["hidden"][0])
    s.near("logits", label, state.text_logits(), got["logits"][0])
    s.near("hidden", f"{label} local", state.local_hidden(), got["local_hidden"][0])


def patch_decoder_step_patches(s: Subject) -> None:
    """Whole patches, step by step, greedy by the spec and fed the spec's codes; masks as needed and of the capacity."""
    for positions in (1, 5, 33):
        _patch(s, f"after {positions}", s.reference.forward(s.ids(positions)), [None, local_steps(s.lm)])


def patch_decoder_step_goldens(s: Subject) -> None:
    for case, ids in s.golden_ids():
        _patch(s, case, s.reference.forward(ids), [None])


def _patch(s: Subject, label: str, state: State, widths: list[int | None]) -> None:
    seen: list[tuple[str, Array]] = []
    codes = state.decode_patch(GREEDY, lambda name, value: seen.append((name, value)))
    steps, delay, frames = local_steps(s.lm), s.lm["delay_pattern"], s.lm["group_size"]
    for attended in widths:
        s.graph.reset(steps)
        expected = iter(seen)
        start, made = state.local_hidden()[None], np.full(len(delay), -1)
        for step in range(steps):
            got = s.graph.step(1, attended, start=start, codes=made)
            next(expected)  # patch_decoder.input
            s.near("hidden", f"{label} step {step}", next(expected)[1], got["hidden"][0])
            active = [level for level, late in enumerate(delay) if 0 <= step - late < frames]
            made = np.array([codes[k, step - delay[k]] if k in active else -1 for k in range(len(delay))])
            start = np.zeros_like(start)
            for level in active:
                s.near("logits", f"{label} step {step} level {level}", next(expected)[1], got[f"logits.{level}"][0])


Case = Callable[[Subject], None]
CASES: dict[str, list[Case]] = {
    "codec_encoder": [codec_encoder_lengths, codec_encoder_segments, codec_encoder_goldens],
    "codec_decoder": [codec_decoder_lengths, codec_decoder_goldens],
    "patch_encoder": [patch_encoder_positions, patch_encoder_goldens],
    "backbone": [backbone_runs, backbone_goldens],
    "patch_decoder_step": [patch_decoder_step_patches, patch_decoder_step_goldens],
}


def cases(stage: str, goldens: bool) -> list[Case]:
    """The cases of a stage; those of golden arrays only if there are any."""
    return [case for case in CASES[stage] if goldens or not case.__name__.endswith("_goldens")]


def facts_of(entry: dict[str, Any], case: Case) -> str:
    """What a report is called: stage, flavour, case."""
    return f"{entry['stage']} {entry['flavour']} {case.__name__.removeprefix(entry['stage'] + '_')}"
