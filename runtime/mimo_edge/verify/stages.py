"""The stages of the model, one method each, as `verify` compares them with goldens.

Two implementations: `CoreStages` here, around the C++ core, and `mimo_edge.export.reference.Reference` in torch.
Shapes: codes int32 [K, T]; ids int32 [K+1, G*P]; time first in every other array. A tap sees (stage name, array) at the
boundaries inside a stage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mimo_edge import _core
from mimo_edge._core import Sampling
from mimo_edge.audio import Wave
from mimo_edge.dialogue import CoreTurn
from mimo_edge.engine import Tap
from mimo_edge.reply import Codes, Ids

Array = NDArray[Any]
Floats = NDArray[np.float32]


class StreamStages(Protocol):
    """A codec stream over B items (upstream: streaming_decode)."""

    @property
    def processed(self) -> list[int]: ...
    @property
    def cached(self) -> list[int]: ...
    def push(self, chunks: list[Codes], last: bool) -> list[Wave | None]: ...


class StateStages(Protocol):
    """One conversation."""

    @property
    def length(self) -> int: ...
    def prefill(self, ids: Ids, tap: Tap | None = None) -> None: ...
    def text_logits(self) -> Floats: ...
    def hidden(self) -> Floats: ...
    def local_hidden(self) -> Floats: ...
    def decode_patch(self, speech: Sampling, tap: Tap | None = None, forced: Codes | None = None) -> Codes: ...


class Stages(Protocol):
    """Everything `verify` calls."""

    @property
    def config(self) -> dict[str, Any]: ...

    # codec
    def mel_filterbank(self) -> Floats: ...
    def stft_window(self) -> Floats: ...
    def resample(self, wav: Wave, from_hz: int, to_hz: int) -> Wave: ...
    def mel(self, wav: Wave) -> Floats: ...
    def encode_mel(self, mel: Floats, tap: Tap | None = None) -> tuple[Floats, Codes]: ...
    def rvq_encode(self, hidden: Floats) -> Codes: ...
    def rvq_decode(self, codes: Codes) -> Floats: ...
    def decode(self, codes: Codes, tap: Tap | None = None) -> Wave: ...
    def streaming_decoder(self, left_overlap: int, right_overlap: int) -> StreamStages: ...
    def group_segments(self, lengths: list[int], max_length: int) -> list[list[int]]: ...
    def mel_frames(self, samples: int) -> int: ...
    def encoder_frames(self, mel_frames: int) -> int: ...

    # text
    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, ids: Sequence[int]) -> str: ...
    def capitalize_text(self, text: str) -> str: ...
    def detect_language(self, text: str) -> str: ...

    # prompts
    def prompt_text(self, text: str) -> Ids: ...
    def prompt_audio(self, audio: Codes, marks: bool = True, empty: Sequence[int] | None = None) -> Ids: ...
    def prompt_stream(self, text: str, audio: Codes) -> Ids: ...
    def prompt_asr(self, audio: Codes, template: str) -> Ids: ...
    def prompt_tts(
        self,
        text: str,
        template: str,
        instruct: str | None,
        voice: Codes | None,
        read_text_only: bool = True,
        parity: bool = False,
    ) -> Ids: ...
    def prompt_understanding(self, audio: Codes, text: str, thinking: bool) -> Ids: ...
    def prompt_dialogue(
        self, turns: list[CoreTurn], system: str | None, voice: Codes | None, speech_out: bool, thinking: bool
    ) -> Ids: ...
    def prompt_followup(self, turn: CoreTurn, speech_out: bool, thinking: bool) -> Ids: ...
    def prompt_in_context(self, instruction: str, examples: list[tuple[Codes, str, Codes]], audio: Codes) -> Ids: ...
    def prompt_continuation(self, audio: Codes) -> Ids: ...

    # language model
    def forward(self, ids: Ids, tap: Tap | None = None) -> StateStages: ...
    def generate(
        self,
        ids: Ids,
        text: Sampling,
        speech: Sampling,
        stop: list[int],
        max_new: int,
        min_new: int = 0,
        parity: bool = True,
    ) -> tuple[Ids, str]: ...
    def extract(self, ids: Ids) -> tuple[str, Codes]: ...
    def filter_scores(self, logits: Floats, s: Sampling) -> Floats: ...
    def is_done(
        self, total: int, last_token: int, stop: list[int] | None, min_length: int, max_length: int | None
    ) -> bool: ...


class CoreStages:
    """The C++ core as Stages: an open `_core.Model` with the States, streams and free functions around it.

    Methods not written here are the core's own, reached by their name.
    sees_inside: whether the taps inside the networks speak; they do not if a backend computes them as graphs.
    """

    def __init__(self, core: _core.Model, sees_inside: bool = True) -> None:
        self.core, self.sees_inside = core, sees_inside
        self.config: dict[str, Any] = json.loads(core.config_json)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name) if hasattr(self.core, name) else getattr(_core, name)

    def streaming_decoder(self, left_overlap: int, right_overlap: int) -> StreamStages:
        return _core.StreamingDecoder(self.core, left_overlap, right_overlap)

    def prompt_followup(self, turn: CoreTurn, speech_out: bool, thinking: bool) -> Ids:
        return self.core.prompt_dialogue([turn], None, None, speech_out, thinking)

    def forward(self, ids: Ids, tap: Tap | None = None) -> StateStages:
        state = _core.State(self.core)
        state.prefill(ids, tap)
        return cast(StateStages, state)

    def generate(
        self,
        ids: Ids,
        text: Sampling,
        speech: Sampling,
        stop: list[int],
        max_new: int,
        min_new: int = 0,
        parity: bool = True,
    ) -> tuple[Ids, str]:
        state = _core.State(self.core)
        generation = _core.Generation(state, ids, text, speech, stop, max_new, min_new, guard=not parity)
        while generation.next() is not None:
            pass
        return generation.ids(), generation.reason
