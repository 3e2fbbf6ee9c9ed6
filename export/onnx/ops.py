"""The few operations that the flavours of export write differently; everything else is the spec's own.

| | opset 24 (TensorRT >= 10.15, ONNX Runtime) | opset 21 (TensorRT 10.3) |
|---|---|---|
| attention | Attention, grouped heads inside the op | MatMul, Softmax; query heads grouped by a reshape |
| rotary embedding, RMS norm | RotaryEmbedding, RMSNormalization | the formulas of reference_ops.py |
| cache | TensorScatter | ScatterND on rows |

The third, "cpu", of stages with caches only, is opset 24 with ONNX Runtime's own GroupQueryAttention (CPU provider) in
place of TensorScatter, mask and Attention: it costs O(positions filled), the standard one O(capacity). It asks for
heads of a multiple of 8 values; narrower ones are filled with zeros, in the cache too.

Masks are added to the scores: 0 = seen, UNSEEN = not. A boolean mask fails in TensorRT in deep graphs, and Attention's
own nonpad_kv_seqlen is ignored there without a word, so neither is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mimo_edge.export.reference_codec import window_mask
from mimo_edge.export.reference_ops import rotate

FLAVOURS = {"opset24": 24, "opset21": 21, "cpu": 24}  # names and their opsets
HEAD_MULTIPLE = 8  # values of a head in GroupQueryAttention, onnxruntime 1.32
UNSEEN = -30000.0  # exp of it is 0 in every precision, and a score added to it stays finite in float16


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations of one flavour (a name of FLAVOURS)."""

    flavour: str

    @property
    def opset(self) -> int:
        return FLAVOURS[self.flavour]

    def cache_width(self, head_dim: int) -> int:
        """Values a position and head that a cache holds."""
        return head_dim + (-head_dim % HEAD_MULTIPLE if self.flavour == "cpu" else 0)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., D] / sqrt(mean x^2 + eps) * weight [D]; the mean in float32."""
        if self.opset >= 23:
            return F.rms_norm(x, x.shape[-1:], weight, eps)
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """RoPE, half-split. x [B, heads, n, hd]; cos, sin [1, n, hd/2]."""
        if self.opset >= 23:
            cos, sin = (t.expand(x.shape[0], -1, -1) for t in (cos, sin))
            turned: Tensor = torch.onnx.ops.rotary_embedding(x, cos, sin)
            return turned
        cos, sin = (torch.cat([t, t], dim=-1)[:, None] for t in (cos, sin))
        return rotate(x, (cos, sin))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, heads, n, hd], k and v [B, kv heads, m, hd], mask [1, 1, n, m] added -> [B, heads, n, hd]."""
        batch, heads, n, width = q.shape
        kv_heads, m = k.shape[1], k.shape[2]
        if self.opset >= 23:
            return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=heads != kv_heads)
        share = heads // kv_heads  # consecutive query heads share a kv head
        q = (q * width**-0.5).reshape(batch, kv_heads, share * n, width)
        scores = q @ k.transpose(-1, -2)
        if mask is not None:
            scores = (scores.reshape(batch, kv_heads, share, n, m) + mask[:, :, None]).reshape(scores.shape)
        return (scores.softmax(-1) @ v).reshape(batch, heads, n, width)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, caches: Sequence[Tensor], length: Tensor, mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Causal attention of new q [1, heads, n, hd] over caches of keys and values [1, kv heads, capacity, width],
        which hold `length` positions before k and v [1, kv heads, n, hd] -> [1, heads, n, hd], the caches after.

        mask [1, 1, n, m] says how much of the caches is looked at; the flavour "cpu" needs none.
        """
        if self.flavour != "cpu":
            after = [self.write(cache, new, length) for cache, new in zip(caches, (k, v), strict=True)]
            seen_k, seen_v = (cache[:, :, : mask.shape[3]] for cache in after)
            return self.attention(q, seen_k, seen_v, mask), after
        heads, n, width = q.shape[1:]
        kv_heads, capacity, stored = caches[0].shape[1:]
        packed = [F.pad(t, (0, stored - width)).transpose(1, 2).flatten(2) for t in (q, k, v)]
        total = length + n
        y, *after = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [*packed, *caches, (total - 1).to(torch.int32), total[0].to(torch.int32)],
            {"num_heads": heads, "kv_num_heads": kv_heads, "scale": width**-0.5},
            dtypes=[q.dtype] * 3,
            shapes=[(1, n, heads * stored), *[(1, kv_heads, capacity, stored)] * 2],
            version=1,
        )
        return y.reshape(1, n, heads, stored)[..., :width].transpose(1, 2), after

    def write(self, cache: Tensor, new: Tensor, length: Tensor) -> Tensor:
        """cache [1, heads, capacity, hd] with new [1, heads, n, hd] at positions length..length+n-1; length int64 [1].

        A runtime binds one buffer as cache before and after.
        """
        if self.opset >= 24:
            return torch.onnx.ops.symbolic(
                "TensorScatter", (cache, new, length), {"axis": -2}, dtype=cache.dtype, shape=cache.shape, version=24
            )
        _, heads, capacity, width = cache.shape
        position = length + torch.arange(new.shape[2])  # [n]
        row = torch.arange(heads)[:, None] * capacity + position[None]  # [heads, n]
        flat = torch.onnx.ops.symbolic(
            "ScatterND",
            (cache.reshape(-1, width), row.reshape(-1, 1), new.reshape(-1, width)),
            dtype=cache.dtype,
            shape=(heads * capacity, width),
            version=18,
        )
        return flat.reshape(cache.shape)


def added_mask(length: int, window: Sequence[int], causal: bool, dtype: torch.dtype) -> Tensor | None:
    """The spec's window mask as [1, 1, length, length] to add; None if everything is seen."""
    seen = window_mask(length, window, causal)
    if seen is None:
        return None
    return torch.where(seen, 0.0, UNSEEN).to(dtype)[None, None]


def half_rope(count: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos, sin float32 [count, head_dim/2] for positions 0..; rope_table of the spec without its repetition."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.arange(count).float()[:, None] * frequency[None, :]
    return angle.cos(), angle.sin()
