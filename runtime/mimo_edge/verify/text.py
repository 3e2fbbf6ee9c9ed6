"""Text and prompts against their goldens: tokens, rules for spoken text, and the ids of every prompt."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mimo_edge.dialogue import CoreTurn
from mimo_edge.reply import Codes, Ids
from mimo_edge.verify.goldens import Check, Goldens
from mimo_edge.verify.stages import Stages


def check_tokenizer(stages: Stages, goldens: Goldens, check: Check) -> None:
    """text_tokenizer.json: text to tokens and back; postprocess.json: the rules for text that is to be spoken."""
    cases = goldens.json("text_tokenizer")
    for case in cases["encode"]:
        check.equal("tokenize", repr(case["text"]), case["ids"], list(stages.tokenize(case["text"])))
        check.equal("detokenize", repr(case["text"]), case["decoded"], stages.detokenize(case["ids"]))
    for case in cases["decode"]:
        check.equal("detokenize", str(case["ids"]), case["decoded"], stages.detokenize(case["ids"]))
    check.equal("vocabulary", "size", cases["model_vocab_size"], stages.config["lm"]["vocab_size"])
    for rule in goldens.json("postprocess")["_text_rules"]:
        text = rule["input"]
        check.equal("text rules", repr(text), rule["preprocess_input"], stages.capitalize_text(text))
        check.equal("text rules", repr(text), rule["detect_language"], stages.detect_language(text))


def check_prompts(stages: Stages, goldens: Goldens, check: Check) -> None:
    """prompts.npz: every prompt rebuilt from the arguments of the reference's function."""
    for case, facts in goldens.cases("prompts").items():
        key = f"prompts:{case}.input_ids"
        if facts["function"].startswith("none"):
            goldens.claim(key)  # made by hand: an input of lm_forward
            continue
        segment = facts["function"].endswith("to_input_id")
        with check.attempt("prompts"):
            ids = _segment(stages, goldens, case, facts) if segment else _prompt(stages, goldens, facts)
            check.same("prompt segments" if segment else "prompts", key, ids)
            row = ids[0, :: stages.config["lm"]["group_size"]].tolist()
            check.equal("prompt tokens", case, facts["text_row"], row)
    special = {name: stages.config["tokens"][name] for name in goldens.json("prompts")["_special_ids"]}
    check.equal("special tokens", "ids", goldens.json("prompts")["_special_ids"], special)


def _prompt(stages: Stages, goldens: Goldens, facts: Any) -> Ids:
    """Call the prompt builder that answers to the reference's, with the recorded arguments."""
    arguments = _with_codes(goldens, facts["kwargs"])
    name = re.fullmatch(r"MimoAudio\.get_(\w+?)_prompt.*", facts["function"]).group(1)  # type: ignore[union-attr]
    return _BUILDERS[name](stages, facts, **arguments)


def _with_codes(goldens: Goldens, value: Any) -> Any:
    """Replace every {"wav": clip} by the clip's codes [K, T']."""
    if isinstance(value, dict) and value.keys() == {"wav"}:
        return np.ascontiguousarray(goldens.input(f"encoder:{value['wav']}.audio_tokens").T)
    if isinstance(value, dict):
        return {key: _with_codes(goldens, inner) for key, inner in value.items()}
    return [_with_codes(goldens, inner) for inner in value] if isinstance(value, list) else value


def _asr(stages: Stages, facts: Any, input: Codes) -> Ids:
    return stages.prompt_asr(input, facts["template"])


def _tts(
    stages: Stages,
    facts: Any,
    input: str,
    instruct: str | None = None,
    read_text_only: bool = True,
    prompt_speech: Codes | None = None,
) -> Ids:
    return stages.prompt_tts(input, facts["template"] or "", instruct, prompt_speech, read_text_only, True)


def _understanding(stages: Stages, facts: Any, input_speech: Codes, input_text: str, thinking: bool = False) -> Ids:
    return stages.prompt_understanding(input_speech, input_text, thinking)


def _spoken(
    stages: Stages,
    facts: Any,
    input_speech: Codes,
    system_prompt: str | None = None,
    prompt_speech: Codes | None = None,
    add_history: bool = False,
) -> Ids:
    turn: CoreTurn = ("user", None, input_speech)
    if add_history and "history set" in facts["function"]:
        return stages.prompt_followup(turn, True, False)
    return stages.prompt_dialogue([turn], system_prompt, prompt_speech, True, False)


def _spoken_turns(
    stages: Stages,
    facts: Any,
    message_list: list[Any],
    system_prompt: str | None = None,
    prompt_speech: Codes | None = None,
) -> Ids:
    return stages.prompt_dialogue(_turns(message_list), system_prompt, prompt_speech, True, False)


def _written(
    stages: Stages, facts: Any, input_speech: Codes | None = None, input_text: str | None = None, thinking: bool = False
) -> Ids:
    return stages.prompt_dialogue([("user", input_text, input_speech)], None, None, False, thinking)


def _written_turns(stages: Stages, facts: Any, message_list: list[Any], thinking: bool = False) -> Ids:
    return stages.prompt_dialogue(_turns(message_list), None, None, False, thinking)


def _in_context(stages: Stages, facts: Any, instruction: str, prompt_examples: list[Any], audio: Codes) -> Ids:
    examples = [(e["input_audio"], e["output_transcription"], e["output_audio"]) for e in prompt_examples]
    return stages.prompt_in_context(instruction, examples, audio)


def _turns(messages: list[Any]) -> list[CoreTurn]:
    """The reference's messages as turns: content is codes, text, or both."""

    def turn(role: str, content: Any) -> CoreTurn:
        if isinstance(content, dict):
            return (role, content["text"], content["audio"])
        return (role, content, None) if isinstance(content, str) else (role, None, content)

    return [turn(message["role"], message["content"]) for message in messages]


_BUILDERS: dict[str, Callable[..., Ids]] = {
    "asr_sft": _asr,
    "tts_sft": _tts,
    "audio_understanding_sft": _understanding,
    "spoken_dialogue_sft": _spoken,
    "spoken_dialogue_sft_multiturn": _spoken_turns,
    "s2t_dialogue_sft": _written,
    "s2t_dialogue_sft_multiturn": _written_turns,
    "text_dialogue_sft": _written,
    "text_dialogue_sft_multiturn": _written_turns,
    "in_context_learning_s2s": _in_context,
}


def _segment(stages: Stages, goldens: Goldens, case: str, facts: Any) -> Ids:
    """Build one segment from its description, e.g. "InputSegment(audio=audio13[:20 frames], add_sosp_eosp=False)"."""
    note, lm = facts["note"], stages.config["lm"]
    text = re.search(r"text=(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", note)
    words = ast.literal_eval(text.group(1)) if text else None
    frames = re.search(r"\[:(\d+) frames\]", note)
    if words is not None and not frames:
        return stages.prompt_text(words)
    count = int(frames.group(1)) if frames else (facts["groups"] - 2) * lm["group_size"]
    (source,) = [name for name in goldens.names("prompts") if name.endswith(".audio_tokens")]
    audio = np.ascontiguousarray(goldens.input(f"prompts:{source}").T[:, :count])
    if words is not None:
        return stages.prompt_stream(words, audio)
    integer = re.search(r"speech_zeroemb_idx=(\d+)", note)
    empty = [int(integer.group(1))] * lm["audio_channels"] if integer else None
    return stages.prompt_audio(audio, "add_sosp_eosp=False" not in note, empty)
