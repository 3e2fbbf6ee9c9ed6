"""The codec of MiMo-Audio at small width, as trainable modules whose state_dict carries the released tensor names.

wave 24 kHz -> mel 100 Hz -> encoder 50 Hz -> pooled 25 Hz -> residual codebooks -> decoder 50 -> 100 Hz -> vocoder
-> wave. Batches here are whole clips padded with silence to one length, so no masks are needed. Structure: the
public reference's src/mimo_audio_tokenizer (read for facts); B batch, T code frames, F mel frames (F = 4 T), D
width, K levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

CONFIG = {
    "max_audio_seconds": 1800,
    "stride_size": 2,
    "avg_pooler": 2,
    "d_model": 256,
    "scale_embedding": False,
    "kernel_size": 3,
    "activation_function": "gelu",
    "encoder_layers": 4,
    "encoder_skip_layer_id": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "encoder_causal": False,
    "encoder_attn_window_size": [-1, -1],
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 512,
    "decoder_kernel_size": 3,
    "decoder_stride_size": 2,
    "decoder_causal": True,
    "decoder_attn_window_size": [-1, -1],
    "nfft": 960,
    "vocoder_dim": 256,
    "vocoder_intermediate_dim": 512,
    "vocoder_num_layers": 4,
    "n_mels": 128,
    "sampling_rate": 24000,
    "hop_length": 240,
    "window_size": 960,
    "vocoder_padding": "same",
    "fmin": 0,
    "fmax": None,
    "num_quantizers": 8,
    "codebook_size": [1024, 1024, 128, 128, 128, 128, 128, 128],
    "threshold_ema_dead_code": 2,
    "position_embedding_type": "rope",
    "rope_theta": 10000,
    "rope_type": "default",
    "ln_type": "LayerNorm",
    "vocoder_attention_heads": 4,
    "vocoder_attn_window_size": [40, 10],
    "architectures": ["MiMoAudioTokenizer"],
    "model_type": "mimo_audio_tokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.49.0",
}
MEL_MEAN, MEL_STD = -6.0, 3.0  # of the log-mel of this data, to start conv1 and to aim the decoder's coarse mel


def mel_filters(nfft: int, mels: int, rate: int = 24000) -> Tensor:
    """Triangles on the HTK scale from 0 to rate / 2, no area norm -> [nfft // 2 + 1, mels]."""
    freqs = torch.linspace(0, rate / 2, nfft // 2 + 1)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2) / 2595) - 1)
    rise = (freqs[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - freqs[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


class Mel(nn.Module):
    """wave [B, S] -> natural-log mel [B, F, mels], F = 1 + S // hop: magnitude, periodic Hann, reflect padding."""

    def __init__(self, nfft: int = 960, hop: int = 240, mels: int = 128, floor: float = 1e-7) -> None:
        super().__init__()
        self.nfft, self.hop, self.floor = nfft, hop, floor
        self.register_buffer("window", torch.hann_window(nfft), persistent=False)
        self.register_buffer("filters", mel_filters(nfft, mels), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        spec = torch.stft(wave.float(), self.nfft, self.hop, window=self.window, return_complex=True)
        magnitude = (spec.real.square() + spec.imag.square() + 1e-12).sqrt()
        return (magnitude.transpose(1, 2) @ self.filters).clamp(min=self.floor).log()


def rope(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos, sin [length, head_dim], half-split."""
    freqs = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.arange(length).float()[:, None] * freqs
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, T, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain softmax attention: on clips of seconds its backward pass is several times faster than torch's fused one.

    q, k, v [B, heads, T, head_dim]; mask additive [T, T].
    """
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """q, v and out have a bias, k has none. mask: additive [T, T] or None."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], causal: bool, mask: Tensor | None) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = (p(x).view(batch, length, self.heads, -1).transpose(1, 2) for p in self.projections())
        q, k = rotate(q, *turn).to(v.dtype), rotate(k, *turn).to(v.dtype)
        if causal:
            mask = torch.full((length, length), float("-inf")).triu(1)
        y = attend(q, k, v, mask)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, dim))

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj


class Layer(nn.Module):
    """Pre-norm attention and GELU feed-forward."""

    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn)
        self.fc2 = nn.Linear(ffn, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], causal: bool, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), turn, causal, mask)
        return x + self.fc2(fn.gelu(self.fc1(self.final_layer_norm(x))))


class Codebook(nn.Module):
    """embed [codes, D], moved by averages instead of gradients; embed_avg and cluster_size are the running sums."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("embed", torch.zeros(codes, dim))
        self.register_buffer("embed_avg", torch.zeros(codes, dim))

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """x [N, D] -> codes [N]; ties go to the lowest index."""
        return (self.embed.square().sum(1) - 2 * x @ self.embed.T).argmin(1)

    @torch.no_grad()
    def fit(self, x: Tensor, rounds: int = 12) -> None:
        """k-means on x [N, D]."""
        count = self.embed.shape[0]
        self.embed.copy_(x[torch.randperm(x.shape[0])[:count]])
        for _ in range(rounds):
            index = self.nearest(x)
            size = torch.bincount(index, minlength=count).float()
            total = torch.zeros_like(self.embed).index_add_(0, index, x)
            fresh = x[torch.randint(x.shape[0], (count,))]
            self.embed.copy_(torch.where((size > 0)[:, None], total / size.clamp(min=1)[:, None], fresh))
        self.cluster_size.copy_(size)
        self.embed_avg.copy_(self.embed * size[:, None])
        self.inited.fill_(1)

    @torch.no_grad()
    def learn(self, x: Tensor, index: Tensor, decay: float) -> None:
        """Move towards x [N, D] coded as index [N]; a code used below 4 % of its share is thrown back into the data."""
        count = self.embed.shape[0]
        size = torch.bincount(index, minlength=count).float()
        total = torch.zeros_like(self.embed).index_add_(0, index, x)
        self.cluster_size.mul_(decay).add_(size, alpha=1 - decay)
        self.embed_avg.mul_(decay).add_(total, alpha=1 - decay)
        dead = self.cluster_size < 0.04 * self.cluster_size.sum() / count
        if bool(dead.any()):
            fresh = x[torch.randint(x.shape[0], (int(dead.sum()),))]
            self.cluster_size[dead] = self.cluster_size.sum() / count
            self.embed_avg[dead] = fresh * self.cluster_size[dead][:, None]
        self.embed.copy_(self.embed_avg / self.cluster_size.clamp(min=1e-5)[:, None])


class Level(nn.Module):
    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self._codebook = Codebook(codes, dim)


class Residual(nn.Module):
    def __init__(self, sizes: list[int], dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Level(size, dim) for size in sizes])


class Quantizer(nn.Module):
    """Residual codebooks, float32 always."""

    def __init__(self, sizes: list[int], dim: int) -> None:
        super().__init__()
        self.vq = Residual(sizes, dim)

    @property
    def books(self) -> list[Codebook]:
        return [level._codebook for level in self.vq.layers]

    def fit(self, x: Tensor) -> None:
        """k-means level by level on x [N, D]."""
        rest = x.float()
        for book in self.books:
            book.fit(rest)
            rest = rest - book.embed[book.nearest(rest)]

    def forward(self, x: Tensor, learn: bool, decay: float = 0.99) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [B, T, D] -> quantised, first two levels (both [B, T, D], straight-through), codes [K, B, T], loss."""
        rest = x.float()
        total, coarse, loss, codes = torch.zeros_like(rest), rest, rest.new_zeros(()), []
        for k, book in enumerate(self.books):
            flat = rest.detach().reshape(-1, rest.shape[-1])
            index = book.nearest(flat)
            row = book.embed[index].view_as(rest)
            loss = loss + fn.mse_loss(rest, row.detach())
            if learn:
                book.learn(flat, index, decay)
            total, rest = total + row, rest - row.detach()
            if k == 1:
                coarse = x + (total - x).detach()
            codes.append(index.view(rest.shape[:-1]))
        return x + (total - x).detach(), coarse, torch.stack(codes), loss / len(self.books)

    def rows(self, codes: Tensor) -> Tensor:
        """codes [K, B, T] -> [B, T, D]."""
        return torch.stack([book.embed[c] for book, c in zip(self.books, codes, strict=False)]).sum(0)


class Encoder(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        dim = c["d_model"]
        self.c = c
        self.conv1 = nn.Conv1d(c["n_mels"], dim, c["kernel_size"], padding=1)
        self.conv2 = nn.Conv1d(dim, dim, c["kernel_size"], stride=c["stride_size"], padding=1)
        heads, ffn = c["encoder_attention_heads"], c["encoder_ffn_dim"]
        self.layers = nn.ModuleList([Layer(dim, heads, ffn) for _ in range(c["encoder_layers"])])
        self.layer_norm = nn.LayerNorm(dim)
        pool = nn.Conv1d(dim, dim, c["avg_pooler"], c["avg_pooler"], bias=False)
        self.down_sample_layer = nn.Sequential(pool, nn.GELU())
        self.down_sample_norm = nn.LayerNorm(dim)
        self.quantizer = Quantizer(c["codebook_size"], dim)
        with torch.no_grad():
            self.conv1.weight /= MEL_STD
            self.conv1.bias -= MEL_MEAN * self.conv1.weight.sum((1, 2))

    def forward(self, mel: Tensor) -> Tensor:
        """mel [B, F, mels] -> latents [B, T, D], T = ceil(ceil(F / 2) / 2)."""
        x = fn.gelu(self.conv1(mel.transpose(1, 2)))
        x = fn.gelu(self.conv2(x)).transpose(1, 2)
        turn = rope(x.shape[1], x.shape[2] // self.c["encoder_attention_heads"], self.c["rope_theta"])
        skip = x
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, self.c["encoder_causal"])
            if i == self.c["encoder_skip_layer_id"] - 1:
                skip = x
        x = self.layer_norm(x + skip)
        x = fn.pad(x, (0, 0, 0, x.shape[1] % 2))
        x = self.down_sample_layer(x.transpose(1, 2)).transpose(1, 2)
        return self.down_sample_norm(x.float())


class Upsample(nn.Module):
    """Transposed convolution, GroupNorm over channels and the whole time axis, then the right trim."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inside, outside, kernel, stride)
        self.norm = nn.GroupNorm(1, outside)
        self.trim = max(0, kernel - stride)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, inside] -> [B, T * stride, outside]."""
        y = self.norm(self.conv(x.transpose(1, 2)).float())
        return y[..., : y.shape[-1] - self.trim].transpose(1, 2)


class Istft(nn.Module):
    """Overlap-add with "same" padding: spectrum [B, F, nfft / 2 + 1] -> wave [B, F * hop]."""

    def __init__(self, nfft: int, hop: int) -> None:
        super().__init__()
        self.nfft, self.hop = nfft, hop
        self.register_buffer("window", torch.hann_window(nfft))

    def forward(self, spec: Tensor) -> Tensor:
        frames = torch.fft.irfft(spec, self.nfft, dim=-1) * self.window
        size = (spec.shape[1] - 1) * self.hop + self.nfft
        wave = self.overlap(frames, size)
        weight = self.overlap(self.window.square().expand(1, spec.shape[1], -1), size)
        cut = (self.nfft - self.hop) // 2
        return (wave / weight.clamp(min=1e-11))[:, cut:-cut]

    def overlap(self, frames: Tensor, size: int) -> Tensor:
        """frames [B, F, nfft] -> [B, size]; nfft is a multiple of hop, so a few shifted sums do it."""
        batch, count, _ = frames.shape
        parts = self.nfft // self.hop
        blocks = frames.reshape(batch, count, parts, self.hop)
        padded = [fn.pad(blocks[:, :, p], (0, 0, p, parts - 1 - p)) for p in range(parts)]
        return torch.stack(padded).sum(0).reshape(batch, size)


class Head(nn.Module):
    def __init__(self, dim: int, nfft: int, hop: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, nfft + 2)
        self.istft = Istft(nfft, hop)

    def forward(self, x: Tensor) -> Tensor:
        magnitude, phase = self.out(x).float().chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=100.0)
        return self.istft(torch.complex(magnitude * phase.cos(), magnitude * phase.sin()))


class Vocoder(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.c = c
        dim, heads = c["vocoder_dim"], c["vocoder_attention_heads"]
        self.embeddings = nn.Linear(c["n_mels"], dim, bias=False)
        self.layers = nn.ModuleList(
            [Layer(dim, heads, c["vocoder_intermediate_dim"]) for _ in range(c["vocoder_num_layers"])]
        )
        self.layer_norm = nn.LayerNorm(dim)
        self.head = Head(dim, c["nfft"], c["hop_length"])

    def forward(self, mel: Tensor) -> Tensor:
        """coarse mel [B, F, mels] -> wave [B, F * hop]."""
        x = self.embeddings(mel)
        turn = rope(x.shape[1], x.shape[2] // self.c["vocoder_attention_heads"], self.c["rope_theta"])
        left, right = self.c["vocoder_attn_window_size"]
        step = torch.arange(x.shape[1])
        ahead = step[None, :] - step[:, None]
        far = (ahead < -left) | (ahead > right)
        mask = torch.zeros(far.shape).masked_fill(far, float("-inf"))
        for layer in self.layers:
            x = layer(x, turn, False, mask)
        return self.head(self.layer_norm(x))


class Decoder(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.c = c
        dim = c["d_model"]
        self.dconv1 = Upsample(dim, dim, c["avg_pooler"], c["avg_pooler"])
        heads, ffn = c["decoder_attention_heads"], c["decoder_ffn_dim"]
        self.layers = nn.ModuleList([Layer(dim, heads, ffn) for _ in range(c["decoder_layers"])])
        self.layer_norm = nn.LayerNorm(dim)
        self.dconv2 = Upsample(dim, c["n_mels"], c["decoder_kernel_size"], c["decoder_stride_size"])
        self.vocoder = Vocoder(c)

    def coarse(self, x: Tensor) -> Tensor:
        """rows [B, T, D] -> coarse mel [B, 4 T, mels]."""
        x = self.dconv1(x)
        turn = rope(x.shape[1], x.shape[2] // self.c["decoder_attention_heads"], self.c["rope_theta"])
        for layer in self.layers:
            x = layer(x, turn, self.c["decoder_causal"])
        return self.dconv2(self.layer_norm(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.vocoder(self.coarse(x))


class Codec(nn.Module):
    def __init__(self, c: dict | None = None) -> None:
        super().__init__()
        self.c = c or CONFIG
        self.encoder = Encoder(self.c)
        self.decoder = Decoder(self.c)
        self.mel = Mel()  # no tensors of its own in the state_dict

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Tensor:
        """wave [B, S] -> codes [K, B, T]."""
        return self.encoder.quantizer(self.encoder(self.mel(wave)), learn=False)[2]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """codes [K, B, T] -> wave [B, 960 T]."""
        return self.decoder(self.encoder.quantizer.rows(codes))
