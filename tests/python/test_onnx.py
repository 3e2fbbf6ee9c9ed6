"""Exported graphs: numbers against the spec and the goldens in both flavours, identity, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of, graphs_of

for needed in ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime"):
    pytest.importorskip(needed, reason="graphs are made and checked with the extra [onnx]")

import onnx  # noqa: E402
import torch  # noqa: E402

from mimo_edge import InputError  # noqa: E402
from mimo_edge.export.onnx import cli as onnx_cli  # noqa: E402
from mimo_edge.export.onnx.codec import istft_kernels  # noqa: E402
from mimo_edge.export.onnx.verify import verify_onnx  # noqa: E402
from mimo_edge.export.onnx.weights import PAGE_BYTES, TORCH_DTYPES, Weight, computed, offsets, write_weights  # noqa: E402
from mimo_edge.export.onnx.writer import export_onnx  # noqa: E402

STAGES = ("codec_encoder", "codec_decoder", "patch_encoder", "backbone", "patch_decoder_step")
GRAPHS = [
    (stage, flavour)
    for stage in STAGES
    for flavour in ("opset24", "opset21", "cpu")
    if flavour != "cpu" or stage in ("backbone", "patch_decoder_step")
]


@pytest.fixture(scope="module")
def bundle() -> Path:
    return bundle_of(BUNDLED)


@pytest.fixture(scope="module")
def graphs() -> Path:
    return graphs_of(BUNDLED)


def described(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "export.json").read_bytes())
    return value


def nodes(folder: Path, graph: dict[str, Any]) -> list[onnx.NodeProto]:
    return list(onnx.load(str(folder / graph["file"]), load_external_data=False).graph.node)


# numbers


def test_every_graph_computes_what_the_spec_and_the_goldens_say(graphs: Path, bundle: Path) -> None:
    reports = verify_onnx(graphs, bundle, BUNDLED, threads=1)
    failed = [report for report in reports if not report.passed]
    assert not failed, "\n".join(map(str, failed))
    for stage, flavour in GRAPHS:
        assert any(r.name.startswith(f"{stage} {flavour} ") and "goldens" in r.name for r in reports)


def test_float16_graphs_stay_near(bundle: Path, tmp_path: Path) -> None:
    export_onnx(bundle, tmp_path / "f16", flavours=["opset21"], dtype="f16", only=["backbone", "codec_decoder"])
    failed = [r for r in verify_onnx(tmp_path / "f16", bundle, BUNDLED, threads=1) if not r.passed]
    assert not failed, "\n".join(map(str, failed))


def test_a_wrong_weight_fails(graphs: Path, bundle: Path, tmp_path: Path) -> None:
    """The comparison would notice: one bias of the backbone changed, the hashes made to fit."""
    wrong = tmp_path / "wrong"
    shutil.copytree(graphs, wrong)
    facts = described(wrong)
    facts["graphs"] = [graph for graph in facts["graphs"] if graph["stage"] == "backbone"]
    model = onnx.load(str(wrong / "backbone.opset24.onnx"), load_external_data=False)
    place = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    with open(wrong / "backbone.weights", "r+b") as file:
        file.seek(int(place["model.layers.1.self_attn.v_proj.bias"]["offset"]))
        file.write(np.float32(0.5).tobytes())
    digest = hashlib.sha256((wrong / "backbone.weights").read_bytes()).hexdigest()
    for graph in facts["graphs"]:
        graph["weights"]["sha256"] = digest
    (wrong / "export.json").write_text(json.dumps(facts))
    assert not all(report.passed for report in verify_onnx(wrong, bundle, None, threads=1))


# the graphs themselves


def test_names_axes_and_identity_are_readable(graphs: Path, bundle: Path) -> None:
    facts = described(graphs)
    assert [(g["stage"], g["flavour"]) for g in facts["graphs"]] == GRAPHS
    config = json.loads((bundle / "bundle.json").read_bytes())
    for graph in facts["graphs"]:
        model = onnx.load(str(graphs / graph["file"]), load_external_data=False)
        onnx.checker.check_model(str(graphs / graph["file"]))
        for ports, values in ((graph["inputs"], model.graph.input), (graph["outputs"], model.graph.output)):
            assert [value.name for value in values] == list(ports)
            for value in values:
                shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
                assert shape == ports[value.name][0]
        properties = {p.key: p.value for p in model.metadata_props}
        assert properties["mimo_edge.bundle"] == config["name"]
        assert properties["mimo_edge.bundle_sha256"] == facts["bundle"]["sha256"]
        assert properties["mimo_edge.weights_sha256"] == graph["weights"]["sha256"]
        assert properties["mimo_edge.flavour"] == graph["flavour"]
        assert {o.domain: o.version for o in model.opset_import}[""] == graph["opset"]


def test_the_flavours_use_what_they_are_for(graphs: Path) -> None:
    new = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"}
    kinds = {
        graph["flavour"]: {node.op_type for node in nodes(graphs, graph)}
        for graph in described(graphs)["graphs"]
        if graph["stage"] == "backbone"
    }
    assert new <= kinds["opset24"]
    assert not new & kinds["opset21"]
    assert {"Softmax", "ScatterND"} <= kinds["opset21"]
    assert "GroupQueryAttention" in kinds["cpu"]
    assert not {"Attention", "TensorScatter"} & kinds["cpu"]
    for graph in described(graphs)["graphs"]:  # TensorRT ignores Attention's sixth input, nonpad_kv_seqlen
        for node in nodes(graphs, graph):
            assert node.op_type != "Attention" or len(node.input) <= 4


def test_export_is_reproducible(bundle: Path, graphs: Path, tmp_path: Path) -> None:
    export_onnx(bundle, tmp_path / "again", flavours=["opset24"], only=["patch_encoder"])
    for name in ("patch_encoder.weights", "patch_encoder.opset24.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (graphs / name).read_bytes()


# weights


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_lie_aligned_and_are_rounded_as_torch_does(tmp_path: Path, dtype: str) -> None:
    values = [np.random.default_rng(i).standard_normal((n, 33)).astype(np.float32) for i, n in enumerate((1, 31, 257))]
    weights = [computed(f"w{i}", value, dtype) for i, value in enumerate(values)]
    done: list[int] = []
    write_weights(weights, tmp_path / "w", done.append)
    assert sum(done) == sum(weight.nbytes for weight in weights)
    data, kind = (tmp_path / "w").read_bytes(), TORCH_DTYPES[dtype]
    for weight, value in zip(weights, values, strict=True):
        start = offsets(weights)[weight.name]
        assert start % (PAGE_BYTES if weight.nbytes >= PAGE_BYTES else 64) == 0
        stored = torch.frombuffer(bytearray(data[start : start + weight.nbytes]), dtype=kind)
        assert torch.equal(stored, torch.from_numpy(value).to(kind).flatten())


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    large = Weight("w", (1,), "F32", "F16", lambda: np.array([70000.0], np.float32))
    with pytest.raises(InputError, match=r"w: expected values below 65504 for f16, got 7e\+04; use --dtype bf16"):
        write_weights([large], tmp_path / "w", lambda _: None)


@pytest.mark.parametrize("nfft", [2, 400, 962])
def test_the_istft_kernel_is_the_windowed_inverse_dft(nfft: int) -> None:
    bins = nfft // 2 + 1
    spectrum = np.random.default_rng(nfft).standard_normal((2, bins)).astype(np.float32)
    kernel, envelope = istft_kernels(nfft)
    window = np.hanning(nfft + 1)[:-1]
    expected = np.fft.irfft(spectrum[0] + 1j * spectrum[1], nfft) * window
    assert np.max(np.abs(spectrum.reshape(-1) @ kernel[:, 0] - expected)) <= 1e-5
    assert np.max(np.abs(envelope[0, 0] - window**2)) <= 1e-6


# what is refused, and what a failure leaves behind


def test_a_folder_in_the_way_is_left_alone(bundle: Path, graphs: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new folder, got something that is no export"):
        export_onnx(bundle, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="add --overwrite"):
        export_onnx(bundle, graphs)
    with pytest.raises(InputError, match="expected a stage with caches"):
        export_onnx(bundle, tmp_path / "none", flavours=["cpu"], only=["codec_encoder"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "f64"}, "dtype: expected f32, f16, bf16, got 'f64'"),
        ({"flavours": ["opset17"]}, "flavour: expected opset24, opset21, cpu, got 'opset17'"),
        ({"only": ["vocoder"]}, "stage: expected codec_encoder, .*, got vocoder"),
    ],
)
def test_unknown_words_are_refused(bundle: Path, tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        export_onnx(bundle, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_truncated_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    with open(tmp_path / "bundle" / "lm.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"lm\.safetensors: expected \d+ bytes, got 1000"):
        export_onnx(tmp_path / "bundle", tmp_path / "out")
    with pytest.raises(InputError, match="expected a bundle folder"):
        export_onnx(tmp_path, tmp_path / "out")


def test_nothing_half_written_stays(bundle: Path, tmp_path: Path) -> None:
    def interrupt(_done: float, _total: float, name: str) -> None:
        if name == "patch_encoder.opset24.onnx":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_onnx(bundle, tmp_path / "out", only=["patch_encoder"], progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_graphs_of_another_bundle_or_altered_ones_are_refused(graphs: Path, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(bundle, other)
    (other / "bundle.json").write_bytes((bundle / "bundle.json").read_bytes().replace(b'"name": "', b'"name": "other-'))
    with pytest.raises(InputError, match=r"was made from bundle .*; name the bundle it was made from"):
        verify_onnx(graphs, other)
    altered = tmp_path / "graphs"
    shutil.copytree(graphs, altered)
    with open(altered / "backbone.weights", "r+b") as file:
        file.write(b"\1")
    with pytest.raises(InputError, match=r"backbone\.weights: expected sha256 \w{12}, got \w{12}"):
        verify_onnx(altered, bundle)
    (altered / "backbone.weights").unlink()
    with pytest.raises(InputError, match="got no file"):
        verify_onnx(altered, bundle)
    with pytest.raises(InputError, match="expected a folder made by mimo-edge export-onnx"):
        verify_onnx(tmp_path, bundle)


# the command line


def test_commands(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graphs"
    export, verify = argparse.ArgumentParser(), argparse.ArgumentParser()
    onnx_cli.add_export_arguments(export)
    onnx_cli.add_verify_arguments(verify)
    words = [str(bundle), "-o", str(out), "--flavour", "opset21", "--stage", "patch_encoder"]
    assert onnx_cli.run_export(export.parse_args(words)) == 0
    assert "patch_encoder.opset21.onnx: weights" in capsys.readouterr().out
    words = [str(out), "--bundle", str(bundle), "--goldens", str(BUNDLED), "--threads", "1"]
    assert onnx_cli.run_verify(verify.parse_args(words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok   patch_encoder opset21 positions hidden")
    assert lines[-1].startswith("2 of 2 cases passed")
