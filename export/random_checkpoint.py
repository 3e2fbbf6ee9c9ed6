"""A checkpoint of random weights with a released shape: to measure speed and memory without downloading anything.

Weights are windows of one pool of normal BF16 values, scaled by powers of two (a subtraction in the exponent bits), so
the 18 GB of the full model are made as fast as a disk takes them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge.export.config import check_pair, read_codec_config, read_lm_config
from mimo_edge.export.safetensors_io import Array, f32_to_bf16, input_error
from mimo_edge.export.tensor_table import codec_tensors, lm_tensors
from mimo_edge.export.tokenizer import byte_level_tokenizer, read_json

_POOL_VALUES = (1 << 22) - 3  # prime, so that repeats of the pool never line up with the rows of a matrix

# The released configs: MiMo-Audio-7B-Instruct with MiMo-Audio-Tokenizer (shared/design/MODEL_FACTS.md).
_SHAPE_7B: dict[str, dict[str, Any]] = {
    "lm": {
        "architectures": ["MiMoAudioForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 11008,
        "vocab_size": 151680,
        "rope_theta": 640000,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "input_full_attention": True,
    },
    "codec": {
        "nfft": 960,
        "window_size": 960,
        "n_mels": 128,
        "d_model": 1280,
        "avg_pooler": 2,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "encoder_skip_layer_id": 3,
        "decoder_layers": 32,
        "decoder_attention_heads": 20,
        "decoder_ffn_dim": 5120,
        "vocoder_dim": 256,
        "vocoder_num_layers": 16,
        "vocoder_attention_heads": 16,
        "vocoder_intermediate_dim": 1024,
        "num_quantizers": 20,
        "codebook_size": [1024, 1024, 128],
    },
}
_SHAPE_SMALL: dict[str, dict[str, Any]] = {  # the same architecture, a few hundred thousand weights
    "lm": _SHAPE_7B["lm"]
    | {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 320,
        "local_dim": 32,
        "local_layers": 2,
        "local_attn_heads": 4,
        "local_ffn_dim": 64,
        "input_local_layers": 2,
        "speech_vocab_size": "65-65-33-33-33-33-33-33",
        "speech_zeroemb_idx": "64-64-32-32-32-32-32-32",
    },
    "codec": _SHAPE_7B["codec"]
    | {
        "d_model": 64,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_layers": 4,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
        "vocoder_dim": 32,
        "vocoder_num_layers": 3,
        "vocoder_attention_heads": 4,
        "vocoder_intermediate_dim": 64,
        "codebook_size": [64, 64, 32],
    },
}
# The special tokens of the release from <|endoftext|> (151643 there) on, in order of their ids.
_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|sosp|>",
    "<|eosp|>",
    "<|empty|>",
    "<|Human|>",
    "<|SpeechLM|>",
    "<|sostm|>",
    "<|eostm|>",
    "<|eot|>",
]
_RELEASED_FIRST_SPECIAL = 151643


class RandomCheckpoint:
    """The interface of Checkpoint over random BF16 weights, the same for the same seed.

    shape: "7b", "small", a folder with lm/config.json and codec/config.json, or {"lm": config, "codec": config}.
    """

    def __init__(self, shape: str | Path | Mapping[str, Mapping[str, Any]], seed: int = 0) -> None:
        if seed < 0:
            raise input_error(f"build: seed: expected 0 or more, got {seed}")
        configs = _configs(shape)
        self.lm, lm_warnings = read_lm_config(configs["lm"])
        self.codec, codec_warnings = read_codec_config(configs["codec"])
        check_pair(self.lm, self.codec)
        self.warnings = lm_warnings + codec_warnings
        label = shape if isinstance(shape, str) else shape.name if isinstance(shape, Path) else "custom"
        self.name = f"random-{Path(label).name}-seed{seed}"
        self.variant, self.trained = "audio", False
        self.lm_tensors = lm_tensors(self.lm)
        self.codec_tensors = codec_tensors(self.codec)
        released = self.lm.vocab_size >= _RELEASED_FIRST_SPECIAL + len(_SPECIALS)
        first_special = _RELEASED_FIRST_SPECIAL if released else 256
        self.tokenizer = byte_level_tokenizer(self.lm.vocab_size, first_special, _SPECIALS)
        self.source_files: dict[str, list[Path]] = {"lm": [], "codec": []}
        self.source_folders = {"lm": self.name, "codec": self.name}
        self._seed = seed
        self._pool = f32_to_bf16(np.random.default_rng(seed).standard_normal(_POOL_VALUES, np.float32))

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor: always BF16, as released."""
        return "BF16"

    def read(self, name: str) -> Array:
        """Return a whole tensor as BF16 bits (uint16)."""
        return self.rows(name, 0, self._shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of the first axis as BF16 bits (uint16)."""
        shape = self._shape(name)
        row = math.prod(shape[1:])
        first = (zlib.crc32(name.encode(), self._seed & 0xFFFFFFFF) + start * row) % _POOL_VALUES
        flat = np.empty((stop - start) * row, np.uint16)
        done = 0
        while done < flat.size:
            piece = self._pool[first : first + flat.size - done]
            flat[done : done + piece.size] = piece
            done += piece.size
            first = 0
        return _scaled(name, shape, flat).reshape((stop - start, *shape[1:]))

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.lm_tensors[name] if name in self.lm_tensors else self.codec_tensors[name]


def released_config() -> dict[str, Any]:
    """The sizes of the released 7B and its codec, as bundle.json holds them."""
    configs = _configs("7b")
    return {"lm": read_lm_config(configs["lm"])[0].as_json(), "codec": read_codec_config(configs["codec"])[0].as_json()}


def _configs(shape: str | Path | Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(shape, Mapping):
        return shape
    named = {"7b": _SHAPE_7B, "small": _SHAPE_SMALL}.get(str(shape))
    return named or {part: read_json(Path(shape) / part / "config.json") for part in ("lm", "codec")}


def _scaled(name: str, shape: tuple[int, ...], normal: Array) -> Array:
    """Give normal BF16 values the spread of a trained tensor: norms about 1, biases small, matrices 1/sqrt(inputs)."""
    if len(shape) == 1:
        values = np.left_shift(normal, 16, dtype=np.uint32).view(np.float32) * np.float32(0.05)
        return f32_to_bf16(values + np.float32("norm" in name and name.endswith("weight")))
    keeps_unit = name.endswith(".embed") or "embed_tokens" in name
    halvings = 0 if keeps_unit else round(math.log2(math.prod(shape[1:])) / 2)
    scaled: Array = normal - np.uint16(halvings << 7)  # bits 7..14 of BF16 are the exponent
    small = (normal & 0x7F80) <= (halvings << 7)  # too small to scale so: zero
    if small.any():
        scaled[small] = 0
    return scaled
