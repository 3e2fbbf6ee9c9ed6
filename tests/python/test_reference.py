"""The executable spec: against goldens of the public reference, the project's own, and laws that need neither."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of, large_goldens
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the spec is written in torch")

from mimo_edge.export.reference import Reference, Sampling  # noqa: E402
from mimo_edge.export.reference_codec import istft, resample  # noqa: E402
from mimo_edge.export.reference_lm import filter_scores, is_done  # noqa: E402
from mimo_edge.verify import verify  # noqa: E402
from mimo_edge.verify.stages import Stages  # noqa: E402

Array = NDArray[Any]
GREEDY = Sampling(sample=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.open(bundle_of(BUNDLED))


def array(file: str, name: str) -> Array:
    with np.load(BUNDLED / f"{file}.npz") as arrays:
        return cast(Array, arrays[name])


# goldens


def test_reproduces_the_bundled_goldens(reference: Reference) -> None:
    failed = [report for report in verify(cast(Stages, reference), BUNDLED) if not report.passed]
    assert not failed, "\n".join(map(str, failed))


def test_agrees_with_the_public_reference() -> None:
    goldens = large_goldens()
    reports = verify(cast(Stages, Reference.open(bundle_of(goldens))), goldens)
    failed = [report for report in reports if not report.passed]
    assert not failed, "\n".join(map(str, failed))
    errors = {report.name: report.error for report in reports}
    # float32 noise of the public reference against itself in float64 is 7e-6 and 9e-7 (the folder's MANIFEST.md)
    assert not errors["encoder hidden"] > 5e-5
    assert not errors["waveform"] > 5e-6


# laws of the codec


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 24000), (16000, 24000), (24000, 16000), (8000, 24000), (3, 2)])
def test_resample_is_the_windowed_sinc_sum(from_hz: int, to_hz: int) -> None:
    """The defining sum, evaluated directly in float64 at every output sample."""
    samples = 257
    wav = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    common = math.gcd(from_hz, to_hz)
    source, target = from_hz // common, to_hz // common
    base = 0.99 * min(source, target)
    m = np.arange(math.ceil(samples * target / source))
    t = base * (np.arange(samples)[None, :] / source - m[:, None] / target)
    kernel = np.where(np.abs(t) < 6, np.sinc(t) * np.cos(np.pi * t / 12) ** 2, 0.0) * base / source
    out = resample(wav, from_hz, to_hz)
    assert out.shape == m.shape
    assert np.max(np.abs(out - kernel @ wav.astype(np.float64))) <= 2e-6


def test_resample_keeps_a_tone_below_both_nyquist_frequencies() -> None:
    rate = {hz: np.sin(2 * np.pi * 440 * np.arange(hz) / hz).astype(np.float32) for hz in (48000, 16000)}
    middle = slice(200, -200)  # the ends see silence beyond the clip
    assert np.max(np.abs(resample(rate[48000], 48000, 16000) - rate[16000])[middle]) <= 1e-3


@pytest.mark.parametrize("frames", [1, 2, 31, 32, 33])
def test_istft_inverts_the_stft(frames: int) -> None:
    """ "Same" padding: frame i is centred on its hop, so shifting by (nfft - hop) / 2 zeros gives the analysis."""
    nfft, hop = 400, 100
    wav = torch.randn(frames * hop, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    cut = (nfft - hop) // 2
    padded = torch.nn.functional.pad(wav, (cut, cut))
    windows = padded.unfold(0, nfft, hop) * torch.hann_window(nfft)
    spectrum = torch.fft.rfft(windows)
    head = torch.cat([spectrum.abs().clamp(min=1e-30).log(), spectrum.angle()], dim=1)
    again = istft(head, nfft, hop)
    assert again.shape == wav.shape
    # the envelope of a few frames is small at the edges and magnifies rounding there
    assert float((again - wav).abs().max()) <= 2e-4


def test_rvq_levels_add_up(reference: Reference) -> None:
    codes = array("encoder", "mixture.codes")
    parts = [reference.codec.codebook(level)[row].numpy() for level, row in enumerate(codes)]
    assert np.allclose(reference.rvq_decode(codes), np.sum(parts, axis=0), atol=1e-5)
    assert np.array_equal(reference.rvq_encode(array("encoder", "mixture.hidden")), codes)


def test_a_stream_in_one_push_is_the_whole_decode(reference: Reference) -> None:
    codes = array("decoder", "rand6_q6.codes")
    (wav,) = reference.streaming_decoder(9, 3).push([codes], last=True)
    assert wav is not None
    assert np.array_equal(wav, reference.decode(codes))


# laws of the language model


def test_cache_on_is_cache_off(reference: Reference) -> None:
    """A prompt fed position by position, in runs, or at once leaves the same state."""
    ids = array("prompts", "dialogue_multiturn_system_voice.input_ids")
    patch = reference.config["lm"]["group_size"]
    whole = reference.forward(ids)
    for run in (1, 7):
        state = reference.forward(ids[:, : run * patch])
        for start in range(run * patch, ids.shape[1], run * patch):
            state.prefill(ids[:, start : start + run * patch])
        assert state.length == whole.length
        assert np.max(np.abs(state.text_logits() - whole.text_logits())) <= 5e-5
        assert np.array_equal(state.decode_patch(GREEDY), whole.decode_patch(GREEDY))


def test_the_future_does_not_change_the_past(reference: Reference) -> None:
    ids = array("prompts", "synth.input_ids")
    seen: list[Array] = []
    reference.forward(ids, lambda name, value: seen.append(value) if name == "backbone.hidden" else None)
    shorter = ids[:, : -4 * reference.config["lm"]["group_size"]]
    reference.forward(shorter, lambda name, value: seen.append(value) if name == "backbone.hidden" else None)
    assert np.max(np.abs(seen[0][: len(seen[1])] - seen[1])) <= 5e-5


def test_codes_under_text_and_empty_codes_do_not_matter(reference: Reference) -> None:
    lm, empty = reference.config["lm"], reference.tokens["empty"]
    ids = array("prompts", "synth.input_ids")
    other = ids.copy()
    text = np.repeat(ids[0, :: lm["group_size"]] != empty, lm["group_size"])
    other[1:, text] = (ids[1:, text] + 1) % np.array(lm["speech_zeroemb_idx"])[:, None]
    other[0, 1 :: lm["group_size"]] = 7  # only the first column of a position is read
    assert np.array_equal(reference.forward(ids).hidden(), reference.forward(other).hidden())


def test_forced_codes_come_back(reference: Reference) -> None:
    state = reference.forward(array("prompts", "asr.input_ids"))
    forced = array("encoder", "sweep.audio_tokens").T[:, : reference.config["lm"]["group_size"]]
    assert np.array_equal(state.decode_patch(GREEDY, forced=forced), forced)
    greedy = state.decode_patch(GREEDY)
    assert np.array_equal(state.decode_patch(GREEDY, forced=greedy), greedy)


def test_sampling_is_repeatable_and_never_draws_the_empty_code(reference: Reference) -> None:
    ids, free = array("prompts", "tts_plain_zh.input_ids"), Sampling(True, 1.5)
    runs = [Reference.open(bundle_of(BUNDLED), seed).generate(ids, GREEDY, free, [], 8)[0] for seed in (5, 5, 6)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    spoken = runs[0][1:, runs[0][0] == reference.tokens["empty"]]
    assert spoken.size
    assert (spoken < np.array(reference.config["lm"]["speech_zeroemb_idx"])[:, None]).all()


@pytest.mark.parametrize("size", [1, 31, 32, 33, 257])
def test_filters_keep_the_smallest_nucleus(size: int) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 3
    share = logits.double().softmax(0)
    for p in (0.05, 0.5, 0.95):
        kept = torch.isfinite(filter_scores(logits, Sampling(True, 1.0, 0, p)))
        assert float(share[kept].sum()) >= p - 1e-6
        least = share[kept].min()
        assert int(kept.sum()) == 1 or float(share[kept].sum() - least) <= p + 1e-6
        assert not (share[~kept] > least).any()


def test_stop_rule() -> None:
    assert is_done(3, 9, [9], 3, None)
    assert not is_done(3, 9, [9], 4, None)
    assert is_done(3, 1, [9], 0, 3)
    assert not is_done(3, 9, None, 0, 0)


# what differs from the reference by default


def test_plain_tts_uses_a_voice_by_default(reference: Reference) -> None:
    voice = array("encoder", "mixture.audio_tokens").T
    plain = reference.prompt_tts("hello", "say", None, None)
    assert np.array_equal(reference.prompt_tts("hello", "say", None, voice, parity=True), plain)
    spoken = reference.prompt_tts("hello", "say", None, voice)
    assert np.array_equal(spoken[:, -plain.shape[1] :], plain)
    assert (spoken[0] == reference.tokens["sosp"]).sum() == 1


# what it refuses


def test_errors_say_what_was_expected(reference: Reference, tmp_path: Path) -> None:
    levels, patch = reference.config["lm"]["audio_channels"], reference.config["lm"]["group_size"]
    with pytest.raises(ValueError, match="mel: expected"):
        reference.mel(np.zeros(reference.config["codec"]["nfft"] // 2, np.float32))
    with pytest.raises(ValueError, match="prompt_audio: expected codes"):
        reference.prompt_audio(np.zeros((levels, patch + 1), np.int32))
    with pytest.raises(ValueError, match="prefill: expected ids"):
        reference.forward(np.zeros((levels + 1, 0), np.int32))
    with pytest.raises(ValueError, match="temperature"):
        reference.filter_scores(np.zeros(4, np.float32), Sampling(True, 0.0))
    (tmp_path / "bundle.json").write_text('{"format": "mimo-edge bundle", "revision": 2}')
    with pytest.raises(ValueError, match="revision 2"):
        Reference.open(tmp_path)


def test_goldens_are_small_and_complete() -> None:
    """They travel with the repository."""
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert {"MANIFEST.md", "wavs.npz", "generate.npz", "model.safetensors"} <= {path.name for path in files}
