"""`verify` passes on the goldens, and notices when anything is off."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of, large_goldens

from mimo_edge import _core
from mimo_edge.cli import main
from mimo_edge.verify import verify
from mimo_edge.verify.codec import check_decoder, check_encoder, check_frontend, check_lengths
from mimo_edge.verify.goldens import Check, Goldens, StageReport
from mimo_edge.verify.lm import check_forward, check_generations, check_postprocess
from mimo_edge.verify.sampler import check_sampler
from mimo_edge.verify.stages import CoreStages, Stages
from mimo_edge.verify.text import check_prompts, check_tokenizer

Part = Callable[[Stages, Goldens, Check], None]
KERNELS = {  # but for the plain twin, which the C++ tests compare with each of these
    "x86_64": ("base", "avx2", "avxvnni", "avx512", "avx512vnni"),
    "aarch64": ("base", "dotprod"),
}.get(platform.machine(), ("base",))


def core_stages(goldens: Path, kernels: str | None = None) -> Stages:
    return cast(Stages, CoreStages(_core.Model.open(str(bundle_of(goldens)), 1, kernels=kernels)))


def failed(reports: list[StageReport]) -> list[str]:
    return [report.name for report in reports if not report.passed]


@pytest.mark.parametrize("kernels", KERNELS)
def test_core_passes_the_bundled_goldens(kernels: str) -> None:
    try:
        stages = core_stages(BUNDLED, kernels)
    except _core.DeviceError as error:  # an instruction set that this processor lacks
        pytest.skip(str(error))
    reports = verify(stages, BUNDLED)
    assert not failed(reports), "\n".join(map(str, reports))
    assert all(report.compared > 0 for report in reports)


def test_core_passes_the_large_goldens() -> None:
    goldens = large_goldens()
    reports = verify(core_stages(goldens), goldens)
    assert not failed(reports), "\n".join(map(str, reports))


def test_the_command_builds_compares_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(BUNDLED), "--threads", "1", "--kernels", "base"]) == 0
    out = capsys.readouterr().out
    assert "ok   waveform" in out
    assert "stages passed" in out


def test_the_command_refuses_unknown_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(BUNDLED), "--kernels", "mmx"]) == 1
    assert "got 'mmx'" in capsys.readouterr().err


def test_the_command_refuses_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "expected a goldens folder" in capsys.readouterr().err


class Spoilt:
    """Stages of which one method gives something else."""

    def __init__(self, stages: Stages, method: str, spoil: Callable[[Any], Any]) -> None:
        self._stages, self._method, self._spoil = stages, method, spoil

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._stages, name)
        if name != self._method:
            return whole
        return lambda *args, **kwargs: self._spoil(whole(*args, **kwargs))


def nudged(amount: float) -> Callable[[Any], Any]:
    """Add `amount` to one value of an array."""

    def spoil(array: Any) -> Any:
        spoilt = np.array(array)
        spoilt.reshape(-1)[spoilt.size // 2] += amount
        return spoilt

    return spoil


@pytest.mark.parametrize(
    ("part", "method", "spoil", "stage"),
    [
        (check_frontend, "mel_filterbank", nudged(1e-4), "mel filterbank"),
        (check_frontend, "stft_window", nudged(1e-5), "stft window"),
        (check_frontend, "mel", nudged(2e-2), "mel"),
        (check_frontend, "mel", nudged(np.nan), "mel"),
        (check_encoder, "rvq_encode", nudged(1), "codes from golden hidden"),
        (check_encoder, "encode_mel", lambda out: (nudged(2e-4)(out[0]), out[1]), "encoder hidden"),
        (check_encoder, "encode_mel", lambda out: (out[0], nudged(1)(out[1])), "codes from golden mel"),
        (check_decoder, "decode", nudged(2e-4), "waveform"),
        (check_decoder, "decode", nudged(np.nan), "waveform"),
        (check_decoder, "rvq_decode", nudged(2e-4), "rvq decode"),
        (check_tokenizer, "tokenize", lambda ids: [*ids, 0], "tokenize"),
        (check_tokenizer, "detokenize", lambda text: text + " ", "detokenize"),
        (check_tokenizer, "capitalize_text", str.lower, "text rules"),
        (check_prompts, "prompt_asr", nudged(1), "prompts"),
        (check_prompts, "prompt_followup", nudged(1), "prompts"),
        (check_prompts, "prompt_stream", nudged(1), "prompt segments"),
        (check_sampler, "is_done", lambda done: not done, "stop rule"),
        (check_sampler, "filter_scores", nudged(1e-3), "sampler filters"),
        (check_generations, "generate", lambda out: (nudged(1)(out[0]), out[1]), "generated ids"),
        (check_generations, "generate", lambda out: (out[0], "guard"), "stop reason"),
        (check_generations, "extract", lambda out: (out[0] + ".", out[1]), "generate text"),
        (check_generations, "extract", lambda out: (out[0], out[1][:, 1:]), "generate codes"),
        (check_postprocess, "extract", lambda out: (out[0].strip() + ".", out[1]), "postprocess text"),
        (check_lengths, "group_segments", lambda groups: groups[::-1], "segment groups"),
        (check_lengths, "mel_frames", lambda frames: frames + 1, "lengths"),
    ],
)
def test_a_mistake_is_noticed(part: Part, method: str, spoil: Callable[[Any], Any], stage: str) -> None:
    goldens = Goldens(BUNDLED)
    check = Check(goldens)
    part(cast(Stages, Spoilt(core_stages(BUNDLED), method, spoil)), goldens, check)
    assert stage in failed(list(check.reports()))


class SpoiltState:
    """A state of which one method gives something else."""

    def __init__(self, state: Any, method: str, spoil: Callable[[Any], Any]) -> None:
        self._spoilt = Spoilt(state, method, spoil)
        self.length = state.length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spoilt, name)


@pytest.mark.parametrize(
    ("method", "spoil", "stages"),
    [
        ("text_logits", nudged(1e-3), ("text logits", "forced text logits")),
        ("hidden", nudged(2e-4), ("backbone hidden", "forced hidden")),
        ("local_hidden", nudged(2e-4), ("local hidden states", "forced local hidden states")),
        ("decode_patch", nudged(1), ("patch codes", "forced patch codes")),
    ],
)
def test_a_mistake_of_a_state_is_noticed(method: str, spoil: Callable[[Any], Any], stages: tuple[str, str]) -> None:
    goldens = Goldens(BUNDLED)
    check = Check(goldens)
    spoilt = Spoilt(core_stages(BUNDLED), "forward", lambda state: SpoiltState(state, method, spoil))
    check_forward(cast(Stages, spoilt), goldens, check)
    assert set(stages) <= set(failed(list(check.reports())))


def test_a_stage_that_raises_fails_and_the_rest_goes_on() -> None:
    def explode(_: Any) -> Any:
        raise RuntimeError("no")

    reports = verify(cast(Stages, Spoilt(core_stages(BUNDLED), "tokenize", explode)), BUNDLED)
    assert "tokenizer" in failed(reports)
    assert "waveform" not in failed(reports)


def test_an_array_that_nobody_looks_at_fails(tmp_path: Path) -> None:
    folder = tmp_path / "goldens"
    shutil.copytree(BUNDLED, folder)
    (folder / "extra.npz").unlink(missing_ok=True)
    np.savez(folder / "extra.npz", forgotten=np.zeros(3, np.float32))
    (ledger,) = [report for report in verify(core_stages(BUNDLED), folder) if report.name == "ledger"]
    assert not ledger.passed
    assert "extra:forgotten" in ledger.note


def test_a_missing_file_fails(tmp_path: Path) -> None:
    folder = tmp_path / "goldens"
    shutil.copytree(BUNDLED, folder)
    (folder / "streaming.npz").unlink()
    assert "streaming" in failed(verify(core_stages(BUNDLED), folder))


def test_encoding_the_last_segment_alone_is_noticed() -> None:
    class Alone(CoreStages):
        """Encodes every 6000 mel frames by themselves."""

        def encode_mel(self, mel: Any, tap: Any = None) -> Any:
            pieces = [self.core.encode_mel(mel[i : i + 6000], tap) for i in range(0, len(mel), 6000)]
            return np.concatenate([p[0] for p in pieces]), np.concatenate([p[1] for p in pieces], axis=1)

    goldens = Goldens(BUNDLED)
    check = Check(goldens)
    check_encoder(cast(Stages, Alone(_core.Model.open(str(bundle_of(BUNDLED)), 1))), goldens, check)
    assert "encoder hidden from wav" in failed(list(check.reports()))
    assert "last segment not encoded alone" in failed(list(check.reports()))


def make_check(tmp_path: Path, **arrays: Any) -> Check:
    np.savez(tmp_path / "data.npz", **arrays)
    return Check(Goldens(tmp_path))


def report_of(check: Check, stage: str) -> StageReport:
    (report,) = [report for report in check.reports() if report.name == stage]
    return report


def test_nan_and_wrong_shapes_fail(tmp_path: Path) -> None:
    check = make_check(tmp_path, a=np.zeros(4, np.float32))
    check.close("nan", "data:a", np.full(4, np.nan), 1e9)
    check.close("shape", "data:a", np.zeros((4, 1)), 1e9)
    check.close("near", "data:a", np.full(4, 0.5), 0.5)
    assert [report.passed for report in check.reports()] == [False, False, True, True]


def test_codes_count_up_to_the_first_near_tie(tmp_path: Path) -> None:
    check = make_check(tmp_path, codes=np.zeros((3, 2), np.int32))
    margins = np.array([[1.0, 1.0], [1e-5, 1.0], [1.0, 1.0]])
    wrong_after_a_tie = np.array([[0, 0], [7, 0], [7, 0]])
    check.codes("codes", "data:codes", wrong_after_a_tie, margins, 1e-3)
    assert report_of(check, "codes").passed
    assert report_of(check, "codes").compared == 4
    assert not report_of(check, "codes, share of all that differ").passed
    wrong_before = np.array([[0, 0], [0, 7], [0, 0]])
    check.codes("more codes", "data:codes", wrong_before, margins, 1e-3)
    assert not report_of(check, "more codes").passed


def test_scores_may_differ_only_where_either_will_do(tmp_path: Path) -> None:
    check = make_check(tmp_path, scores=np.zeros(1))
    expected, actual = np.array([1.0, -np.inf, 2.0]), np.array([1.0, 0.0, 2.0])
    check.scores("strict", "s", expected, actual, np.zeros(3, bool))
    check.scores("lenient", "s", expected, actual, np.array([False, True, False]))
    assert not report_of(check, "strict").passed
    assert report_of(check, "lenient").passed


def test_a_stage_that_compared_nothing_fails(tmp_path: Path) -> None:
    check = make_check(tmp_path, empty=np.zeros((0, 3), np.float32))
    check.close("nothing", "data:empty", np.zeros((0, 3)), 1.0)
    assert "nothing was compared" in report_of(check, "nothing").note
