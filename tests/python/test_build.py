"""mimo-edge build: released folders -> bundle. What is stored, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from mimo_edge import BundleError, InputError
from mimo_edge.export.bundle_writer import write_bundle
from mimo_edge.export.checkpoint import Checkpoint, RandomCheckpoint
from mimo_edge.export.cli import add_build_arguments, run_build
from mimo_edge.export.config import read_codec_config, read_lm_config
from mimo_edge.export.random_checkpoint import _SHAPE_7B, _SHAPE_SMALL
from mimo_edge.export.safetensors_io import (
    SafetensorsFile,
    SafetensorsWriter,
    bf16_to_f32,
    f32_to_bf16,
    nbytes_of,
    to_f32,
)
from mimo_edge.export.tensor_table import codec_tensors, count_parameters, lm_tensors
from mimo_edge.export.tokenizer import MIMO_TOKENS

GOLDENS = Path(__file__).parents[1] / "goldens"
Tensors = dict[str, tuple[str, np.ndarray[Any, Any]]]  # name -> safetensors dtype, values (BF16 as uint16 bits)


# --- a small checkpoint on disk, and ways to spoil it ----------------------------------------------------------------


def save(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file without the code under test."""
    header, data = {}, b""
    for name, (dtype, values) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + values.nbytes],
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@functools.cache
def small_random_checkpoint() -> RandomCheckpoint:
    return RandomCheckpoint("small", 5)


class Folders:
    """A released pair of folders in the making: change `configs` and `tensors`, then `write`."""

    def __init__(self, root: Path, dtype: str = "BF16") -> None:
        random = small_random_checkpoint()
        self.lm, self.codec = root / "lm", root / "codec"
        self.configs = {part: dict(_SHAPE_SMALL[part]) for part in ("lm", "codec")}
        self.tensors: dict[str, Tensors] = {"lm": {}, "codec": {}}
        for part, table in (("lm", random.lm_tensors), ("codec", random.codec_tensors)):
            for name in table:
                values = bf16_to_f32(random.read(name))
                self.tensors[part][name] = {
                    "BF16": ("BF16", random.read(name)),
                    "F32": ("F32", values),
                    "F16": ("F16", values.astype(np.float16)),
                }[dtype]
        codebook = "encoder.quantizer.vq.layers.0._codebook."
        self.tensors["codec"][codebook + "embed_avg"] = ("F32", np.full((64, 64), np.nan, np.float32))
        self.tensors["codec"][codebook + "inited"] = ("BOOL", np.ones(1, np.bool_))
        self.tensors["codec"]["decoder.vocoder.head.istft.window"] = ("F32", np.hanning(960).astype(np.float32))
        self.texts = {"tokenizer.json": random.tokenizer.json}
        self.settings: dict[str, Any] = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>"}}

    def write(self, shards: int = 1) -> Folders:
        for part, folder in (("lm", self.lm), ("codec", self.codec)):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(self.configs[part]))
            names = list(self.tensors[part])
            if shards == 1:
                save(folder / "model.safetensors", self.tensors[part])
                continue
            placed = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
            for shard in set(placed.values()):
                save(folder / shard, {name: self.tensors[part][name] for name in names if placed[name] == shard})
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
        for name, text in self.texts.items():
            (self.lm / name).write_bytes(text)
        (self.lm / "tokenizer_config.json").write_text(json.dumps(self.settings))
        return self

    def open(self) -> Checkpoint:
        return Checkpoint.open(self.lm, self.codec)

    def expected(self, part: str, name: str) -> np.ndarray[Any, Any]:
        """What a bundle must hold, as float32, in the layout written out here once more."""
        dtype, values = self.tensors[part][name]
        values = to_f32(values, dtype)
        if name in ("encoder.conv1.weight", "encoder.conv2.weight", "encoder.down_sample_layer.0.weight"):
            return values.transpose(0, 2, 1)
        if name in ("decoder.dconv1.conv.weight", "decoder.dconv2.conv.weight"):
            return values.transpose(2, 1, 0)
        return values


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def describe(bundle: Path) -> dict[str, Any]:
    description: dict[str, Any] = json.loads((bundle / "bundle.json").read_bytes())
    return description


def hashes(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


def refusal(call: Callable[[], object], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# --- what a bundle holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "dtype", "stored"),
    [
        ("BF16", "auto", "BF16"),
        ("F32", "auto", "F32"),
        ("F16", "auto", "F32"),
        ("BF16", "f32", "F32"),
        ("F32", "bf16", "BF16"),
        ("F16", "bf16", "BF16"),
    ],
)
def test_every_tensor_arrives(tmp_path: Path, source: str, dtype: str, stored: str) -> None:
    folders = Folders(tmp_path, source).write()
    write_bundle(folders.open(), tmp_path / "out", dtype=dtype)
    for part in ("lm", "codec"):
        file = SafetensorsFile(tmp_path / "out" / f"{part}.safetensors")
        kept = {name for name in folders.tensors[part] if not name.endswith(("embed_avg", "inited", "istft.window"))}
        assert set(file.tensors) == kept
        for name, info in file.tensors.items():
            expected = folders.expected(part, name)
            always = expected.ndim == 1 or name.endswith("_codebook.embed")
            assert info.dtype == ("F32" if always else stored), name
            if info.dtype == "BF16":
                np.testing.assert_array_equal(file.read(name), f32_to_bf16(expected), name)
            else:
                np.testing.assert_array_equal(file.read(name), expected, name)


def test_layout_of_a_file(folders: Folders, tmp_path: Path) -> None:
    write_bundle(folders.write().open(), tmp_path / "out")
    for part in ("lm", "codec"):
        path = tmp_path / "out" / f"{part}.safetensors"
        infos = list(SafetensorsFile(path).tensors.values())
        kinds = [info.dtype for info in infos]
        assert kinds == sorted(kinds, reverse=True)
        assert set(kinds) == {"F32", "BF16"}
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        assert infos[0].offset == 8 + length
        assert infos[0].offset % 64 == 0
        ends = [info.offset + info.nbytes for info in infos]
        assert [info.offset for info in infos[1:]] == ends[:-1]
        assert ends[-1] == path.stat().st_size
        table = folders.open().lm_tensors if part == "lm" else folders.open().codec_tensors
        for kind in ("F32", "BF16"):
            names = [info.name for info in infos if info.dtype == kind]
            assert names == sorted(names, key=list(table).index)


def test_bundle_json(folders: Folders, tmp_path: Path) -> None:
    write_bundle(folders.write().open(), tmp_path / "out")
    bundle = describe(tmp_path / "out")
    assert (bundle["format"], bundle["revision"], bundle["name"], bundle["variant"]) == (
        "mimo-edge bundle",
        1,
        "lm",
        "audio",
    )
    for name, file in bundle["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert bundle["codec"]["codebook_size"] == [64, 64] + [32] * 18
    assert bundle["lm"]["speech_vocab_size"] == [65, 65] + [33] * 6
    assert bundle["tokens"]["eos"] == bundle["tokens"]["pad"] == 256
    assert bundle["tokens"]["eot"] == bundle["tokens"]["sosp"] + 7
    weights = sum(
        math.prod(info.shape)
        for part in ("lm", "codec")
        for info in SafetensorsFile(tmp_path / "out" / f"{part}.safetensors").tensors.values()
    )
    assert sum(bundle["parameters"].values()) == weights
    source = folders.lm / "model.safetensors"
    assert bundle["provenance"]["lm"]["files"][source.name] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == folders.texts["tokenizer.json"]


def test_shards_make_the_same_bundle(tmp_path: Path) -> None:
    write_bundle(Folders(tmp_path / "one").write().open(), tmp_path / "a")
    write_bundle(Folders(tmp_path / "three").write(shards=3).open(), tmp_path / "b")
    for name in ("lm.safetensors", "codec.safetensors", "tokenizer.json"):
        assert hashes(tmp_path / "a")[name] == hashes(tmp_path / "b")[name]


def values(file: SafetensorsFile, name: str) -> np.ndarray[Any, Any]:
    """A tensor as float32, however it is stored."""
    return bf16_to_f32(file.read(name)) if file.tensors[name].dtype == "BF16" else file.read(name)


def test_golden_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(GOLDENS / "lm", GOLDENS / "tokenizer_model")
    assert checkpoint.warnings == [
        "max_position_embeddings: 1024 is ignored; a conversation holds 8192 positions"
    ]
    write_bundle(checkpoint, tmp_path / "out")
    for part, folder in (("lm", "lm"), ("codec", "tokenizer_model")):
        written = SafetensorsFile(tmp_path / "out" / f"{part}.safetensors")
        released = SafetensorsFile(GOLDENS / folder / "model.safetensors")
        for name in written.tensors:
            want = values(released, name)
            axes = {2: (0, 1), 3: (2, 1, 0) if ".dconv" in name else (0, 2, 1)}.get(want.ndim, (0,))
            np.testing.assert_array_equal(values(written, name), want.transpose(axes), name)
    tokens = describe(tmp_path / "out")["tokens"]
    ids = tokenizers.Tokenizer.from_file(str(GOLDENS / "lm" / "tokenizer.json"))
    assert tokens["eos"] == ids.token_to_id("<|endoftext|>")
    assert tokens["eostm"] == ids.token_to_id("<|eostm|>")


def test_optional_parts(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.configs["lm"] |= {"tie_word_embeddings": True, "input_local_dim": 32, "delay_pattern": 0}
    folders.configs["lm"] |= {"speech_zeroemb_idx": "64-64-32-32-32-32-32-32-7"}  # more than there are levels
    folders.tensors["lm"].pop("lm_head.weight")
    write_bundle(folders.write().open(), tmp_path / "out")
    assert "lm_head.weight" not in SafetensorsFile(tmp_path / "out" / "lm.safetensors").tensors
    lm = describe(tmp_path / "out")["lm"]
    assert lm["tie_word_embeddings"]
    assert lm["delay_pattern"] == [0] * 8
    assert lm["speech_zeroemb_idx"] == [64, 64] + [32] * 6


def test_stored_head_is_used_whatever_the_config_says(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.configs["lm"] |= {"tie_word_embeddings": True}
    write_bundle(folders.write().open(), tmp_path / "out")
    head = SafetensorsFile(tmp_path / "out" / "lm.safetensors").read("lm_head.weight")
    np.testing.assert_array_equal(head, folders.tensors["lm"]["lm_head.weight"][1])
    assert not describe(tmp_path / "out")["lm"]["tie_word_embeddings"]


def test_wider_patch_encoder_needs_its_projection() -> None:
    config, _ = read_lm_config(_SHAPE_SMALL["lm"] | {"input_local_dim": 64})
    assert lm_tensors(config)["speech_embeddings_to_local.weight"] == (32, 64)
    assert lm_tensors(config)["speech_group_downcast.weight"] == (64, 256)
    assert lm_tensors(config)["input_local_transformer.layers.0.mlp.down_proj.weight"] == (64, 256)
    assert "speech_embeddings_to_local.weight" not in lm_tensors(read_lm_config(_SHAPE_SMALL["lm"])[0])


def test_released_shape() -> None:
    """The published sizes: 7.62 B in the Qwen2 part, and the stacks the project's floor is computed from."""
    lm = lm_tensors(read_lm_config(_SHAPE_7B["lm"])[0])
    codec = codec_tensors(read_codec_config(_SHAPE_7B["codec"])[0])
    qwen2 = sum(math.prod(shape) for name, shape in lm.items() if name.startswith(("model.", "lm_head")))
    assert qwen2 == 7_622_619_136  # as published for MiMo-V2.5-ASR
    counts = {name: round(count / 1e6, 1) for name, count in count_parameters(lm | codec).items()}
    assert counts["backbone_layers"] == 6379.5
    assert (counts["patch_encoder"], counts["patch_decoder"]) == (100.7, 268.4)
    assert (counts["codec_encoder"], counts["codec_decoder"], counts["vocoder"]) == (629.1, 629.1, 12.6)


# --- configs ---------------------------------------------------------------------------------------------------------


def test_config_of_v25_asr_as_published(folders: Folders) -> None:
    folders.configs["lm"] |= {
        "architectures": ["MiMoV2ASRForCausalLM"],
        "add_input_local_transformer": True,
        "add_speech_sosp_eosp": False,
        "attention_bias": True,
        "dtype": "bfloat16",
        "empty_loss_weight": 0.01,
        "layer_types": ["full_attention"] * 3,
        "local_hidden_dropout": 0.1,
        "local_rotary_base": 640000,
        "mlp_layers": 1,
        "n_rvq": 20,
        "rope_scaling": None,
        "use_sliding_window": False,
        "audio_config": {"group_size": 4},
    }
    checkpoint = folders.write().open()
    assert checkpoint.variant == "asr"
    assert checkpoint.warnings == []


def test_absent_fields_take_upstream_defaults() -> None:
    sizes = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    ]
    config, _ = read_lm_config({name: _SHAPE_7B["lm"][name] for name in sizes})
    assert (config.head_dim, config.input_local_dim, config.local_layers) == (128, 1024, 16)
    assert config.input_full_attention is False
    assert config.tie_word_embeddings is False
    assert config.speech_zeroemb_idx == (1024, 1024) + (128,) * 6
    assert config.delay_pattern == tuple(range(8))
    codec, _ = read_codec_config({"avg_pooler": 2})
    assert (codec.vocoder_attn_window_size, codec.encoder_attn_window_size) == ((40, 10), (-1, -1))
    assert codec.codebook_size == (1024,) * 12
    assert codec.vocoder_num_layers == 30
    assert codec.fmax is None


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("lm", "hidden_act", "gelu"),
        ("lm", "rope_scaling", {"type": "yarn"}),
        ("lm", "use_sliding_window", True),
        ("lm", "layer_types", ["sliding_attention"]),
        ("lm", "rope_parameters", {"rope_type": "yarn"}),
        ("lm", "quantization_config", {"bits": 4}),
        ("lm", "hidden_size", "64"),
        ("lm", "hidden_size", None),
        ("lm", "hidden_size", 0),
        ("lm", "vocab_size", True),
        ("lm", "rms_norm_eps", float("nan")),
        ("lm", "num_key_value_heads", 3),
        ("lm", "head_dim", 15),
        ("lm", "local_attn_heads", 5),
        ("lm", "delay_pattern", "0-1-2"),
        ("lm", "delay_pattern", "0--1"),
        ("lm", "speech_vocab_size", [65]),
        ("lm", "speech_zeroemb_idx", "65-64-32-32-32-32-32-32"),
        ("lm", "input_full_attention", "true"),
        ("codec", "activation_function", "relu"),
        ("codec", "ln_type", "RMSNorm"),
        ("codec", "position_embedding_type", "sinusoidal"),
        ("codec", "rope_type", "linear"),
        ("codec", "vocoder_padding", "center"),
        ("codec", "window_size", 961),
        ("codec", "decoder_stride_size", 3),
        ("codec", "encoder_skip_layer_id", 5),
        ("codec", "encoder_attn_window_size", [-1]),
        ("codec", "vocoder_attn_window_size", [40, -2]),
        ("codec", "codebook_size", []),
        ("codec", "codebook_size", [64, 0]),
        ("codec", "fmin", 12000),
        ("codec", "hop_length", 241),
    ],
)
def test_unsupported_value_is_named(part: str, field: str, value: object) -> None:
    read = read_lm_config if part == "lm" else read_codec_config
    message = refusal(lambda: read(_SHAPE_SMALL[part] | {field: value}))
    assert f"{field}: expected" in message
    assert "\n" not in message


def test_all_wrong_values_in_one_message() -> None:
    message = refusal(lambda: read_lm_config(_SHAPE_SMALL["lm"] | {"hidden_act": "relu", "use_sliding_window": True}))
    assert "hidden_act: expected 'silu'" in message
    assert "use_sliding_window: expected False" in message


def test_unknown_fields_are_warnings(folders: Folders) -> None:
    folders.configs["lm"] |= {"brand_new": 1, "architectures": ["SomethingElse"], "local_rotary_base": 10000}
    warnings = " ".join(folders.write().open().warnings)
    assert all(word in warnings for word in ("brand_new", "SomethingElse", "local_rotary_base"))


def test_a_foreign_codec_is_refused(folders: Folders) -> None:
    folders.configs["codec"]["codebook_size"] = [128]
    assert "speech_zeroemb_idx of level 0" in refusal(folders.write().open)
    folders.configs["codec"]["num_quantizers"] = 4
    (folders.codec / "config.json").write_text(json.dumps(folders.configs["codec"]))
    assert "num_quantizers (4)" in refusal(folders.open)


# --- tensors and files that do not fit -------------------------------------------------------------------------------


def test_every_difference_is_listed(folders: Folders) -> None:
    lm, codec = folders.tensors["lm"], folders.tensors["codec"]
    del lm["model.norm.weight"], codec["encoder.conv1.bias"]
    lm["stray.weight"] = ("F32", np.zeros(3, np.float32))
    lm["lm_head.weight"] = ("BF16", np.zeros((320, 65), np.uint16))
    lm["model.embed_tokens.weight"] = ("I8", np.zeros((320, 64), np.int8))
    lines = refusal(folders.write().open).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        "model.embed_tokens.weight: expected F32, F16, BF16, got I8",
        "model.norm.weight: expected [64], but it is missing",
        "lm_head.weight: expected [320, 64], got [320, 65]",
        "stray.weight: unexpected tensor in lm",
        "encoder.conv1.bias: expected [64], but it is missing",
    ]


def test_a_tensor_in_two_shards_and_not_in_the_index_is_refused(folders: Folders) -> None:
    folders.write(shards=3)
    index = folders.lm / "model.safetensors.index.json"
    placed = json.loads(index.read_bytes())["weight_map"]
    first, second = sorted(set(placed.values()))[:2]
    both = next(name for name, shard in placed.items() if shard == first)
    names = [both, *(name for name, shard in placed.items() if shard == second)]
    save(folders.lm / second, {name: folders.tensors["lm"][name] for name in names})
    folders.open()  # the index says which
    del placed[both]
    index.write_text(json.dumps({"weight_map": placed}))
    assert f"{both} stands in two files" in refusal(folders.open)


def test_missing_and_truncated_files(folders: Folders) -> None:
    folders.write(shards=3)
    shard = folders.lm / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert "is truncated" in refusal(folders.open)
    shard.write_bytes(whole + b"\0")
    assert "does not describe" in refusal(folders.open)
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(folders.open)
    shard.write_bytes((folders.lm / "model-00001-of-00003.safetensors").read_bytes())
    assert "the index promises tensors its shards do not hold" in refusal(folders.open)
    (folders.lm / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    assert "plain file name" in refusal(folders.open)
    (folders.lm / "model.safetensors.index.json").unlink()
    assert "expected model.safetensors" in refusal(folders.open)
    (folders.codec / "config.json").write_text("{")
    assert "not valid JSON" in refusal(folders.open)
    (folders.codec / "config.json").unlink()
    assert "no such file" in refusal(folders.open)


def test_file_shortened_between_open_and_read(folders: Folders, tmp_path: Path) -> None:
    checkpoint = folders.write().open()
    with open(folders.codec / "model.safetensors", "r+b") as file:
        file.truncate(200_000)
    assert "became shorter" in refusal(lambda: write_bundle(checkpoint, tmp_path / "out"))


def broken_headers() -> dict[str, bytes]:
    def entry(**changes: object) -> dict[str, object]:
        return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes

    headers: dict[str, tuple[Any, int]] = {
        "unsupported dtype": ({"a": entry(dtype="F7")}, 8),
        "expected 8 bytes": ({"a": entry(data_offsets=[0, 4])}, 8),
        "overlaps": ({"a": entry(), "b": entry(data_offsets=[4, 12])}, 12),
        "hole": ({"a": entry(data_offsets=[4, 12])}, 12),
        "shape of whole numbers": ({"a": entry(shape=[-2])}, 8),
        "two data_offsets": ({"a": entry(data_offsets=[0])}, 8),
        "expected a JSON object": ([], 0),
    }
    texts = {words: (json.dumps(header).encode(), size) for words, (header, size) in headers.items()}
    texts["a name stands twice"] = (b'{"a":' + json.dumps(entry()).encode() + b',"a":1}', 8)
    texts["not valid JSON"] = (b"\xff{}", 0)
    files = {words: struct.pack("<Q", len(text)) + text + bytes(size) for words, (text, size) in texts.items()}
    return files | {"truncated": b"\x08", "expected a safetensors header": struct.pack("<Q", 1 << 60) + b"{}"}


@pytest.mark.parametrize(("words", "data"), broken_headers().items(), ids=broken_headers())
def test_broken_header(tmp_path: Path, words: str, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    assert words in refusal(lambda: SafetensorsFile(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_nan_or_infinity_is_refused_by_name(folders: Folders, tmp_path: Path, bits: int) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folders.tensors["lm"][name][1][5, 7] = bits
    message = refusal(lambda: write_bundle(folders.write().open(), tmp_path / "out"))
    assert message.startswith(f"build: {name}: expected finite weights")
    assert not (tmp_path / "out").exists()


def test_overflow_of_bf16_is_refused(tmp_path: Path) -> None:
    folders = Folders(tmp_path, "F32")
    folders.tensors["lm"]["lm_head.weight"][1][0, 0] = np.finfo(np.float32).max
    checkpoint = folders.write().open()
    write_bundle(checkpoint, tmp_path / "f32")
    message = refusal(lambda: write_bundle(checkpoint, tmp_path / "bf16", dtype="bf16"))
    assert "lm_head.weight" in message
    assert "--dtype f32" in message


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [22, 25])  # Qwen's own tokens; some of MiMo's as well
def test_missing_mimo_tokens_are_added_as_the_reference_does(folders: Folders, present: int) -> None:
    model = json.loads(folders.texts["tokenizer.json"])
    model["added_tokens"] = model["added_tokens"][:present]
    folders.texts["tokenizer.json"] = json.dumps(model).encode()
    reference = tokenizers.Tokenizer.from_str(json.dumps(model))
    for token in MIMO_TOKENS:
        if token not in reference.get_vocab():
            reference.add_special_tokens([token])
    ours = json.loads(folders.write().open().tokenizer.json)
    got = {token["content"]: token["id"] for token in ours["added_tokens"]}
    assert got == {token.content: number for number, token in reference.get_added_tokens_decoder().items()}
    assert all(token["special"] for token in ours["added_tokens"][present:])


def test_tokenizer_assembled_from_vocab_and_merges(folders: Folders) -> None:
    whole = json.loads(folders.texts.pop("tokenizer.json"))
    whole["model"]["merges"] = [["h", "e"], ["t", "he"]]
    whole["model"]["vocab"] |= {"he": 256, "the": 257}
    whole["added_tokens"] = [token | {"id": token["id"] + 2} for token in whole["added_tokens"]]
    folders.texts["vocab.json"] = json.dumps(whole["model"]["vocab"]).encode()
    folders.texts["merges.txt"] = b"#version: 0.2\nh e\nt he\n"
    folders.settings["added_tokens_decoder"] = {
        str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in whole["added_tokens"]
    }
    tokenizer = folders.write().open().tokenizer
    assert json.loads(tokenizer.json) == whole
    assert tokenizers.Tokenizer.from_str(tokenizer.json.decode()).encode("the<|eot|>").ids == [257, 287]
    folders.settings.pop("added_tokens_decoder")  # the older place for the same list comes next
    folders.settings["additional_special_tokens"] = [
        token["content"] for token in whole["added_tokens"] if token["special"]
    ]
    (folders.lm / "tokenizer_config.json").write_text(json.dumps(folders.settings))
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    (folders.lm / "added_tokens.json").write_text(json.dumps(added))
    assert json.loads(folders.open().tokenizer.json) == whole
    (folders.lm / "merges.txt").unlink()
    assert "vocab.json with merges.txt" in refusal(folders.open)


def test_golden_tokenizer_assembles_to_the_released_file(tmp_path: Path) -> None:
    for part in ("lm", "tokenizer_model"):
        shutil.copytree(GOLDENS / part, tmp_path / part, copy_function=shutil.copyfile)
    whole = (tmp_path / "lm" / "tokenizer.json").read_bytes()
    (tmp_path / "lm" / "tokenizer.json").unlink()
    assert json.loads(Checkpoint.open(tmp_path / "lm", tmp_path / "tokenizer_model").tokenizer.json) == json.loads(
        whole
    )


def test_end_tokens(folders: Folders) -> None:
    folders.settings = {}
    folders.configs["lm"] |= {"eos_token_id": [257, 9], "pad_token_id": None}
    checkpoint = folders.write().open()
    assert checkpoint.tokenizer.ids["eos"] == checkpoint.tokenizer.ids["pad"] == 257
    (folders.lm / "config.json").write_text(json.dumps(folders.configs["lm"] | {"eos_token_id": 320}))
    assert "expected ids below vocab_size (320), got 320 for 'eos'" in refusal(folders.open)
    (folders.lm / "config.json").write_text(json.dumps(folders.configs["lm"] | {"eos_token_id": None}))
    assert "expected eos_token" in refusal(folders.open)
    (folders.lm / "tokenizer.json").write_bytes(folders.texts["tokenizer.json"].replace(b"<|im_end|>", b"<|gone|>"))
    assert "expected the special tokens <|im_end|>" in refusal(folders.open)


def test_token_without_embedding_row_is_refused(folders: Folders) -> None:
    folders.texts["tokenizer.json"] = folders.texts["tokenizer.json"].replace(b'"id": 285', b'"id": 320')
    assert "expected ids below vocab_size (320), got 320" in refusal(folders.write().open)


# --- a failure leaves the disk as it was -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), BundleError, "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), BundleError, "could not be written"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_broken_off_build(
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    words: str | None,
    old: bool,
) -> None:
    out = tmp_path / "bundles" / "out"
    checkpoint = folders.write().open()
    if old:
        write_bundle(checkpoint, out)
    before = hashes(out) if old else {}
    put = SafetensorsWriter._put

    def failing(self: SafetensorsWriter, data: bytes | memoryview) -> None:
        if self.bytes > 200_000:
            raise error
        put(self, data)

    monkeypatch.setattr(SafetensorsWriter, "_put", failing)
    with pytest.raises(raised, match=words):
        write_bundle(checkpoint, out, overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == (["out"] if old else [])
    assert (hashes(out) if old else {}) == before


def test_old_bundle_returns_if_the_last_step_fails(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundles" / "out"
    write_bundle(folders.write().open(), out)
    before = hashes(out)
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if "partial" in source.name:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    refusal(lambda: write_bundle(folders.open(), out, overwrite=True), BundleError)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert hashes(out) == before


def test_targets(folders: Folders, tmp_path: Path) -> None:
    checkpoint = folders.write().open()
    out = tmp_path / "deep" / "out"
    write_bundle(checkpoint, out)
    assert "add --overwrite" in refusal(lambda: write_bundle(checkpoint, out))
    write_bundle(RandomCheckpoint("small"), out, overwrite=True)
    assert describe(out)["name"] == "random-small-seed0"
    empty = tmp_path / "empty"
    empty.mkdir()
    write_bundle(checkpoint, empty)
    # never a folder that is no bundle, not even with overwrite
    assert "no bundle" in refusal(lambda: write_bundle(checkpoint, folders.lm, overwrite=True))
    (tmp_path / "file").write_text("")
    assert "no bundle" in refusal(lambda: write_bundle(checkpoint, tmp_path / "file", overwrite=True))
    assert "could not be written" in refusal(lambda: write_bundle(checkpoint, tmp_path / "file" / "out"), BundleError)
    assert "dtype: expected auto, bf16, f32, got 'int4'" in refusal(
        lambda: write_bundle(checkpoint, tmp_path / "x", dtype="int4")
    )


def test_free_space_is_checked_first(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    message = refusal(lambda: write_bundle(folders.write().open(), tmp_path / "out"), BundleError)
    assert "GB free on this disk, got 0.00 GB" in message
    assert not (tmp_path / "out").exists()


# --- size and progress -----------------------------------------------------------------------------------------------


def test_memory_stays_below_one_tensor(tmp_path: Path) -> None:
    """Eight tensors of 64 MiB, as holes in a sparse file: the build may not even hold one of them."""
    shape = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 3, "head_dim": 16}
    folders = Folders(tmp_path)
    folders.configs["lm"] |= shape
    table = lm_tensors(read_lm_config(folders.configs["lm"])[0])
    assert sum(nbytes_of("BF16", shape) == 64 << 20 for shape in table.values()) == 9
    folders.tensors["lm"] = {}
    folders.write()
    with SafetensorsWriter(tmp_path / "empty", [(name, "BF16", (0,)) for name in table]):
        pass
    offset, header = 0, {}
    for name, dims in table.items():
        end = offset + nbytes_of("BF16", dims)
        header[name], offset = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, end]}, end
    text = json.dumps(header).encode()
    with open(folders.lm / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    tracemalloc.start()
    try:
        write_bundle(folders.open(), tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20, f"{peak / 2**20:.0f} MiB"
    assert (tmp_path / "out" / "lm.safetensors").stat().st_size > 9 * (64 << 20)


def test_progress_reaches_its_total(folders: Folders, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_bundle(
        folders.write().open(), tmp_path / "out", progress=lambda done, total, name: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


def test_random_checkpoint_is_its_seed(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    first, again, other = RandomCheckpoint("small", 1), RandomCheckpoint("small", 1), RandomCheckpoint("small", 2)
    np.testing.assert_array_equal(first.read(name), again.read(name))
    assert (first.read(name) != other.read(name)).mean() > 0.9
    np.testing.assert_array_equal(first.read(name)[7:30], first.rows(name, 7, 30))
    spread = bf16_to_f32(first.read(name)).std()
    assert 0.5 < spread * math.sqrt(128) < 1.5
    assert abs(bf16_to_f32(first.read("model.norm.weight")).mean() - 1) < 0.1


def test_random_tokenizer_loads_elsewhere() -> None:
    loaded = tokenizers.Tokenizer.from_str(RandomCheckpoint("small").tokenizer.json.decode())
    ids = loaded.encode("héllo<|eot|>").ids
    assert len(ids) == 7
    assert max(ids[:-1]) < 256
    assert loaded.decode(ids, skip_special_tokens=False) == "héllo<|eot|>"


def test_random_tokens_stand_at_the_released_ids() -> None:
    checkpoint = RandomCheckpoint("7b")
    released = {"eos": 151643, "pad": 151643, "im_start": 151644, "im_end": 151645, "sosp": 151665, "eosp": 151666}
    assert checkpoint.tokenizer.ids == released | {"empty": 151667, "sostm": 151670, "eostm": 151671, "eot": 151672}
    vocab = json.loads(checkpoint.tokenizer.json)["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(151643))


def test_command_line(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_build_arguments(parser)
    folders.configs["lm"]["brand_new"] = 1
    folders.write()
    out = tmp_path / "out"
    assert run_build(parser.parse_args([str(folders.lm), "--codec", str(folders.codec), "-o", str(out)])) == 0
    printed = capsys.readouterr()
    total = sum(file.stat().st_size for file in out.iterdir() if file.name != "bundle.json")
    assert f"4 files, {total:,} bytes" in printed.out
    assert "brand_new" in printed.err
    assert run_build(parser.parse_args(["--random", "small", "-o", str(out), "--overwrite", "--seed", "3"])) == 0
    assert describe(out)["name"] == "random-small-seed3"
    for arguments in (
        ["--random", "9b"],
        ["--random", "small", "--seed", "-1"],
        [str(folders.lm)],
        ["--random", "7b", "--codec", "x"],
        [],
    ):
        refusal(lambda arguments=arguments: run_build(parser.parse_args([*arguments, "-o", str(out)])))  # type: ignore[misc]


# --- conversions -----------------------------------------------------------------------------------------------------


def nearest_bf16(value: float) -> int:
    """Round by exact arithmetic: the twin f32_to_bf16 is held against. value: a finite float32."""
    low = (
        int(struct.unpack("<I", struct.pack("<f", value))[0]) >> 16
    )  # towards zero; the other neighbour is one pattern away from zero
    exact = Fraction(value)

    def magnitude(pattern: int) -> Fraction:
        if pattern & 0x7FFF == 0x7F80:  # the pattern after the largest stands for 2**128 when rounding
            return Fraction(2) ** 128
        return abs(Fraction(struct.unpack("<f", struct.pack("<I", pattern << 16))[0]))

    below, above = abs(exact) - magnitude(low), magnitude(low + 1) - abs(exact)
    return low if below < above or (below == above and low % 2 == 0) else low + 1


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(3.3895313892515355e38)  # the largest BF16
@example(3.4028234663852886e38)  # the largest float32: becomes infinity
@example(1.00390625)  # a tie, to even below
@example(1.01171875)  # a tie, to even above
@example(1e-45)
@example(-0.0)
def test_bf16_rounds_to_nearest_even(value: float) -> None:
    assert int(f32_to_bf16(np.array([value], np.float32))[0]) == nearest_bf16(value)


def test_every_bf16_pattern_survives() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = bf16_to_f32(bits)
    nan = np.isnan(wide)
    assert int(nan.sum()) == 2 * 127
    np.testing.assert_array_equal(f32_to_bf16(wide)[~nan], bits[~nan])
    assert np.isnan(bf16_to_f32(f32_to_bf16(wide)[nan])).all()


def test_nan_with_a_low_payload_stays_nan() -> None:
    values = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(bf16_to_f32(f32_to_bf16(values))).all()


def test_every_f16_pattern_widens_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = [struct.unpack("<e", struct.pack("<H", pattern))[0] for pattern in range(1 << 16)]
    np.testing.assert_array_equal(to_f32(bits.view(np.float16), "F16"), np.array(expected, np.float32))


# --- the streaming writer --------------------------------------------------------------------------------------------


def test_writer_holds_its_caller_to_the_header(tmp_path: Path) -> None:
    rows = np.zeros((2, 3), np.float32)

    def attempt(name: str, *blocks: tuple[str, Any]) -> None:
        with SafetensorsWriter(
            tmp_path / name, [("e", "F32", (0, 3)), ("a", "F32", (4, 3)), ("b", "I8", ())]
        ) as writer:
            for tensor, block in blocks:
                writer.write(tensor, block)

    attempt("good", ("a", rows), ("a", rows), ("b", np.array(7, np.int8)))
    file = SafetensorsFile(tmp_path / "good")
    assert file.read("e").shape == (0, 3)
    assert file.read("b").shape == ()
    assert int(file.read("b")) == 7
    wrong: dict[str, list[tuple[str, Any]]] = {
        "early": [("b", np.zeros(1, np.int8))],
        "long": [("a", rows)] * 3,
        "short": [("a", rows)],
        "dtype": [("a", rows.astype(np.float64))],
    }
    for name, blocks in wrong.items():
        with pytest.raises(ValueError, match="write:"):
            attempt(name, *blocks)
