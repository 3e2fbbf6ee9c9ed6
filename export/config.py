"""The two released config.json files, read once into frozen dataclasses that check themselves.

Field names and defaults are upstream's: mimo_audio_tokenizer/configuration_audio_tokenizer.py (codec),
mimo_audio/modeling_mimo_audio.py MiMoAudioConfig over Qwen2Config (LM). An absent field takes the upstream default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mimo_edge.export.safetensors_io import input_error

ASR_ARCHITECTURE = "MiMoV2ASRForCausalLM"
MAX_POSITIONS = 8192  # where the reference ends a generation, prompt included; it reads no max_position_embeddings
_ARCHITECTURES = ("MiMoAudioForCausalLM", "MiMoAudioModel", ASR_ARCHITECTURE)

# Fields of the released configs that do not change what inference computes.
_METADATA = set(
    [
        "_name_or_path",
        "architectures",
        "auto_map",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)
_CODEC_METADATA = _METADATA | set(["scale_embedding", "threshold_ema_dead_code"])
_LM_METADATA = _METADATA | set(
    [
        "add_input_local_transformer",
        "add_speech_sosp_eosp",
        "attention_bias",
        "audio_config",
        "empty_loss_weight",
        "layer_types",
        "local_attn_dropout",
        "local_hidden_dropout",
        "local_rotary_base",
        "max_window_layers",
        "mlp_layers",
        "n_rvq",
        "no_speech_loss",
        "no_text_loss",
        "rope_parameters",
        "sliding_window",
        "trained",
    ]
)
_MISSING = object()


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """The codec: rates in Hz, sizes in samples, widths in channels; attention windows (left, right), -1 = no limit."""

    sampling_rate: int
    nfft: int
    window_size: int
    hop_length: int
    n_mels: int
    fmin: float
    fmax: float | None
    d_model: int
    kernel_size: int
    stride_size: int
    avg_pooler: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    encoder_skip_layer_id: int | None
    encoder_causal: bool
    encoder_attn_window_size: tuple[int, ...]
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    decoder_kernel_size: int
    decoder_stride_size: int
    decoder_causal: bool
    decoder_attn_window_size: tuple[int, ...]
    vocoder_dim: int
    vocoder_num_layers: int
    vocoder_attention_heads: int
    vocoder_intermediate_dim: int
    vocoder_attn_window_size: tuple[int, ...]
    vocoder_padding: str
    num_quantizers: int
    codebook_size: tuple[int, ...]
    rope_theta: float
    max_audio_seconds: float

    def __post_init__(self) -> None:
        check = _Checks(self, "codec config")
        check.positive(but=("fmin", "fmax", "encoder_skip_layer_id"))
        if not check.problems:
            check.that("nfft", self.nfft % 2 == 0, "an even number")
            check.that("window_size", self.window_size <= self.nfft, f"at most nfft ({self.nfft})")
            odd = (self.nfft - self.hop_length) % 2
            check.that("hop_length", self.hop_length <= self.nfft and not odd, "at most nfft, an even number below it")
            check.that("fmin", 0 <= self.fmin < self.sampling_rate / 2, "at least 0 and below half the sampling rate")
            check.that("fmax", self.fmax is None or self.fmin < self.fmax < math.inf, "null or more than fmin")
            check.that(
                "decoder_kernel_size",
                self.decoder_kernel_size >= self.decoder_stride_size,
                "at least decoder_stride_size",
            )
            same = self.decoder_stride_size == self.stride_size
            check.that("decoder_stride_size", same, f"stride_size ({self.stride_size})")
            skip = self.encoder_skip_layer_id
            check.that(
                "encoder_skip_layer_id", skip is None or 1 <= skip <= self.encoder_layers, "null or 1..encoder_layers"
            )
            check.that("vocoder_padding", self.vocoder_padding == "same", "'same'")
            check.heads("d_model", "encoder_attention_heads")
            check.heads("d_model", "decoder_attention_heads")
            check.heads("vocoder_dim", "vocoder_attention_heads")
            for name in ("encoder_attn_window_size", "decoder_attn_window_size", "vocoder_attn_window_size"):
                window = getattr(self, name)
                check.that(name, len(window) == 2 and min(window) >= -1, "two numbers [left, right], each -1 or more")
            sizes = self.codebook_size
            check.that(
                "codebook_size",
                len(sizes) == self.num_quantizers and min(sizes) > 0,
                f"{self.num_quantizers} positive sizes",
            )
        check.done()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as bundle.json holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class LmConfig:
    """The language model: backbone (Qwen2 names), patch encoder (input_local_*), patch decoder (local_*), codes."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    group_size: int
    audio_channels: int
    delay_pattern: tuple[int, ...]
    speech_vocab_size: tuple[int, ...]
    speech_zeroemb_idx: tuple[int, ...]
    local_dim: int
    local_layers: int
    local_attn_heads: int
    local_ffn_dim: int
    input_local_dim: int
    input_local_layers: int
    input_full_attention: bool

    def __post_init__(self) -> None:
        check = _Checks(self, "language model config")
        check.positive()
        if not check.problems:
            check.that("head_dim", self.head_dim % 2 == 0, "an even number")
            whole = self.num_attention_heads % self.num_key_value_heads == 0
            check.that("num_key_value_heads", whole, f"a divisor of num_attention_heads ({self.num_attention_heads})")
            check.heads("local_dim", "local_attn_heads")
            check.heads("input_local_dim", "local_attn_heads")
            for name in ("delay_pattern", "speech_vocab_size", "speech_zeroemb_idx"):
                values = getattr(self, name)
                good = len(values) == self.audio_channels and min(values) >= 0
                check.that(name, good, f"one number, or audio_channels ({self.audio_channels}) numbers")
        if not check.problems:
            inside = all(
                empty < size for empty, size in zip(self.speech_zeroemb_idx, self.speech_vocab_size, strict=True)
            )
            check.that("speech_zeroemb_idx", inside, f"ids below speech_vocab_size {self.speech_vocab_size}")
        check.done()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as bundle.json holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read_codec_config(raw: Mapping[str, Any]) -> tuple[CodecConfig, list[str]]:
    """Turn MiMo-Audio-Tokenizer's config.json into a CodecConfig and a list of warnings.

    Raises InputError listing every field with an unsupported value.
    """
    field = _Fields(raw, "codec config")
    field.only("activation_function", "gelu")
    field.only("ln_type", "LayerNorm")
    field.only("position_embedding_type", "rope")
    field.only("rope_type", "default")
    field.only("rope_scaling", None)
    num_quantizers = field.whole("num_quantizers", 12)
    values: dict[str, Any] = {
        "sampling_rate": field.whole("sampling_rate", 24000),
        "nfft": field.whole("nfft", 1024),
        "window_size": field.whole("window_size", 1024),
        "hop_length": field.whole("hop_length", 240),
        "n_mels": field.whole("n_mels", 80),
        "fmin": field.number("fmin", 0),
        "fmax": None if raw.get("fmax") is None else field.number("fmax", 0),
        "d_model": field.whole("d_model", 768),
        "kernel_size": field.whole("kernel_size", 3),
        "stride_size": field.whole("stride_size", 2),
        "avg_pooler": field.whole("avg_pooler", 1),
        "encoder_layers": field.whole("encoder_layers", 8),
        "encoder_attention_heads": field.whole("encoder_attention_heads", 12),
        "encoder_ffn_dim": field.whole("encoder_ffn_dim", 3072),
        "encoder_skip_layer_id": None
        if raw.get("encoder_skip_layer_id") is None
        else field.whole("encoder_skip_layer_id", 0),
        "encoder_causal": field.flag("encoder_causal", False),
        "encoder_attn_window_size": field.wholes("encoder_attn_window_size", (-1, -1)),
        "decoder_layers": field.whole("decoder_layers", 8),
        "decoder_attention_heads": field.whole("decoder_attention_heads", 12),
        "decoder_ffn_dim": field.whole("decoder_ffn_dim", 3072),
        "decoder_kernel_size": field.whole("decoder_kernel_size", 3),
        "decoder_stride_size": field.whole("decoder_stride_size", 2),
        "decoder_causal": field.flag("decoder_causal", True),
        "decoder_attn_window_size": field.wholes("decoder_attn_window_size", (-1, -1)),
        "vocoder_dim": field.whole("vocoder_dim", 512),
        "vocoder_num_layers": field.whole("vocoder_num_layers", 30),
        "vocoder_attention_heads": field.whole("vocoder_attention_heads", 4),
        "vocoder_intermediate_dim": field.whole("vocoder_intermediate_dim", 4096),
        "vocoder_attn_window_size": field.wholes("vocoder_attn_window_size", (40, 10)),
        "vocoder_padding": raw.get("vocoder_padding", "same"),
        "num_quantizers": num_quantizers,
        "codebook_size": _extended(field.wholes("codebook_size", (1024,), single=True), num_quantizers),
        "rope_theta": field.number("rope_theta", 10000),
        "max_audio_seconds": field.number("max_audio_seconds", 1800),
    }
    field.done()
    return CodecConfig(**values), field.warnings(_CODEC_METADATA | set(values))


def read_lm_config(raw: Mapping[str, Any]) -> tuple[LmConfig, list[str]]:
    """Turn the language model's config.json into an LmConfig and a list of warnings.

    Raises InputError listing every field with an unsupported value.
    """
    field = _Fields(raw, "language model config")
    field.only("hidden_act", "silu")
    field.only("rope_scaling", None)
    field.only("use_sliding_window", False)
    field.only("quantization_config", None)
    rope = raw.get("rope_parameters") or {}  # newer Hugging Face releases move rope_theta in here
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        field.problems.append(f"rope_parameters: expected rope_type 'default', got {rope!r}")
        rope = {}
    kinds = raw.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        field.problems.append(f"layer_types: expected 'full_attention' throughout, got {kinds!r}")
    channels = field.whole("audio_channels", 8)
    local_dim = field.whole("local_dim", 1024)
    released = {  # upstream MiMoAudioConfig's defaults
        "delay_pattern": "0-1-2-3-4-5-6-7",
        "speech_vocab_size": "1025-1025-129-129-129-129-129-129",
        "speech_zeroemb_idx": "1024-1024-128-128-128-128-128-128",
    }
    values: dict[str, Any] = {
        "hidden_size": field.whole("hidden_size"),
        "num_hidden_layers": field.whole("num_hidden_layers"),
        "num_attention_heads": field.whole("num_attention_heads"),
        "num_key_value_heads": field.whole("num_key_value_heads", 32),
        "head_dim": field.whole("head_dim", 128),
        "intermediate_size": field.whole("intermediate_size"),
        "vocab_size": field.whole("vocab_size"),
        "rope_theta": field.number("rope_theta", rope.get("rope_theta", 10000)),
        "rms_norm_eps": field.number("rms_norm_eps", 1e-6),
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": field.flag("tie_word_embeddings", False),
        "group_size": field.whole("group_size", 4),
        "audio_channels": channels,
        **{name: field.dashed(name, default, channels) for name, default in released.items()},
        "local_dim": local_dim,
        "local_layers": field.whole("local_layers", 16),
        "local_attn_heads": field.whole("local_attn_heads", 64),
        "local_ffn_dim": field.whole("local_ffn_dim", 4096),
        "input_local_dim": field.whole("input_local_dim", local_dim),
        "input_local_layers": field.whole("input_local_layers", 6),
        "input_full_attention": field.flag("input_full_attention", False),
    }
    field.done()
    warnings = field.warnings(_LM_METADATA | set(values))
    positions = raw.get("max_position_embeddings")
    if positions not in (None, MAX_POSITIONS):
        warnings.append(
            f"max_position_embeddings: {positions} is ignored; a conversation holds {MAX_POSITIONS} positions"
        )
    architecture = (raw.get("architectures") or [None])[0]
    if architecture not in _ARCHITECTURES:
        warnings.append(
            f"architectures: expected one of {', '.join(_ARCHITECTURES)}, got {architecture!r}; taken as MiMo-Audio"
        )
    theta = raw.get("local_rotary_base", values["rope_theta"])
    if theta != values["rope_theta"]:
        warnings.append(
            f"local_rotary_base: {theta} is ignored; all three transformers use rope_theta {values['rope_theta']}"
        )
    return LmConfig(**values), warnings


def check_pair(lm: LmConfig, codec: CodecConfig) -> None:
    """Raise InputError unless the language model can speak this codec's codes."""
    if lm.audio_channels > codec.num_quantizers:
        raise input_error(
            f"build: audio_channels: expected at most the codec's num_quantizers ({codec.num_quantizers}), "
            f"got {lm.audio_channels}; this codec does not belong to this language model"
        )
    for level, (empty, size) in enumerate(zip(lm.speech_zeroemb_idx, codec.codebook_size, strict=False)):
        if size > empty:
            raise input_error(
                f"build: speech_zeroemb_idx of level {level}: expected at least the codebook size {size}, got {empty}; "
                "this codec does not belong to this language model"
            )


def _extended(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Repeat the last codebook size for the levels left out, as upstream's ResidualVectorQuantization does."""
    return (sizes + sizes[-1:] * (count - len(sizes)))[: max(count, 0)]


class _Checks:
    """Collect what a config says that cannot be, and raise it as one InputError."""

    def __init__(self, config: CodecConfig | LmConfig, where: str) -> None:
        self.config, self.where = config, where
        self.problems: list[str] = []

    def that(self, name: str, good: bool, expected: str) -> None:
        if not good:
            self.problems.append(f"{name}: expected {expected}, got {getattr(self.config, name)!r}")

    def positive(self, but: tuple[str, ...] = ()) -> None:
        for name, value in asdict(self.config).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in but:
                self.that(name, math.isfinite(value) and value > 0, "a number above 0")

    def heads(self, width: str, heads: str) -> None:
        size, count = getattr(self.config, width), getattr(self.config, heads)
        self.that(
            heads, size % count == 0 and size // count % 2 == 0, f"to split {width} ({size}) into even head widths"
        )

    def done(self) -> None:
        if self.problems:
            raise input_error(f"build: {self.where}: {'; '.join(self.problems)}")


class _Fields:
    """Typed access to a config.json; collects every wrong type and unsupported value. null counts as absent."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where
        self.problems: list[str] = []
        self._only: set[str] = set()

    def _get(self, name: str, default: Any, kind: str) -> Any:
        value = self.raw.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            self.problems.append(f"{name}: expected {kind}, but it is absent")
            return 1
        return default

    def _wrong(self, name: str, kind: str, value: object) -> None:
        self.problems.append(f"{name}: expected {kind}, got {value!r}")

    def only(self, name: str, supported: object) -> None:
        self._only.add(name)
        value = self.raw.get(name)
        if value is not None and value != supported:
            self._wrong(name, f"{supported!r} (nothing else is supported)", value)

    def whole(self, name: str, default: Any = _MISSING) -> int:
        value = self._get(name, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            self._wrong(name, "a whole number", value)
            return 1
        return int(value)

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self._get(name, default, "a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._wrong(name, "a number", value)
            return 1.0
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default, "true or false")
        if not isinstance(value, bool):
            self._wrong(name, "true or false", value)
        return bool(value)

    def wholes(self, name: str, default: tuple[int, ...], single: bool = False) -> tuple[int, ...]:
        value = self._get(name, list(default), "a list of whole numbers")
        if single and isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if (
            not isinstance(value, list)
            or not value
            or any(isinstance(v, bool) or not isinstance(v, int) for v in value)
        ):
            self._wrong(name, "a list of whole numbers", value)
            return default
        return tuple(value)

    def dashed(self, name: str, default: str, count: int) -> tuple[int, ...]:
        """Read "a-b-c", of which the first `count` are used, or one number for all levels, as upstream does."""
        value = self._get(name, default, "numbers joined by '-'")
        parts = str(value).split("-") if isinstance(value, (str, int)) and not isinstance(value, bool) else [""]
        if not all(part.isascii() and part.isdigit() for part in parts):
            self._wrong(name, "a whole number or numbers joined by '-'", value)
            return (0,) * count
        numbers = tuple(int(part) for part in parts)
        return numbers[:count] if len(numbers) > 1 else numbers * count

    def warnings(self, known: set[str]) -> list[str]:
        unknown = sorted(set(self.raw) - known - self._only)
        return [f"{self.where}: unknown field {name} is ignored" for name in unknown]

    def done(self) -> None:
        if self.problems:
            raise input_error(f"build: {self.where}: {'; '.join(self.problems)}")
