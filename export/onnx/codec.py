"""The codec as graphs: the formulas of reference_codec.py on tensors of dynamic length, one sequence a call.

    codec_encoder: mel float32 [F, n_mels] -> hidden float32 [T, D], codes int32 [Q, T]        one segment
    codec_decoder: codes int32 [n, T], any n <= Q -> wav float32 [S]                           one piece

Convolution, norms and products run in the weights' dtype; RVQ, GroupNorm, RoPE angles and the ISTFT in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimo_edge.export.onnx.ops import Ops, added_mask, half_rope
from mimo_edge.export.onnx.weights import ModuleWeights, Weight, computed
from mimo_edge.export.reference_codec import MAGNITUDE_CEILING, Codec
from mimo_edge.export.reference_ops import Config, join_heads, split_heads
from mimo_edge.export.safetensors_io import Array


class CodecGraph(nn.Module):
    """What encoder, decoder and vocoder share: a stack of pre-norm layers."""

    def __init__(self, c: Config, ops: Ops, weights: Sequence[Weight]) -> None:
        super().__init__()
        self.c, self.ops, self.w = c, ops, ModuleWeights(self, weights)

    def layer(self, name: str, x: Tensor, heads: int, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Codec.layer of the spec on x [1, time, D]."""
        w, ops = self.w, self.ops
        y = w.layer_norm(f"{name}.self_attn_layer_norm", x)
        q, k, v = (split_heads(w.linear(f"{name}.self_attn.{p}_proj", y), x.shape[-1] // heads) for p in "qkv")
        y = ops.attention(ops.rotate(q, *rope), ops.rotate(k, *rope), v, mask)
        x = x + w.linear(f"{name}.self_attn.out_proj", join_heads(y))
        y = w.layer_norm(f"{name}.final_layer_norm", x)
        return x + w.linear(f"{name}.fc2", F.gelu(w.linear(f"{name}.fc1", y)))

    def rope(self, count: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [1, count, head_dim/2], computed in float32."""
        cos, sin = half_rope(count, head_dim, self.c["rope_theta"])
        return cos.to(dtype)[None], sin.to(dtype)[None]


class CodecEncoder(CodecGraph):
    """One segment of mel frames to hidden states and codes of all levels."""

    def forward(self, mel: Tensor, padded: Tensor, batched: Tensor) -> tuple[Tensor, Tensor]:
        """mel float32 [F, n_mels] -> hidden float32 [T, D], codes int32 [Q, T].

        padded, batched: float32 [1], 1 or 0: whether the segment is shorter than the longest of its batch, whether it
        has a batch at all (MODEL.md 2.3). Both 0 for a segment encoded alone.
        """
        c, w = self.c, self.w
        dtype = w["encoder.conv1.weight"].dtype
        frames = (mel.shape[0] + 5 - 2 * c["kernel_size"]) // c["stride_size"] + 1  # padding 1, twice
        x = F.pad(mel.to(dtype).T[None], (0, 1))  # one frame of 0.0, which a padded segment goes on with
        x = F.gelu(F.conv1d(x, w["encoder.conv1.weight"], w["encoder.conv1.bias"], padding=1))
        x = torch.cat([x[..., :-1], x[..., -1:] * padded.to(dtype)], dim=-1)
        x = F.conv1d(x, w["encoder.conv2.weight"], w["encoder.conv2.bias"], c["stride_size"], padding=1)
        x = F.gelu(x[..., :frames]).transpose(1, 2)
        heads = c["encoder_attention_heads"]
        rope = self.rope(frames, c["d_model"] // heads, dtype)
        mask = added_mask(frames, c["encoder_attn_window_size"], c["encoder_causal"], dtype)
        skip: Tensor | float = 0.0
        for i in range(c["encoder_layers"]):
            x = self.layer(f"encoder.layers.{i}", x, heads, rope, mask)
            if c["encoder_skip_layer_id"] == i + 1:
                skip = x
        x = w.layer_norm("encoder.layer_norm", x + skip)
        if c["avg_pooler"] != 1:
            x = self.pool(x, batched.to(dtype))
        hidden = x[0].float()
        return hidden, Codec(c, w, 0).rvq_encode(hidden).to(torch.int32)

    def pool(self, x: Tensor, batched: Tensor) -> Tensor:
        """x [1, E, D] -> [1, ceil(E / pool), D]; an incomplete window is filled with the last frame, if alone zeros."""
        stride = self.c["avg_pooler"]
        fill = (x[:, -1:] * batched).expand(-1, stride - 1, -1)  # the convolution leaves out what it does not need
        x = torch.cat([x, fill], dim=1).transpose(1, 2)
        x = F.gelu(F.conv1d(x, self.w["encoder.down_sample_layer.0.weight"], None, stride))
        return self.w.layer_norm("encoder.down_sample_norm", x.transpose(1, 2))


class CodecDecoder(CodecGraph):
    """One piece of codes to its waveform: decoder, vocoder, ISTFT as transposed convolution."""

    def forward(self, codes: Tensor) -> Tensor:
        """codes int32 [n, T], 1 <= n <= Q -> wav float32 [S]."""
        c, w = self.c, self.w
        dtype = w["decoder.dconv2.conv.weight"].dtype
        rows = codes + w["rvq.offsets"][: codes.shape[0], None]
        x = F.embedding(rows, w["rvq.rows"]).sum(0)[None].to(dtype)  # [1, T, D]
        if c["avg_pooler"] != 1:
            x = self.upsample("decoder.dconv1", x, c["avg_pooler"])
        window, causal = c["decoder_attn_window_size"], c["decoder_causal"]
        x = self.stack("decoder", x, c["decoder_layers"], c["decoder_attention_heads"], window, causal)
        x = self.upsample("decoder.dconv2", x, c["decoder_stride_size"])
        x = w.linear("decoder.vocoder.embeddings", x)
        heads, window = c["vocoder_attention_heads"], c["vocoder_attn_window_size"]
        x = self.stack("decoder.vocoder", x, c["vocoder_num_layers"], heads, window, False)
        return self.istft(w.linear("decoder.vocoder.head.out", x).float())

    def stack(self, name: str, x: Tensor, layers: int, heads: int, window: Sequence[int], causal: bool) -> Tensor:
        """x [1, n, D] through the layers and the final norm of `name`."""
        rope = self.rope(x.shape[1], x.shape[2] // heads, x.dtype)
        mask = added_mask(x.shape[1], window, causal, x.dtype)
        for i in range(layers):
            x = self.layer(f"{name}.layers.{i}", x, heads, rope, mask)
        return self.w.layer_norm(f"{name}.layer_norm", x)

    def upsample(self, name: str, x: Tensor, stride: int) -> Tensor:
        """x [1, n, D] -> [1, n * stride, out]: transposed convolution, GroupNorm(1) over all of time, right trim."""
        w = self.w
        kernel = w[f"{name}.conv.weight"].shape[2]
        y = F.conv_transpose1d(x.transpose(1, 2), w[f"{name}.conv.weight"], w[f"{name}.conv.bias"], stride).float()
        y = F.group_norm(y, 1, w[f"{name}.norm.weight"].float(), w[f"{name}.norm.bias"].float(), eps=1e-5)
        if kernel > stride:
            y = y[..., : stride - kernel]
        return y.to(x.dtype).transpose(1, 2)

    def istft(self, head: Tensor) -> Tensor:
        """head float32 [1, F, nfft + 2] = log magnitude | phase -> wav [F * hop]."""
        nfft, hop = self.c["nfft"], self.c["hop_length"]
        log_magnitude, phase = head.transpose(1, 2).chunk(2, dim=1)  # [1, bins, F]
        magnitude = log_magnitude.exp().clamp(max=MAGNITUDE_CEILING)
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
        total = F.conv_transpose1d(spectrum, self.w["synthesis.kernel"], stride=hop)
        envelope = F.conv_transpose1d(torch.ones_like(spectrum[:, :1]), self.w["synthesis.envelope"], stride=hop)
        cut = (nfft - hop) // 2
        return (total / envelope)[0, 0, cut:-cut]


def decoder_tables(c: Config, codebooks: Sequence[Array]) -> list[Weight]:
    """What the decoder needs beside its own tensors: all codebooks as one table, and the ISTFT as a kernel."""
    sizes = [len(rows) for rows in codebooks]
    starts = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    kernel, envelope = istft_kernels(c["nfft"])
    return [
        computed("rvq.rows", np.concatenate(codebooks).astype(np.float32), "F32"),
        computed("rvq.offsets", starts, "I32"),
        computed("synthesis.kernel", kernel, "F32"),
        computed("synthesis.envelope", envelope, "F32"),
    ]


def istft_kernels(nfft: int) -> tuple[Array, Array]:
    """Windowed inverse DFT: [nfft + 2, 1, nfft] from real and imaginary parts; squared Hann window [1, 1, nfft]."""
    bins, n = np.arange(nfft // 2 + 1)[:, None], np.arange(nfft)[None, :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(nfft) / nfft)  # periodic Hann
    weight = np.where((bins == 0) | (2 * bins == nfft), 1.0, 2.0) / nfft  # inner bins stand for their mirror image too
    angle = 2 * np.pi * (bins * n % nfft) / nfft
    real, imaginary = weight * np.cos(angle) * window, -weight * np.sin(angle) * window
    kernel = np.concatenate([real, imaginary])[:, None]
    return kernel.astype(np.float32), np.square(window)[None, None].astype(np.float32)
