"""Make the project's own goldens: a tiny checkpoint, and what the executable spec computes with it.

    python -m mimo_edge.export.goldens OUT_DIR [--seed N]

Generated sound only. Layout, names and meaning of every file: MANIFEST.md, which is written beside them; the same
layout as the goldens made from the public reference, so `mimo_edge.verify` reads both. The same seed and torch
version give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from mimo_edge.export.bundle_writer import write_bundle
from mimo_edge.export.checkpoint import Checkpoint
from mimo_edge.export.goldens import checkpoint as tiny
from mimo_edge.export.goldens.codec import codec_input, codec_output, make_clips
from mimo_edge.export.goldens.lm import generate, lm_forward
from mimo_edge.export.goldens.manifest import manifest
from mimo_edge.export.goldens.prompts import fitting_examples, prompts
from mimo_edge.export.goldens.rules import misc, postprocess, sampler, text_tokenizer
from mimo_edge.export.goldens.section import Section
from mimo_edge.export.reference import Reference
from mimo_edge.export.reference_ops import Array

MIN_MARGIN = 4e-4  # smallest gap of a greedy choice: twice the tolerance of scores (LOGITS in mimo_edge.verify.goldens)
ATTEMPTS = 30  # redraws of the patch decoder until all its choices are that clear


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """np.savez_compressed without the time of day: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            kind = np.int32 if array.dtype.kind == "i" else np.float32
            np.lib.format.write_array(data, np.ascontiguousarray(array, kind), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, data.getvalue(), zipfile.ZIP_DEFLATED, 9)


def fitted_checkpoint(seed: int, clips: Mapping[str, Array]) -> tiny.GoldenCheckpoint:
    """Draw, fit, and redraw the patch decoder until every greedy choice of the goldens is clear."""
    checkpoint = tiny.make(seed, clips)
    r = checkpoint.reference()
    said = prompts(r, codec_input(r, clips)["encoder"], np.random.default_rng(seed))
    tiny.fit_backbone(checkpoint, fitting_examples(r, said, np.random.default_rng(seed)))
    for attempt in range(ATTEMPTS):
        tiny.redraw_patch_decoder(checkpoint, seed * ATTEMPTS + attempt)
        if smallest_margin(checkpoint.reference(), said, seed) >= MIN_MARGIN:
            return checkpoint
    raise RuntimeError(
        f"goldens: expected greedy margins of {MIN_MARGIN} within {ATTEMPTS} draws; take another seed"
    )


def smallest_margin(r: Reference, said: Section, seed: int) -> float:
    """The closest greedy choice in all goldens; -inf if a sampled run had nothing left to draw from."""
    try:
        forward, runs = lm_forward(r, said, np.random.default_rng(seed + 1)), generate(r, said)
    except ValueError:
        return -math.inf
    margins: list[float] = [
        m
        for f in forward.facts.values()
        if "groups" in f
        for m in (f["local_min_margin"], *f["forced_local_min_margin"])
    ]
    for run in runs.facts.values():
        if "samplers" not in run:
            margins += [m for m in (run["min_text_margin"], run["min_local_margin"]) if m is not None]
    return min(margins)


def make_goldens(out: Path, seed: int) -> None:
    """Write everything into the folder `out`, which must not exist yet or be empty."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"goldens: expected an empty folder, got {out}; move its files away first")
    clips = make_clips(seed)
    fitted_checkpoint(seed, clips).write(out)
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Checkpoint.open(out / "lm", out / "tokenizer_model"), Path(scratch) / "bundle")
        r = Reference.open(Path(scratch) / "bundle", seed)
    sections = codec_input(r, clips)
    sections |= codec_output(r, sections["encoder"], np.random.default_rng(seed + 2))
    sections["prompts"] = prompts(r, sections["encoder"], np.random.default_rng(seed))
    sections["lm_forward"] = lm_forward(r, sections["prompts"], np.random.default_rng(seed + 1))
    sections["generate"] = generate(r, sections["prompts"])
    makers: dict[str, Callable[[], Section]] = {
        "postprocess": lambda: postprocess(r, np.random.default_rng(seed + 3)),
        "sampler": lambda: sampler(r, np.random.default_rng(seed + 4)),
        "text_tokenizer": lambda: text_tokenizer(r, np.random.default_rng(seed + 5)),
        "misc": lambda: misc(r),
    }
    sections |= {name: maker() for name, maker in makers.items()}
    for name, section in sections.items():
        if section.arrays:
            write_npz(out / f"{name}.npz", section.arrays)
        if section.facts:
            text = json.dumps(section.facts, ensure_ascii=False, indent=1)
            (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    facts = {name: section.facts for name, section in sections.items()}
    margins = np.concatenate([a.ravel() for n, a in sections["encoder"].arrays.items() if n.endswith(".margins")])
    (out / "MANIFEST.md").write_text(manifest(seed, r.config, facts, margins), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mimo_edge.export.goldens", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to make; must be empty")
    parser.add_argument("--seed", type=int, default=0, help="of weights, clips and sampling (default 0)")
    arguments = parser.parse_args()
    make_goldens(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
