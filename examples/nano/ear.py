"""A small recogniser of characters, through which train_sound.py hears whether rebuilt speech still says the same.

    python ear.py DATA OUT --steps 1500

It learns from clean recordings, so it minds what a codec leaves behind. Ears with other --mels and --seed or --noisy
mind other things; several are harder to please by accident.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as fn
from codec import Mel
from torch import Tensor, nn
from train_codec import LETTERS, Batches, learning_rate, spelling_loss
from training import Progress, keep

WIDTH = 192


class Ear(nn.Module):
    def __init__(self, mels: int) -> None:
        super().__init__()
        self.mel = Mel(720, 240, mels, 1e-3)
        self.into = nn.Conv1d(mels, WIDTH, 5, stride=2, padding=2)
        self.norms = nn.ModuleList([nn.GroupNorm(1, WIDTH) for _ in range(5)])
        self.convs = nn.ModuleList([nn.Conv1d(WIDTH, WIDTH, 5, dilation=d, padding=2 * d) for d in (1, 2, 4, 4, 1)])
        self.out = nn.Conv1d(WIDTH, len(LETTERS) + 1, 1)

    @classmethod
    def load(cls, path: Path) -> Ear:
        """The trained ear, frozen."""
        weights = torch.load(path, weights_only=True)["ear"]
        ear = cls(weights["into.weight"].shape[1])
        ear.load_state_dict(weights)
        return ear.requires_grad_(False)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """wave [B, S], RMS 1 -> features of six layers [B, WIDTH, T], log-probabilities [B, classes, T]; 50 Hz."""
        x = fn.gelu(self.into(self.mel(wave).transpose(1, 2)[..., :-1]))
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + fn.gelu(conv(norm(x)))
            features.append(x)
        return [*features, self.out(x).float().log_softmax(1)]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--mels", type=int, default=64)
    p.add_argument("--noisy", action="store_true", help="half of the driver's clips through cabin noise")
    p.add_argument("--seed", type=int, default=3)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--rate", type=float, default=1e-3)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    ear = Ear(args.mels)
    optimiser = torch.optim.AdamW(ear.parameters(), lr=args.rate, weight_decay=0.01, fused=True)
    batches, progress = iter(Batches(args.data, args.batch, args.seed)), Progress("ear", args.steps)
    for step in range(args.steps):
        optimiser.param_groups[0]["lr"] = learning_rate(step, args.steps, args.rate)
        noisy, clean, texts = next(batches)
        wave = noisy if args.noisy else clean
        rms = wave.square().mean(1, keepdim=True).sqrt().clamp(min=0.02)
        with torch.autocast("cpu", torch.bfloat16):
            scores = ear(wave / rms)[-1].permute(2, 0, 1)
        loss = spelling_loss(scores, texts)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(ear.parameters(), 2.0)
        optimiser.step()
        progress.add(step + 1, {"spelling": loss})
    keep(args.out, {"ear": ear.state_dict()})


if __name__ == "__main__":
    main()
