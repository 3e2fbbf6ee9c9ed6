"""Times the stages of a bundle on this machine: python tests/bench/full_shape.py BUNDLE [--threads N]

Each stage: the best of three runs after one that touches its weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from mimo_edge import _core

SECONDS_OF_SOUND = 4
PATCH = _core.Sampling(True, 0.9, 0, 0.95)


def best_of_three(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    model = _core.Model.open(arguments.bundle, arguments.threads)
    print(f"open                 {time.perf_counter() - start:8.3f} s   {model.kernels}, {model.threads} threads")
    token, prompt = model.prompt_text("a"), model.prompt_text("The quick brown fox jumps over the lazy dog. " * 2)
    positions = prompt.shape[1] // token.shape[1]
    state = _core.State(model, context=512)
    state.prefill(prompt)
    rng = np.random.default_rng(0)
    wave = rng.normal(scale=0.1, size=24000 * SECONDS_OF_SOUND).astype(np.float32)
    codes = model.encode(wave)
    stages: list[tuple[str, Callable[[], object]]] = [
        ("backbone, 1 position", lambda: state.prefill(token)),
        ("text head", state.text_logits),
        ("patch decoder", lambda: state.decode_patch(PATCH)),
        (f"prefill, {positions} positions", lambda: _core.State(model, context=512).prefill(prompt)),
        (f"codec encoder, {SECONDS_OF_SOUND} s", lambda: model.encode(wave)),
        (f"codec decoder, {SECONDS_OF_SOUND} s", lambda: model.decode(codes)),
    ]
    for name, run in stages:
        print(f"{name:<20} {best_of_three(run):8.3f} s", flush=True)


if __name__ == "__main__":
    main()
