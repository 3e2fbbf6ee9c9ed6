"""The seam for hardware: a backend in Python computes the networks, the core does all else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_edge import DeviceError, _core
from mimo_edge.backend import Array, SequenceTap


class Constant:
    """Always says token 7; remembers what it was asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.lm, self.codec, self.asked = config["lm"], config["codec"], list[Any]()

    def sequence(self, capacity: int) -> Constant:
        self.asked.append(("sequence", capacity))
        return self

    def append(self, first: int, tokens: Array, codes: Array, tap: SequenceTap) -> Array:
        assert codes.shape == (len(tokens), self.lm["group_size"] * self.lm["audio_channels"])
        self.asked.append((first, len(tokens)))
        if tap:
            tap("backbone.hidden", np.zeros((len(tokens), self.lm["hidden_size"]), np.float32))
        return np.zeros((1, self.lm["hidden_size"]), np.float32)

    def text_logits(self) -> Array:
        logits = np.zeros(self.lm["vocab_size"], np.float32)
        logits[7] = 1
        return logits

    def local_hidden(self) -> Array:
        return np.zeros((1, self.lm["local_dim"]), np.float32)

    def local_step(self, step: int, made: Array, tap: SequenceTap) -> list[Array]:
        self.asked.append((step, made.tolist()))
        return [np.arange(size, dtype=np.float32) for size in self.lm["speech_vocab_size"]]

    def encode(self, mel: Array, longest: int) -> Array:
        self.asked.append((mel.shape[0], longest))
        frames = -(-((mel.shape[0] - 1) // 2 + 1) // self.codec["avg_pooler"])
        return np.zeros((frames, self.codec["d_model"]), np.float32)

    def decode(self, codes: Array) -> Array:
        return np.zeros(codes.shape[1], np.float32)


@pytest.fixture
def model(tiny_bundle: Path) -> tuple[_core.Model, Constant]:
    backend = Constant(json.loads((tiny_bundle / "bundle.json").read_bytes()))
    return _core.Model.open(str(tiny_bundle), 1, backend=backend), backend


def test_the_core_asks_a_python_backend(model: tuple[_core.Model, Constant]) -> None:
    core, backend = model
    greedy, ids = _core.Sampling(False), core.prompt_text("one two")
    positions = ids.shape[1] // backend.lm["group_size"]
    state = _core.State(core, context=64)
    generation = _core.Generation(state, ids, greedy, greedy, [], 3)
    seen: list[str] = []
    while generation.next(lambda name, _: seen.append(name)) is not None:
        pass
    assert generation.ids()[0, 0] == 7
    assert backend.asked == [("sequence", 64), (0, positions), (positions, 1), (positions + 1, 1)]
    assert seen == ["backbone.hidden", "backbone.logits"] * 3
    state.rewind(1)
    backend.asked.clear()
    state.prefill(ids)
    assert backend.asked == [(1, positions)]


def test_delay_pattern_sampler_and_rvq_stay_the_cores(model: tuple[_core.Model, Constant]) -> None:
    core, backend = model
    state = _core.State(core)
    state.prefill(core.prompt_text("one"))
    backend.asked.clear()
    patch = state.decode_patch(_core.Sampling(False))
    lm = backend.lm
    sizes = zip(lm["speech_vocab_size"], lm["speech_zeroemb_idx"], strict=True)
    best = [size - 1 - (empty == size - 1) for size, empty in sizes]
    assert patch.tolist() == [[code] * lm["group_size"] for code in best]
    steps = lm["group_size"] + max(lm["delay_pattern"])
    assert [step for step, _ in backend.asked] == list(range(steps))
    for step, made in backend.asked:
        active = [0 <= step - 1 - delay < lm["group_size"] for delay in lm["delay_pattern"]]
        assert made == [code if on else -1 for code, on in zip(best, active, strict=True)]
    assert core.encode(np.zeros(4800, np.float32)).shape[0] == len(backend.codec["codebook_size"])
    frames = core.mel_frames(4800)
    assert backend.asked[-1] == (frames, frames)


def test_what_a_backend_raises_is_raised_and_the_state_goes_on(model: tuple[_core.Model, Constant]) -> None:
    core, backend = model
    state, ids = _core.State(core), core.prompt_text("one two three")
    state.prefill(ids)
    length, whole = state.length, backend.append

    def broken(*_: Any) -> Array:
        raise ConnectionError("unplugged")

    backend.append = broken  # type: ignore[method-assign]
    with pytest.raises(ConnectionError, match="unplugged"):
        state.prefill(ids)
    with pytest.raises(_core.InputError, match="expected a prompt to be read first"):
        state.text_logits()
    backend.append = whole  # type: ignore[method-assign]
    state.prefill(ids)
    assert state.length == 2 * length


def test_results_of_another_shape_are_refused(model: tuple[_core.Model, Constant]) -> None:
    core, backend = model
    with pytest.raises(DeviceError, match=r"backend: expected samples \[\d+\], got \[4\]"):
        core.decode(np.zeros((backend.lm["audio_channels"], 4), np.int32))
    state = _core.State(core)
    state.prefill(core.prompt_text("one"))
    backend.text_logits = lambda: np.zeros(3, np.float32)  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"backend: expected logits \[\d+\], got \[3\]; its graphs are not of this"):
        state.text_logits()
