"""The executable spec of MiMo-Audio: plain torch, float32, CPU, written to be read in the order the audio flows.

    wav [S] -> mel [F, n_mels] -> codec encoder -> hidden [T, D] -> RVQ -> codes [Q, T]            reference_codec.py
    text and patches of G code frames -> ids [K+1, G*P]                                            reference_prompts.py
    ids -> patch encoder -> backbone -> token; token <|empty|> -> patch decoder -> codes [K, G]    reference_lm.py
    codes -> RVQ -> codec decoder -> vocoder -> ISTFT -> wav [S]                                   reference_codec.py

Letters: S samples, F mel frames, E encoder frames, T code frames, Q codec levels, K LM levels, G patch size,
P positions (a position is one text token or one patch), D width, H backbone width, V vocabulary.
`Reference` opens a bundle (MODEL.md, "Bundle"), takes every size from it and offers the stage protocol that
`mimo_edge.verify` compares with goldens: numpy arrays in and out. Here are the conversation, the reply and that face.

Source: XiaomiMiMo/MiMo-Audio, commit 691ce54. tok = modeling_audio_tokenizer.py, vq = quantization.py,
lm = modeling_mimo_audio.py, app = mimo_audio.py, seg = process_speechdata.py; "item n" is the numbering of MODEL.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mimo_edge.export.bundle import Bundle
from mimo_edge.export.reference_codec import Codec, StreamingDecoder, group_segments, log_mel, mel_filterbank, resample
from mimo_edge.export.reference_lm import Cache, LanguageModel, Sampling, choose, filter_scores, is_done
from mimo_edge.export.reference_ops import Array, Tap, Weights, numpy, silent
from mimo_edge.export.reference_prompts import Prompts, Turn, capitalize_text, detect_language

__all__ = ["Reference", "Sampling", "State", "StreamingDecoder"]

SEGMENT_MEL_FRAMES = {"audio": 6000, "asr": 3000}  # per variant: 60 s, 30 s at 100 Hz; app:258


class State:
    """One conversation: the backbone's cache and the hidden state of the last position."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.cache, self.last = reference, Cache(), torch.empty(0)

    @property
    def length(self) -> int:
        return self.cache.length

    @torch.inference_mode()
    def prefill(self, ids: Array, tap: Tap | None = None) -> None:
        """Append ids int32 [K+1, G*P], P >= 1."""
        lm, tap = self.reference.lm, tap or silent
        rows, patch = lm.c["audio_channels"] + 1, lm.c["group_size"]
        if ids.ndim != 2 or ids.shape[0] != rows or ids.shape[1] == 0 or ids.shape[1] % patch:
            raise ValueError(f"prefill: expected ids [{rows}, {patch} * P], P >= 1, got {list(ids.shape)}")
        hidden = lm.backbone.forward(lm.embed(torch.from_numpy(ids).long(), tap), self.cache, tap=tap)
        tap("backbone.hidden", numpy(hidden))
        self.last = hidden[-1]
        tap("backbone.logits", self.text_logits())
        tap("backbone.local_hidden", self.local_hidden())

    def text_logits(self) -> Array:
        return numpy(self.reference.lm.head(self.last))

    def hidden(self) -> Array:
        return numpy(self.last)

    def local_hidden(self) -> Array:
        return numpy(self.reference.lm.w.linear("hidden_states_downcast", self.last))

    @torch.inference_mode()
    def decode_patch(self, speech: Sampling, tap: Tap | None = None, forced: Array | None = None) -> Array:
        """codes int32 [K, G] for the last position; the state does not change. forced [K, G]: take these instead."""
        empties, generator = self.reference.lm.c["speech_zeroemb_idx"], self.reference.generator

        def pick(logits: Tensor, level: int, frame: int) -> int:
            if forced is not None:
                return int(forced[level, frame])
            return choose(logits, speech, [empties[level]], generator)

        codes = self.reference.lm.decode_patch(torch.from_numpy(self.local_hidden()), pick, tap or silent)
        return codes.numpy().astype(np.int32)


class Reference:
    """A bundle, opened: every method of the stage protocol, numpy in, numpy out."""

    def __init__(
        self, config: dict[str, Any], codec: Weights, lm: Weights, tokenizer: Tokenizer, seed: int = 0
    ) -> None:
        if config["codec"]["vocoder_padding"] != "same":
            raise ValueError(f"open: expected vocoder_padding same, got {config['codec']['vocoder_padding']}")
        self.config = config
        self.tokens: dict[str, int] = config["tokens"]
        self.codec = Codec(config["codec"], codec, SEGMENT_MEL_FRAMES[config["variant"]])
        self.lm = LanguageModel(config["lm"], lm, self.tokens["empty"])
        self.prompts = Prompts(config["lm"], self.tokens, tokenizer)
        self.generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def open(path: str | Path, seed: int = 0) -> Reference:
        """Open the bundle folder `path`, revision 1; `seed` is that of sampling."""
        path = Path(path)
        config = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
        if config.get("format") != "mimo-edge bundle" or config.get("revision") != 1:
            got = f"{config.get('format')!r} revision {config.get('revision')!r}"
            raise ValueError(f"open: expected 'mimo-edge bundle' revision 1, got {got}; export the checkpoint again")
        codec, lm = (_weights(path, part) for part in ("codec", "lm"))
        return Reference(config, codec, lm, Tokenizer.from_file(str(path / "tokenizer.json")), seed)

    # codec

    def mel_filterbank(self) -> Array:
        return numpy(mel_filterbank(self.codec.c))

    def stft_window(self) -> Array:
        return numpy(torch.hann_window(self.codec.c["window_size"], periodic=True))

    def resample(self, wav: Array, from_hz: int, to_hz: int) -> Array:
        return resample(wav, from_hz, to_hz)

    def mel(self, wav: Array) -> Array:
        return numpy(log_mel(torch.from_numpy(wav), self.codec.c))

    def mel_frames(self, samples: int) -> int:
        return int(1 + samples // self.codec.c["hop_length"])

    def encoder_frames(self, mel_frames: int) -> int:
        return self.codec.encoder_frames(mel_frames)

    def group_segments(self, lengths: Sequence[int], max_length: int) -> list[list[int]]:
        return group_segments(lengths, max_length)

    @torch.inference_mode()
    def encode_mel(self, mel: Array, tap: Tap | None = None) -> tuple[Array, Array]:
        """mel float32 [F, n_mels] of a whole file -> hidden [T, D], codes int32 [Q, T]."""
        hidden = self.codec.encode(torch.from_numpy(mel), tap or silent)
        return numpy(hidden), self.rvq_encode(numpy(hidden))

    def rvq_encode(self, hidden: Array) -> Array:
        return self.codec.rvq_encode(torch.from_numpy(hidden)).numpy().astype(np.int32)

    def rvq_decode(self, codes: Array) -> Array:
        return numpy(self.codec.rvq_decode(torch.from_numpy(codes).long()))

    @torch.inference_mode()
    def decode(self, codes: Array, tap: Tap | None = None) -> Array:
        """codes int32 [n, T] -> float32 [S], in one piece. A reply is decoded in pieces of 1500 frames (item 19)."""
        if codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(f"decode: expected codes [n, T], n and T >= 1, got {list(codes.shape)}")
        hidden = self.codec.rvq_decode(torch.from_numpy(codes).long())
        (tap or silent)("codec_decoder.rvq", numpy(hidden))
        return numpy(self.codec.decode([hidden], tap or silent)[0])

    def streaming_decoder(self, left_overlap: int, right_overlap: int) -> StreamingDecoder:
        return StreamingDecoder(self.codec, left_overlap, right_overlap)

    # text and prompts

    def tokenize(self, text: str) -> list[int]:
        return self.prompts.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        return str(self.prompts.tokenizer.decode(list(ids), skip_special_tokens=False))

    def capitalize_text(self, text: str) -> str:
        return capitalize_text(text)

    def detect_language(self, text: str) -> str:
        return detect_language(text)

    def prompt_text(self, text: str) -> Array:
        return self.prompts.text(text)

    def prompt_audio(self, audio: Array, marks: bool = True, empty: Sequence[int] | None = None) -> Array:
        return self.prompts.audio(audio, marks, empty)

    def prompt_stream(self, text: str, audio: Array) -> Array:
        return self.prompts.stream(text, audio)

    def prompt_asr(self, audio: Array, template: str) -> Array:
        return self.prompts.asr(audio, template)

    def prompt_tts(
        self, text: str, template: str, instruct: str | None, voice: Array | None,
        read_text_only: bool = True, parity: bool = False,
    ) -> Array:  # fmt: skip
        return self.prompts.tts(text, template, instruct, voice, read_text_only, parity)

    def prompt_understanding(self, audio: Array, text: str, thinking: bool) -> Array:
        return self.prompts.understanding(audio, text, thinking)

    def prompt_dialogue(
        self, turns: Sequence[Turn], system: str | None, voice: Array | None, speech_out: bool, thinking: bool
    ) -> Array:
        return self.prompts.dialogue(turns, system, voice, speech_out, thinking)

    def prompt_followup(self, turn: Turn, speech_out: bool, thinking: bool) -> Array:
        """What a running conversation gets for its next user turn (add_history, app:576-597, item 51)."""
        return self.prompts.dialogue([turn], None, None, speech_out, thinking)

    def prompt_in_context(self, instruction: str, examples: Sequence[tuple[Array, str, Array]], audio: Array) -> Array:
        return self.prompts.in_context(instruction, examples, audio)

    def prompt_continuation(self, audio: Array) -> Array:
        """<|sosp|> and patches, left open: the Base model goes on speaking."""
        return self.prompts.audio(audio)[:, : -self.lm.c["group_size"]]

    # language model

    def filter_scores(self, logits: Array, s: Sampling) -> Array:
        return numpy(filter_scores(torch.from_numpy(logits), s))

    def is_done(
        self, total: int, last_token: int, stop: Sequence[int] | None, min_length: int, max_length: int | None
    ) -> bool:
        return is_done(total, last_token, stop, min_length, max_length)

    def forward(self, ids: Array, tap: Tap | None = None) -> State:
        state = State(self)
        state.prefill(ids, tap)
        return state

    def generate(
        self, ids: Array, text: Sampling, speech: Sampling, stop: Sequence[int], max_new: int, min_new: int = 0,
        parity: bool = True,
    ) -> tuple[Array, str]:  # fmt: skip
        """ids int32 [K+1, G*P] -> the new ids [K+1, G*N], N >= 1, and why it ended (lm:715-838, items 49-50).

        max_new and min_new count positions. The engine's runaway guard is no part of the spec: parity changes nothing.
        """
        state, empties = self.forward(ids), np.array(self.lm.c["speech_zeroemb_idx"], np.int32)
        prompt = state.length
        limit = min(prompt + max_new, self.lm.c["max_position_embeddings"])  # 8192, app:106
        columns: list[Array] = []
        while True:
            total = prompt + len(columns)
            removed = stop if total < prompt + min_new else ()
            token = choose(torch.from_numpy(state.text_logits()), text, removed, self.generator)
            if token == self.tokens["empty"]:
                codes = state.decode_patch(speech)
            else:
                codes = np.repeat(empties[:, None], self.lm.c["group_size"], axis=1)
            columns.append(np.concatenate([np.full_like(codes[:1], token), codes]))  # the token repeats (item 25)
            if is_done(total + 1, token, stop, prompt + min_new, None):
                return np.concatenate(columns, axis=1), "stop token"
            if is_done(total + 1, token, None, 0, limit):
                return np.concatenate(columns, axis=1), "max_length"
            state.prefill(columns[-1])

    # reply

    def extract(self, ids: Array) -> tuple[str, Array]:
        """Generated ids [K+1, G*N] -> reply text, codes int32 [K, T] (T = 0: no speech); app:1104-1147, items 52-54.

        The last position is always dropped; marks are removed after decoding; audio ends at the first <|eostm|>.
        """
        patch = self.lm.c["group_size"]
        tokens = ids[0, ::patch].tolist()[:-1]
        text = self.detokenize(tokens).strip()
        for mark in ("<|empty|>", "<|eot|>", "<|eostm|>"):
            text = text.replace(mark, "")
        start = tokens.index(self.tokens["sostm"]) + 1 if self.tokens["sostm"] in tokens else 0
        end = tokens.index(self.tokens["eostm"]) if self.tokens["eostm"] in tokens else len(tokens)
        codes = ids[1:, start * patch : end * patch]
        empties = np.array(self.lm.c["speech_zeroemb_idx"])[:, None]
        codes = codes[:, codes[0] != empties[0]]
        if not (codes < empties).all():
            raise ValueError("extract: expected codes below the empty code in every level, got an empty or larger one")
        return text, codes


def _weights(path: Path, part: str) -> Weights:
    """The weights of one file as float32; of a quantised bundle, what its numbers mean."""
    opened = Bundle.open(path, "open").parts[part]
    if not any(opened.is_packed(name) for name in opened.shapes):
        return Weights.read(path / f"{part}.safetensors")
    return Weights({name: torch.tensor(opened.values(name)) for name in opened.shapes})
