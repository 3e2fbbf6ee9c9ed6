"""What every stage of the reference uses: weights by released name, RoPE, attention, taps."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[Any]
Tap = Callable[[str, Array], None]  # (boundary, value), time-major; names in MODEL.md
Config = Mapping[str, Any]
Rope = tuple[Tensor, Tensor]  # cos, sin [time, head_dim]


def silent(_name: str, _value: Array) -> None:
    """The tap of a call that nobody listens to."""


def numpy(x: Tensor) -> Array:
    array: Array = x.detach().contiguous().numpy().copy()
    return array


class Weights(dict[str, Tensor]):
    """Tensors by released name, float32."""

    @staticmethod
    def read(path: Path) -> Weights:
        """Read one safetensors file: u64 header size, JSON header, data; F32 or BF16."""
        raw = bytearray(path.read_bytes())
        (size,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8 : 8 + size])
        weights = Weights()
        for name, entry in header.items():
            if name != "__metadata__":
                dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[entry["dtype"]]
                count, start = math.prod(entry["shape"]), 8 + size + entry["data_offsets"][0]
                weights[name] = torch.frombuffer(raw, dtype=dtype, count=count, offset=start).float()
                weights[name] = weights[name].reshape(entry["shape"])
        return weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]; weight [out, in]; a bias where the checkpoint has one."""
        return F.linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps=1e-5)

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self[f"{name}.weight"]

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        """x [time, in] -> [time', out]. The bundle keeps the kernel as [out, k, in]."""
        weight = self[f"{name}.weight"].permute(0, 2, 1)
        return F.conv1d(x.T[None], weight, self.get(f"{name}.bias"), stride, padding)[0].T

    def conv_transpose(self, name: str, x: Tensor, stride: int) -> Tensor:
        """x [time, in] -> [(time - 1) * stride + k, out]. The bundle keeps the kernel as [k, out, in]."""
        weight = self[f"{name}.weight"].permute(2, 1, 0)
        return F.conv_transpose1d(x.T[None], weight, self[f"{name}.bias"], stride)[0].T


def rope_table(start: int, count: int, head_dim: int, theta: float) -> Rope:
    """cos, sin [count, head_dim] for positions start...; the half-split layout repeats the angles (item 9)."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.arange(start, start + count).float()[:, None] * frequency[None, :]
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """RoPE on x [..., time, head_dim]: pair i with i + head_dim/2."""
    cos, sin = rope
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[..., time, heads * head_dim] -> [..., heads, time, head_dim]."""
    return x.reshape(*x.shape[:-1], -1, head_dim).transpose(-2, -3)


def join_heads(x: Tensor) -> Tensor:
    """[..., heads, time, head_dim] -> [..., time, heads * head_dim]."""
    return x.transpose(-2, -3).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v; q [..., n, hd], k and v [..., m, hd], seen [n, m] bool (None: everything)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
