"""A very small checkpoint for the project's own goldens: odd sizes everywhere, random weights, lively behaviour.

    sentences -> byte-level BPE; random weights -> codec; its hidden states -> RVQ codebooks; dialogues -> backbone

Every size differs from the release and from the other sizes here, so that nothing hard-coded survives: 80 mels, 16 kHz,
head widths 12 and 18, a patch of 3, delays 0-2-1-3-1-4, a pooling of 3, tied embeddings, special tokens in another
order, a patch encoder wider than the patch decoder. Matrices are rounded to BF16: F32 and BF16 bundles are one model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from mimo_edge.export.config import read_codec_config, read_lm_config
from mimo_edge.export.reference import Reference
from mimo_edge.export.reference_lm import Cache
from mimo_edge.export.reference_ops import Array, Weights, silent
from mimo_edge.export.safetensors_io import SafetensorsWriter, f32_to_bf16
from mimo_edge.export.tensor_table import codec_tensors, lm_tensors, stored_layout

VOCAB_SIZE = 376  # rows of the text embedding; the last few ids belong to no token
LEARNED_TOKENS = 352  # 256 bytes and the merges

# Ids follow LEARNED_TOKENS in this order, which is not that of the release.
SPECIAL_TOKENS = (
    *("<|eot|>", "<|sostm|>", "<|im_end|>", "<|fim_pad|>", "<|empty|>", "</think>", "<|eosp|>"),
    *("<|endoftext|>", "<think>", "<|Human|>", "<|eostm|>", "<|im_start|>", "<|sosp|>", "<|SpeechLM|>"),
)
NOT_SPECIAL = {"<think>", "</think>", "<|fim_pad|>"}  # added tokens of the release that decoding never skips

SENTENCES = (
    "user\nassistant\nsystem\n",
    "Please transcribe this audio file. Generate speech from this text. Convert this speech recording to text.",
    "请朗读这段内容。请将这段文字转换为语音。把这段录音转成文本。今天天气很好，我们去公园吧。你好，请问今天天气怎么样？",
    "你需要根据指定的风格指令和文本内容来生成语音。用开心的声音说。你的音色应该是：和语音具有相同音色的语音。",
    "You are a helpful assistant.\n\nAnswer in one short sentence.\n\nThe weather today is fine.\n\n",
    "The speaker talks about the weather. She walked slowly along the river. Hello there, how are you today?",
    "Your voice should be: Summarize the audio. Let me think about it. 好的，让我想一想。",
)

LM_CONFIG: dict[str, Any] = {
    "architectures": ["MiMoAudioForCausalLM"],
    "trained": False,
    "model_type": "qwen2",
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "vocab_size": VOCAB_SIZE,
    "hidden_act": "silu",
    "rope_theta": 500000,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "group_size": 3,
    "audio_channels": 6,
    "delay_pattern": "0-2-1-3-1-4",
    "speech_vocab_size": "41-25-25-25-25-25",
    "speech_zeroemb_idx": "40-24-24-24-24-24",
    "local_dim": 24,
    "local_layers": 3,
    "local_attn_heads": 2,
    "local_ffn_dim": 56,
    "input_local_dim": 36,
    "input_local_layers": 1,
    "input_full_attention": True,
    "torch_dtype": "bfloat16",
}
CODEC_CONFIG: dict[str, Any] = {
    "model_type": "mimo_audio_tokenizer",
    "sampling_rate": 16000,
    "nfft": 400,
    "window_size": 400,
    "hop_length": 100,
    "n_mels": 80,
    "fmin": 50,
    "fmax": 7600,
    "max_audio_seconds": 1800,
    "d_model": 36,
    "kernel_size": 3,
    "stride_size": 2,
    "avg_pooler": 3,
    "encoder_layers": 3,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "encoder_skip_layer_id": 2,
    "encoder_causal": False,
    "encoder_attn_window_size": [-1, -1],
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 44,
    "decoder_kernel_size": 4,
    "decoder_stride_size": 2,
    "decoder_causal": True,
    "decoder_attn_window_size": [24, -1],
    "vocoder_dim": 24,
    "vocoder_num_layers": 2,
    "vocoder_attention_heads": 2,
    "vocoder_intermediate_dim": 32,
    "vocoder_attn_window_size": [12, 5],
    "vocoder_padding": "same",
    "num_quantizers": 7,
    "codebook_size": [40, 24],
    "rope_theta": 20000,
    "rope_type": "default",
    "position_embedding_type": "rope",
    "activation_function": "gelu",
    "ln_type": "LayerNorm",
    "scale_embedding": False,
    "threshold_ema_dead_code": 2,
}
FIT_STEPS, FIT_RATE = 400, 4e-3  # Adam


@dataclass
class GoldenCheckpoint:
    """The checkpoint in the making. lm and codec: released name -> float32 tensor in released layout."""

    seed: int
    tokenizer: Tokenizer
    lm: dict[str, Tensor]
    codec: dict[str, Tensor]

    def reference(self) -> Reference:
        """Open it as the executable spec, by way of no file."""
        tokens = {name: self.tokenizer.token_to_id(f"<|{name}|>") for name in _NAMED}
        tokens |= {"eos": self.tokenizer.token_to_id("<|endoftext|>"), "pad": self.tokenizer.token_to_id("<|fim_pad|>")}
        config = {"variant": "audio", "tokens": tokens}
        config |= {"lm": read_lm_config(LM_CONFIG)[0].as_json(), "codec": read_codec_config(CODEC_CONFIG)[0].as_json()}
        codec = Weights({n: torch.from_numpy(stored_layout(n, t.numpy()).copy()) for n, t in self.codec.items()})
        return Reference(config, codec, Weights(self.lm), self.tokenizer, self.seed)

    def write(self, folder: Path) -> None:
        """Write folder/lm (BF16, as released) and folder/tokenizer_model (F32)."""
        (folder / "lm").mkdir(parents=True)
        (folder / "tokenizer_model").mkdir()
        _write_json(folder / "lm" / "config.json", LM_CONFIG | _end_ids(self.tokenizer))
        _write_json(folder / "lm" / "generation_config.json", _end_ids(self.tokenizer))
        _write_json(folder / "tokenizer_model" / "config.json", CODEC_CONFIG)
        for name, text in tokenizer_files(self.tokenizer).items():
            (folder / "lm" / name).write_text(text, encoding="utf-8")
        _write_weights(folder / "lm" / "model.safetensors", self.lm, "BF16")
        _write_weights(folder / "tokenizer_model" / "model.safetensors", self.codec | self._training_state(), "F32")

    def _training_state(self) -> dict[str, Tensor]:
        """What the released codec carries besides its weights, and what a bundle leaves out."""
        books = {name: book for name, book in self.codec.items() if name.endswith("._codebook.embed")}
        state = {f"{name}_avg": book for name, book in books.items()}
        state |= {name.replace("embed", "cluster_size"): torch.ones(len(book)) for name, book in books.items()}
        state |= {name.replace("embed", "inited"): torch.ones(1) for name in books}
        return state | {"decoder.vocoder.head.istft.window": torch.hann_window(CODEC_CONFIG["nfft"])}


_NAMED = ("im_start", "im_end", "sosp", "eosp", "empty", "sostm", "eostm", "eot")


def make(seed: int, clips: Mapping[str, Array]) -> GoldenCheckpoint:
    """Draw the weights and fit the codebooks to `clips`, name -> wav [S]. The backbone is still random."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    shapes = codec_tensors(read_codec_config(CODEC_CONFIG)[0])
    codec = {name: draw(name, shape, generator) for name, shape in shapes.items()}
    shapes = lm_tensors(read_lm_config(LM_CONFIG)[0])
    lm = {name: draw(name, shape, generator) for name, shape in shapes.items()}
    checkpoint = GoldenCheckpoint(seed, train_tokenizer(), lm, codec)
    fit_codebooks(checkpoint, clips, generator)
    return checkpoint


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random weights by role: activations near 1, attention that chooses, scores a few units wide."""
    normal = torch.randn(shape, generator=generator)
    if name.endswith(".embed"):
        return torch.zeros(shape)
    if len(shape) == 1:
        values = normal * 0.2 + float("norm" in name and name.endswith("weight"))
        if name == "decoder.vocoder.head.out.bias":
            values -= (torch.arange(shape[0]) < shape[0] // 2) * 0.6  # log magnitude: a tail reaches the clip at 100
        if name == "encoder.down_sample_norm.weight":
            values *= 3.0  # spreads the hidden states, and with them the margins of the RVQ
        return values if name.startswith(("encoder", "decoder")) else to_bf16(values)
    if "embed" in name:
        return to_bf16(normal * (0.5 if "speech" in name else 0.3))
    fan_in = math.prod(shape[1:]) if "dconv" not in name else shape[0] * max(1, shape[2] // 2)
    gains = {"conv1": 0.3, "q_proj": 1.6, "k_proj": 1.6, "lm_heads": 2.5, "head.out": 1.6, "downcast": 1.5}
    gain = next((gain for part, gain in gains.items() if part in name), 1.0)
    return to_bf16(normal * gain / math.sqrt(fan_in))


def to_bf16(values: Tensor) -> Tensor:
    return values.detach().bfloat16().float()


# -------------------------------------------------------------------------------------------------------------- codec


def fit_codebooks(checkpoint: GoldenCheckpoint, clips: Mapping[str, Array], generator: torch.Generator) -> None:
    """Residual k-means over the hidden states of the clips: each level's rows are centroids of what is left over."""
    reference = checkpoint.reference()
    hidden = [torch.from_numpy(reference.encode_mel(reference.mel(wav))[0]).double() for wav in clips.values()]
    rest = torch.cat(hidden)
    names = [name for name in checkpoint.codec if name.endswith("._codebook.embed")]
    for name in names:
        count = len(checkpoint.codec[name])
        rows = rest[torch.randperm(len(rest), generator=generator)[:count]].clone()
        for _ in range(6):
            nearest = torch.cdist(rest, rows).argmin(1)
            for i in range(count):
                if (nearest == i).any():
                    rows[i] = rest[nearest == i].mean(0)
        checkpoint.codec[name] = rows.float()
        rest = rest - rows[torch.cdist(rest, rows).argmin(1)]


# ----------------------------------------------------------------------------------------------------- language model


def fit_backbone(checkpoint: GoldenCheckpoint, examples: Sequence[tuple[Array, Array]]) -> float:
    """Fit embeddings, patch encoder and backbone to say each example's reply ids after its prompt ids.

    The codes in replies are drawn anew at every step: what the (random) patch decoder will say must not matter. Returns
    the last loss.
    """
    parts = ("model.", "input_local_transformer.", "speech_group_downcast")
    weights = {name: weight for name, weight in checkpoint.lm.items() if name.startswith(parts)}
    for weight in weights.values():
        weight.requires_grad_(True)
    reference = checkpoint.reference()
    lm, patch = reference.lm, LM_CONFIG["group_size"]
    codebooks = torch.tensor(lm.c["speech_zeroemb_idx"])[:, None]
    generator = torch.Generator().manual_seed(checkpoint.seed)
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    total = 0.0
    for step in range(1, FIT_STEPS + 1):
        loss = torch.zeros(())
        for prompt, reply in examples:
            drawn = (torch.rand(len(codebooks), reply.shape[1], generator=generator) * codebooks).long()
            target = torch.from_numpy(reply).long()
            spoken = (target[0, ::patch] == lm.empty_token).repeat_interleave(patch)
            target[1:] = torch.where(spoken, drawn, target[1:])
            ids = torch.cat([torch.from_numpy(prompt).long(), target], dim=1)
            hidden = lm.backbone.forward(lm.embed(ids, silent), Cache())
            start = prompt.shape[1] // patch
            loss = loss + F.cross_entropy(lm.head(hidden[start - 1 : -1]), ids[0, ::patch][start:])
        grads = torch.autograd.grad(loss, list(weights.values()))
        rate = FIT_RATE * min(1.0, 2.0 * (1 - step / (FIT_STEPS + 1)))
        with torch.no_grad():  # Adam
            for (name, weight), grad in zip(weights.items(), grads, strict=True):
                first[name].lerp_(grad, 0.1)
                second[name].lerp_(grad.square(), 0.01)
                scale = (second[name] / (1 - 0.99**step)).sqrt() + 1e-8
                weight -= rate * first[name] / (1 - 0.9**step) / scale
        total = loss.item() / len(examples)
    checkpoint.lm |= {name: to_bf16(weight) for name, weight in weights.items()}
    return total


def redraw_patch_decoder(checkpoint: GoldenCheckpoint, seed: int) -> None:
    """Give the patch decoder other weights (when a choice of the goldens was too close)."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in checkpoint.lm.items():
        if name.startswith("local_transformer"):
            checkpoint.lm[name] = draw(name, tuple(weight.shape), generator)


# ---------------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over SENTENCES in Qwen2's layout, special tokens appended."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=LEARNED_TOKENS, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    layout = json.loads(tokenizer.to_str())
    first = len(layout["model"]["vocab"])
    layout["added_tokens"] = [_added_token(token, first + i) for i, token in enumerate(SPECIAL_TOKENS)]
    return Tokenizer.from_str(json.dumps(layout, ensure_ascii=False))


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """The files of a released text tokenizer: name -> content."""
    layout = json.loads(tokenizer.to_str())
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in layout["model"]["merges"]]
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in layout["added_tokens"]}
    settings = {
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "pad_token": "<|fim_pad|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        "tokenizer.json": json.dumps(layout, ensure_ascii=False, indent=1),
        "vocab.json": json.dumps(layout["model"]["vocab"], ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=1),
    }


def _added_token(content: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": content not in NOT_SPECIAL}


def _end_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return {"eos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|fim_pad|>"]}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_weights(path: Path, tensors: Mapping[str, Tensor], dtype: str) -> None:
    listed = [(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with SafetensorsWriter(path, listed, {"format": "pt"}) as file:
        for name, tensor in tensors.items():
            values = np.ascontiguousarray(tensor.detach().numpy())
            file.write(name, f32_to_bf16(values) if dtype == "BF16" else values)
