"""The language model as graphs: the formulas of reference_lm.py, with a cache of fixed capacity.

    patch_encoder:      tokens int32 [P], codes int32 [K, P, G] -> embeds [1, P, H]
    backbone:           embeds [1, P, H], length, mask, caches -> logits [1, V], local_hidden, hidden, caches
    patch_decoder_step: start [1, L], codes int32 [K], length, mask, caches -> hidden, logits.k [1, V_k], caches

The same backbone graph prefills (P > 1) and decodes (P = 1). A cache is [1, kv heads, capacity, head_dim], rotated keys
or values; `length` int64 [1] says how many of its positions are filled, `mask` [1, 1, P, M] which of the first M each
new position sees (0, or UNSEEN to be added). M >= length + P: attention costs O(M), not O(capacity), and M may be
rounded up so that shapes repeat. The flavour "cpu" has no mask, and its caches may be wider (ops.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimo_edge.export.onnx.ops import Ops, added_mask, half_rope
from mimo_edge.export.onnx.weights import ModuleWeights, Weight, computed
from mimo_edge.export.reference_ops import Config, join_heads, split_heads


@dataclass(frozen=True, slots=True)
class StackShape:
    """Sizes of one Qwen2 stack. positions: the most it is ever asked for."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    theta: float
    eps: float

    def tables(self, dtype: str) -> list[Weight]:
        """RoPE tables [positions, head_dim/2]."""
        cos, sin = half_rope(self.positions, self.head_dim, self.theta)
        return [
            computed(f"{self.name}.rope_cos", cos.numpy(), dtype),
            computed(f"{self.name}.rope_sin", sin.numpy(), dtype),
        ]


def local_steps(c: Config) -> int:
    """Steps of the patch decoder: one a code frame, and the longest delay."""
    return int(c["group_size"] + max(c["delay_pattern"]))


def backbone_shape(c: Config) -> StackShape:
    return StackShape("model", c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"],
                      c["head_dim"], c["max_position_embeddings"], c["rope_theta"], c["rms_norm_eps"])  # fmt: skip


def patch_encoder_shape(c: Config) -> StackShape:
    heads, width = c["local_attn_heads"], c["input_local_dim"] // c["local_attn_heads"]
    return StackShape("input_local_transformer", c["input_local_layers"], heads, heads, width, c["group_size"],
                      c["rope_theta"], c["rms_norm_eps"])  # fmt: skip


def patch_decoder_shape(c: Config) -> StackShape:
    heads, width = c["local_attn_heads"], c["local_dim"] // c["local_attn_heads"]
    return StackShape("local_transformer", c["local_layers"], heads, heads, width, local_steps(c), c["rope_theta"],
                      c["rms_norm_eps"])  # fmt: skip


class LmGraph(nn.Module):
    """A Qwen2 stack, with or without caches."""

    def __init__(self, c: Config, ops: Ops, weights: Sequence[Weight], shape: StackShape, empty_token: int) -> None:
        super().__init__()
        self.c, self.ops, self.shape, self.empty_token = c, ops, shape, empty_token
        self.w = ModuleWeights(self, weights)

    def stack(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, length: Tensor | None, caches: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Stack.forward of the spec: x [B, n, D] -> normed [B, n, D], the caches (key 0, value 0, key 1 ...) after."""
        w, ops, s = self.w, self.ops, self.shape
        after: list[Tensor] = []
        for i in range(s.layers):
            name = f"{s.name}.layers.{i}"
            y = ops.rms_norm(x, w[f"{name}.input_layernorm.weight"], s.eps)
            q, k, v = (split_heads(w.linear(f"{name}.self_attn.{p}_proj", y), s.head_dim) for p in "qkv")
            q, k = ops.rotate(q, *rope), ops.rotate(k, *rope)
            if length is not None and mask is not None:
                y, pair = ops.attend(q, k, v, caches[2 * i : 2 * i + 2], length, mask)
                after += pair
            else:
                y = ops.attention(q, k, v, mask)
            x = x + w.linear(f"{name}.self_attn.o_proj", join_heads(y))
            y = ops.rms_norm(x, w[f"{name}.post_attention_layernorm.weight"], s.eps)
            gate = F.silu(w.linear(f"{name}.mlp.gate_proj", y))
            x = x + w.linear(f"{name}.mlp.down_proj", gate * w.linear(f"{name}.mlp.up_proj", y))
        return ops.rms_norm(x, w[f"{s.name}.norm.weight"], s.eps), after

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [1, n, hd/2] at positions int64 [n]."""
        cos, sin = self.w[f"{self.shape.name}.rope_cos"], self.w[f"{self.shape.name}.rope_sin"]
        return F.embedding(positions, cos)[None], F.embedding(positions, sin)[None]


class PatchEncoder(LmGraph):
    """Tokens and patches to what the backbone takes in."""

    def forward(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """tokens int32 [P], codes int32 [K, P, G] -> embeds [1, P, H]; LanguageModel.embed of the spec."""
        c, w = self.c, self.w
        is_patch = (tokens == self.empty_token)[:, None, None]
        x = torch.zeros(1, dtype=w["model.embed_tokens.weight"].dtype)
        for level, empty in enumerate(c["speech_zeroemb_idx"]):
            rows = F.embedding(codes[level], w[f"speech_embeddings.{level}.weight"])  # [P, G, D]
            x = x + rows * (codes[level] != empty)[..., None].to(rows.dtype)
        patch = is_patch.to(x.dtype)
        cos, sin = (w[f"{self.shape.name}.{t}"][None] for t in ("rope_cos", "rope_sin"))
        mask = added_mask(c["group_size"], (-1, -1), not c["input_full_attention"], x.dtype)
        x, _ = self.stack(x * patch, (cos, sin), mask, None, [])
        patches = w.linear("speech_group_downcast", (x * patch).flatten(1))  # [P, H]
        text = F.embedding(tokens, w["model.embed_tokens.weight"]) * (~is_patch[:, 0]).to(x.dtype)
        return (text + patches)[None]


class Backbone(LmGraph):
    """Prefill and decode in one graph."""

    def forward(self, embeds: Tensor, length: Tensor, mask: Tensor, caches: list[Tensor]) -> tuple[Tensor, ...]:
        """embeds [1, P, H], length int64 [1], mask [1, 1, P, M], caches -> logits float32 [1, V] and local_hidden
        [1, L] of the last position, hidden [1, P, H], the caches after."""
        w = self.w
        head = "lm_head.weight" if "lm_head.weight" in w else "model.embed_tokens.weight"
        positions = length + torch.arange(embeds.shape[1])
        hidden, after = self.stack(embeds, self.rope(positions), mask, length, caches)
        last = hidden[:, -1]
        return (F.linear(last, w[head]).float(), w.linear("hidden_states_downcast", last), hidden, *after)


class PatchDecoderStep(LmGraph):
    """One local step: the codes made at the step before (or the start) to the scores of every level."""

    def forward(
        self, start: Tensor, codes: Tensor, length: Tensor, mask: Tensor, caches: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """start [1, L]: local_hidden at step 0, zeros after; codes int32 [K]: made at the step before, -1 = silent;
        length int64 [1] = step; mask [1, 1, 1, M] -> hidden [1, L], logits float32 [1, V_k] a level, caches after."""
        c, w = self.c, self.w
        x = torch.zeros(1, dtype=start.dtype)
        for level in range(c["audio_channels"]):
            code = codes[level : level + 1]
            row = F.embedding(code.clamp(min=0), w[f"speech_embeddings.{level}.weight"])  # [1, D]
            x = x + row * (code >= 0)[:, None].to(row.dtype)
        if c["input_local_dim"] != c["local_dim"]:
            x = w.linear("speech_embeddings_to_local", x)
        hidden, after = self.stack((start + x)[None], self.rope(length), mask, length, caches)
        last = hidden[0]
        logits = [w.linear(f"local_transformer_lm_heads.{k}", last).float() for k in range(c["audio_channels"])]
        return (last, *logits, *after)
