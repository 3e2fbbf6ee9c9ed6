"""The ONNX Runtime backend: every stage and all generations of the goldens, conversations, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of, graphs_of, large_goldens

for needed in ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime"):
    pytest.importorskip(needed, reason="graphs are made and run with the extra [onnx]")

import onnxruntime  # noqa: E402

import mimo_edge  # noqa: E402
from mimo_edge import DeviceError, InputError, Options, Sampling  # noqa: E402
from mimo_edge.cli import main  # noqa: E402
from mimo_edge.export.onnx.writer import export_onnx  # noqa: E402
from mimo_edge.hardware import open_core  # noqa: E402
from mimo_edge.verify import CoreStages, Stages, verify  # noqa: E402

GREEDY = Options(text_sampling=Sampling(False), speech_sampling=Sampling(False), max_new_tokens=6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tests/goldens with its graphs inside."""
    folder = tmp_path_factory.mktemp("onnxruntime") / "bundle"
    shutil.copytree(bundle_of(BUNDLED), folder)
    shutil.copytree(graphs_of(BUNDLED), folder / "onnx")
    return folder


def onnx_stages(bundle: Path, graphs: Path | None = None) -> Stages:
    return cast(Stages, CoreStages(open_core(bundle, "onnxruntime", graphs=graphs, threads=1), sees_inside=False))


def failed(reports: list[Any]) -> str:
    return "\n".join(str(report) for report in reports if not report.passed)


def test_passes_the_bundled_goldens(bundle: Path) -> None:
    """Among them: the ids of every greedy generation, exactly."""
    reports = verify(onnx_stages(bundle), BUNDLED)
    assert not failed(reports)
    names = {report.name for report in reports}
    assert {"generated ids", "waveform", "patch logits", "codes from wav", "patch_decoder hidden"} <= names


def test_the_flavour_of_other_providers_passes_too(bundle: Path, tmp_path: Path) -> None:
    """Caches written by TensorScatter in place, masks rounded up: what a provider other than the CPU's gets."""
    shutil.copytree(bundle / "onnx", tmp_path / "graphs")
    facts = json.loads((tmp_path / "graphs" / "export.json").read_bytes())
    facts["graphs"] = [graph for graph in facts["graphs"] if graph["flavour"] != "cpu"]
    (tmp_path / "graphs" / "export.json").write_text(json.dumps(facts))
    assert not failed(verify(onnx_stages(bundle, tmp_path / "graphs"), BUNDLED))


def test_passes_the_large_goldens(tmp_path: Path) -> None:
    goldens = large_goldens()
    export_onnx(bundle_of(goldens), tmp_path / "graphs", flavours=("opset24", "cpu"))
    assert not failed(verify(onnx_stages(bundle_of(goldens), tmp_path / "graphs"), goldens))


def test_a_conversation_says_what_the_core_says(bundle: Path) -> None:
    """Turns, rewinding after a failed one and streamed sound, through the public API."""
    noise = np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32)
    said = []
    for backend in ("native", "onnxruntime"):
        talk = mimo_edge.load(bundle, threads=1, backend=backend).conversation(options=GREEDY)
        first = talk.respond((noise, 24000)).result()
        cancelled = talk.respond(text="one two")
        cancelled.cancel()
        cancelled.result()
        second = [piece.text for piece in talk.respond((noise, 24000))]
        said.append((first.text, first.codes.tolist(), second))
    assert said[0] == said[1]


def test_command(bundle: Path, tmp_path: Path) -> None:
    wav = tmp_path / "a.wav"
    mimo_edge.write_wav(wav, np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32), 24000)
    codes = []
    for backend in ("native", "onnxruntime"):
        out = tmp_path / f"{backend}.npy"
        words = ["encode", str(wav), "-o", str(out), "--bundle", str(bundle), "--backend", backend, "--threads", "1"]
        assert main(words) == 0
        codes.append(np.load(out))
    assert codes[0].size > 0
    assert np.mean(codes[0] != codes[1]) < 0.01


# what is refused


def test_words_and_folders_that_do_not_fit_are_named(bundle: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        ({"backend": "tpu"}, "expected native or onnxruntime or tensorrt or auto, got 'tpu'"),
        ({"providers": ["CPUExecutionProvider"]}, 'with backend="onnxruntime" only'),
        ({"backend": "onnxruntime", "graphs": tmp_path}, f"expected graphs in {tmp_path}, got none; mimo-edge export"),
        ({"backend": "onnxruntime", "providers": ["QNNExecutionProvider"]}, r"CPUExecutionProvider.*, got QNN.*; inst"),
    ):
        with pytest.raises(InputError, match=sentence):
            mimo_edge.load(bundle, **cast(Any, arguments))


def test_a_missing_package_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else found(n, *a))
    with pytest.raises(InputError, match="expected the package onnxruntime, which is not installed; pip install"):
        mimo_edge.load(bundle, backend="onnxruntime")


def test_graphs_of_another_bundle_and_altered_ones_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was made from bundle .* \w{12}, but .* is \w{12}; name the bundle"):
        mimo_edge.load(None, backend="onnxruntime", graphs=bundle / "onnx")
    shutil.copytree(bundle / "onnx", tmp_path / "graphs")
    with open(tmp_path / "graphs" / "backbone.cpu.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"backbone\.cpu\.onnx: expected sha256 \w{12}, got \w{12}; export again"):
        mimo_edge.load(bundle, backend="onnxruntime", graphs=tmp_path / "graphs")
    with open(tmp_path / "graphs" / "codec_decoder.weights", "r+b") as file:
        file.truncate(100)
    shutil.copy(bundle / "onnx" / "backbone.cpu.onnx", tmp_path / "graphs")
    with pytest.raises(InputError, match=r"codec_decoder\.weights: expected \d+ bytes, got 100; export again"):
        mimo_edge.load(bundle, backend="onnxruntime", graphs=tmp_path / "graphs")


def test_altered_weights_are_found_by_check(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle / "onnx", tmp_path / "graphs")
    with open(tmp_path / "graphs" / "backbone.weights", "r+b") as file:
        file.write(b"\1")
    with pytest.raises(InputError, match=r"backbone\.weights: expected sha256"):
        mimo_edge.load(bundle, backend="onnxruntime", graphs=tmp_path / "graphs", check=True)


def test_a_runtime_that_refuses_a_graph_is_quoted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ai.onnx opset 24 is under development\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    sentence = r"codec_encoder\.opset24\.onnx \(opset 24\): onnxruntime [\d.]+ refuses it: ai\.onnx opset 24 is under"
    with pytest.raises(DeviceError, match=sentence):
        mimo_edge.load(bundle, backend="onnxruntime")


def test_a_provider_that_does_not_start_is_no_silent_cpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime itself goes on on the CPU if a provider's libraries are missing."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider"):
        mimo_edge.load(bundle, backend="onnxruntime", providers=["CUDAExecutionProvider"])


def test_weights_that_do_not_fit_are_refused_unread(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    said = "MemTotal: 1000 kB\nMemAvailable: 10 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda p, *a, **k: said if str(p) == "/proc/meminfo" else read(p, *a, **k))
    with pytest.raises(DeviceError, match=r"expected 0\.0 GB of memory for the weights, got 0\.0 GB; export with"):
        mimo_edge.load(bundle, backend="onnxruntime")
