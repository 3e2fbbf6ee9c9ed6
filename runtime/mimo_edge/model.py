"""The tasks: one method each, all returning a running Generation.

with sound at the end:  speak, respond, convert, continue_speech      in writing:  transcribe, understand, answer, chat
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mimo_edge import _core
from mimo_edge._core import InputError
from mimo_edge.audio import AudioInput, Wave, open_audio
from mimo_edge.conversation import Conversation
from mimo_edge.dialogue import Manner, OpenTurn, Turn, answer, encode
from mimo_edge.engine import Engine, Tap
from mimo_edge.generation import Generation
from mimo_edge.limits import ALLOWANCES, THINKING
from mimo_edge.prefix_cache import PrefixCache
from mimo_edge.reply import Codes, Ids
from mimo_edge.request import Options, Request
from mimo_edge.templates import asr_template, tts_template

DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Example:
    """One pair for `convert`: a recording, what its counterpart says, and the counterpart."""

    source: AudioInput
    text: str
    target: AudioInput


class Model:
    """An open bundle; immutable, may be used from several threads at once.

    Audio arguments are a file (wav, flac, ogg, mp3) or (samples, rate in Hz); any rate, mono or more channels. Every
    method raises InputError at once for input it cannot take. `options` holds seed, lengths and sampling.
    """

    def __init__(self, core: _core.Model, *, parity: bool = False, tap: Tap | None = None) -> None:
        self.engine = Engine(core, parity, tap)

    @property
    def config(self) -> dict[str, Any]:
        """bundle.json."""
        return self.engine.config

    @property
    def rate_hz(self) -> int:
        """Samples a second of all sound that is returned."""
        return self.engine.facts.rate_hz

    def transcribe(self, audio: AudioInput, *, template: int | str = 0, options: Options = DEFAULTS) -> Generation:
        """Write down what is said, in recordings of any length.

        Long ones are cut at pauses into pieces of at most 60 s (asr variant: 30 s), except in parity mode.
        template: index into templates.ASR_TEMPLATES or an instruction of one's own.
        """
        instruction, engine = asr_template(template), self.engine
        recording = engine.open_prompt_audio(audio) if engine.parity else open_audio(audio)

        def requests() -> Iterator[Request]:
            for wave in [engine.whole(recording)] if engine.parity else engine.pieces(recording):
                heard_s = len(wave) / engine.facts.rate_hz
                ids = engine.core.prompt_asr(engine.patches(wave), instruction)
                allowance = ALLOWANCES["asr"].positions(seconds=heard_s)
                yield Request(task="asr", ids=ids, allowance=allowance, heard_s=heard_s)

        return Generation(engine, requests(), options)

    def speak(
        self,
        text: str,
        *,
        instruct: str | None = None,
        voice: AudioInput | None = None,
        natural: bool = False,
        template: int | str = 0,
        cache: PrefixCache | None = None,
        options: Options = DEFAULTS,
    ) -> Generation:
        """Read text aloud.

        instruct: how to say it ("whisper"). voice: a recording to sound like. natural: the text itself says how it is
        to be spoken. template: index into templates.TTS_TEMPLATES of the text's language, or one's own instruction.
        cache: where the voice and what else stands before the text, once read, is kept for other texts.
        Text in one letter case is capitalised first, as in the reference. In parity mode a voice without instruct or
        natural is ignored.
        """
        if not text.strip():
            raise InputError("speak: expected text, got none")
        if natural and instruct is not None:
            raise InputError("speak: expected either natural or instruct, got both")
        engine = self.engine
        instruction = "" if natural else tts_template(_core.detect_language(text), template)
        recording = None if voice is None else engine.open_prompt_audio(voice)
        thinks = natural or instruct is not None
        script = engine.core.tokenize(_core.capitalize_text(text))
        allowance = ALLOWANCES["tts"].positions(tokens=len(script)) + (THINKING.positions() if thinks else 0)
        group = engine.facts.group

        def prompt(words: str, voice: Codes | None) -> Ids:
            return engine.core.prompt_tts(words, instruction, instruct, voice, not natural, engine.parity)

        state = None
        if cache and not (engine.parity or engine.tap):  # which want to see all of it
            silence = np.zeros((engine.facts.levels, group), np.int32) if recording else None
            room = prompt(text, silence).shape[1] // group + (options.max_new_tokens or allowance) + 2
            room += math.ceil(recording.seconds / engine.facts.patch_s) if recording else 0
            state = _core.State(engine.core, options.seed, 0, min(engine.facts.context, room))

        def requests() -> Iterator[Request]:
            wave = engine.whole(recording) if recording else None
            key = PrefixCache.key(json.dumps([instruction, instruct, natural]), [wave]) if cache else ""
            note = cache.restore(key, state) if cache and state else None
            codes, norms = json.loads(note) if note else (None, None)
            spoken = None if codes is None else np.array(codes, np.int32)
            if note is None and wave is not None:
                spoken = engine.patches(wave)
                norms = engine.norms(spoken)
            ids = prompt(text, spoken)
            if cache and state:
                if note is None:
                    state.prefill(_common(ids, prompt("a", spoken), group))
                    cache.keep(key, state, json.dumps([None if spoken is None else spoken.tolist(), norms]))
                ids = np.ascontiguousarray(ids[:, state.keep(ids) * group :])
            yield Request(
                task="tts",
                ids=ids,
                allowance=allowance,
                speaks=True,
                thinks=thinks,
                norms=norms,
                script=() if natural else script,
            )

        return Generation(engine, requests(), options, state)

    def understand(
        self, audio: AudioInput, question: str, *, thinking: bool = False, options: Options = DEFAULTS
    ) -> Generation:
        """Answer a written question about a recording; thinking: reason first (Reply.thinking)."""
        engine, recording = self.engine, self.engine.open_prompt_audio(audio)

        def requests() -> Iterator[Request]:
            ids = engine.core.prompt_understanding(encode(engine, recording), question, thinking)
            allowance = ALLOWANCES["audio_understanding"].positions() + (THINKING.positions() if thinking else 0)
            yield Request(
                task="audio_understanding", ids=ids, allowance=allowance, heard_s=recording.seconds, thinks=thinking
            )

        return Generation(engine, requests(), options)

    def respond(
        self,
        dialogue: AudioInput | list[Turn],
        *,
        system: str | None = None,
        voice: AudioInput | None = None,
        options: Options = DEFAULTS,
    ) -> Generation:
        """Answer speech with speech: one question, or a whole dialogue so far. See `conversation` for a running one."""
        return answer(self.engine, _turns(dialogue), self._manner(True, False, system, voice), options)

    def answer(
        self, dialogue: AudioInput | list[Turn], *, thinking: bool = False, options: Options = DEFAULTS
    ) -> Generation:
        """Answer speech in writing: one question, or a whole dialogue so far."""
        return answer(self.engine, _turns(dialogue), self._manner(False, thinking), options)

    def chat(self, dialogue: str | list[Turn], *, thinking: bool = False, options: Options = DEFAULTS) -> Generation:
        """Answer writing with writing: one message, or a whole dialogue so far."""
        turns = [Turn(role="user", text=dialogue)] if isinstance(dialogue, str) else dialogue
        return answer(self.engine, turns, self._manner(False, thinking), options)

    def conversation(
        self,
        *,
        system: str | None = None,
        voice: AudioInput | None = None,
        examples: Sequence[Turn] = (),
        speaks: bool = True,
        thinking: bool = False,
        context: int = 0,
        cache: PrefixCache | None = None,
        options: Options = DEFAULTS,
    ) -> Conversation:
        """Start a dialogue that keeps its cache from turn to turn.

        examples: turns that show how to answer, of the user and the assistant by turns. speaks: answers are sound, else
        writing. context: positions to remember at most, 0 = what the model can. cache: where system prompt, voice and
        examples, once prefilled, are kept for other conversations.
        """
        manner = self._manner(speaks, thinking, system, voice)
        shown = tuple(OpenTurn.check(self.engine, turn) for turn in examples)
        return Conversation(self.engine, replace(manner, examples=shown), options, context, cache)

    def convert(
        self, audio: AudioInput, examples: Sequence[Example], instruction: str, *, options: Options = DEFAULTS
    ) -> Generation:
        """Do to a recording what examples show: voice conversion, style transfer, editing, translation (Base model)."""
        engine = self.engine
        recording = engine.open_prompt_audio(audio)
        opened = [(engine.open_prompt_audio(e.source), e.text, engine.open_prompt_audio(e.target)) for e in examples]

        def requests() -> Iterator[Request]:
            pairs = [(encode(engine, source), text, encode(engine, target)) for source, text, target in opened]
            ids = engine.core.prompt_in_context(instruction, pairs, encode(engine, recording))
            allowance = ALLOWANCES["in_context"].positions(seconds=recording.seconds)
            yield Request(task="in_context", ids=ids, allowance=allowance, heard_s=recording.seconds, speaks=True)

        return Generation(engine, requests(), options)

    def continue_speech(self, audio: AudioInput, *, seconds: float = 20.0, options: Options = DEFAULTS) -> Generation:
        """Go on speaking where a recording stops, for at most `seconds` (Base model); returns the new part only."""
        if not 0 < seconds < math.inf:
            raise InputError(f"continue_speech: expected a number of seconds above 0, got {seconds}")
        engine, recording = self.engine, self.engine.open_prompt_audio(audio)
        positions = options.max_new_tokens or max(1, round(seconds / engine.facts.patch_s))

        def requests() -> Iterator[Request]:
            ids = engine.core.prompt_continuation(encode(engine, recording))
            yield Request(task="continuation", ids=ids, allowance=positions, heard_s=recording.seconds, speaks=True)

        return Generation(engine, requests(), replace(options, max_new_tokens=positions))

    def encode(self, audio: AudioInput) -> Codes:
        """Turn sound into codes: int32 [levels, code frames], 25 Hz in the release, all levels of the codec."""
        return self.engine.codes(self.engine.whole(self.engine.open_codec_audio(audio)))

    def decode(self, codes: Codes) -> Wave:
        """Turn codes, integers [n, T] (the first n levels), into sound, float32 [samples] at `rate_hz`.

        Raises InputError for what is no array of codes, ShapeError for more levels than the codec has.
        """
        array = np.asarray(codes)
        if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "iu":
            got = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"decode: expected integers [levels, frames] with at least one frame, got {got}")
        return self.engine.sound(array.astype(np.int64).clip(-1, 2**31 - 1).astype(np.int32))  # none wraps into range

    def _manner(self, speaks: bool, thinks: bool, system: str | None = None, voice: AudioInput | None = None) -> Manner:
        recording = None if voice is None else self.engine.open_prompt_audio(voice)
        return Manner(speaks=speaks, thinks=thinks, system=system, voice=recording)


def _turns(dialogue: AudioInput | list[Turn]) -> list[Turn]:
    """One recording is a dialogue of one turn."""
    return dialogue if isinstance(dialogue, list) else [Turn(role="user", audio=dialogue)]


def _common(a: Ids, b: Ids, group: int) -> Ids:
    """Return the positions, `group` columns each, in which two prompts begin alike."""
    columns = min(a.shape[1], b.shape[1])
    differ = np.flatnonzero((a[:, :columns] != b[:, :columns]).any(axis=0))
    same = int(differ[0]) if len(differ) else columns
    return np.ascontiguousarray(a[:, : same // group * group])
