"""MiMo-Audio's language model at small width, as trainable modules whose state_dict carries the released tensor names.

One position is a text token or a patch of G = 4 code frames of K = 8 levels. Patch encoder (bidirectional inside
the patch) -> backbone (Qwen2) -> text logits, and, where a patch follows, patch decoder: 11 delayed steps, level k
of frame t at step t + k. Structure: the public reference's src/mimo_audio/modeling_mimo_audio.py (read for facts).
B batch, P positions, H width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as fn
from codec import rope, rotate
from torch import Tensor, nn

G, K = 4, 8
STEPS = G + K - 1
CONFIG = {
    "add_input_local_transformer": True,
    "architectures": ["MiMoAudioForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "audio_channels": K,
    "bos_token_id": None,
    "delay_pattern": "0-1-2-3-4-5-6-7",
    "group_size": G,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "input_full_attention": True,
    "input_local_dim": 128,
    "input_local_layers": 2,
    "intermediate_size": 640,
    "local_attn_dropout": 0.1,
    "local_attn_heads": 8,
    "local_dim": 128,
    "local_ffn_dim": 256,
    "local_layers": 4,
    "max_position_embeddings": 8192,
    "max_window_layers": 6,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 640000,
    "sliding_window": None,
    "speech_vocab_size": "1025-1025-129-129-129-129-129-129",
    "speech_zeroemb_idx": "1024-1024-128-128-128-128-128-128",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.49.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 1280,
}
GUIDED_LAYER, GUIDED_HEADS = 3, 2  # whose attention is taught where to look while training


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return fn.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention, q/k/v bias, no o bias. cache: (k, v) of earlier positions, or None."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = nn.Linear(dim, heads * head_dim)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], causal: bool, cache: list[Tensor] | None, want: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, P, dim] -> [B, P, dim] and, if wanted, attention [B, GUIDED_HEADS, P, P]."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, *turn).to(v.dtype), rotate(k, *turn).to(v.dtype)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        share = self.heads // self.kv_heads
        if share > 1:
            k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
        if causal and length > 1:
            scores = scores + torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
        weights = scores.softmax(-1)
        seen = weights[:, :GUIDED_HEADS] if want else None
        y = weights.to(v.dtype) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2)), seen


class Mlp(nn.Module):
    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn, bias=False)
        self.up_proj = nn.Linear(dim, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(fn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, kv_heads, head_dim)
        self.mlp = Mlp(dim, ffn)
        self.input_layernorm = Norm(dim, eps)
        self.post_attention_layernorm = Norm(dim, eps)


class Qwen2(nn.Module):
    """A stack of layers; vocabulary 0: no embed_tokens."""

    def __init__(self, dim: int, layers: int, heads: int, kv_heads: int, head_dim: int, ffn: int, c: dict, words: int):
        super().__init__()
        if words:
            self.embed_tokens = nn.Embedding(words, dim)
        self.layers = nn.ModuleList(
            [Layer(dim, heads, kv_heads, head_dim, ffn, c["rms_norm_eps"]) for _ in range(layers)]
        )
        self.norm = Norm(dim, c["rms_norm_eps"])
        self.theta, self.head_dim = c["rope_theta"], head_dim

    def forward(
        self, x: Tensor, causal: bool = True, caches: list[list[Tensor]] | None = None, guided: int = -1
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, P, dim] -> hidden [B, P, dim] after the norm, and the attention of layer `guided`."""
        past = caches[0][0].shape[2] if caches and caches[0] else 0
        cos, sin = rope(past + x.shape[1], self.head_dim, self.theta)
        turn, seen = (cos[past:], sin[past:]), None
        for i, layer in enumerate(self.layers):
            cache = caches[i] if caches is not None else None
            y, weights = layer.self_attn(layer.input_layernorm(x), turn, causal, cache, i == guided)
            seen = weights if weights is not None else seen
            x = x + y
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x), seen

    def caches(self) -> list[list[Tensor]]:
        return [[] for _ in self.layers]


@dataclass(slots=True)
class Out:
    """hidden [B, P, H] after the norm; seen [B, heads, P, P] attention of the guided layer or None."""

    hidden: Tensor
    seen: Tensor | None


class MimoLm(nn.Module):
    def __init__(self, c: dict | None = None) -> None:
        super().__init__()
        self.c = c = c or CONFIG
        self.sizes = [int(s) for s in c["speech_vocab_size"].split("-")]
        self.zero = torch.tensor([int(s) for s in c["speech_zeroemb_idx"].split("-")])
        dim, inner, local = c["hidden_size"], c["input_local_dim"], c["local_dim"]
        heads, kv, head_dim, many = (
            c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["local_attn_heads"],
        )  # fmt: skip
        self.model = Qwen2(dim, c["num_hidden_layers"], heads, kv, head_dim, c["intermediate_size"], c, c["vocab_size"])
        self.lm_head = nn.Linear(dim, c["vocab_size"], bias=False)
        self.local_transformer = Qwen2(local, c["local_layers"], many, many, local // many, c["local_ffn_dim"], c, 0)
        self.input_local_transformer = Qwen2(inner, c["input_local_layers"], many, many, inner // many, 4 * inner, c, 0)
        self.local_transformer_lm_heads = nn.ModuleList([nn.Linear(local, n, bias=False) for n in self.sizes])
        self.speech_embeddings = nn.ModuleList([nn.Embedding(n, inner) for n in self.sizes])
        if inner != local:
            self.speech_embeddings_to_local = nn.Linear(inner, local, bias=False)
        self.speech_group_downcast = nn.Linear(inner * G, dim, bias=False)
        self.hidden_states_downcast = nn.Linear(dim, local, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if p.shape[0] in (dim, c["vocab_size"]) else 0.04)

    @torch.no_grad()
    def start_from_codebooks(self, books: list[Tensor]) -> None:
        """Embeddings and heads as the codebook rows [codes, D] projected on their principal axes."""
        rows = torch.cat([b - b.mean(0) for b in books])
        weight = torch.cat([torch.full((len(b),), 1.0 / len(b)) for b in books])
        axes = torch.linalg.eigh((rows * weight[:, None]).T @ rows).eigenvectors.flip(1)[:, : self.c["input_local_dim"]]
        scale = 1.0 / (rows @ axes).square().mean().sqrt()
        for k, book in enumerate(books):
            small = (book - book.mean(0)) @ axes * scale
            self.speech_embeddings[k].weight[: len(book)] = 0.5 * small
            self.speech_embeddings[k].weight[len(book) :] = 0
            self.local_transformer_lm_heads[k].weight[: len(book)] = 0.05 * small

    def frames(self, codes: Tensor) -> Tensor:
        """codes [N, G, K] -> summed embeddings [N, G, inner]; the "empty" id counts as zero."""
        total = 0
        for k, table in enumerate(self.speech_embeddings):
            total = total + table(codes[..., k]) * (codes[..., k] != self.zero[k])[..., None]
        return total

    def patches(self, codes: Tensor) -> Tensor:
        """codes [N, G, K] -> patch embeddings [N, H]."""
        x, _ = self.input_local_transformer(self.frames(codes), causal=not self.c["input_full_attention"])
        return self.speech_group_downcast(x.flatten(1))

    def embed(self, ids: Tensor, speech: Tensor, patches: Tensor) -> Tensor:
        """ids, speech (bool) [B, P]; patches [N, H] in row-major order of speech -> [B, P, H]."""
        x = self.model.embed_tokens(ids).masked_fill(speech[..., None], 0.0)
        return x.index_put((speech.nonzero(as_tuple=True)), patches.to(x.dtype))

    def forward(self, ids: Tensor, speech: Tensor, patches: Tensor, guided: bool = False) -> Out:
        hidden, seen = self.model(self.embed(ids, speech, patches), guided=GUIDED_LAYER if guided else -1)
        return Out(hidden, seen)

    def code_logits(self, hidden: Tensor, codes: Tensor, levels: int = K) -> list[Tensor]:
        """Teacher-forced patch decoder: hidden [N, H], codes [N, G, K] -> logits [N, G, size] of the first levels."""
        count = hidden.shape[0]
        inputs = [self.hidden_states_downcast(hidden)]
        tables = [table(codes[..., k]) for k, table in enumerate(self.speech_embeddings)]  # each [N, G, inner]
        for step in range(G + levels - 2):
            made = [tables[k][:, step - k] for k in range(K) if 0 <= step - k < G]
            total = torch.stack(made).sum(0)
            inputs.append(self.to_local(total).to(inputs[0].dtype))
        out, _ = self.local_transformer(torch.stack(inputs, 1))
        heads = self.local_transformer_lm_heads[:levels]
        return [head(out[:, k : k + G]).view(count, G, -1) for k, head in enumerate(heads)]

    def to_local(self, x: Tensor) -> Tensor:
        return self.speech_embeddings_to_local(x) if hasattr(self, "speech_embeddings_to_local") else x

    @torch.no_grad()
    def decode_patch(self, hidden: Tensor, temperature: float, top_p: float) -> Tensor:
        """hidden [N, H] -> codes [N, G, K], sampled (temperature 0: best)."""
        caches = self.local_transformer.caches()
        codes = self.zero.repeat(hidden.shape[0], G, 1)
        x = self.hidden_states_downcast(hidden)[:, None]
        for step in range(STEPS):
            out, _ = self.local_transformer(x, caches=caches)
            total = 0
            for k, head in enumerate(self.local_transformer_lm_heads):
                if 0 <= step - k < G:
                    scores = head(out[:, -1]).float()
                    made = sample(scores, temperature, top_p, int(self.zero[k]))
                    codes[:, step - k, k] = made
                    total = total + self.speech_embeddings[k](made)
            x = self.to_local(total)[:, None].to(out.dtype)
        return codes


def sample(scores: Tensor, temperature: float, top_p: float, removed: int = -1) -> Tensor:
    """scores [N, V] -> ids [N]; temperature, then top-p, then removal, as the reference; temperature 0 is greedy."""
    if temperature > 0:
        scores = scores / temperature
        if 0 < top_p <= 1:
            order, index = scores.sort(-1)
            drop = order.softmax(-1).cumsum(-1) <= 1 - top_p
            drop[:, -1] = False
            scores = scores.masked_fill(torch.zeros_like(drop).scatter(1, index, drop), float("-inf"))
    if removed >= 0:
        scores[:, removed] = float("-inf")
    return torch.multinomial(scores.softmax(-1), 1)[:, 0] if temperature > 0 else scores.argmax(-1)
