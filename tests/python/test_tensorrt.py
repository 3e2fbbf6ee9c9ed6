"""TensorRT compiles every graph ahead of time, without a GPU: float16 for SM 86 (Orin's stand-in), 89 and 120;
quantised by every recipe for SM 86, by `fp8` for SM 89, the first that has E4M3.

The model has the released head widths (128, 64, 16), on which it depends whether TensorRT has a kernel, and few layers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("MIMO_REQUIRE_TENSORRT") != "1":  # where it is set, a missing package is a failure
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 to compile the graphs; no GPU is needed")
for needed in ("torch", "onnx", "onnxscript", "onnx_ir"):
    pytest.importorskip(needed, reason="graphs are made with the extra [onnx]")

import numpy as np  # noqa: E402
import onnx  # noqa: E402

import mimo_edge  # noqa: E402
from mimo_edge import InputError  # noqa: E402
from mimo_edge.engines import check_identity, load_tensorrt  # noqa: E402
from mimo_edge.export.bundle import Bundle  # noqa: E402
from mimo_edge.export.bundle_writer import write_bundle  # noqa: E402
from mimo_edge.export.checkpoint import RandomCheckpoint  # noqa: E402
from mimo_edge.export.onnx import cli as onnx_cli  # noqa: E402
from mimo_edge.export.onnx.trt import build_engine  # noqa: E402
from mimo_edge.export.onnx.writer import export_onnx  # noqa: E402
from mimo_edge.export.random_checkpoint import _SHAPE_7B  # noqa: E402
from mimo_edge.quantize.calibration import Calibration  # noqa: E402
from mimo_edge.quantize.conversations import Clip  # noqa: E402
from mimo_edge.quantize.quantizer import quantize  # noqa: E402
from mimo_edge.quantize.recipe import Recipe  # noqa: E402

RECIPES = {"int8": 86, "int8a8": 86, "fp8": 89, "int4": 86, "edge": 86}
TARGETS: dict[str, tuple[int, ...]] = {"float opset24": (86, 89, 120), "float opset21": (86,)}
TARGETS |= {f"{recipe} opset24": (sm,) for recipe, sm in RECIPES.items()}
STAGES = ("codec_encoder", "codec_decoder", "patch_encoder", "backbone", "patch_decoder_step")
SHAPE = {
    "lm": _SHAPE_7B["lm"]
    | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
    | {"intermediate_size": 256, "vocab_size": 320, "local_dim": 64, "local_layers": 2, "local_attn_heads": 4}
    | {"local_ffn_dim": 128, "input_local_dim": 64, "input_local_layers": 2}
    | {"speech_vocab_size": "65-65-33-33-33-33-33-33", "speech_zeroemb_idx": "64-64-32-32-32-32-32-32"},
    "codec": _SHAPE_7B["codec"]
    | {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 512}
    | {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 512, "vocoder_dim": 64}
    | {"vocoder_num_layers": 2, "vocoder_attention_heads": 4, "vocoder_intermediate_dim": 128}
    | {"codebook_size": [64, 64, 32]},
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt")
    write_bundle(RandomCheckpoint(SHAPE), folder / "bundle")
    export_onnx(folder / "bundle", folder / "graphs", dtype="f16", flavours=("opset24", "opset21"))
    return folder / "graphs"


@pytest.fixture(scope="module")
def exports(export: Path) -> dict[str, Path]:
    """By recipe, the folder of graphs."""
    folders = {"float": export}
    floats = Bundle.open(export.parent / "bundle", "test")
    model = mimo_edge.load(floats.path)
    noise = np.random.default_rng(0).normal(0, 0.1, model.rate_hz // 4).astype(np.float32)
    with Calibration(name for part in floats.parts.values() for name in part.shapes) as heard:
        heard.hear(model, [Clip("noise", noise, None)])
        for name in RECIPES:
            bundle, folders[name] = export.parent / name, export.parent / f"graphs of {name}"
            quantize(floats, Recipe.read(name), bundle, heard=heard)
            export_onnx(bundle, folders[name], dtype="f16", flavours=("opset24",))
    return folders


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], dict[int, int]]:
    """(stage, recipe and flavour) -> SM -> bytes of the engine; printed at the end."""
    return {}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("stage", STAGES)
def test_compiles(
    exports: dict[str, Path], tmp_path: Path, table: dict[tuple[str, str], dict[int, int]], stage: str, kind: str
) -> None:
    recipe, flavour = kind.split()
    folder = exports[recipe]
    described = json.loads((folder / "export.json").read_bytes())
    (entry,) = (g for g in described["graphs"] if (g["stage"], g["flavour"]) == (stage, flavour))
    sizes = table.setdefault((stage, kind), {})
    for sm in TARGETS[kind]:
        engine = build_engine(folder, entry, described, sm, tmp_path)
        sizes[sm] = engine.size
        assert engine.path.stat().st_size == engine.size > 0
        trt = load_tensorrt()
        identity = check_identity(engine.path, described["bundle"]["sha256"], sm, trt.__name__, trt.__version__)
        assert identity["precision"] == "f16"
        assert identity["capacity"] == (11 if stage == "patch_decoder_step" else 8192)  # steps, positions


def test_prints_the_sizes(table: dict[tuple[str, str], dict[int, int]], capsys: pytest.CaptureFixture[str]) -> None:
    if len(table) != len(TARGETS) * len(STAGES):
        pytest.skip("only some graphs were compiled in this run")
    columns = sorted({sm for targets in TARGETS.values() for sm in targets})
    with capsys.disabled():
        print(f"\n{'engine, kB':<34}" + "".join(f"{'SM ' + str(sm):>10}" for sm in columns))
        for (stage, kind), sizes in sorted(table.items()):
            cells = (f"{sizes[sm] / 1e3:.0f}" if sm in sizes else "" for sm in columns)
            print(f"{stage + ' ' + kind:<34}" + "".join(f"{cell:>10}" for cell in cells))
    # packed weights are stored packed: an engine is smaller by about what the weights are
    for recipe, sm in RECIPES.items():
        assert table["backbone", f"{recipe} opset24"][sm] < table["backbone", "float opset24"][sm], recipe


def test_progress_is_reported(export: Path, tmp_path: Path) -> None:
    described = json.loads((export / "export.json").read_bytes())
    phases: list[str] = []
    entry = next(g for g in described["graphs"] if g["stage"] == "patch_decoder_step")

    def progress(phase: str, _done: int, _steps: int) -> None:
        phases.append(phase)

    build_engine(export, entry, described, 86, tmp_path, progress=progress)
    assert phases


def test_another_target_bundle_or_version_is_named(export: Path, tmp_path: Path) -> None:
    described = json.loads((export / "export.json").read_bytes())
    entry = next(g for g in described["graphs"] if g["stage"] == "patch_decoder_step")
    with pytest.raises(InputError, match=r"expected one of SM .*86.*, got 87"):
        build_engine(export, entry, described, 87, tmp_path)
    engine = build_engine(export, entry, described, 86, tmp_path)
    right: dict[str, Any] = {
        "bundle_sha256": described["bundle"]["sha256"], "sm": 86,
        "package": load_tensorrt().__name__, "version": load_tensorrt().__version__,
    }  # fmt: skip
    for change, sentence in (
        ({"sm": 89}, "expected SM 89, got 86"),
        ({"version": "10.3"}, r"expected TensorRT \w+ 10\.3, got tensorrt_rtx"),
        ({"bundle_sha256": "0" * 64}, "expected bundle 000000000000, got"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_identity(engine.path, **right | change)
    engine.path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="expected an identity file beside it"):
        check_identity(engine.path, **right)


def test_what_tensorrt_refuses_is_told_in_its_words(export: Path, tmp_path: Path) -> None:
    described = json.loads((export / "export.json").read_bytes())
    entry = next(g for g in described["graphs"] if g["stage"] == "patch_decoder_step")
    model = onnx.load(str(export / entry["file"]), load_external_data=False)
    model.graph.node[3].op_type = "Unheard"
    (tmp_path / entry["file"]).write_bytes(model.SerializeToString())
    shutil.copy(export / entry["weights"]["file"], tmp_path)
    with pytest.raises(InputError, match=rf"{entry['file']}: expected sha256 \w{{12}}, got \w{{12}}; export again"):
        build_engine(tmp_path, entry, described, 86, tmp_path)
    entry["sha256"] = hashlib.sha256((tmp_path / entry["file"]).read_bytes()).hexdigest()
    with pytest.raises(InputError, match=rf"{entry['file']}: tensorrt_rtx [\d.]+ refuses it: .*Unheard"):
        build_engine(tmp_path, entry, described, 86, tmp_path)


def test_command(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    onnx_cli.add_engine_arguments(parser)
    words = [str(export), "-o", str(tmp_path), "--target", "sm86", "--stage", "patch_decoder_step"]
    assert onnx_cli.run_engine(parser.parse_args([*words, "--target", "sm89"])) == 0
    out = capsys.readouterr().out
    assert "patch_decoder_step.sm86.engine: " in out
    assert "patch_decoder_step.sm89.engine: " in out
    words = [str(export.parent / "bundle"), *words[1:]]  # the bundle itself: exported first, the second time not again
    for _ in range(2):
        assert onnx_cli.run_engine(parser.parse_args(words)) == 0
    assert capsys.readouterr().out.count("patch_decoder_step.opset24.onnx: weights") == 1
    with pytest.raises(InputError, match=r"--target: expected sm86, .* got 'orin'"):
        onnx_cli.run_engine(parser.parse_args([*words[:4], "orin"]))
