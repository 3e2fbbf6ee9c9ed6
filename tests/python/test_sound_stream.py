"""Streamed voices: first sound with the first patches, chunks that grow with the buffer, borders nobody can hear."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from golden_folders import BUNDLED, bundle_of

import mimo_edge
from mimo_edge import InputError, Options
from mimo_edge.cli import main
from mimo_edge.sound_stream import MOST_PATCHES, Playback, SoundStream

PATCH = 4


@pytest.fixture(scope="module")
def model() -> mimo_edge.Model:
    return mimo_edge.load(threads=1)


@pytest.fixture(scope="module")
def patches(model: mimo_edge.Model) -> list[np.ndarray]:
    """The demo's command as patches: real speech through the trained codec."""
    codes = np.tile(model.engine.patches(model.engine.whole(mimo_edge.audio.open_audio(mimo_edge.demo_command()))), 3)
    return [np.ascontiguousarray(codes[:, i : i + PATCH]) for i in range(0, codes.shape[1], PATCH)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ear_runs_dry_once_and_is_counted() -> None:
    clock = Clock()
    ear = Playback(clock)
    assert ear.buffered_s == 0
    ear.add(0.5)
    clock.now = 0.4
    assert ear.buffered_s == pytest.approx(0.1)
    ear.add(0.5)
    assert ear.underruns == 0
    clock.now = 1.2  # all was heard at 1.0
    assert ear.buffered_s == 0
    ear.add(0.1)
    assert ear.underruns == 1
    assert ear.buffered_s == pytest.approx(0.1)


def test_first_sound_comes_with_the_look_ahead_and_chunks_grow(
    model: mimo_edge.Model, patches: list[np.ndarray]
) -> None:
    for look_ahead in (0, 4, 8):
        stream = SoundStream(model.engine, Options(look_ahead=look_ahead))
        clock = Clock()  # stands still: nothing is heard while the sound is made
        stream.playback = Playback(clock)
        out = [stream.feed(patch) for patch in patches]
        at = [i for i, sound in enumerate(out) if sound is not None]
        assert at[0] == look_ahead // PATCH
        gaps = np.diff(at)
        assert gaps[0] == 1
        assert (np.diff(gaps) >= 0).all()
        assert gaps.max() > 3
        assert gaps.max() <= MOST_PATCHES
        rest = stream.close()
        sounds = [sound for sound in [*out, rest] if sound is not None]
        assert sum(map(len, sounds)) == len(patches) * PATCH * 960


def test_a_dry_ear_gets_every_patch(model: mimo_edge.Model, patches: list[np.ndarray]) -> None:
    stream = SoundStream(model.engine, Options(look_ahead=0))
    clock = Clock()
    stream.playback = Playback(clock)
    for patch in patches[:10]:
        clock.now += 1.0
        assert stream.feed(patch) is not None
    assert stream.playback.underruns == 9


@pytest.mark.parametrize("look_ahead", [0, 4])
def test_no_border_can_be_heard(model: mimo_edge.Model, patches: list[np.ndarray], look_ahead: int) -> None:
    """Where one block of the vocoder ends and the next begins, a click would raise the second difference."""
    stream = SoundStream(model.engine, Options(look_ahead=look_ahead))
    made = [*(stream.feed(patch) for patch in patches), stream.close()]
    bend = _bend(np.concatenate([sound for sound in made if sound is not None]))
    exact = SoundStream(model.engine, Options(look_ahead=40))
    smooth = _bend(np.concatenate([s for s in [*(exact.feed(p) for p in patches), exact.close()] if s is not None]))
    reach = 480  # a border is as wide as the overlap of the inverse STFT
    for border in range(PATCH * 960, len(bend) - reach, PATCH * 960):
        near = slice(border - reach, border + reach)
        loudest = smooth[max(0, border - 8 * reach) : border + 8 * reach].max()
        assert bend[near].max() <= 1.5 * loudest
    assert np.sum(bend**2) <= 1.05 * np.sum(smooth**2)


def _bend(wave: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(wave.astype(np.float64), 2))


def test_norms_come_from_the_voice_the_bundle_or_what_was_heard(
    model: mimo_edge.Model, patches: list[np.ndarray]
) -> None:
    voice = np.concatenate(patches, axis=1)
    own = model.engine.core.measure_norms(voice)
    random = mimo_edge.load(bundle_of(BUNDLED), threads=1)
    assert random.engine.facts.norms is None
    calibrated = mimo_edge.load(threads=1).engine
    calibrated.facts = replace(calibrated.facts, norms=[[0.0, 0.8], [0.9, 4.0]])

    def sound(options: Options, norms: object = None) -> np.ndarray:
        stream = SoundStream(calibrated, options, norms)  # type: ignore[arg-type]
        made = [*(stream.feed(patch) for patch in patches[:8]), stream.close()]
        return np.concatenate([part for part in made if part is not None])

    running, seeded = sound(Options(norms="running")), sound(Options(norms="seeded"))
    frozen, voiced = sound(Options(norms="frozen")), sound(Options(norms="seeded"), own)
    assert len({part.tobytes() for part in (running, seeded, frozen, voiced)}) == 4
    with pytest.raises(InputError, match="calibrate"):
        SoundStream(random.engine, Options(norms="frozen"))
    with pytest.raises(InputError, match="look_ahead"):
        Options(look_ahead=-1)


def test_calibrating_writes_the_norms_into_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of(BUNDLED), bundle)
    rng = np.random.default_rng(0)
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, 20000), 24000)
    before = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert main(["calibrate", str(bundle), str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--json"]) == 0
    norms = json.loads(capsys.readouterr().out)
    after = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert after.pop("decoder_norms") == norms
    assert after == before
    model = mimo_edge.load(bundle, check=True)
    own = [model.engine.core.measure_norms(model.encode(tmp_path / name)[: model.engine.facts.levels])
           for name in ("a.wav", "b.wav")]  # fmt: skip
    np.testing.assert_allclose(np.asarray(norms)[:, 0], np.mean(own, axis=0)[:, 0], rtol=1e-3, atol=1e-4)
    assert main(["inspect", str(bundle)]) == 0
