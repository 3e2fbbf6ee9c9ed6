"""Code every clip of a data folder with the trained codec: <shard>.codes.npz beside the shard.

    python encode.py DATA CKPT_OF_CODEC [--pattern 'train*']

clean int16 [sum of T, K] and noisy (drivers' clips through cabin noise at 5-25 dB and a room; test shards 5-20 dB),
with stops [clips]: where each clip's rows end, and leads [clips]: samples of silence put before a driver's clip. Rows
are padded to whole patches by repeating the last one, as at run time.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import noise
import numpy as np
import torch
from codec import Codec
from corpus import Corpus
from prompts import G, K


def codes_of(codec: Codec, wave: np.ndarray) -> np.ndarray:
    """wave float32 [S] -> int16 [T, K], T a multiple of G; the wave is not padded, as at run time."""
    with torch.autocast("cpu", torch.bfloat16):
        codes = codec.encode(torch.from_numpy(wave)[None])[:, 0].T.numpy().astype(np.int16)
    return np.concatenate([codes, np.repeat(codes[-1:], -len(codes) % G, 0)])


def codes_of_many(codec: Codec, waves: list[np.ndarray], size: int = 16) -> list[np.ndarray]:
    """codes_of for waves of like length at once: the shorter ones of a batch are followed by silence."""
    out: list[np.ndarray] = [np.zeros(0)] * len(waves)
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        batch = np.zeros((len(chosen), max(len(waves[i]) for i in chosen)), np.float32)
        for row, i in enumerate(chosen):
            batch[row, : len(waves[i])] = waves[i]
        with torch.autocast("cpu", torch.bfloat16):
            codes = codec.encode(torch.from_numpy(batch)).permute(1, 2, 0).numpy().astype(np.int16)
        for row, i in enumerate(chosen):
            own = codes[row, : code_frames(len(waves[i]))]
            out[i] = np.concatenate([own, np.repeat(own[-1:], -len(own) % G, 0)])
    return out


def code_frames(samples: int) -> int:
    """Samples -> code frames: mel frames 1 + samples // 240, then halved twice, rounding up."""
    halves = samples // 240 // 2 + 1
    return (halves + 1) // 2


def quiet(r: np.random.Generator) -> int:
    """Samples of silence before or after what a driver says: up to 0.8 s, in half the clips none."""
    return int(max(0.0, r.uniform(-0.8, 0.8)) * noise.RATE_HZ)


def load_codec(path: Path) -> Codec:
    codec = Codec()
    codec.load_state_dict(torch.load(path, weights_only=True)["codec"])
    return codec.eval()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("ckpt", type=Path)
    p.add_argument("--pattern", default="*")
    args = p.parse_args()
    torch.set_num_threads(1)
    codec, empty = load_codec(args.ckpt), np.zeros((0, K), np.int16)
    for index in sorted(args.data.glob(args.pattern + ".jsonl")):
        out = index.with_suffix(".codes.npz")
        if out.exists():
            continue
        corpus = Corpus(args.data, index.stem)
        r = np.random.default_rng(zlib.crc32(index.stem.encode()))
        snr_db = (5.0, 20.0) if index.stem.startswith("test") else (5.0, 25.0)
        low, high = (0.0, 0.0) if index.stem.startswith("car") else (-10.0, 3.0)  # the car speaks at one level
        waves = [corpus.wave(clip) * 10 ** (r.uniform(low, high) / 20) for clip in corpus.clips]
        pads = [(quiet(r), quiet(r)) if clip["kind"] == "listen" else (0, 0) for clip in corpus.clips]
        if index.stem.startswith("test"):
            pads = [(0, 0)] * len(waves)
        waves = [np.pad(wave, pad) for wave, pad in zip(waves, pads, strict=True)]
        clean = codes_of_many(codec, waves)
        heard = [i for i, clip in enumerate(corpus.clips) if clip["kind"] == "listen"]
        driven = codes_of_many(codec, [noise.drive(r, waves[i], snr_db) for i in heard])
        noisy = [empty] * len(waves)
        for i, codes in zip(heard, driven, strict=True):
            noisy[i] = codes
        stops = {"clean_stops": np.cumsum([len(c) for c in clean]), "noisy_stops": np.cumsum([len(c) for c in noisy])}
        np.savez(
            out, clean=np.concatenate(clean), noisy=np.concatenate(noisy), leads=np.array([a for a, _ in pads]), **stops
        )
        print(index.stem, len(corpus.clips), flush=True)


if __name__ == "__main__":
    main()
