"""The core with what every task needs around it: inputs become patches of codes, codes become sound.

audio -> wave f32[S] at the codec's rate -> codes i32[Q, T] 25 Hz -> patches i32[K, T'], T' a multiple of G
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mimo_edge import _core
from mimo_edge._core import BundleError, InputError
from mimo_edge.audio import AudioInput, Recording, Wave, open_audio
from mimo_edge.reply import Codes, Norms

Tap: TypeAlias = Callable[[str, NDArray[Any]], None]
"""Called with (stage name, array) at every named boundary, in order of flow."""

DECODE_PIECE_FRAMES = 1500  # code frames decoded at once, as the reference does (mimo_audio.py, forward)
LISTEN_BLOCK_S = 300.0  # of a long recording held in memory while it is split at pauses
LISTEN_PIECE_S = {"audio": 60.0, "asr": 30.0}  # longest piece that is transcribed at once, by variant of the bundle


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tasks need to know of an open bundle.

    rate_hz: of the codec. levels K, group G: of a patch. context: positions a conversation may have. patch_s: seconds
    of sound a patch holds. least_samples: reflect padding needs more than half a window. empty_code: "no speech" in
    level 0. marks: ids of the special tokens, never part of a reply's text. norms: [[mean, variance], [mean, variance]]
    of the codec decoder's two GroupNorms over typical speech, None if the bundle was not calibrated.
    """

    rate_hz: int
    levels: int
    group: int
    context: int
    patch_s: float
    least_samples: int
    longest_encode_s: float
    longest_piece_s: float
    empty_code: int
    tokens: dict[str, int]
    marks: frozenset[int]
    norms: Norms | None

    @staticmethod
    def read(config: dict[str, Any]) -> Facts:
        """config: bundle.json, whose sizes the core has checked. Raises BundleError for what only this reads."""
        codec, lm, tokens = config["codec"], config["lm"], config["tokens"]
        _check("codec.max_audio_seconds", codec["max_audio_seconds"], ())
        if (norms := config.get("decoder_norms")) is not None:
            _check("decoder_norms", norms, (2, 2))
        frame_samples = codec["hop_length"] * codec["stride_size"] * codec["avg_pooler"]
        return Facts(
            rate_hz=codec["sampling_rate"],
            levels=lm["audio_channels"],
            group=lm["group_size"],
            context=lm["max_position_embeddings"],
            patch_s=frame_samples * lm["group_size"] / codec["sampling_rate"],
            least_samples=codec["nfft"] // 2 + 1,
            longest_encode_s=float(codec["max_audio_seconds"]),
            longest_piece_s=LISTEN_PIECE_S[config["variant"]],
            empty_code=lm["speech_zeroemb_idx"][0],
            tokens=tokens,
            marks=frozenset(tokens.values()),
            norms=norms,
        )


def _check(field: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise BundleError unless `value` is an array of numbers of that shape."""
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of several lengths
        numbers = np.zeros(0)
    if numbers.shape != shape or numbers.dtype.kind not in "iuf":
        expected = f"numbers {list(shape)}" if shape else "a number"
        raise BundleError(f"bundle.json: expected {field} to be {expected}, got {value!r:.60}; build the bundle again")


def whole_patches(codes: Codes, levels: int, group: int) -> Codes:
    """Keep the first `levels` and fill the last patch by repeating its final code frame: [Q, T] -> [levels, T']."""
    missing = -codes.shape[1] % group
    return np.ascontiguousarray(np.pad(codes[:levels], ((0, 0), (0, missing)), mode="edge"))


class Engine:
    """An open bundle and how it is used.

    parity: reproduce the reference with its bugs. tap: sees every stage of the input, of the first patch and of the
    output (None = nobody listens).
    """

    def __init__(self, core: _core.Model, parity: bool = False, tap: Tap | None = None) -> None:
        self.core, self.parity, self.tap = core, parity, tap
        self.config: dict[str, Any] = json.loads(core.config_json)
        self.facts = Facts.read(self.config)

    def open_prompt_audio(self, audio: AudioInput) -> Recording:
        """Check an input that has to fit into one prompt. Raises InputError."""
        return self._open(audio, self.facts.context * self.facts.patch_s, "a prompt")

    def open_codec_audio(self, audio: AudioInput) -> Recording:
        """Check an input that is encoded in one go. Raises InputError."""
        return self._open(audio, self.facts.longest_encode_s, "the codec")

    def wave(self, samples: Wave, rate_hz: int) -> Wave:
        """Resample to the codec's rate. Raises InputError if too little is left to make one frame."""
        wave = _core.resample(samples, rate_hz, self.facts.rate_hz) if rate_hz != self.facts.rate_hz else samples
        if len(wave) < self.facts.least_samples:
            least = f"{self.facts.least_samples} samples at {self.facts.rate_hz} Hz"
            raise InputError(f"read_audio: expected at least {least}, got {len(wave)}; record longer")
        return wave

    def whole(self, recording: Recording) -> Wave:
        """Return a whole recording at the codec's rate, float32 [S]."""
        return self.wave(recording.read(), recording.rate_hz)

    def pieces(self, recording: Recording) -> Iterator[Wave]:
        """Yield a recording of any length in pieces cut at pauses, each short enough to be transcribed at once."""
        rest = np.zeros(0, np.float32)
        longest_s, rate_hz, any_piece = self.facts.longest_piece_s, recording.rate_hz, False
        for block in recording.blocks(LISTEN_BLOCK_S):
            rest = np.concatenate([rest, block])
            *complete, (open_at, _) = _core.split_at_pauses(rest, rate_hz, longest_s)
            for start, stop in complete:
                any_piece = True
                yield self.wave(rest[start:stop], rate_hz)
            rest = rest[open_at:]
        if not any_piece or len(rest) * self.facts.rate_hz >= self.facts.least_samples * rate_hz:
            yield self.wave(rest, rate_hz)

    def codes(self, wave: Wave) -> Codes:
        """wave float32 [S] at the codec's rate -> codes int32 [Q, T]."""
        if self.tap is None:
            return self.core.encode(wave)
        self.tap("wave", wave)
        mel = self.core.mel(wave)
        self.tap("mel", mel)
        codes = self.core.encode_mel(mel, self.tap)[1]
        self.tap("codes", codes)
        return codes

    def patches(self, wave: Wave) -> Codes:
        """wave float32 [S] at the codec's rate -> codes int32 [K, T'], T' a multiple of G."""
        return whole_patches(self.codes(wave), self.facts.levels, self.facts.group)

    def norms(self, voice: Codes | None) -> Norms | None:
        """Return what a streamed voice begins with, from codes int32 [K, T] of it; parity mode has no use for them."""
        return None if voice is None or self.parity else self.core.measure_norms(voice)

    def sound(self, codes: Codes) -> Wave:
        """codes int32 [n, T] -> wave float32 [S], in independent pieces of 1500 code frames like the reference."""
        starts = range(0, codes.shape[1], DECODE_PIECE_FRAMES)
        pieces = [np.ascontiguousarray(codes[:, start : start + DECODE_PIECE_FRAMES]) for start in starts]
        wave = np.concatenate([self.core.decode(piece, self.tap) for piece in pieces])
        if self.tap:
            self.tap("sound", wave)
        return wave

    def _open(self, audio: AudioInput, longest_s: float, what: str) -> Recording:
        recording = open_audio(audio)
        if recording.seconds > longest_s:
            lengths = f"at most {longest_s:.0f} s for {what}, got {recording.seconds:.0f} s in {recording.name}"
            raise InputError(f"read_audio: expected {lengths}; cut it into shorter files")
        return recording
