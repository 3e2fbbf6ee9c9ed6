"""The tensors a model consists of: released name -> released shape, in order of flow, computed from the configs.

Linear [out, in], Conv1d [out, in, k], ConvTranspose1d [in, out, k] as released; a bundle stores convolutions with the
input channels innermost ([out, k, in] and [k, out, in]), so that one tap of a filter is a row of a matrix.
Source: the state_dict of MiMoAudioTokenizer and MiMoAudioForCausalLM in the public reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mimo_edge.export.config import CodecConfig, LmConfig
from mimo_edge.export.safetensors_io import Array

Shapes = dict[str, tuple[int, ...]]

# Training statistics and derived buffers that released files may carry; a bundle does without.
IGNORED = re.compile(r"(\.embed_avg|\.cluster_size|\.inited|\.istft\.window|\.inv_freq)$")
_CODEBOOK = re.compile(r"\._codebook\.embed$")
_TRANSPOSED_CONV = re.compile(r"\.dconv\d\.conv\.weight$")


def codec_tensors(config: CodecConfig) -> Shapes:
    """List the codec's tensors, encoder first."""
    d, mels = config.d_model, config.n_mels
    table: Shapes = {
        "encoder.conv1.weight": (d, mels, config.kernel_size),
        "encoder.conv1.bias": (d,),
        "encoder.conv2.weight": (d, d, config.kernel_size),
        "encoder.conv2.bias": (d,),
    }
    for i in range(config.encoder_layers):
        table |= _codec_layer(f"encoder.layers.{i}", d, config.encoder_ffn_dim)
    table |= _layer_norm("encoder.layer_norm", d)
    if config.avg_pooler > 1:
        table["encoder.down_sample_layer.0.weight"] = (d, d, config.avg_pooler)
        table |= _layer_norm("encoder.down_sample_norm", d)
    for i, size in enumerate(config.codebook_size):
        table[f"encoder.quantizer.vq.layers.{i}._codebook.embed"] = (size, d)
    if config.avg_pooler > 1:
        table["decoder.dconv1.conv.weight"] = (d, d, config.avg_pooler)
        table["decoder.dconv1.conv.bias"] = (d,)
        table |= _layer_norm("decoder.dconv1.norm", d)
    for i in range(config.decoder_layers):
        table |= _codec_layer(f"decoder.layers.{i}", d, config.decoder_ffn_dim)
    table |= _layer_norm("decoder.layer_norm", d)
    table["decoder.dconv2.conv.weight"] = (d, mels, config.decoder_kernel_size)
    table["decoder.dconv2.conv.bias"] = (mels,)
    table |= _layer_norm("decoder.dconv2.norm", mels)
    table["decoder.vocoder.embeddings.weight"] = (config.vocoder_dim, mels)
    for i in range(config.vocoder_num_layers):
        table |= _codec_layer(f"decoder.vocoder.layers.{i}", config.vocoder_dim, config.vocoder_intermediate_dim)
    table |= _layer_norm("decoder.vocoder.layer_norm", config.vocoder_dim)
    table |= _linear("decoder.vocoder.head.out", config.nfft + 2, config.vocoder_dim, bias=True)
    return table


def lm_tensors(config: LmConfig) -> Shapes:
    """List the language model's tensors: patch encoder, backbone, patch decoder."""
    d, width, local = config.hidden_size, config.input_local_dim, config.local_dim
    table: Shapes = {}
    for i, size in enumerate(config.speech_vocab_size):
        table[f"speech_embeddings.{i}.weight"] = (size, width)
    for i in range(config.input_local_layers):
        table |= _lm_layer(f"input_local_transformer.layers.{i}", width, width, width, 4 * width)
    table["input_local_transformer.norm.weight"] = (width,)
    table["speech_group_downcast.weight"] = (d, config.group_size * width)
    table["model.embed_tokens.weight"] = (config.vocab_size, d)
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for i in range(config.num_hidden_layers):
        table |= _lm_layer(f"model.layers.{i}", d, queries, keys, config.intermediate_size)
    table["model.norm.weight"] = (d,)
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = (config.vocab_size, d)
    table["hidden_states_downcast.weight"] = (local, d)
    if width != local:
        table["speech_embeddings_to_local.weight"] = (local, width)
    for i in range(config.local_layers):
        table |= _lm_layer(f"local_transformer.layers.{i}", local, local, local, config.local_ffn_dim)
    table["local_transformer.norm.weight"] = (local,)
    for i, size in enumerate(config.speech_vocab_size):
        table[f"local_transformer_lm_heads.{i}.weight"] = (size, local)
    return table


def stays_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor is F32 in every bundle: norms, biases, codebooks (distances are sensitive to rounding)."""
    return len(shape) <= 1 or _CODEBOOK.search(name) is not None


def is_transposed_conv(name: str) -> bool:
    """Tell whether a tensor is stored tap by tap, [k, out, in]."""
    return _TRANSPOSED_CONV.search(name) is not None


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape a bundle stores for a released shape."""
    return tuple(shape[axis] for axis in _stored_axes(name, shape))


def splits_by_rows(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether blocks of released rows, each in stored layout, follow each other in the stored tensor."""
    return not shape or _stored_axes(name, shape)[0] == 0


def stored_layout(name: str, values: Array) -> Array:
    """Transpose a released tensor (or, where it splits by rows, a block of its rows) to the layout of a bundle."""
    transposed: Array = values.transpose(_stored_axes(name, values.shape))
    return transposed


def _stored_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        return tuple(range(len(shape)))
    return (2, 1, 0) if is_transposed_conv(name) else (0, 2, 1)


_STACKS = (  # first match counts; layers count their matrices only, the weights read at every step
    ("rvq", re.compile(r"_codebook\.embed$")),
    ("backbone_layers", re.compile(r"^model\.layers\..*_proj\.weight$")),
    ("embeddings", re.compile(r"^(model\.embed_tokens|speech_embeddings\.\d+)\.weight$")),
    ("lm_head", re.compile(r"^(lm_head|local_transformer_lm_heads\.\d+)\.weight$")),
    ("patch_encoder", re.compile(r"^input_local_transformer\.layers\..*_proj\.weight$")),
    ("patch_decoder", re.compile(r"^local_transformer\.layers\..*_proj\.weight$")),
    ("codec_encoder", re.compile(r"^encoder\.layers\..*(_proj|fc\d)\.weight$")),
    ("codec_decoder", re.compile(r"^decoder\.layers\..*(_proj|fc\d)\.weight$")),
    ("vocoder", re.compile(r"^decoder\.vocoder\.layers\..*(_proj|fc\d)\.weight$")),
)


def count_parameters(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Count weights by stack. "projections" holds convolutions and the matrices between stacks, "norms_and_biases" all
    vectors; the sum is every weight of the bundle."""
    counts = dict.fromkeys([stack for stack, _ in _STACKS] + ["projections", "norms_and_biases"], 0)
    for name, shape in tensors.items():
        rest = "projections" if len(shape) > 1 else "norms_and_biases"
        counts[next((stack for stack, names in _STACKS if names.search(name)), rest)] += math.prod(shape)
    return counts


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _codec_layer(name: str, width: int, ffn: int) -> Shapes:
    """One transformer layer of the codec: LayerNorm, attention (k without bias), LayerNorm, GELU feed-forward."""
    table = _layer_norm(f"{name}.self_attn_layer_norm", width)
    for part in "qkv":
        table |= _linear(f"{name}.self_attn.{part}_proj", width, width, bias=part != "k")
    table |= _linear(f"{name}.self_attn.out_proj", width, width, bias=True)
    table |= _layer_norm(f"{name}.final_layer_norm", width)
    return table | _linear(f"{name}.fc1", ffn, width, bias=True) | _linear(f"{name}.fc2", width, ffn, bias=True)


def _lm_layer(name: str, width: int, queries: int, keys: int, ffn: int) -> Shapes:
    """One Qwen2 layer: RMSNorm, attention (q, k, v with bias), RMSNorm, SiLU-gated feed-forward."""
    table: Shapes = {f"{name}.input_layernorm.weight": (width,)}
    for part, rows in (("q", queries), ("k", keys), ("v", keys)):
        table |= _linear(f"{name}.self_attn.{part}_proj", rows, width, bias=True)
    table |= _linear(f"{name}.self_attn.o_proj", width, queries, bias=False)
    table[f"{name}.post_attention_layernorm.weight"] = (width,)
    for part, rows, columns in (("gate", ffn, width), ("up", ffn, width), ("down", width, ffn)):
        table |= _linear(f"{name}.mlp.{part}_proj", rows, columns, bias=False)
    return table
