"""Laws of the core: the same result on any number of threads, in any chunking, beside any other conversation."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_edge import _core
from mimo_edge._core import InputError, Sampling, ShapeError

DRAW = Sampling(True, 0.9, 0, 0.95)
Ids = NDArray[np.int32]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> _core.Model:
    return _core.Model.open(str(tiny_bundle), threads=2)


def group(model: _core.Model) -> int:
    return int(json.loads(model.config_json)["lm"]["group_size"])


def codes(model: _core.Model, frames: int, seed: int = 0) -> Ids:
    """Random codes [K, frames]."""
    mel = np.random.default_rng(seed).normal(size=(4 * frames, model.mel_filterbank().shape[1])).astype(np.float32)
    return model.encode_mel(mel)[1]


def prompt(model: _core.Model, seed: int = 0) -> Ids:
    return model.prompt_understanding(codes(model, 20, seed), "What is it?")


def reply(model: _core.Model, ids: Ids, seed: int = 0, stream: int = 0) -> list[Ids]:
    """Eight drawn tokens, then four drawn patches, each read before the next."""
    tokens = _core.Generation(_core.State(model, seed, stream), ids, DRAW, DRAW, [], max_new=8)
    while tokens.next() is not None:
        pass
    state = _core.State(model, seed, stream)
    state.prefill(ids)
    made = [tokens.ids()]
    empty = json.loads(model.config_json)["tokens"]["empty"]
    for _ in range(4):
        made.append(state.decode_patch(DRAW))
        state.prefill(np.vstack([np.full_like(made[-1][:1], empty), made[-1]]))
    return made


def assert_same(got: list[Ids], want: list[Ids]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_seed_same_codes_on_any_thread_count(tiny_bundle: Path, model: _core.Model, threads: int) -> None:
    other = _core.Model.open(str(tiny_bundle), threads=threads)
    assert other.threads == threads
    assert_same(reply(other, prompt(other), 5), reply(model, prompt(model), 5))
    np.testing.assert_array_equal(other.decode(codes(other, 30)), model.decode(codes(model, 30)))


def test_another_seed_or_stream_is_another_reply(model: _core.Model) -> None:
    ids = prompt(model)
    one, other_seed, other_stream = (reply(model, ids, seed, stream)[1:] for seed, stream in ((0, 0), (1, 0), (0, 1)))
    assert not np.array_equal(one, other_seed)
    assert not np.array_equal(one, other_stream)


def test_conversations_side_by_side_equal_each_alone(model: _core.Model) -> None:
    prompts = [prompt(model, seed) for seed in range(4)]
    alone = [reply(model, ids, seed) for seed, ids in enumerate(prompts)]
    together: list[Any] = [None] * len(prompts)

    def talk(index: int) -> None:
        together[index] = reply(model, prompts[index], index)

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(together, alone, strict=True):
        assert_same(got, want)


def test_prefill_in_pieces_equals_prefill_at_once(model: _core.Model) -> None:
    ids, patch = prompt(model), group(model)
    whole, pieces = _core.State(model), _core.State(model)
    whole.prefill(ids)
    cuts = [0, patch, 4 * patch, 5 * patch, ids.shape[1]]
    for start, stop in itertools.pairwise(cuts):
        pieces.prefill(ids[:, start:stop])
    np.testing.assert_array_equal(whole.text_logits(), pieces.text_logits())


def test_rewind_then_go_on_equals_never_having_said_it(model: _core.Model) -> None:
    ids, other, more = prompt(model, 0), prompt(model, 1), prompt(model, 2)
    straight, back = _core.State(model), _core.State(model)
    for state, parts in ((straight, [ids, more]), (back, [ids, other])):
        for part in parts:
            state.prefill(part)
    back.rewind(ids.shape[1] // group(model))
    with pytest.raises(InputError, match="read first"):
        back.hidden()
    back.prefill(more)
    np.testing.assert_array_equal(straight.text_logits(), back.text_logits())


def test_a_model_at_rest_costs_nothing(tiny_bundle: Path) -> None:
    """Workers that watched for work instead of sleeping would take up to three seconds of processor time here."""
    busy = _core.Model.open(str(tiny_bundle), threads=4)
    busy.encode(np.zeros(24000, np.float32))
    time.sleep(0.1)  # the longest watch of a worker is far shorter
    before = time.process_time()
    time.sleep(1)
    assert not time.process_time() - before > 0.2


def test_a_prompt_that_does_not_fit_changes_nothing(model: _core.Model) -> None:
    ids = prompt(model)
    state = _core.State(model, context=ids.shape[1] // group(model) + 1)
    state.prefill(ids)
    logits = state.text_logits()
    with pytest.raises(InputError, match="expected at most"):
        state.prefill(ids)
    np.testing.assert_array_equal(state.text_logits(), logits)


def test_threads_that_share_a_conversation_take_turns(model: _core.Model) -> None:
    generation = _core.Generation(_core.State(model), prompt(model), DRAW, DRAW, [], max_new=40, guard=False)
    made = threading.Event()
    lengths: list[int] = []

    def look() -> None:
        while not made.is_set():
            lengths.append(generation.ids().shape[1] // group(model))
            assert generation.reason in ("running", "max_length")

    def go_on() -> None:
        while generation.next() is not None:
            pass

    looker, makers = threading.Thread(target=look), [threading.Thread(target=go_on) for _ in range(2)]
    looker.start()
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    made.set()
    looker.join()
    assert lengths == sorted(lengths)
    alone = _core.Generation(_core.State(model), prompt(model), DRAW, DRAW, [], max_new=40, guard=False)
    while alone.next() is not None:
        pass
    np.testing.assert_array_equal(generation.ids(), alone.ids())


def test_nonsense_is_refused_with_a_sentence(tiny_bundle: Path, model: _core.Model) -> None:
    state = _core.State(model)
    with pytest.raises(ShapeError, match="ids: expected"):
        state.prefill(np.zeros((2, 4), np.int32))
    ids = prompt(model)
    broken = ids.copy()
    broken[0, 0] = 10**6
    with pytest.raises(InputError, match="expected tokens from 0"):
        state.prefill(broken)
    heard = model.prompt_audio(codes(model, 4), False)
    for code in (-1, 10**6):
        broken = heard.copy()
        broken[-1, -1] = code
        with pytest.raises(InputError, match=f"expected codes from 0 to .*, got {code} at position"):
            state.prefill(broken)
    with pytest.raises(InputError, match="at least one position"):
        state.prefill(ids[:, :0])
    with pytest.raises(InputError, match="expected a prompt to be read first"):
        state.text_logits()
    with pytest.raises(ShapeError, match="rvq_decode"):
        model.decode(np.zeros((99, 4), np.int32))
    with pytest.raises(InputError, match="expected codes from 0"):
        model.decode(np.full((1, 4), -1, np.int32))
    with pytest.raises(ShapeError, match="expected integers, got float64"):
        model.decode(np.zeros((1, 4)))
    with pytest.raises(InputError, match="32-bit integers, got 4294967297"):
        model.decode(np.full((1, 4), 2**32 + 1))
    np.testing.assert_array_equal(model.decode(np.ones((1, 4), np.int64)), model.decode(np.ones((1, 4), np.int32)))
    for empty in ([], [2**40] * 8):
        with pytest.raises(InputError, match="one empty code for each"):
            model.prompt_audio(codes(model, 4), empty=empty)
    with pytest.raises(InputError, match="stop tokens from 0"):
        _core.Generation(state, ids, DRAW, DRAW, [-1], max_new=8)
    with pytest.raises(InputError, match="history and look-ahead of 0 to"):
        _core.DecoderStream(model, history_frames=2**55)
    with pytest.raises(InputError, match="task: expected"):
        model.task("sing")
    with pytest.raises(InputError, match="finite samples"):
        model.mel(np.full(5000, np.nan, np.float32))
    with pytest.raises(InputError, match="too short"):
        model.mel(np.zeros(10, np.float32))
    with pytest.raises(InputError, match="threads"):
        _core.Model.open(str(tiny_bundle), threads=-1)
