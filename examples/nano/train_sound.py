"""Last stage of the codec: encoder and codebooks frozen, decoder and vocoder learn to sound natural.

    python train_sound.py DATA CKPT OUT --quiet 150 --steps 1200
    python train_sound.py DATA CKPT OUT --steps 2000 --rate 2e-4 --fade 500 --ears EAR EAR

Starts from CKPT (stage "codes" of train_codec.py), continues OUT if it exists. The first --quiet steps have mel losses
alone, then two kinds of small discriminators join: three look at magnitudes of several resolutions, three at every n-th
sample. They hear waves at equal loudness, or they would learn nothing else. --ears, recognisers of ear.py, must hear in
the rebuilt speech what they hear in the recording. Codes stay valid, so the LM can be trained meanwhile. OUT holds the
running average as `codec`, the moving weights as `raw`, discriminators and optimisers.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as fn
from codec import MEL_MEAN, MEL_STD, Codec
from ear import Ear
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from train_codec import SLICE_FRAMES, Batches, Spectra, slices, take
from training import Progress, keep


class Period(nn.Module):
    """Looks at the wave folded to rows of `period` samples."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, 16, 32, 64, 64]
        self.convs = nn.ModuleList(
            [weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0))) for a, b in pairwise(widths)]
        )
        self.out = weight_norm(nn.Conv2d(64, 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> list[Tensor]:
        """wave [B, S] -> features of every layer, the verdict last."""
        x = fn.pad(wave, (0, -wave.shape[1] % self.period)).view(len(wave), 1, -1, self.period)
        return layers(x, self.convs, self.out)


class Resolution(nn.Module):
    """Looks at compressed magnitudes of one STFT size."""

    def __init__(self, nfft: int) -> None:
        super().__init__()
        self.nfft = nfft
        self.register_buffer("window", torch.hann_window(nfft), persistent=False)
        widths = [1, 16, 32, 32]
        self.convs = nn.ModuleList(
            [
                weight_norm(nn.Conv2d(a, b, (7, 3), (2, 1 + i % 2), padding=(3, 1)))
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.out = weight_norm(nn.Conv2d(32, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> list[Tensor]:
        spec = torch.stft(wave.float(), self.nfft, self.nfft // 4, window=self.window, return_complex=True)
        power = spec.real.square() + spec.imag.square() + 1e-7
        return layers(power.pow(0.15)[:, None], self.convs, self.out)


def layers(x: Tensor, convs: nn.ModuleList, out: nn.Module) -> list[Tensor]:
    features = []
    for conv in convs:
        x = fn.leaky_relu(conv(x), 0.1)
        features.append(x)
    return [*features, out(x)]


class Judges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList([*[Period(p) for p in (2, 3, 7)], *[Resolution(n) for n in (512, 1024, 2048)]])

    def forward(self, wave: Tensor) -> list[list[Tensor]]:
        return [judge(wave) for judge in self.each]


def level(said: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Both divided by the real slice's RMS, which a silent slice keeps at 0.02 at least."""
    rms = real.square().mean(1, keepdim=True).sqrt().clamp(min=0.02)
    return said / rms, real / rms


def doubts(fake: list[list[Tensor]], good: list[list[Tensor]]) -> Tensor:
    """Hinge loss of the judges, summed over them."""
    return sum(fn.relu(1 - g[-1]).mean() + fn.relu(1 + f[-1]).mean() for f, g in zip(fake, good, strict=True))


def matches(fake: list[list[Tensor]], good: list[list[Tensor]]) -> Tensor:
    """Mean relative L1 between what the judges see in both."""
    each = []
    for f, g in zip(fake, good, strict=True):
        for a, b in zip(f[:-1], g[:-1], strict=True):
            each.append((a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-4))
    return torch.stack(each).mean()


def misheard(said: list[list[Tensor]], meant: list[list[Tensor]]) -> Tensor:
    """Mean KL divergence a frame of the ears' letters."""
    each = [
        fn.kl_div(s[-1], m[-1], reduction="none", log_target=True).sum(1).mean()
        for s, m in zip(said, meant, strict=True)
    ]
    return torch.stack(each).mean()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("ckpt", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--quiet", type=int, default=150)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rate", type=float, default=4e-4)
    p.add_argument("--fade", type=int, default=1, help="the rate falls to nothing over so many last steps")
    p.add_argument("--ears", type=Path, nargs="*", default=[])
    args = p.parse_args()
    torch.set_num_threads(1)

    codec, judges, spectra, done = Codec(), Judges(), Spectra(), 0
    codec.load_state_dict(torch.load(args.ckpt, weights_only=True)["codec"])
    codec.encoder.requires_grad_(False)
    ours = list(codec.decoder.parameters())
    maker = torch.optim.AdamW(ours, lr=args.rate, betas=(0.8, 0.99), weight_decay=0.01, fused=True)
    doubter = torch.optim.AdamW(judges.parameters(), lr=args.rate, betas=(0.8, 0.99), weight_decay=0.01, fused=True)
    average = {k: v.clone() for k, v in codec.state_dict().items()}
    if args.out.exists():
        state = torch.load(args.out, weights_only=True)
        codec.load_state_dict(state["raw"])
        judges.load_state_dict(state["judges"])
        maker.load_state_dict(state["maker"])
        doubter.load_state_dict(state["doubter"])
        average, done = state["codec"], state["step"]
    ears = [Ear.load(path) for path in args.ears]
    torch.manual_seed(done)
    batches = iter(Batches(args.data, args.batch, seed=done + 70))
    progress = Progress("sound", args.steps)
    for step in range(done, args.steps):
        for optimiser in (maker, doubter):
            optimiser.param_groups[0]["lr"] = args.rate * min(1.0, (args.steps - step) / args.fade)
        _, clean, _ = next(batches)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mel = codec.mel(clean)[:, :-1]
            x = codec.encoder.quantizer(codec.encoder(mel), learn=False)[0]
            mel = (mel - MEL_MEAN) / MEL_STD
        starts = slices(clean)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = codec.decoder.coarse(x)
            said = codec.decoder.vocoder(take(coarse, starts, SLICE_FRAMES))
        real = take(clean, starts * 240, said.shape[1])
        near, true = level(said, real)
        sound, shape = spectra(said, real), (coarse - mel).abs().mean()
        doubt = fool = match = sound.new_zeros(())
        if step >= args.quiet:
            with torch.autocast("cpu", torch.bfloat16):
                fake, good = judges(near.detach()), judges(true)
                doubt = doubts(fake, good)
            doubter.zero_grad(set_to_none=True)
            doubt.backward()
            nn.utils.clip_grad_norm_(judges.parameters(), 5.0)
            doubter.step()
            judges.requires_grad_(False)
            with torch.autocast("cpu", torch.bfloat16):
                fake = judges(near)
                with torch.no_grad():
                    good = judges(true)
            judges.requires_grad_(True)
            fool = -sum(f[-1].float().mean() for f in fake) / len(fake)
            match = matches(fake, good)
        loss = 8 * sound + 4 * shape + fool + 2 * match
        losses = {"sound": sound, "shape": shape, "doubt": doubt, "fool": fool, "match": match}
        if ears:
            with torch.no_grad():
                meant = [ear(true) for ear in ears]
            heard = [ear(near) for ear in ears]
            losses |= {"alike": matches(heard, meant), "misheard": misheard(heard, meant)}
            loss = loss + 16 * (losses["alike"] + losses["misheard"])
        maker.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(ours, 10.0)
        maker.step()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for k, v in codec.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        progress.add(step + 1, losses)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            kept = {"codec": average, "raw": codec.state_dict(), "judges": judges.state_dict(), "step": step + 1}
            keep(args.out, kept | {"maker": maker.state_dict(), "doubter": doubter.state_dict()})


if __name__ == "__main__":
    main()
