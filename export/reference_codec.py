"""The codec of the executable spec: wav <-> codes, in the order the audio flows.

    wav [S] -> mel [F, n_mels] -> convolutions, layers, pooling -> hidden [T, D] -> RVQ -> codes [Q, T]
    codes [n, T] -> RVQ -> hidden [T, D] -> transposed convolutions, layers -> mel [F, n_mels] -> vocoder -> wav [S]

Letters, sources and "item n": see reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimo_edge.export.reference_ops import (
    Array,
    Config,
    Rope,
    Tap,
    Weights,
    attention,
    join_heads,
    numpy,
    rope_table,
    rotate,
    silent,
    split_heads,
)

MEL_FLOOR = 1e-7  # log(max(x, floor)), app:187
MAGNITUDE_CEILING = 100.0  # of a vocoder bin, after exp, tok:183
BATCH_MEL_FRAMES = 256000  # segments are encoded together up to this sum, app:223


def resample(wav: Array, from_hz: int, to_hz: int) -> Array:
    """Windowed-sinc resampling, the defaults of torchaudio.functional.resample (app:174): Hann, width 6, roll-off 0.99.

    wav float32 [S] -> float32 [ceil(S * to / from)]. With the rates divided by their gcd and b = 0.99 * min(from, to),
    output n*to + p is the sum over i of wav[n*from + i] * h(b * (i/from - p/to)),
    h(t) = b/from * sinc(t) * cos^2(pi t / 12) for |t| < 6, else 0.
    """
    if from_hz == to_hz:
        return wav.astype(np.float32)
    crossings, rolloff = 6, 0.99
    common = math.gcd(from_hz, to_hz)
    source, target = from_hz // common, to_hz // common
    base = min(source, target) * rolloff
    width = math.ceil(crossings * source / base)
    tap_time = torch.arange(-width, width + source, dtype=torch.float64)[None, :] / source
    phase_time = torch.arange(target, dtype=torch.float64)[:, None] / target
    t = (base * (tap_time - phase_time)).clamp(-crossings, crossings)
    kernel = torch.sinc(t) * torch.cos(math.pi * t / crossings / 2).square() * base / source  # [to, taps]
    padded = F.pad(torch.from_numpy(wav.astype(np.float32)), (width, width + source))
    phases = F.conv1d(padded[None, None], kernel.float()[:, None], stride=source)[0]  # [to, n]
    return numpy(phases.T.reshape(-1)[: math.ceil(target * len(wav) / source)])


def mel_filterbank(c: Config) -> Tensor:
    """HTK triangles without area norm, [nfft/2 + 1, n_mels] (torchaudio melscale_fbanks, item 2)."""
    fmax = float(c["sampling_rate"] // 2) if c["fmax"] is None else float(c["fmax"])
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (float(c["fmin"]), fmax))
    bins = torch.linspace(0, c["sampling_rate"] // 2, c["nfft"] // 2 + 1)
    corners = 700.0 * (10.0 ** (torch.linspace(low, high, c["n_mels"] + 2) / 2595.0) - 1.0)
    width = corners[1:] - corners[:-1]
    slope = corners[None, :] - bins[:, None]  # [bins, n_mels + 2]
    return torch.minimum(-slope[:, :-2] / width[:-1], slope[:, 2:] / width[1:]).clamp(min=0.0)


def log_mel(wav: Tensor, c: Config) -> Tensor:
    """wav [S] -> [1 + S // hop, n_mels]: reflect-padded STFT magnitude, mel, natural log (app:153-163, items 1-4).

    The window may be shorter than nfft; torch.stft then centres it in the frame.
    """
    if wav.dim() != 1 or len(wav) <= c["nfft"] // 2:
        raise ValueError(f"mel: expected [S] with S > {c['nfft'] // 2}, got {list(wav.shape)}; pad the clip with zeros")
    window = torch.hann_window(c["window_size"], periodic=True)
    spectrum = torch.stft(wav, c["nfft"], c["hop_length"], c["window_size"], window, center=True, pad_mode="reflect",
                          return_complex=True)  # fmt: skip
    return torch.log((spectrum.abs().T @ mel_filterbank(c)).clamp(min=MEL_FLOOR))


def window_mask(length: int, window: Sequence[int], causal: bool) -> Tensor | None:
    """seen[i, j]: i - left <= j <= i + right, -1 unlimited; causal adds j <= i (flash-attn's rule, tok:303)."""
    if tuple(window) == (-1, -1) and not causal:
        return None
    ahead = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    seen = torch.ones(length, length, dtype=torch.bool)
    if window[0] >= 0:
        seen &= ahead >= -window[0]
    if window[1] >= 0:
        seen &= ahead <= window[1]
    return seen & (ahead <= 0) if causal else seen


@dataclass(frozen=True)
class Codec:
    """wav <-> codes (MiMoAudioTokenizer)."""

    c: Config
    w: Weights
    segment: int  # mel frames that are encoded as one sequence

    def encoder_frames(self, mel_frames: int) -> int:
        """Frames after both convolutions, padding 1 each (tok:576-578)."""
        kernel, stride = self.c["kernel_size"], self.c["stride_size"]
        return int((mel_frames + 3 - kernel + 2 - kernel) // stride + 1)

    def layer(self, name: str, x: Tensor, heads: int, rope: Rope, seen: Tensor | None) -> Tensor:
        """Pre-norm transformer layer on x [time, D]; k has no bias, GELU is exact (tok:266-357)."""
        w = self.w
        y = w.layer_norm(f"{name}.self_attn_layer_norm", x)
        width = x.shape[1] // heads
        q, k, v = (split_heads(w.linear(f"{name}.self_attn.{p}_proj", y), width) for p in "qkv")
        y = attention(rotate(q, rope), rotate(k, rope), v, seen)
        x = x + w.linear(f"{name}.self_attn.out_proj", join_heads(y))
        y = w.layer_norm(f"{name}.final_layer_norm", x)
        return x + w.linear(f"{name}.fc2", F.gelu(w.linear(f"{name}.fc1", y)))

    # encoder

    def encode(self, mel: Tensor, tap: Tap) -> Tensor:
        """mel [F, n_mels] -> hidden [T, D]: cut into segments, encode them in batches, join (app:252-269)."""
        segments = [mel[start : start + self.segment] for start in range(0, len(mel), self.segment)]
        hidden, remaining = [], iter(segments)
        for batch in group_segments([len(segment) for segment in segments], BATCH_MEL_FRAMES):
            hidden += [self.encode_segment(next(remaining), max(batch), len(batch) > 1, tap) for _ in batch]
        return torch.cat(hidden)

    def encode_segment(self, mel: Tensor, padded: int, batched: bool, tap: Tap) -> Tensor:
        """One segment [F, n_mels] -> [T, D]; items 5-10.

        padded: mel frames of the longest segment in the batch; batched: whether there is more than one. A shorter
        segment is filled with 0.0 (not silence), so its last frames see gelu(conv1(0)) instead of zero padding.
        """
        c, w = self.c, self.w
        frames = self.encoder_frames(len(mel))
        x = F.pad(mel, (0, 0, 0, padded - len(mel)))
        x = w.conv("encoder.conv1", x, padding=1)
        tap("codec_encoder.conv1", numpy(x))
        x = w.conv("encoder.conv2", F.gelu(x), c["stride_size"], padding=1)
        tap("codec_encoder.conv2", numpy(x))
        x = F.gelu(x[:frames])

        heads = c["encoder_attention_heads"]
        rope = rope_table(0, frames, c["d_model"] // heads, c["rope_theta"])
        tap("codec_encoder.rope_cos", numpy(rope[0]))
        tap("codec_encoder.rope_sin", numpy(rope[1]))
        seen = window_mask(frames, c["encoder_attn_window_size"], c["encoder_causal"])
        skip: Tensor | float = 0.0
        for i in range(c["encoder_layers"]):
            x = self.layer(f"encoder.layers.{i}", x, heads, rope, seen)
            tap(f"codec_encoder.layer{i}", numpy(x))
            if c["encoder_skip_layer_id"] == i + 1:  # a count, not an index: 3 means the third layer (tok:533)
                skip = x
        x = w.layer_norm("encoder.layer_norm", x + skip)
        tap("codec_encoder.layer_norm", numpy(x))
        if c["avg_pooler"] != 1:
            x = self.pool(x, batched, tap)
        tap("codec_encoder.hidden", numpy(x))
        return x

    def pool(self, x: Tensor, batched: bool, tap: Tap) -> Tensor:
        """[E, D] -> [ceil(E / pool), D]. An incomplete last window is filled with the last frame if the segment was
        batched with others (a shorter one is un-packed by repeating its last row), with zeros if alone (item 5)."""
        stride = self.c["avg_pooler"]
        missing = -len(x) % stride
        x = torch.cat([x, x[-1:].expand(missing, -1) if batched else x.new_zeros(missing, x.shape[1])])
        x = F.gelu(self.w.conv("encoder.down_sample_layer.0", x, stride))
        tap("codec_encoder.pool", numpy(x))
        return self.w.layer_norm("encoder.down_sample_norm", x)

    # residual vector quantiser

    def codebook(self, level: int) -> Tensor:
        return self.w[f"encoder.quantizer.vq.layers.{level}._codebook.embed"]  # [rows, D], always float32

    def rvq_encode(self, hidden: Tensor) -> Tensor:
        """hidden [T, D] -> [Q, T]: nearest row by squared distance, lowest index on a tie, then the rest (item 11)."""
        rest, codes = hidden, []
        for level in range(self.c["num_quantizers"]):
            rows = self.codebook(level)
            distance = rest.square().sum(1, keepdim=True) - 2 * rest @ rows.T + rows.square().sum(1)
            codes.append(distance.argmin(dim=1))
            rest = rest - rows[codes[-1]]
        return torch.stack(codes)

    def rvq_decode(self, codes: Tensor) -> Tensor:
        """codes [n, T] -> [T, D]: sum of the rows of the first n levels, any n >= 1 (item 13)."""
        hidden = torch.zeros(codes.shape[1], self.c["d_model"])
        for level, row in enumerate(codes):
            hidden = hidden + self.codebook(level)[row]
        return hidden

    # decoder and vocoder

    def decode(self, batch: Sequence[Tensor], tap: Tap) -> Tensor:
        """hidden [T_i, D] per item -> wav [B, samples of the longest]; items 14-18.

        Items go through the layers alone, through convolutions, GroupNorm and the ISTFT padded to the longest.
        """
        c, w = self.c, self.w
        lengths = [len(x) for x in batch]
        items = list(batch)
        if c["avg_pooler"] != 1:
            items, lengths = self.upsample("dconv1", items, lengths, c["avg_pooler"], tap)
        heads, done = c["decoder_attention_heads"], []
        for x, length in zip(items, lengths, strict=True):
            x = x[:length]
            rope = rope_table(0, length, c["d_model"] // heads, c["rope_theta"])
            seen = window_mask(length, c["decoder_attn_window_size"], c["decoder_causal"])
            for i in range(c["decoder_layers"]):
                x = self.layer(f"decoder.layers.{i}", x, heads, rope, seen)
                tap(f"codec_decoder.layer{i}", numpy(x))
            done.append(w.layer_norm("decoder.layer_norm", x))
            tap("codec_decoder.layer_norm", numpy(done[-1]))
        mels, lengths = self.upsample("dconv2", done, lengths, c["decoder_stride_size"], tap)
        for mel in mels:
            tap("codec_decoder.coarse_mel", numpy(mel))
        longest, first, wav = max(lengths), 0, []
        for mel, length in zip(mels, lengths, strict=True):
            x = F.pad(self.vocoder(mel[:length], first, tap), (0, 0, 0, longest - length))
            x = w.linear("decoder.vocoder.head.out", x)
            tap("vocoder.head", numpy(x[:length]))
            wav.append(istft(x, c["nfft"], c["hop_length"]))
            first += length
        return torch.stack(wav)

    def upsample(
        self, name: str, items: Sequence[Tensor], lengths: Sequence[int], stride: int, tap: Tap
    ) -> tuple[list[Tensor], list[int]]:
        """Transposed convolution, GroupNorm(1), right trim; zero past each item's own length (tok:626-676).

        The norm's mean and variance run over channels AND time of the padded, untrimmed output, so the result depends
        on the length of the call, on padding and on the frames that are cut afterwards (item 14).
        """
        kernel = self.w[f"decoder.{name}.conv.weight"].shape[0]
        trim = max(0, kernel - stride)
        out, out_lengths = [], []
        for x, length in zip(items, lengths, strict=True):
            x = F.pad(x[:length], (0, 0, 0, max(lengths) - length))
            x = self.w.conv_transpose(f"decoder.{name}.conv", x, stride)
            tap(f"codec_decoder.{name}_conv", numpy(x))
            weight, bias = self.w[f"decoder.{name}.norm.weight"], self.w[f"decoder.{name}.norm.bias"]
            x = F.group_norm(x.T[None], 1, weight, bias, eps=1e-5)[0].T
            tap("codec_decoder.dconv1" if name == "dconv1" else "codec_decoder.dconv2_norm", numpy(x))
            x = x[: len(x) - trim].clone()
            out_lengths.append((length - 1) * stride + kernel - trim)
            x[out_lengths[-1] :] = 0.0
            out.append(x)
        return out, out_lengths

    def vocoder(self, mel: Tensor, first: int, tap: Tap) -> Tensor:
        """mel [F, n_mels] -> [F, vocoder_dim]; looks left and right in a window. `first`: positions do not restart
        between the items of a batch, which matters only to rounding (tok:411-433, item 16)."""
        c, w = self.c, self.w
        x = w.linear("decoder.vocoder.embeddings", mel)
        tap("vocoder.embed", numpy(x))
        heads = c["vocoder_attention_heads"]
        rope = rope_table(first, len(x), c["vocoder_dim"] // heads, c["rope_theta"])
        seen = window_mask(len(x), c["vocoder_attn_window_size"], causal=False)
        for i in range(c["vocoder_num_layers"]):
            x = self.layer(f"decoder.vocoder.layers.{i}", x, heads, rope, seen)
            tap(f"vocoder.layer{i}", numpy(x))
        x = w.layer_norm("decoder.vocoder.layer_norm", x)
        tap("vocoder.norm", numpy(x))
        return x


def istft(head: Tensor, nfft: int, hop: int) -> Tensor:
    """head [F, nfft + 2] = log magnitude | phase -> wav [F * hop], "same" padding (tok:112-193, items 17-18).

    Overlap-add of hann * irfft, divided by the summed hann^2, (nfft - hop) / 2 samples cut on both sides.
    """
    log_magnitude, phase = head.chunk(2, dim=-1)
    spectrum = torch.polar(log_magnitude.exp().clamp(max=MAGNITUDE_CEILING), phase)
    window = torch.hann_window(nfft, periodic=True)
    frames = torch.fft.irfft(spectrum, nfft) * window  # ignores the imaginary part of DC and Nyquist
    total = torch.zeros((len(frames) - 1) * hop + nfft)
    envelope = torch.zeros_like(total)
    for i, frame in enumerate(frames):
        total[i * hop : i * hop + nfft] += frame
        envelope[i * hop : i * hop + nfft] += window.square()
    cut = (nfft - hop) // 2
    return total[cut:-cut] / envelope[cut:-cut]


class StreamingDecoder:
    """Chunked decode of a batch (tok:815-857, items 20-22): every push decodes cached + new frames again, returns what
    lies right_overlap frames before the end, and keeps at most left_overlap frames for the next push."""

    def __init__(self, codec: Codec, left_overlap: int, right_overlap: int) -> None:
        self.codec, self.left_overlap, self.right_overlap = codec, left_overlap, right_overlap
        self.hidden: list[Tensor] = []
        self.processed: list[int] = []  # frames of the cache whose samples were returned, per item

    @property
    def cached(self) -> list[int]:
        return [len(x) for x in self.hidden]

    def push(self, chunks: Sequence[Array], last: bool) -> list[Array | None]:
        """chunks: codes int32 [n, T_i] per item -> float32 samples per item, or None."""
        new = [self.codec.rvq_decode(torch.from_numpy(chunk).long()) for chunk in chunks]
        if self.hidden and len(new) != len(self.hidden):
            raise ValueError(f"push: expected {len(self.hidden)} items as before, got {len(new)}; open a new decoder")
        self.hidden = [torch.cat(pair) for pair in zip(self.hidden, new, strict=True)] if self.hidden else new
        start = self.processed or [0] * len(new)
        c = self.codec.c
        samples = c["avg_pooler"] * c["decoder_stride_size"] * c["hop_length"]  # per code frame
        wavs: list[Array | None] = []
        self.processed = []
        for i, wav in enumerate(self.codec.decode(self.hidden, silent)):
            frames = len(self.hidden[i])
            if last:  # to the end of the longest item of the batch, padding included (item 22)
                wavs.append(numpy(wav[start[i] * samples :]))
                self.processed.append(frames)
            elif frames <= self.right_overlap:
                wavs.append(None)
                self.processed.append(0)
            else:
                end = frames - self.right_overlap
                wavs.append(numpy(wav[start[i] * samples : end * samples]))
                dropped = max(0, frames - self.left_overlap)
                self.hidden[i] = self.hidden[i][dropped:]
                self.processed.append(end - dropped)
        return wavs


def group_segments(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Split segments, in order, into batches whose sum stays within max_length where possible (app:197-226, item 6)."""
    batches: list[list[int]] = [[]]
    for length in lengths:
        if sum(batches[-1]) + length > max_length and batches[-1]:
            batches.append([])
        batches[-1].append(length)
    return [batch for batch in batches if batch]
