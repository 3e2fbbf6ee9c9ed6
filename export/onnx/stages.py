"""The five stages that become graphs: weights, module, inputs and outputs by name.

`Stage.inputs` gives name -> (shape, dtype); a name in a shape is a dynamic axis. Dtype FLOAT stands for the dtype of
the export; the text of `about` goes into the graph's metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mimo_edge.export.bundle import Part
from mimo_edge.export.onnx import lm
from mimo_edge.export.onnx.codec import CodecDecoder, CodecEncoder, decoder_tables
from mimo_edge.export.onnx.ops import Ops
from mimo_edge.export.onnx.weights import Weight, bundle_weights
from mimo_edge.export.reference import SEGMENT_MEL_FRAMES

FLOAT = "FLOAT"
PIECE_CODE_FRAMES = 1500  # decoded at once by the reference, app:1144
Port = tuple[tuple[int | str, ...], str]  # shape, dtype


@dataclass(frozen=True, slots=True)
class Stage:
    """One graph to be made.

    caches: (before, after) names, which a runtime binds to the same buffers. limits: the most of a dynamic axis.
    ignored: inputs of the module that the graph of this flavour lacks.
    """

    name: str
    weights: list[Weight]
    module: Callable[[Ops], nn.Module]
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    caches: list[tuple[str, str]]
    limits: dict[str, int]
    ignored: tuple[str, ...] = ()

    def of(self, flavour: str) -> Stage:
        """The stage as that flavour has it: see "cpu" in ops.py."""
        if flavour != "cpu":
            return self
        width = Ops(flavour).cache_width

        def ports(of: dict[str, Port]) -> dict[str, Port]:
            caches = {name for pair in self.caches for name in pair}
            return {n: ((*s[:-1], width(int(s[-1]))), d) if n in caches else (s, d) for n, (s, d) in of.items()}

        return replace(self, inputs=ports(self.inputs), outputs=ports(self.outputs), ignored=("mask",))


def stages(config: dict[str, Any], codec: Part, lm_file: Part, dtype: str) -> list[Stage]:
    """Describe the graphs of a bundle. dtype: F32, F16 or BF16."""
    return [
        _codec_encoder(config, codec, dtype),
        _codec_decoder(config["codec"], codec, dtype),
        _patch_encoder(config, lm_file, dtype),
        _backbone(config, lm_file, dtype),
        _patch_decoder_step(config, lm_file, dtype),
    ]


def _codec_encoder(config: dict[str, Any], file: Part, dtype: str) -> Stage:
    c = config["codec"]
    weights = bundle_weights(file, ["encoder."], dtype)
    return Stage(
        "codec_encoder",
        weights,
        lambda ops: CodecEncoder(c, ops, weights),
        {"mel": (("mel_frames", c["n_mels"]), "F32"), "padded": ((1,), "F32"), "batched": ((1,), "F32")},
        {"hidden": (("code_frames", c["d_model"]), "F32"), "codes": ((c["num_quantizers"], "code_frames"), "I32")},
        [],
        {"mel_frames": SEGMENT_MEL_FRAMES[config["variant"]]},
    )


def _codec_decoder(c: dict[str, Any], file: Part, dtype: str) -> Stage:
    books = [file.values(name) for name in file.shapes if name.endswith("._codebook.embed")]
    weights = bundle_weights(file, ["decoder."], dtype) + decoder_tables(c, books)
    return Stage(
        "codec_decoder",
        weights,
        lambda ops: CodecDecoder(c, ops, weights),
        {"codes": (("levels", "code_frames"), "I32")},
        {"wav": (("samples",), "F32")},
        [],
        {"levels": c["num_quantizers"], "code_frames": PIECE_CODE_FRAMES},
    )


def _patch_encoder(config: dict[str, Any], file: Part, dtype: str) -> Stage:
    c, shape = config["lm"], lm.patch_encoder_shape(config["lm"])
    prefixes = ["speech_embeddings.", "input_local_transformer.", "speech_group_downcast.", "model.embed_tokens."]
    weights = bundle_weights(file, prefixes, dtype) + shape.tables(dtype)
    return Stage(
        "patch_encoder",
        weights,
        lambda ops: lm.PatchEncoder(c, ops, weights, shape, config["tokens"]["empty"]),
        {"tokens": (("positions",), "I32"), "codes": ((c["audio_channels"], "positions", c["group_size"]), "I32")},
        {"embeds": ((1, "positions", c["hidden_size"]), FLOAT)},
        [],
        {"positions": c["max_position_embeddings"]},
    )


def _backbone(config: dict[str, Any], file: Part, dtype: str) -> Stage:
    c, shape = config["lm"], lm.backbone_shape(config["lm"])
    head = "model.embed_tokens." if c["tie_word_embeddings"] else "lm_head."
    weights = bundle_weights(file, ["model.layers.", "model.norm.", head, "hidden_states_downcast."], dtype)
    weights += shape.tables(dtype)
    inputs: dict[str, Port] = {
        "embeds": ((1, "positions", c["hidden_size"]), FLOAT),
        "length": ((1,), "I64"),
        "mask": ((1, 1, "positions", "attended"), FLOAT),
    }
    outputs: dict[str, Port] = {
        "logits": ((1, c["vocab_size"]), "F32"),
        "local_hidden": ((1, c["local_dim"]), FLOAT),
        "hidden": ((1, "positions", c["hidden_size"]), FLOAT),
    }
    stage = Stage(
        "backbone",
        weights,
        lambda ops: lm.Backbone(c, ops, weights, shape, config["tokens"]["empty"]),
        inputs,
        outputs,
        [],
        {},
    )
    return _with_cache(stage, shape)


def _patch_decoder_step(config: dict[str, Any], file: Part, dtype: str) -> Stage:
    c, shape = config["lm"], lm.patch_decoder_shape(config["lm"])
    prefixes = ["local_transformer.", "local_transformer_lm_heads.", "speech_embeddings"]  # and .._to_local
    weights = bundle_weights(file, prefixes, dtype) + shape.tables(dtype)
    inputs: dict[str, Port] = {
        "start": ((1, c["local_dim"]), FLOAT),
        "codes": ((c["audio_channels"],), "I32"),
        "length": ((1,), "I64"),
        "mask": ((1, 1, 1, "attended"), FLOAT),
    }
    outputs: dict[str, Port] = {"hidden": ((1, c["local_dim"]), FLOAT)}
    outputs |= {f"logits.{k}": ((1, size), "F32") for k, size in enumerate(c["speech_vocab_size"])}
    stage = Stage(
        "patch_decoder_step",
        weights,
        lambda ops: lm.PatchDecoderStep(c, ops, weights, shape, config["tokens"]["empty"]),
        inputs,
        outputs,
        [],
        {},
    )
    return _with_cache(stage, shape)


def _with_cache(stage: Stage, shape: lm.StackShape) -> Stage:
    """The stage with the keys and values of its layers as inputs, and as outputs that a runtime binds to them."""
    cache: Port = ((1, shape.kv_heads, "capacity", shape.head_dim), FLOAT)
    before = [f"{kind}.{layer}" for layer in range(shape.layers) for kind in ("key", "value")]
    after = [f"{name}.after" for name in before]
    return replace(
        stage,
        inputs=stage.inputs | dict.fromkeys(before, cache),
        outputs=stage.outputs | dict.fromkeys(after, cache),
        caches=list(zip(before, after, strict=True)),
        limits={"capacity": shape.positions},
    )
