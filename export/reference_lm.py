"""The language model of the executable spec: ids -> token scores and patches of codes.

    ids [K+1, G*P] -> patch encoder -> backbone -> hidden [P, H] -> scores [V]; patch decoder -> codes [K, G]

Letters, sources and "item n": see reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mimo_edge.export.reference_ops import (
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


@dataclass
class Cache:
    """Rotated keys and values of one Qwen2 stack: per layer [kv heads, length, head_dim]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    length: int = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.keys:
            k, v = torch.cat([self.keys[layer], k], dim=-2), torch.cat([self.values[layer], v], dim=-2)
        self.keys[layer], self.values[layer] = k, v
        return k, v


@dataclass(frozen=True)
class Stack:
    """A Qwen2 transformer without embedding: the backbone, the patch encoder or the patch decoder (lm:168-199)."""

    w: Weights
    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float

    def forward(self, x: Tensor, cache: Cache, causal: bool = True, tap: Tap = silent) -> Tensor:
        """x [..., n, D] -> [..., n, D] after the final norm; positions and keys continue those of the cache."""
        n, past = x.shape[-2], cache.length
        rope = rope_table(past, n, self.head_dim, self.theta)
        seen = torch.ones(n, past + n, dtype=torch.bool).tril(past) if causal else None
        for i in range(self.layers):
            x = self.layer(i, x, rope, seen, cache)
            tap(f"backbone.layer{i}", numpy(x))
        cache.length += n
        return self.w.rms_norm(f"{self.name}.norm", x, self.eps)

    def layer(self, i: int, x: Tensor, rope: Rope, seen: Tensor | None, cache: Cache) -> Tensor:
        w, name = self.w, f"{self.name}.layers.{i}"
        y = w.rms_norm(f"{name}.input_layernorm", x, self.eps)
        q, k, v = (split_heads(w.linear(f"{name}.self_attn.{p}_proj", y), self.head_dim) for p in "qkv")
        k, v = cache.append(i, rotate(k, rope), v)
        share = self.heads // self.kv_heads  # consecutive q heads share a kv head (item 39)
        k, v = k.repeat_interleave(share, dim=-3), v.repeat_interleave(share, dim=-3)
        y = attention(rotate(q, rope), k, v, seen)
        x = x + w.linear(f"{name}.self_attn.o_proj", join_heads(y))
        y = w.rms_norm(f"{name}.post_attention_layernorm", x, self.eps)
        gate = F.silu(w.linear(f"{name}.mlp.gate_proj", y))
        return x + w.linear(f"{name}.mlp.down_proj", gate * w.linear(f"{name}.mlp.up_proj", y))


class LanguageModel:
    """ids -> token scores and patches (MiMoAudioForCausalLM)."""

    def __init__(self, c: Config, w: Weights, empty_token: int) -> None:
        self.c, self.w, self.empty_token = c, w, empty_token
        theta, eps, heads = c["rope_theta"], c["rms_norm_eps"], c["local_attn_heads"]
        wide, narrow = c["input_local_dim"] // heads, c["local_dim"] // heads
        self.backbone = Stack(w, "model", c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"],
                              c["head_dim"], theta, eps)  # fmt: skip
        self.patch_encoder = Stack(
            w, "input_local_transformer", c["input_local_layers"], heads, heads, wide, theta, eps
        )
        self.patch_decoder = Stack(w, "local_transformer", c["local_layers"], heads, heads, narrow, theta, eps)

    def embed(self, ids: Tensor, tap: Tap) -> Tensor:
        """ids [K+1, G*P] -> [P, H]: a text row or an encoded patch per position (lm:333-390, items 35-38)."""
        c, w = self.c, self.w
        tokens = ids[0, :: c["group_size"]]  # [P]; only the first column of a position counts
        codes = ids[1:].reshape(len(ids) - 1, -1, c["group_size"])  # [K, P, G]
        is_patch = (tokens == self.empty_token)[:, None, None].float()
        x = torch.zeros(len(tokens), c["group_size"], c["input_local_dim"])
        for level, empty in enumerate(c["speech_zeroemb_idx"]):
            rows = w[f"speech_embeddings.{level}.weight"][codes[level]]  # [P, G, D]
            x = x + rows * (codes[level] != empty)[..., None]  # by id: the row itself need not be zero
        x = x * is_patch
        tap("patch_encoder.sum", numpy(x))
        x = self.patch_encoder.forward(x, Cache(), causal=not c["input_full_attention"])  # every patch on its own
        tap("patch_encoder.out", numpy(x))
        patches = w.linear("speech_group_downcast", (x * is_patch).flatten(1))  # frame 0 dims, frame 1 dims, ...
        text = w["model.embed_tokens.weight"][tokens] * (tokens != self.empty_token)[:, None]
        tap("backbone.embeds", numpy(text + patches))
        return text + patches

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> scores [..., V]."""
        tied = self.c["tie_word_embeddings"]
        return F.linear(hidden, self.w["model.embed_tokens.weight" if tied else "lm_head.weight"])

    def decode_patch(self, start: Tensor, pick: Callable[[Tensor, int, int], int], tap: Tap) -> Tensor:
        """start [local_dim] -> codes [K, G] (lm:424-476, items 42-45). pick(logits [V_k], level, frame) -> code.

        Level k of code frame t is made at step t + delay[k]; the next input is the sum of the embeddings of the codes
        just made. Levels with the same delay do not see each other.
        """
        c, w = self.c, self.w
        frames, delay = c["group_size"], c["delay_pattern"]
        codes = torch.zeros(c["audio_channels"], frames, dtype=torch.long)
        x, cache = start[None], Cache()  # a fresh cache for every patch
        for step in range(frames + max(delay)):
            tap("patch_decoder.input", numpy(x[0]))
            hidden = self.patch_decoder.forward(x, cache)
            tap("patch_decoder.hidden", numpy(hidden[0]))
            x = torch.zeros_like(start)[None]
            for level in range(c["audio_channels"]):
                frame = step - delay[level]
                if 0 <= frame < frames:
                    logits = w.linear(f"local_transformer_lm_heads.{level}", hidden[0])
                    tap(f"patch_decoder.logits.{level}", numpy(logits))
                    codes[level, frame] = code = pick(logits, level, frame)
                    row = w[f"speech_embeddings.{level}.weight"][code][None]
                    if c["input_local_dim"] != c["local_dim"]:
                        row = w.linear("speech_embeddings_to_local", row)
                    x = x + row
        return codes


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one score vector becomes a token. sample False: argmax. top_k 0, top_p 0: that filter is off."""

    sample: bool
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0


def filter_scores(logits: Tensor, s: Sampling) -> Tensor:
    """logits [V] -> scores [V], -inf = filtered: temperature, top-k, top-p (lm:75-95, item 46)."""
    if not s.temperature > 0:
        raise ValueError(f"filter_scores: expected temperature > 0, got {s.temperature}; use sample=False for argmax")
    scores = logits / s.temperature
    if s.top_k > 0:  # ties of the k-th score stay
        scores = scores.masked_fill(scores < torch.topk(scores, min(s.top_k, len(scores)))[0][-1], -math.inf)
    if 0.0 < s.top_p <= 1.0:  # the tail whose probabilities sum to at most 1 - p goes, the best always stays
        ascending, order = torch.sort(scores)
        gone = ascending.softmax(-1).cumsum(-1) <= 1 - s.top_p
        gone[-1] = False
        scores = scores.masked_fill(torch.zeros_like(gone).scatter(0, order, gone), -math.inf)
    return scores


def choose(logits: Tensor, s: Sampling, removed: Sequence[int], generator: torch.Generator) -> int:
    """Pick an id. `removed` ids go AFTER the filters: nothing may be left, then argmax gives 0 and
    drawing fails (lm:97-107, item 44)."""
    scores = filter_scores(logits, s)
    scores = scores.index_fill(0, torch.tensor(list(removed), dtype=torch.long), -math.inf)
    if not s.sample:
        return int(scores.argmax())
    if not torch.isfinite(scores).any():
        raise ValueError("choose: expected a candidate to draw from, got none after filters and removal; raise top_p")
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def is_done(total: int, last_token: int, stop: Sequence[int] | None, min_length: int, max_length: int | None) -> bool:
    """The stop rule (lm:33-66): total counts positions with the prompt; max_length None or 0 is unlimited."""
    return bool(max_length and total >= max_length) or bool(stop and total >= min_length and last_token in stop)
