"""The loop that a port to PyTorch would be, at the released shape in bfloat16 on random weights: what our times are
compared with. Prints the milliseconds of one backbone position and of one patch.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as tf

DEVICE, TYPE = "cuda", torch.bfloat16


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int, dim: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.q, self.k, self.v = (nn.Linear(hidden, n * dim) for n in (heads, kv_heads, kv_heads))
        self.o = nn.Linear(heads * dim, hidden, bias=False)
        self.gate, self.up = nn.Linear(hidden, ffn, bias=False), nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)
        self.norms = nn.ParameterList(nn.Parameter(torch.ones(hidden)) for _ in range(2))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        y = rms_norm(x, self.norms[0])
        q, k, v = (
            f(y).view(1, -1, n, self.dim).transpose(1, 2)
            for f, n in ((self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads))
        )

        def rotate(t: torch.Tensor) -> torch.Tensor:
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat((-b, a), -1) * sin

        cache[0] = torch.cat((cache[0], rotate(k)), 2)
        cache[1] = torch.cat((cache[1], v), 2)
        mixed = tf.scaled_dot_product_attention(rotate(q), cache[0], cache[1], enable_gqa=self.heads != self.kv_heads)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        y = rms_norm(x, self.norms[1])
        return x + self.down(tf.silu(self.gate(y)) * self.up(y))


def caches(layers: nn.ModuleList, length: int) -> list[list[torch.Tensor]]:
    return [
        [torch.zeros(1, f.kv_heads, length, f.dim, device=DEVICE, dtype=TYPE) for _ in range(2)]
        for f in layers
        if isinstance(f, Layer)
    ]


def stack(count: int, *shape: int) -> nn.ModuleList:
    with torch.device(DEVICE):
        return nn.ModuleList(Layer(*shape) for _ in range(count)).to(TYPE)


def run(layers: nn.ModuleList, x: torch.Tensor, kept: list[list[torch.Tensor]]) -> torch.Tensor:
    dim = layers[0].dim  # type: ignore[union-attr]
    cos = sin = torch.full((dim,), 0.7, device=DEVICE, dtype=TYPE)
    for layer, cache in zip(layers, kept, strict=True):
        x = layer(x, cos, sin, cache)
    return x


def best(work: object) -> float:
    assert callable(work)
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    decoder = stack(16, 1024, 64, 64, 16, 4096)
    levels = [1025, 1025] + [129] * 6
    heads = [torch.randn(n, 1024, device=DEVICE, dtype=TYPE) * 0.02 for n in levels]
    tables = [torch.randn(n, 1024, device=DEVICE, dtype=TYPE) for n in levels]

    def patch() -> None:
        kept = caches(decoder, 0)
        x = torch.randn(1, 1, 1024, device=DEVICE, dtype=TYPE)
        for step in range(11):
            hidden = run(decoder, x, kept)[0, -1]
            x = torch.zeros(1, 1, 1024, device=DEVICE, dtype=TYPE)
            for level, (head, table) in enumerate(zip(heads, tables, strict=True)):
                if not 0 <= step - level < 4:
                    continue
                scores = tf.linear(hidden, head).float() / 0.9
                ordered, order = scores.sort(descending=True)
                mass = ordered.softmax(-1)
                ordered[mass.cumsum(-1) - mass > 0.95] = -torch.inf
                code = order[torch.multinomial(ordered.softmax(-1), 1)]
                x = x + table[code]

    backbone = stack(36, 4096, 32, 8, 128, 11008)
    head = torch.randn(151680, 4096, device=DEVICE, dtype=TYPE) * 0.02
    kept = caches(backbone, 500)

    def position() -> None:
        for cache in kept:
            cache[:] = [t[:, :, :500] for t in cache]
        hidden = run(backbone, torch.randn(1, 1, 4096, device=DEVICE, dtype=TYPE), kept)
        tf.linear(hidden[0, -1], head).argmax()

    patch_ms, position_ms = best(patch), best(position)
    total = patch_ms + position_ms
    print(
        f"| eager PyTorch {torch.__version__}, bf16 | {position_ms:.2f}, head too | | {patch_ms:.2f} | {total:.2f} |",
        end="",
    )
    print(f" {160 / total:.1f}× |")


if __name__ == "__main__":
    main()
