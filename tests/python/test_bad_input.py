"""Bad input: one clear sentence, nothing lost, nothing absurd held in memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from golden_folders import BUNDLED, bundle_of

import mimo_edge
from mimo_edge import BundleError, Error, InputError, Model, Options, Turn
from mimo_edge.export.bundle_writer import write_bundle
from mimo_edge.export.random_checkpoint import _SHAPE_SMALL, RandomCheckpoint

SINE = (0.3 * np.sin(np.arange(48000) / 20)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Model:
    return mimo_edge.load(bundle_of(BUNDLED), threads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of one's own to spoil."""
    return Path(shutil.copytree(bundle_of(BUNDLED), tmp_path / "bundle"))


# sound


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS")]
)
def test_truncated_files(model: Model, tmp_path: Path, name: str, subtype: str) -> None:
    path = tmp_path / name
    soundfile.write(path, SINE, 24000, subtype=subtype)
    truncate(path)
    with pytest.raises(InputError, match=r"truncated|whole|zero samples"):
        model.transcribe(path).result()


def test_a_truncated_mp3(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, SINE, 24000, subtype="MPEG_LAYER_III")
    truncate(path)
    with pytest.raises(InputError, match="truncated"):
        model.transcribe(path).result()


def test_a_recorders_open_ended_wav_is_legal(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "stream.wav"
    soundfile.write(path, SINE, 24000, subtype="PCM_16")
    codes, data = model.encode(path), bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert np.array_equal(model.encode(path), codes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none.wav", "found nothing"),
        (lambda folder: folder, "not a file"),
        (lambda folder: _file(folder, b""), "expected wav, flac, ogg or mp3"),
        (lambda folder: _file(folder, b"this is not sound" * 40), "expected wav, flac, ogg or mp3"),
        (lambda folder: (np.zeros(0, np.float32), 24000), "zero samples"),
        (lambda folder: (np.zeros(240, np.float32), 24000), "at least .* samples"),
        (lambda folder: (np.zeros(160, np.float32), 16000), "at least .* samples"),
        (lambda folder: (np.full(9000, np.nan, np.float32), 24000), "NaN or infinity"),
        (lambda folder: (np.full(9000, np.inf, np.float32), 24000), "NaN or infinity"),
        (lambda folder: (np.zeros((2, 3, 4), np.float32), 24000), "one or two dimensions"),
        (lambda folder: (np.zeros(9000, np.complex64), 24000), "float or integer"),
        (lambda folder: (SINE, 0), "rate"),
        (lambda folder: (SINE, -8000), "rate"),
        (lambda folder: (SINE, 12), "rate"),
        (lambda folder: (SINE, 10_000_000), "rate"),
        (lambda folder: (SINE, 24000.5), "whole number"),
        (lambda folder: (SINE, float("nan")), "whole number"),
        (lambda folder: (SINE, "24000"), "whole number"),
        (lambda folder: (24000, SINE), "one or two dimensions"),
        (lambda folder: SINE, r"a file or \(samples, rate in Hz\), got ndarray alone"),
        (lambda folder: (SINE, 24000, 1), r"a file or \(samples, rate in Hz\), got 3 values"),
        (lambda folder: 7, "a file or .*got int alone"),
        (lambda folder: (np.zeros((2, 0), np.float32), 24000), "zero samples"),
        (lambda folder: (np.zeros((0, 2), np.float32), 24000), "zero samples"),
    ],
)
def test_what_is_no_sound_is_refused(
    model: Model, tmp_path: Path, make: Callable[[Path], mimo_edge.AudioInput], says: str
) -> None:
    for task in (
        model.encode,
        lambda audio: model.transcribe(audio).result(),
        lambda audio: model.respond(audio).result(),
    ):
        with pytest.raises(InputError, match=says):
            task(make(tmp_path))


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "x.wav"
    path.write_bytes(data)
    return path


def test_least_sound_is_accepted(model: Model) -> None:
    least = model.engine.facts.least_samples
    assert model.encode((np.zeros(least, np.float32), model.rate_hz)).shape[1] == 1
    with pytest.raises(InputError, match=f"at least {least} samples"):
        model.encode((np.zeros(least - 1, np.float32), model.rate_hz))


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 44101, 48000, 96000])
def test_any_sensible_rate(model: Model, rate_hz: int) -> None:
    frames = model.engine.facts.group / model.engine.facts.patch_s  # of codes a second
    assert abs(model.encode((np.zeros(rate_hz, np.float32), rate_hz)).shape[1] - frames) <= 2


def two_hours(folder: Path) -> Path:
    path = folder / "two_hours.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, subtype="PCM_16") as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8000, np.float32))
    return path


def test_two_hours_are_refused_where_they_cannot_fit(model: Model, tmp_path: Path) -> None:
    path = two_hours(tmp_path)
    for task in (
        model.encode,
        model.respond,
        model.answer,
        lambda a: model.understand(a, "What?"),
        model.continue_speech,
    ):
        with pytest.raises(InputError, match=r"got 7200 s.*shorter"):
            task(path)
    with pytest.raises(InputError, match="7200 s"):
        model.speak("a", voice=path)


def test_two_hours_are_transcribed_piece_by_piece(tmp_path: Path) -> None:
    """The first pieces come at once, and little is held: an hour of float32 at 24 kHz alone would be 346 MB."""
    code = f"""
import resource, mimo_edge
model = mimo_edge.load({str(bundle_of(BUNDLED))!r}, threads=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
running = model.transcribe({str(two_hours(tmp_path))!r}, options=mimo_edge.Options(max_new_tokens=1))
running.result(lambda g: g.cancel() if g.heard_s > 150 else None)
print(running.heard_s, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert 150 < float(out[0]) < 300
    assert float(out[1]) < 300  # MB


# prompts


def test_prompts_longer_than_the_context(model: Model) -> None:
    long = "one two three " * model.engine.facts.context
    for running in (
        model.chat(long),
        model.speak(long),
        model.understand((SINE, 24000), long),
        model.chat([Turn(role="user", text=long), Turn(role="assistant", text=long), Turn(role="user", text="a")]),
    ):
        with pytest.raises(InputError, match="positions"):
            running.result()
        with pytest.raises(InputError, match="start it again"):
            running.result()


def test_turns_that_say_nothing(model: Model) -> None:
    with pytest.raises(InputError, match="at least one turn"):
        model.respond([])
    with pytest.raises(InputError, match="neither"):
        model.respond([Turn(role="user")])
    with pytest.raises(InputError, match="text of what the assistant said"):
        model.respond([Turn(role="assistant", audio=(SINE, 24000))])


def test_codes_that_are_none(model: Model) -> None:
    for codes in (
        np.zeros((8, 0), np.int32),
        np.zeros(8, np.int32),
        np.full((1, 4), 10**6, np.int32),
        np.full((1, 4), -1, np.int32),
        np.full((1, 4), 2**33 + 1),  # in range once 32 bits are left of it
        np.full((1, 4), 1.7),
        np.zeros((99, 4), np.int32),
    ):
        with pytest.raises(Error):
            model.decode(codes)


def test_codes_of_any_integers(model: Model) -> None:
    codes = np.arange(4)[None]
    sound = model.decode(codes)
    for same in (codes.astype(np.uint8), codes.tolist()):
        assert np.array_equal(model.decode(same), sound)


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"seed": -1}, "seed from 0"),
        ({"seed": 2**64}, "seed from 0"),
        ({"max_new_tokens": 0}, "max_new_tokens from 1"),
        ({"min_new_tokens": -1}, "min_new_tokens from 0"),
        ({"look_ahead": 2**70}, "look_ahead from 0"),
        ({"norms": "loud"}, "running or seeded or frozen, got 'loud'"),
    ],
)
def test_options_that_cannot_be(wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Options(**wishes)


def test_seconds_that_cannot_be(model: Model) -> None:
    talk = model.conversation(options=Options(max_new_tokens=1))
    talk.respond(text="a").result()
    for seconds in (-1.0, float("nan")):
        for use in (
            lambda s: model.continue_speech((SINE, 24000), seconds=s),
            lambda s: talk.listen(most_s=s),
            talk.truncate,
        ):
            with pytest.raises(InputError, match="seconds"):
                use(seconds)
    with pytest.raises(InputError, match="seconds"):
        model.continue_speech((SINE, 24000), seconds=float("inf"))
    heard = talk.truncate(float("inf"))  # all of it
    assert heard == talk.truncate(1e9)
    assert talk.listen(most_s=float("inf")).feed(SINE, 24000) == len(SINE)


def test_samplers_that_cannot_be(model: Model) -> None:
    with pytest.raises(Error, match="temperature"):
        model.chat("Hello.", options=Options(text_sampling=mimo_edge.Sampling(True, 0.0))).result()


# bundles


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(BundleError):
            mimo_edge.load(folder)


@pytest.mark.parametrize("changes", [{"revision": 2}, {"revision": 0}, {"format": "other"}, {"variant": "other"}])
def test_unknown_bundles(bundle: Path, changes: dict[str, object]) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError):
        mimo_edge.load(bundle)


def test_a_newer_bundle_is_named_as_such(bundle: Path) -> None:
    edit(bundle, revision=2)
    with pytest.raises(BundleError, match="revision"):
        mimo_edge.load(bundle)


@pytest.mark.parametrize("name", ["lm.safetensors", "codec.safetensors", "tokenizer.json", "bundle.json"])
def test_truncated_and_missing_files(bundle: Path, name: str) -> None:
    truncate(bundle / name)
    with pytest.raises(BundleError):
        mimo_edge.load(bundle)
    (bundle / name).unlink()
    with pytest.raises(BundleError):
        mimo_edge.load(bundle)


@pytest.mark.parametrize("name", ["lm.safetensors", "codec.safetensors", "tokenizer.json"])
def test_altered_files(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[-9] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        mimo_edge.load(bundle)


def test_altered_large_files_are_found_by_a_check(tmp_path: Path) -> None:
    """Above 64 MiB a file is hashed only if asked: hashing gigabytes would be most of the time to load."""
    lm = _SHAPE_SMALL["lm"] | {"hidden_size": 256, "vocab_size": 70_000}
    write_bundle(RandomCheckpoint(_SHAPE_SMALL | {"lm": lm}), tmp_path / "bundle", dtype="bf16")
    with (tmp_path / "bundle" / "lm.safetensors").open("r+b") as file:
        assert file.seek(-2, os.SEEK_END) > 64 << 20
        file.write(b"\0")
    mimo_edge.load(tmp_path / "bundle")
    with pytest.raises(BundleError, match="sha256"):
        mimo_edge.load(tmp_path / "bundle", check=True)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_called_so(bundle: Path, make: Callable[[Path], None]) -> None:
    (bundle / "lm.safetensors").unlink()
    make(bundle / "lm.safetensors")
    with pytest.raises(BundleError, match=r"lm\.safetensors, got: not a regular file"):
        mimo_edge.load(bundle)


def test_a_config_that_the_weights_contradict(bundle: Path) -> None:
    config = json.loads((bundle / "bundle.json").read_text())
    edit(bundle, lm={**config["lm"], "hidden_size": config["lm"]["hidden_size"] * 2})
    with pytest.raises(BundleError):
        mimo_edge.load(bundle)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("codec", {"nfft": 2**30}),
        ("codec", {"n_mels": 2**30}),
        ("codec", {"max_audio_seconds": None}),
        ("codec", {"max_audio_seconds": "long"}),
        (None, {"decoder_norms": [1, 2]}),
        (None, {"decoder_norms": [[0, 1], [0]]}),
        (None, {"decoder_norms": [["a", 1], [0, 1]]}),
    ],
)
def test_sizes_and_facts_that_cannot_be(bundle: Path, part: str | None, changes: dict[str, Any]) -> None:
    config = json.loads((bundle / "bundle.json").read_text())
    edit(bundle, **({part: {**config[part], **changes}} if part else changes))
    with pytest.raises(BundleError, match=f"{next(iter(changes))}.*expected|expected .*{next(iter(changes))}"):
        mimo_edge.load(bundle)


def test_a_token_the_tokenizer_lacks(bundle: Path) -> None:
    config = json.loads((bundle / "bundle.json").read_text())
    edit(bundle, tokens={**config["tokens"], "empty": config["lm"]["vocab_size"] + 7})
    with pytest.raises(BundleError):
        mimo_edge.load(bundle)
