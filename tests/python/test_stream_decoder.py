"""Laws of the stateful codec decoder: any chunking gives the same samples; with enough look-ahead, the offline ones."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mimo_edge
from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.export.bundle_writer import write_bundle
from mimo_edge.export.random_checkpoint import _SHAPE_SMALL, RandomCheckpoint
from mimo_edge.verify.goldens import Goldens

PRIOR = [[0.1, 1.5], [-0.2, 0.7]]
WEIGHTS = (0.0, 25.0, math.inf)  # running, seeded, frozen


@functools.cache
def open_model(name: str) -> _core.Model:
    path = mimo_edge.demo_bundle() if name == "trained" else bundle_of(BUNDLED)
    return _core.Model.open(str(path), threads=1)


@functools.cache
def spoken(name: str) -> NDArray[np.int32]:
    """Codes of the trained bundle's command, or of the goldens' decoder cases one after another."""
    model = open_model(name)
    if name == "trained":
        wave, rate_hz = mimo_edge.read_audio(mimo_edge.demo_command())
        return model.encode(_core.resample(wave, rate_hz, 24000))
    goldens = Goldens(BUNDLED)
    cases = [case for case, facts in goldens.cases("decoder").items() if "codes" not in facts]
    assert cases
    levels = min(goldens.peek(f"decoder:{case}.codes").shape[0] for case in cases)
    return np.concatenate([goldens.peek(f"decoder:{case}.codes")[:levels] for case in cases], axis=1).astype(np.int32)


def cut(codes: NDArray[np.int32], sizes: list[int]) -> list[NDArray[np.int32]]:
    ends = np.minimum(np.cumsum(sizes), codes.shape[1]) if sizes else np.zeros(0, int)
    starts = [0, *ends.tolist()]
    return [np.ascontiguousarray(codes[:, a:b]) for a, b in zip(starts, [*ends.tolist(), codes.shape[1]], strict=True)]


def stream(model: _core.Model, codes: NDArray[np.int32], sizes: list[int], **options: Any) -> NDArray[np.float32]:
    decoder = _core.DecoderStream(model, **options)
    pieces = cut(codes, sizes)
    return np.concatenate([decoder.push(piece, i == len(pieces) - 1) for i, piece in enumerate(pieces)])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["random", "trained"]),
    st.sampled_from(WEIGHTS),
    st.sampled_from([3, 40, 250]),
    st.integers(1, 70),
    st.lists(st.integers(0, 30), max_size=12),
)
def test_any_chunking_at_an_exact_look_ahead_is_the_offline_sound(
    name: str, weight: float, history: int, frames: int, sizes: list[int]
) -> None:
    model, codes = open_model(name), np.ascontiguousarray(spoken(name)[:, :frames])
    norm = {"prior": PRIOR, "weight_frames": weight, "history_frames": history}
    offline = model.decode_as_stream(codes, **norm)
    assert len(offline) == len(model.decode(codes))
    np.testing.assert_array_equal(stream(model, codes, sizes, look_ahead_frames=40, **norm), offline)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["random", "trained"]),
    st.sampled_from([20, 8, 4, 1, 0]),
    st.integers(1, 70),
    st.lists(st.integers(0, 30), max_size=12),
)
def test_any_chunking_at_any_look_ahead_is_one_push(name: str, ahead: int, frames: int, sizes: list[int]) -> None:
    model, codes = open_model(name), np.ascontiguousarray(spoken(name)[:, :frames])
    whole = stream(model, codes, [], look_ahead_frames=ahead)
    np.testing.assert_array_equal(stream(model, codes, sizes, look_ahead_frames=ahead), whole)


@pytest.mark.parametrize("name", ["random", "trained"])
def test_norms_frozen_at_their_own_statistics_give_the_reference_sound(name: str) -> None:
    """The reference's decode is the frozen policy with the piece's own statistics: ties the stream to the goldens."""
    model, codes = open_model(name), spoken(name)
    norm = {"prior": model.measure_norms(codes), "weight_frames": math.inf, "history_frames": 1500}
    np.testing.assert_allclose(
        stream(model, codes, [7] * 9, look_ahead_frames=40, **norm), model.decode(codes), atol=1e-4
    )


def test_a_heavy_prior_is_a_frozen_one() -> None:
    model, codes = open_model("trained"), spoken("trained")
    heavy, frozen = (model.decode_as_stream(codes, PRIOR, weight) for weight in (1e12, math.inf))
    np.testing.assert_allclose(heavy, frozen, atol=1e-5)
    assert np.abs(frozen - model.decode_as_stream(codes)).max() > 1e-3


@pytest.mark.parametrize("vocoder_left", [40, -1])
def test_a_long_stream_forgets_and_still_equals_the_offline_sound(tmp_path: Path, vocoder_left: int) -> None:
    """A history much shorter than the stream: old keys leave many times; it bounds a vocoder without a window too."""
    codec = _SHAPE_SMALL["codec"] | {"vocoder_attn_window_size": [vocoder_left, 10]}
    write_bundle(RandomCheckpoint(_SHAPE_SMALL | {"codec": codec}, seed=1), tmp_path / "bundle")
    model = _core.Model.open(str(tmp_path / "bundle"), threads=1)
    codes = np.tile(spoken("random"), 40)[:, :1200] % 32
    want = model.decode_as_stream(codes, history_frames=12)
    got = stream(model, codes, [5] * 200, look_ahead_frames=40, history_frames=12)
    np.testing.assert_array_equal(got, want)


def test_samples_come_as_soon_as_the_look_ahead_allows() -> None:
    model, codes = open_model("trained"), spoken("trained")
    for ahead in (0, 4, 8):
        decoder = _core.DecoderStream(model, look_ahead_frames=ahead)
        out = [len(decoder.push(np.ascontiguousarray(codes[:, i : i + 4]), False)) for i in range(0, 24, 4)]
        first = next(i for i, n in enumerate(out) if n > 0)
        assert first == ahead // 4
        assert out[first] == 4 * 960 - 360  # the inverse STFT keeps back what the next frame touches
        assert out[first + 1 :] == [4 * 960] * (len(out) - first - 1)
        assert decoder.waiting == ahead


def test_a_stream_refuses_nonsense(tiny_bundle: Path) -> None:
    model = open_model("random")
    codes = np.ascontiguousarray(spoken("random")[:, :4])
    decoder = _core.DecoderStream(model)
    assert len(decoder.push(codes, True)) == len(model.decode(codes))
    with pytest.raises(InputError, match="ended"):
        decoder.push(codes, True)
    assert len(_core.DecoderStream(model).push(codes[:, :0], True)) == 0
    for wrong in ({"look_ahead_frames": -1}, {"history_frames": -1}, {"weight_frames": -1.0, "prior": PRIOR}):
        with pytest.raises(InputError, match="0 or more"):
            _core.DecoderStream(model, **wrong)
    with pytest.raises(InputError, match="prior"):
        _core.DecoderStream(model, weight_frames=1.0)
    with pytest.raises(InputError, match="codes from 0"):
        _core.DecoderStream(model).push(codes - 10**6, False)
    for left, right in ((3, 4), (3, -1)):
        with pytest.raises(InputError, match="a left one no shorter"):
            _core.StreamingDecoder(model, left, right)
