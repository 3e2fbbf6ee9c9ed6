"""Conversations to calibrate and to measure with: what a model hears, writes and says, through the whole chain.

    clip -> codec -> listen: transcription prompt, the model's own transcript
                     speak:  text-to-speech prompt, the text and the clip's own codes as a stream
                     answer: spoken dialogue, the model's own reply in text and sound

The clips of the package are synthetic speech of the demo's domain (examples/nano), apart for calibration and for
measuring. `follow` leads a model along a conversation and shows at every position what it would have said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_edge import InputError, Model, Options, _core
from mimo_edge.audio import Wave, open_audio
from mimo_edge.engine import Tap
from mimo_edge.reply import Codes, Ids
from mimo_edge.templates import tts_template

GREEDY = _core.Sampling(False)
LONGEST_REPLY = 96  # positions of an answer: 5 s of speech with its text
ENGLISH_TEMPLATE = 12  # of transcription, "Transcribe the following voice message"


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording at the codec's rate, and what is said in it if that is known."""

    name: str
    wave: Wave
    text: str | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """ids int32 [K+1, G*P]; the positions from `prompt` on are what the model is to say."""

    name: str
    ids: Ids
    prompt: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a model would have said at one position. text: logits [V]; levels: per level logits [G, V_k], or None where
    the position holds text."""

    text: NDArray[np.float32]
    levels: list[NDArray[np.float32]] | None


def shipped_clips(model: Model, role: str) -> list[Clip]:
    """The clips of the package. role: calibrate or evaluate."""
    folder: Any = resources.files("mimo_edge.quantize") / "conversations"
    index = json.loads((folder / "index.json").read_text("utf-8"))
    return [_clip(model, folder / entry["file"], entry["text"]) for entry in index if entry["role"] == role]


def recorded_clips(model: Model, paths: Sequence[Path]) -> list[Clip]:
    """A user's recordings, each short enough for one prompt; a text file of the same name says what is said."""
    return [_clip(model, path, _said(path.with_suffix(".txt"))) for path in paths]


def _said(file: Path) -> str | None:
    """What a text file says; None if there is none or it is empty."""
    try:
        return file.read_text("utf-8").strip() or None if file.is_file() else None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected text in UTF-8, got other bytes at {error.start}") from error


def _clip(model: Model, path: Path, text: str | None) -> Clip:
    return Clip(Path(path).name, model.engine.whole(open_audio(str(path))), text)


def conversations(model: Model, clip: Clip) -> Iterator[Conversation]:
    """The three conversations about a clip; the model's own words are drawn with a fixed seed."""
    core, rate = model.engine.core, model.rate_hz
    template = ENGLISH_TEMPLATE if clip.text is None or _core.detect_language(clip.text) == "en" else 0
    listening = model.transcribe((clip.wave, rate), template=template, options=Options(text_sampling=GREEDY))
    heard = listening.result().text
    yield _joined(f"listen {clip.name}", model, listening.prompt_ids, listening.new_ids)
    text, codes = clip.text or heard, model.engine.patches(clip.wave)
    if text:
        prompt = core.prompt_tts(text, tts_template(_core.detect_language(text), 0), None, None)
        stream = core.prompt_stream(text, codes)[:, model.engine.facts.group :]  # <|sostm|> ends the prompt
        yield _joined(f"speak {clip.name}", model, prompt, stream)
    answering = model.respond((clip.wave, rate), options=Options(max_new_tokens=LONGEST_REPLY))
    answering.result()
    yield _joined(f"answer {clip.name}", model, answering.prompt_ids, answering.new_ids)


def _joined(name: str, model: Model, prompt: Ids, reply: Ids) -> Conversation:
    return Conversation(name, np.concatenate([prompt, reply], axis=1), prompt.shape[1] // model.engine.facts.group)


def follow(model: Model, conversation: Conversation, tap: Tap | None = None) -> Iterator[Step]:
    """Lead a model along a conversation, position by position from the end of the prompt.

    tap sees what passes in between.
    """
    facts, core = model.engine.facts, model.engine.core
    group, ids = facts.group, conversation.ids
    positions = ids.shape[1] // group
    state = _core.State(core, 0, 0, positions)
    state.prefill(np.ascontiguousarray(ids[:, : conversation.prompt * group]), tap)
    for position in range(conversation.prompt, positions):
        said = np.ascontiguousarray(ids[:, position * group : (position + 1) * group])
        text, levels = state.text_logits(), None
        if said[0, 0] == facts.tokens["empty"]:
            levels = _patch(state, said[1:], tap)
        yield Step(text, levels)
        state.prefill(said, tap)


def _patch(state: _core.State, codes: Codes, tap: Tap | None) -> list[NDArray[np.float32]]:
    logits: list[list[NDArray[np.float32]]] = [[] for _ in codes]

    def listen(name: str, array: NDArray[np.float32]) -> None:
        if name.startswith("patch_decoder.logits."):
            logits[int(name.rpartition(".")[2])].append(array)
        if tap is not None:
            tap(name, array)

    state.decode_patch(GREEDY, listen, np.ascontiguousarray(codes))
    return [np.stack(level) for level in logits]
