"""Packing, rounding and writing quantised bundles, against plain loops and laws."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mimo_edge import InputError, _core
from mimo_edge.cli import main
from mimo_edge.export.bundle import Bundle
from mimo_edge.export.packed import (
    FORMATS,
    Quantised,
    fp8_bits,
    fp8_values,
    pack_bytes,
    pack_int4,
    unpack_bytes,
    unpack_int4,
)
from mimo_edge.export.safetensors_io import SafetensorsFile, SafetensorsWriter
from mimo_edge.quantize.plan import stored_bytes
from mimo_edge.quantize.quantizer import quantize
from mimo_edge.quantize.recipe import Recipe, Rule, recipe_names
from mimo_edge.quantize.rounding import RATIOS, Correction, gptq, nearest

SHAPES = [(1, 1), (3, 5), (16, 4), (16, 8), (17, 9), (31, 33), (33, 257)]


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_bytes_lie_where_the_contract_says(shape: tuple[int, int]) -> None:
    q = np.random.default_rng(0).integers(-127, 128, shape, np.int8)
    packed = pack_bytes(q)
    assert packed.shape == FORMATS["int8"].shape(*shape)
    for n in range(packed.shape[0] * 16):
        for k in range(packed.shape[1] * 4):
            expected = q[n, k] if n < shape[0] and k < shape[1] else 0
            assert packed[n // 16, k // 4, n % 16, k % 4] == expected
    assert np.array_equal(unpack_bytes(packed, shape), q)


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_nibbles_lie_where_the_contract_says(shape: tuple[int, int]) -> None:
    q = np.random.default_rng(0).integers(-7, 8, shape, np.int8)
    packed = pack_int4(q)
    assert packed.shape == FORMATS["int4"].shape(*shape)
    for n in range(packed.shape[0] * 16):
        for k in range(packed.shape[1] * 8):
            byte = packed[n // 16, k // 8, n % 16, k % 4]
            nibble = byte >> 4 if k % 8 >= 4 else byte & 15
            assert int(nibble) - 8 == (q[n, k] if n < shape[0] and k < shape[1] else 0)
    assert np.array_equal(unpack_int4(packed, shape), q)


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_quantised_matrix_comes_back_from_its_packed_form(name: str, shape: tuple[int, int]) -> None:
    form = FORMATS[name]
    before = nearest(np.random.default_rng(1).standard_normal(shape).astype(np.float32), form, 32)
    weight, scale = before.packed()
    assert weight.shape == form.shape(*shape)
    assert scale.shape == form.scale_shape(*shape, 32)
    after = Quantised.unpack(form, weight, scale, shape, 32)
    assert np.array_equal(after.q, before.q)
    assert np.array_equal(after.scale, before.scale)


def test_fp8_is_e4m3_as_torch_has_it() -> None:
    import torch

    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(fp8_values(np.arange(256, dtype=np.uint8)), every, equal_nan=True)
    finite = np.sort(every[np.isfinite(every)])
    middles = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate(
        [every, middles, np.nextafter(middles, np.float32(9)), np.nextafter(middles, np.float32(-9))]
    )
    values = np.concatenate([values, np.random.default_rng(0).normal(0, 30, 20000).astype(np.float32)])
    values = values[np.isnan(values) | (np.abs(values) <= 448)]
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    got = fp8_bits(values)
    same = (got == expected) | (np.isnan(values) & ((got & 0x7F) == 0x7F))
    assert same.all(), values[~same][:5]
    assert list(fp8_bits(np.array([464.1, 1e30, np.inf, -np.inf], np.float32))) == [0x7E, 0x7E, 0x7E, 0xFE]  # saturates


def test_nearest_takes_the_best_of_its_scales() -> None:
    weight = np.random.default_rng(2).standard_normal((5, 70)).astype(np.float32)
    got = nearest(weight, FORMATS["int4"], 32)
    for row in range(5):
        for group, columns in enumerate((slice(0, 32), slice(32, 64), slice(64, 70))):
            w = weight[row, columns].astype(np.float64)
            errors = []
            for ratio in RATIOS["int4"]:
                scale = float(np.float16(np.float32(np.abs(w).max()) * np.float32(ratio / 7)))
                errors.append(np.square(np.clip(np.rint(w / scale), -7, 7) * scale - w).sum())
            error = np.square(got.values()[row, columns] - w).sum()
            assert error <= min(errors) * (1 + 1e-5), (row, group)


def test_zero_rows_stay_zero_and_tiny_weights_do_not_break_the_scale() -> None:
    weight = np.zeros((4, 64), np.float32)
    weight[1] = 1e-12  # below the least fp16 scale
    for form in FORMATS.values():
        values = nearest(weight, form, 32).values()
        assert np.isfinite(values).all()
        assert np.abs(values - weight).max() <= 1e-12


def test_gptq_spreads_the_error_over_correlated_inputs() -> None:
    """The output error on inputs like those of calibration is far below that of rounding to nearest."""
    random = np.random.default_rng(3)
    mix = random.standard_normal((12, 96)).astype(np.float32)  # inputs live in 12 dimensions of 96
    inputs = random.standard_normal((500, 12)).astype(np.float32) @ mix
    inputs += 0.05 * random.standard_normal(inputs.shape).astype(np.float32)
    weight = random.standard_normal((40, 96)).astype(np.float32)
    for name, gain in (("int4", 0.5), ("int8", 0.5), ("fp8", 0.5)):
        form = FORMATS[name]
        correction = Correction.of(inputs.T @ inputs)
        errors = [
            np.square(inputs @ (made.values() - weight).T).mean()
            for made in (nearest(weight, form, 32), gptq(weight, form, 32, correction))
        ]
        assert errors[1] < gain * errors[0], name


def test_gptq_of_independent_inputs_is_rounding_to_nearest() -> None:
    weight = np.random.default_rng(4).standard_normal((20, 70)).astype(np.float32)
    for form in FORMATS.values():
        plain, other = nearest(weight, form, 32), gptq(weight, form, 32, Correction.of(np.eye(70, dtype=np.float32)))
        assert np.array_equal(plain.q, other.q)
        assert np.array_equal(plain.scale, other.scale)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_writes_a_bundle_that_says_what_it_holds(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    source = Bundle.open(tiny_bundle, "test")
    recipe = Recipe.read(name).of_model(source.config)
    config = quantize(source, recipe, tmp_path / "out")
    made = Bundle.open(tmp_path / "out", "test")
    assert config == made.config
    assert config["quantization"]["recipe"] == name
    assert config["quantization"]["kv"] == "f16"
    planned = stored_bytes(source.config, recipe)
    for part in ("lm", "codec"):
        file = made.parts[part].file
        for tensor, shape in source.parts[part].shapes.items():
            rule = recipe.rule(tensor, shape)
            assert made.parts[part].is_packed(tensor) == (rule.weights != "float"), tensor
            before, after = source.parts[part].values(tensor), made.parts[part].values(tensor)
            if rule.weights == "float":
                assert np.array_equal(before, after), tensor
            else:
                # what the smallest scale tried clips of the largest weight of a row; E4M3 keeps 3 bits behind the first
                step = {"int8": 0.16, "int4": 0.36, "fp8": 1 / 15}[rule.weights]
                limit = step * np.abs(before).reshape(len(before), -1).max(axis=1)
                assert (np.abs(after - before).reshape(len(before), -1).max(axis=1) <= limit + 1e-9).all(), tensor
                stored = sum(info.nbytes for key, info in file.tensors.items() if key in (tensor, f"{tensor}_scale"))
                assert planned[tensor] == stored
        packed = [info for info in file.tensors.values() if len(info.shape) == 4]
        assert packed
        assert all(info.offset % 64 == 0 for info in packed)


@pytest.mark.parametrize(("kv", "error"), [("f16", 2e-3), ("int8", 5e-2)])
def test_a_smaller_cache_serves_and_comes_back_from_a_saved_state(
    kv: str, error: float, tiny_bundle: Path, tmp_path: Path
) -> None:
    quantize(
        Bundle.open(tiny_bundle, "test"),
        Recipe("mine", "the cache alone", (Rule("decoder.layers.*", "int8"),), kv=kv),
        tmp_path / "out",
    )
    floats, small, again = (_core.State(_core.Model.open(str(f))) for f in (tiny_bundle, *2 * [tmp_path / "out"]))
    model = _core.Model.open(str(tiny_bundle))
    prompt = model.prompt_text("".join(chr(97 + i % 26) for i in range(90)))
    for state in (floats, small):
        state.prefill(prompt)
    assert 0 < np.abs(small.hidden() - floats.hidden()).max() <= error * np.abs(floats.hidden()).max()
    again.restore(small.save())
    assert again.save() == small.save()
    for state in (again, small):
        state.prefill(prompt)
    assert np.array_equal(again.hidden(), small.hidden())


def test_quantizing_twice_is_refused_and_an_interrupted_run_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    put, count = SafetensorsWriter._put, 0

    def failing(self: SafetensorsWriter, data: bytes | memoryview) -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise OSError(28, "No space left on device")
        put(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsWriter, "_put", failing)
        with pytest.raises(InputError, match="the disk is full"):
            quantize(Bundle.open(tiny_bundle, "test"), Recipe.read("int8"), out)
    assert os.listdir(tmp_path) == []
    quantize(Bundle.open(tiny_bundle, "test"), Recipe.read("int8"), out)
    with pytest.raises(InputError, match="expected a bundle in floats"):
        quantize(Bundle.open(out, "test"), Recipe.read("int8"), tmp_path / "again")


def test_a_source_is_neither_replaced_by_what_is_made_of_it_nor_read_if_altered(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bundle, source)
    for out in (source, tmp_path):
        with pytest.raises(InputError, match="expected another folder"):
            quantize(Bundle.open(source, "test"), Recipe.read("int8"), out, overwrite=True)
    with open(source / "lm.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert main(["quantize", str(source), "-o", str(tmp_path / "q"), "--no-check", "--no-calibration"]) == 1
    assert re.search(r"lm.safetensors: expected sha256 \w{12}, got \w{12}", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["source"]


def test_a_rule_that_no_matrix_follows_is_told(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [{"tensors": "*", "weights": "int8"}, {"tensors": "model.layer.*", "weights": "int4"}]
    (tmp_path / "mine.json").write_text(json.dumps({"name": "mine", "about": "", "rules": rules}))
    words = ["quantize", str(tiny_bundle), "-o", str(tmp_path / "q"), "--recipe", str(tmp_path / "mine.json")]
    assert main([*words, "--no-check", "--no-calibration"]) == 0
    assert "follows: model.layer.*" in capsys.readouterr().err


def test_negative_layers_count_from_the_end() -> None:
    edge, config = Recipe.read("edge"), {"lm": {"num_hidden_layers": 12}}
    down = [edge.of_model(config).rule(f"model.layers.{i}.mlp.down_proj.weight", (8, 8)).weights for i in range(12)]
    assert down == ["int8", *["int4"] * 8, *["int8"] * 3]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "fields"),
        ('{"name": "x", "about": "", "rules": [{"tensors": "*", "weights": "int3"}]}', "int3"),
        ('{"name": "x", "about": "", "rules": [], "group": 48}', "group"),
        ('{"name": "x", "about": "", "rules": [], "kv": "f8"}', "kv"),
        ('{"name": "x", "about": "", "rules": [], "gates": {"beauty": 1}}', "beauty"),
        ('{"name": "x", "about": "", "rules": [], "gates": {"text_kl": NaN}}', "text_kl"),
        ('{"name": "x", "about": "", "rules": [], "gates": null}', "gates"),
        ('{"name": "x", "about": "", "rules": [], "smooth": "0.5"}', "smooth"),
        ('{"name": "x", "about": "", "rules": [], "group": 64.0}', "group"),
        ('{"name": 5, "about": "", "rules": []}', "name"),
        ('{"name": "x", "about": "", "rules": [{"tensors": 5, "weights": "int8"}]}', "tensors"),
        ('{"name": "x", "name": "y", "about": "", "rules": []}', "twice"),
        pytest.param("[" * 100000, "fields", id="deep"),
        ('{"name": "x", "about": "", "rules": [], "colour": 1}', "colour"),
        ('{"name": "x", "about": "", "rules": [{"tensors": "*", "weights": "int8", "activations": 4}]}', "activations"),
    ],
)
def test_a_recipe_that_means_nothing_is_refused(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError, match=what):
        Recipe.read(str(path))
    with pytest.raises(InputError, match="no_such_recipe"):
        Recipe.read("no_such_recipe")


def test_a_bundle_of_scales_keeps_its_names(tiny_bundle: Path, tmp_path: Path) -> None:
    """Prefixes of activation_bits name the 8-bit matrices and no other quantised one."""
    recipe = Recipe.read("int8a8")
    config = quantize(Bundle.open(tiny_bundle, "test"), recipe, tmp_path / "out")
    bits = config["quantization"]["activation_bits"]
    made = Bundle.open(tmp_path / "out", "test")
    names = [(part, name) for part in made.parts.values() for name in part.shapes if part.is_packed(name)]
    assert {8, 16} == {recipe.rule(name, part.shapes[name]).activations for part, name in names}
    for part, name in names:
        longest = max((prefix for prefix in bits if name.startswith(prefix)), key=len, default=None)
        got = 16 if longest is None else bits[longest]
        assert got == recipe.rule(name, part.shapes[name]).activations, name
    assert json.loads((tmp_path / "out" / "bundle.json").read_bytes()) == config
    assert SafetensorsFile(tmp_path / "out" / "lm.safetensors").tensors
