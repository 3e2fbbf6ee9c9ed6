"""Train the codec in stages; each continues the checkpoint and may be stopped and started again.

    python train_codec.py DATA CKPT --stage shape --steps 700    # mel losses and character CTC, no codebooks
    python train_codec.py DATA CKPT --stage codes --steps 1600   # k-means, codebooks by averages, CTC on levels 1-2

Half of the driver's clips are heard through cabin noise and a room while the target stays clean. CKPT holds codec, CTC
heads, optimiser, stage and step. train_sound.py follows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import noise
import numpy as np
import torch
import torch.nn.functional as fn
from codec import MEL_MEAN, MEL_STD, Codec, Mel
from corpus import Corpus
from torch import Tensor, nn
from training import Progress, keep

LETTERS = " abcdefghijklmnopqrstuvwxyz"  # CTC classes 1..27; 0 is blank
CODE_SAMPLES = 960
SLICE_FRAMES = 96  # mel frames of every clip that the vocoder renders: 0.96 s


class Speller(nn.Module):
    """Characters from latents or from the rows of levels 1-2; thrown away after training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, 256, 5, padding=2)
        self.out = nn.Linear(256, len(LETTERS) + 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> log-probabilities [T, B, classes]."""
        y = fn.gelu(self.conv(x.transpose(1, 2))).permute(2, 0, 1)
        return self.out(y).float().log_softmax(-1)


class Batches:
    """Endless batches of clips of like length, padded with silence to whole code frames."""

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        self.corpus = Corpus(folder)
        self.size, self.r = size, np.random.default_rng(seed)
        lengths = np.array([c["samples"] for c in self.corpus.clips])
        self.clips = [i for i in np.argsort(lengths) if lengths[i] < 5 * 24000]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """(heard [B, S], clean [B, S], texts)."""
        while True:
            first = int(self.r.integers(0, len(self.clips) - 8 * self.size))
            chosen = self.r.choice(self.clips[first : first + 8 * self.size], self.size, replace=False)
            clips = [self.corpus.clips[i] for i in chosen]
            length = -(-max(c["samples"] for c in clips) // CODE_SAMPLES) * CODE_SAMPLES
            heard, clean = np.zeros((2, self.size, length), np.float32)
            for b, clip in enumerate(clips):
                wave = self.corpus.wave(clip) * 10 ** (self.r.uniform(-10, 3) / 20)
                start = int(self.r.integers(0, length - wave.size + 1))
                clean[b, start : start + wave.size] = wave
                noisy = clip["kind"] == "listen" and self.r.random() < 0.5
                heard[b] = noise.drive(self.r, clean[b]) if noisy else clean[b]
            yield torch.from_numpy(heard), torch.from_numpy(clean), [c["text"] for c in clips]


def spelling_loss(scores: Tensor, texts: list[str]) -> Tensor:
    """CTC per character; scores [T, B, classes]."""
    targets = [torch.tensor([LETTERS.index(c) + 1 for c in t]) for t in texts]
    lengths = torch.tensor([len(t) for t in targets])
    frames = torch.full((len(texts),), scores.shape[0])
    loss = fn.ctc_loss(scores, torch.cat(targets), frames, lengths, reduction="none", zero_infinity=True)
    return (loss / lengths).mean()


class Spectra(nn.Module):
    """Mean L1 of log-mels at three resolutions (nfft / mels 512/40, 1024/80, 2048/128; hop nfft / 4), floor 1e-4."""

    def __init__(self) -> None:
        super().__init__()
        self.mels = nn.ModuleList([Mel(n, n // 4, m, 1e-4) for n, m in ((512, 40), (1024, 80), (2048, 128))])

    def forward(self, said: Tensor, clean: Tensor) -> Tensor:
        """said, clean [B, S]."""
        return torch.stack([(mel(said) - mel(clean)).abs().mean() for mel in self.mels]).mean()


def take(x: Tensor, starts: Tensor, count: int) -> Tensor:
    """x [B, N, ...], starts [B] -> [B, count, ...]."""
    return torch.stack([row[s : s + count] for row, s in zip(x, starts.tolist(), strict=True)])


def slices(clean: Tensor) -> Tensor:
    """Where the rendered slice of every clip starts, in mel frames [B]."""
    frames = clean.shape[1] // 240
    return torch.randint(0, max(1, frames - SLICE_FRAMES + 1), (clean.shape[0],))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then a cosine down to 5 %."""
    return peak * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def latents(codec: Codec, batches: Iterator[tuple[Tensor, Tensor, list[str]]], count: int) -> Tensor:
    """At least count latents [N, D] for k-means, silence included as it comes."""
    rows: list[Tensor] = []
    with torch.no_grad():
        while sum(r.shape[0] for r in rows) < count:
            heard = next(batches)[0]
            x = codec.encoder(codec.mel(heard)[:, :-1])
            rows.append(x.reshape(-1, x.shape[-1]))
    return torch.cat(rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("ckpt", type=Path)
    p.add_argument("--stage", choices=["shape", "codes"], required=True)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--rate", type=float, default=1e-3)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)

    codec, spellers, spectra = Codec(), nn.ModuleList([Speller(256), Speller(256)]), Spectra()
    state = torch.load(args.ckpt, weights_only=True) if args.ckpt.exists() else None
    done = 0
    if state:
        codec.load_state_dict(state["codec"])
        spellers.load_state_dict(state["spellers"])
        done = state["step"] if state["stage"] == args.stage else 0
    trained = [*codec.parameters(), *spellers.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=args.rate, betas=(0.8, 0.99), weight_decay=0.01, fused=True)
    if state and done:
        optimiser.load_state_dict(state["optimiser"])
    batches = iter(Batches(args.data, args.batch, seed=done + 7))
    if args.stage == "codes" and done == 0:
        codec.encoder.quantizer.fit(latents(codec, batches, 16000))

    progress = Progress(args.stage, args.steps)
    for step in range(done, args.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        heard, clean, texts = next(batches)
        with torch.no_grad():
            mel_in, mel_out = codec.mel(heard)[:, :-1], codec.mel(clean)[:, :-1]
        with torch.autocast("cpu", torch.bfloat16):
            x = codec.encoder(mel_in)
            rows, commit = x, x.new_zeros(())
            if args.stage == "codes":
                x, rows, _, commit = codec.encoder.quantizer(x, learn=True)
            spelled = spellers[int(args.stage == "codes")](rows)
            coarse = codec.decoder.coarse(x)
            starts = slices(clean)
            said = codec.decoder.vocoder(take(coarse, starts, SLICE_FRAMES))
        sound = spectra(said, take(clean, starts * 240, said.shape[1]))
        shape = (coarse - (mel_out - MEL_MEAN) / MEL_STD).abs().mean()
        spelling = spelling_loss(spelled, texts)
        loss = sound + 0.5 * shape + 0.25 * commit + 0.15 * spelling
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 2.0)
        optimiser.step()
        progress.add(step + 1, {"sound": sound, "shape": shape, "commit": commit, "spelling": spelling})
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            kept = {"codec": codec.state_dict(), "spellers": spellers.state_dict(), "optimiser": optimiser.state_dict()}
            keep(args.ckpt, kept | {"stage": args.stage, "step": step + 1})


if __name__ == "__main__":
    main()
