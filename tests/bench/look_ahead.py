"""What streaming costs the sound: python tests/bench/look_ahead.py SPEECH.wav... [--bundle DIR] [--json]

Each clip is encoded, its codes are decoded in one go as the reference does, and again as a stream, under every policy
of the norms and every look-ahead. Printed: how far the streamed sound is from the offline one, and from the clip.

patches    until the first sound; each takes the model its own time to make
mel dB     mean distance of log-mel spectra
STOI       intelligibility against the clip (pip install pystoi)
border dB  energy of the error within 20 ms of the borders of the vocoder's 160 ms blocks, over the speech's energy
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import mimo_edge
from mimo_edge import _core
from mimo_edge.progress import ProgressBar
from mimo_edge.sound_stream import SEED_FRAMES

LOOK_AHEADS = (40, 20, 8, 4, 2, 1, 0)
SETTINGS = [("running", 0.0), ("seeded", SEED_FRAMES), ("frozen", math.inf)]
DB_PER_NEPER = 20 / math.log(10)
BORDER_S, BLOCK_FRAMES = 0.02, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", nargs="+")
    parser.add_argument("--bundle")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = mimo_edge.load(arguments.bundle)
    core, levels, norms = model.engine.core, model.engine.facts.levels, model.engine.facts.norms
    if norms is None:
        sys.exit("look_ahead: expected a calibrated bundle; run mimo-edge calibrate first")
    stoi = find_stoi()
    clips = []
    for path in arguments.speech:
        wave = model.engine.whole(mimo_edge.audio.open_audio(path))
        codes = np.ascontiguousarray(model.engine.codes(wave)[:levels])
        clips.append((wave, codes, core.decode(codes)))
    rows: list[dict[str, Any]] = []
    settings = [(name, weight, ahead) for name, weight in SETTINGS for ahead in LOOK_AHEADS]
    with ProgressBar(len(settings), "settings", "measuring") as bar:
        rows.append({"norms": "offline", **summary([measure(model, c, w, w, stoi) for c, _, w in clips])})
        for name, weight, ahead in settings:
            measured = []
            for clip, codes, offline in clips:
                stream = _core.DecoderStream(core, norms, weight, 250, ahead)
                measured.append(measure(model, clip, offline, stream.push(codes, True), stoi))
            ahead_frames = min(ahead, core.exact_look_ahead or ahead)
            patches = 1 + math.ceil(ahead_frames / model.engine.facts.group)
            rows.append({"norms": name, "look_ahead": ahead, "patches": patches, **summary(measured)})
            bar.update(1)
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    seconds = sum(len(clip) for clip, _, _ in clips) / model.rate_hz
    print(f"{len(clips)} clips, {seconds:.0f} s of speech; exact look-ahead {core.exact_look_ahead} code frames\n")
    names = ["norms", "look_ahead", "patches", "mel dB", "STOI", "border dB"]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")


def measure(model: Any, clip: Any, offline: Any, made: Any, stoi: Callable[..., float] | None) -> dict[str, float]:
    mel, target = model.engine.core.mel(made), model.engine.core.mel(offline)
    error, speech = (made - offline).astype(np.float64) ** 2, np.mean(offline.astype(np.float64) ** 2)
    block, reach = BLOCK_FRAMES * model.rate_hz // 25, round(BORDER_S * model.rate_hz)
    near = np.zeros(len(made), bool)
    for border in range(block, len(made), block):
        near[border - reach : border + reach] = True
    facts = {
        "mel dB": DB_PER_NEPER * float(np.abs(mel - target).mean()),
        "border dB": 10 * math.log10(float(error[near].mean() / speech) + 1e-12) if near.any() else math.nan,
    }
    if stoi:
        length = min(len(clip), len(made))
        facts["STOI"] = float(stoi(clip[:length], made[:length], model.rate_hz, extended=False))
    return facts


def summary(measured: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([m[name] for m in measured])), 3) for name in measured[0]}


def find_stoi() -> Callable[..., float] | None:
    try:
        return importlib.import_module("pystoi").stoi  # type: ignore[no-any-return]
    except ImportError:
        print("look_ahead: no STOI; pip install pystoi", file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
