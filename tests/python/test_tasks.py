"""The task methods in parity mode are the reference's tasks: whole greedy runs, sound and text in and out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of, large_goldens

import mimo_edge
from mimo_edge import Example, Generation, Model, Options, Sampling, Turn
from mimo_edge.verify.goldens import WAVE, Goldens


def test_bundled_runs() -> None:
    assert replay(BUNDLED) >= 8


def test_large_runs() -> None:
    assert replay(large_goldens()) >= 8


def replay(folder: Path) -> int:
    """Repeat every greedy run that has no history; returns how many there were."""
    goldens, model = Goldens(folder), mimo_edge.load(bundle_of(folder), threads=1, parity=True)
    clips = {name: (goldens.peek(f"wavs:{name}"), model.rate_hz) for name in goldens.names("wavs")}
    prompts, runs = goldens.cases("prompts"), 0
    for run, facts in goldens.cases("generate").items():
        if "samplers" in facts or facts["history_groups"]:
            continue
        prompt = prompts[facts["prompt"].split(":")[1].removesuffix(".input_ids")]
        generation = start(model, prompt, with_clips(prompt["kwargs"], clips), options(facts))
        reply = generation.result()
        assert np.array_equal(generation.new_ids, goldens.peek(f"generate:{run}.new_ids")), run
        assert reply.text == facts["text"], run
        assert reply.stop_reason == facts["stopped_by"], run
        if goldens.has(f"generate:{run}.wav") and reply.audio is not None:
            assert np.max(np.abs(reply.audio - goldens.peek(f"generate:{run}.wav"))) <= WAVE, run
        runs += 1
    return runs


def options(facts: Any) -> Options:
    return Options(
        max_new_tokens=facts["max_new_tokens"],
        min_new_tokens=facts["min_new_tokens"],
        text_sampling=Sampling(False),
        speech_sampling=Sampling(False),
    )


def with_clips(value: Any, clips: dict[str, Any]) -> Any:
    """Replace every {"wav": clip} by the clip."""
    if isinstance(value, dict):
        return clips[value["wav"]] if value.keys() == {"wav"} else {k: with_clips(v, clips) for k, v in value.items()}
    return [with_clips(inner, clips) for inner in value] if isinstance(value, list) else value


def start(model: Model, prompt: Any, a: Any, options: Options) -> Generation:
    """Call the method that answers to the reference's prompt function with its arguments `a`."""
    name = re.fullmatch(r"MimoAudio\.get_(\w+?)_prompt.*", prompt["function"]).group(1)  # type: ignore[union-attr]
    template, thinking = prompt["template"], a.get("thinking", False)
    if name == "asr_sft":
        return model.transcribe(a["input"], template=template, options=options)
    if name == "tts_sft":
        how = {
            "instruct": a.get("instruct"),
            "voice": a.get("prompt_speech"),
            "natural": not a.get("read_text_only", True),
        }
        return model.speak(a["input"], template=template or 0, options=options, **how)
    if name == "audio_understanding_sft":
        return model.understand(a["input_speech"], a["input_text"], thinking=thinking, options=options)
    if name.startswith("spoken_dialogue_sft"):
        how = {"system": a.get("system_prompt"), "voice": a.get("prompt_speech")}
        return model.respond(dialogue(a), options=options, **how)
    if name.startswith("s2t_dialogue_sft"):
        return model.answer(dialogue(a), thinking=thinking, options=options)
    if name.startswith("text_dialogue_sft"):
        return model.chat(dialogue(a), thinking=thinking, options=options)
    if name == "in_context_learning_s2s":
        examples = [
            Example(e["input_audio"], e["output_transcription"], e["output_audio"]) for e in a["prompt_examples"]
        ]
        return model.convert(a["audio"], examples, a["instruction"], options=options)
    pytest.fail(f"unknown prompt function {name}")


def dialogue(a: Any) -> Any:
    """One message, or the reference's message list as turns."""
    if "message_list" not in a:
        return a["input_speech"] if "input_speech" in a else a["input_text"]
    turns = []
    for message in a["message_list"]:
        content, role = message["content"], message["role"]
        if isinstance(content, dict):
            turns.append(Turn(role=role, text=content["text"], audio=content["audio"]))
        elif isinstance(content, str):
            turns.append(Turn(role=role, text=content))
        else:
            turns.append(Turn(role=role, audio=content))
    return turns
