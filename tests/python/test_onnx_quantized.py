"""Q/DQ graphs of quantised bundles: the bundle's own numbers in the file, and ONNX Runtime computing what they mean."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

for needed in ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime"):
    pytest.importorskip(needed, reason="graphs are made and checked with the extra [onnx]")

import ml_dtypes  # noqa: E402
import onnx  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import mimo_edge  # noqa: E402
from mimo_edge.export.bundle import Bundle  # noqa: E402
from mimo_edge.export.onnx.verify import verify_onnx  # noqa: E402
from mimo_edge.export.onnx.writer import export_onnx  # noqa: E402
from mimo_edge.export.packed import fp8_bits, fp8_values  # noqa: E402
from mimo_edge.quantize.calibration import Calibration  # noqa: E402
from mimo_edge.quantize.conversations import Clip  # noqa: E402
from mimo_edge.quantize.quantizer import quantize  # noqa: E402
from mimo_edge.quantize.recipe import Recipe  # noqa: E402

# every format, every kind of tensor that has one: linear, convolution, text table and head; inputs rounded and not
RULES = [
    {"tensors": "model.layers.*.mlp.*", "weights": "int4"},
    {"tensors": "model.layers.1.self_attn.*", "weights": "fp8", "activations": 8},
    {"tensors": "model.embed_tokens.*", "weights": "int4"},
    {"tensors": "local_transformer.layers.*", "weights": "fp8"},
    {"tensors": "decoder.layers.*", "weights": "int4"},
    {"tensors": "*layers.*", "weights": "int8", "activations": 8},
    {"tensors": "*", "weights": "int8"},
]


@pytest.fixture(scope="module")
def quantised(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    recipe = {"name": "mixed", "about": "", "group": 32, "static": True, "smooth": 0.5, "rules": RULES}
    (folder / "mixed.json").write_text(json.dumps(recipe))
    model, bundle = mimo_edge.load(tiny_bundle, threads=1), Bundle.open(tiny_bundle, "test")
    noise = np.random.default_rng(0).normal(0, 0.1, model.rate_hz // 4).astype(np.float32)
    with Calibration(name for part in bundle.parts.values() for name in part.shapes) as heard:
        heard.hear(model, [Clip("noise", noise, None)])
        quantize(bundle, Recipe.read(str(folder / "mixed.json")), folder / "bundle", heard=heard)
    return folder / "bundle"


@pytest.fixture(scope="module")
def graphs(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / "onnx"
    export_onnx(quantised, out, flavours=("opset24",))
    return out


def test_quantised_graphs_compute_what_the_bundle_means(quantised: Path, graphs: Path) -> None:
    reports = verify_onnx(graphs, quantised)
    assert len(reports) >= 9
    assert [str(report) for report in reports if not report.passed] == []
    scales = [report for report in reports if report.name.endswith("input scales")]
    assert {report.name.split()[0] for report in scales} >= {"codec_encoder", "codec_decoder", "backbone"}


def test_a_graph_that_rounds_inputs_by_another_scale_is_found(quantised: Path, graphs: Path, tmp_path: Path) -> None:
    export = tmp_path / "graphs"
    shutil.copytree(graphs, export)
    described = json.loads((export / "export.json").read_bytes())
    described["graphs"] = [entry for entry in described["graphs"] if entry["stage"] == "patch_encoder"]
    (entry,) = described["graphs"]
    model = onnx.load(str(export / entry["file"]), load_external_data=False)
    scale = next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == scale)
    tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), scale))
    onnx.save(model, str(export / entry["file"]))
    entry["sha256"] = hashlib.sha256((export / entry["file"]).read_bytes()).hexdigest()
    (export / "export.json").write_text(json.dumps(described))
    failed = [report.name for report in verify_onnx(export, quantised) if not report.passed]
    assert failed == ["patch_encoder opset24 input scales"]


def test_graphs_hold_the_numbers_of_the_bundle(quantised: Path, graphs: Path) -> None:
    """One truth: what DequantizeLinear reads is what the kernels read, in another order."""
    bundle = Bundle.open(quantised, "test")
    seen = set()
    for stage in ("codec_encoder", "codec_decoder", "patch_encoder", "backbone", "patch_decoder_step"):
        model = onnx.load(str(graphs / f"{stage}.opset24.onnx"))
        held = {tensor.name: tensor for tensor in model.graph.initializer}
        assert {entry.version for entry in model.opset_import if entry.domain == ""} == {24}
        for node in model.graph.node:
            if node.op_type != "DequantizeLinear" or node.input[0] not in held:
                continue
            name = node.input[0].removesuffix("_quantized")
            part = next(part for part in bundle.parts.values() if name in part.shapes)
            q = part.quantised(name).q.reshape(part.shapes[name])
            tensor = held[node.input[0]]
            numbers = onnx.numpy_helper.to_array(tensor)
            numbers = numbers.view(np.uint8) if q.dtype == np.uint8 else numbers.astype(np.int8)
            back = {2: [(0, 1), (1, 0)], 3: [(0, 2, 1)]}[q.ndim]
            assert any(
                numbers.transpose(axes).shape == q.shape and np.array_equal(numbers.transpose(axes), q) for axes in back
            ), name
            seen.add((tensor.data_type, q.ndim))
    assert seen >= {
        (onnx.TensorProto.INT8, 2),
        (onnx.TensorProto.INT8, 3),
        (onnx.TensorProto.INT4, 2),
        (onnx.TensorProto.FLOAT8E4M3FN, 2),
    }
    packed = {name for part in bundle.parts.values() for name in part.shapes if part.is_packed(name)}
    assert len(packed) > 50


def test_fp8_equals_the_onnx_reference_in_every_bit() -> None:
    """QuantizeLinear and DequantizeLinear to FLOAT8E4M3FN, saturating: ours, ONNX's reference and ml_dtypes'."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(0, 10.0**e, 4000) for e in (-4, -2, 0, 2, 4)]).astype(np.float32)
    table = np.sort(fp8_values(np.arange(127, dtype=np.uint8)))
    middles = (table[1:] + table[:-1]) / 2
    x = np.concatenate([x, table, middles, -middles, [0.0, -0.0, 448, 464, 480, 1e9, -1e9]]).astype(np.float32)
    helper = onnx.helper
    fp8 = onnx.TensorProto.FLOAT8E4M3FN
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "one"], ["q"], output_dtype=fp8, saturate=1),
            helper.make_node("DequantizeLinear", ["q", "one"], ["y"]),
        ],
        "fp8",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])],
        [
            helper.make_tensor_value_info("q", fp8, [None]),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None]),
        ],
        [helper.make_tensor("one", onnx.TensorProto.FLOAT, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    q, y = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(fp8_bits(x), np.asarray(q).view(np.uint8))
    assert np.array_equal(fp8_values(fp8_bits(x)), y)
    inside = np.abs(x) <= 448
    assert np.array_equal(fp8_bits(x[inside]), x[inside].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
