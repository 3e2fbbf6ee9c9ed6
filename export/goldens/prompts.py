"""The goldens of every prompt builder, and the dialogues that the tiny backbone is taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimo_edge.export.goldens.section import Section, random_codes
from mimo_edge.export.reference import Reference
from mimo_edge.export.reference_ops import Array

VOICE, SYSTEM = {"wav": "mixture"}, "You are a helpful assistant."
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": {"wav": "sweep"}},
    {"role": "assistant", "content": {"text": "你好，今天天气很好，我们去公园吧。", "audio": {"wav": "noise"}}},
    {"role": "user", "content": {"wav": "pulses"}},
]
ASR, TTS_ZH, TTS_EN = (
    ("Convert this speech recording to text", 11),
    ("请朗读这段内容", 3),
    ("Generate speech from this text", 2),
)
SPEAK, WRITE, CONTINUE = ["eos", "eostm", "im_end"], ["eos", "im_end"], ["eos", "eostm"]


def told(turns: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """The same chat with only text from the assistant, and from the user too if key is "text"."""
    spoken = {"sweep": "How are you today?", "pulses": "今天天气怎么样？"}
    return [
        {"role": turn["role"], "content": turn["content"]["text"]}
        if turn["role"] == "assistant"
        else {"role": turn["role"], "content": spoken[turn["content"]["wav"]] if key == "text" else turn["content"]}
        for turn in turns
    ]


def prompt_cases() -> dict[str, dict[str, Any]]:
    """case -> reference function, arguments, template, task, stop tokens; as in the goldens of the public reference."""
    cases: dict[str, dict[str, Any]] = {}

    def add(
        name: str, function: str, task: str, stop: list[str], template: tuple[str, int] | None = None, **kwargs: Any
    ) -> None:
        cases[name] = {"function": f"MimoAudio.get_{function}_prompt", "kwargs": kwargs}
        cases[name] |= {
            "template": template[0] if template else None,
            "template_index": template[1] if template else None,
        }
        cases[name] |= {"task_name": task, "stop_tokens": stop}

    add("asr", "asr_sft", "asr", WRITE, ASR, input={"wav": "sweep"})
    zh, en, style = "今天天气很好", "she walked slowly along the river.", "用开心的声音说"
    add("tts_plain_zh", "tts_sft", "tts", SPEAK, TTS_ZH, input=zh)
    add("tts_plain_en", "tts_sft", "tts", SPEAK, TTS_EN, input=en)
    add("tts_plain_upper", "tts_sft", "tts", SPEAK, TTS_EN, input="HELLO THERE")
    add("tts_plain_prompt_speech_ignored", "tts_sft", "tts", SPEAK, TTS_ZH, input=zh, prompt_speech=VOICE)
    add("tts_instruct", "tts_sft", "tts", SPEAK, TTS_ZH, input=zh, instruct=style)
    add("tts_instruct_prompt_speech", "tts_sft", "tts", SPEAK, TTS_EN, input=en, instruct=style, prompt_speech=VOICE)
    add("tts_natural", "tts_sft", "tts", SPEAK, input="用开心的声音说：你好！", read_text_only=False)
    add("tts_natural_prompt_speech", "tts_sft", "tts", SPEAK, input="say it", read_text_only=False, prompt_speech=VOICE)
    heard: dict[str, Any] = {"input_speech": {"wav": "noise"}, "input_text": "Summarize the audio."}
    add("understanding", "audio_understanding_sft", "audio_understanding", WRITE, **heard)
    add("understanding_think", "audio_understanding_sft", "audio_understanding", WRITE, **heard, thinking=True)
    add(
        "understanding_empty_text",
        "audio_understanding_sft",
        "audio_understanding",
        WRITE,
        **heard | {"input_text": ""},
    )
    one: dict[str, Any] = {"input_speech": {"wav": "pulses"}}
    add("dialogue_single", "spoken_dialogue_sft", "spoken_dialogue", SPEAK, **one)
    add(
        "dialogue_system_voice",
        "spoken_dialogue_sft",
        "spoken_dialogue",
        SPEAK,
        **one,
        system_prompt=SYSTEM,
        prompt_speech=VOICE,
    )
    many = "spoken_dialogue_sft_multiturn"
    add("dialogue_multiturn", many, "spoken_dialogue", SPEAK, message_list=CHAT)
    whole: dict[str, Any] = {"message_list": CHAT, "system_prompt": SYSTEM, "prompt_speech": VOICE}
    add("dialogue_multiturn_system_voice", many, "spoken_dialogue", SPEAK, **whole)
    add("s2t", "s2t_dialogue_sft", "spoken_dialogue", WRITE, **one)
    add(
        "s2t_multiturn_think",
        "s2t_dialogue_sft_multiturn",
        "spoken_dialogue",
        WRITE,
        message_list=told(CHAT, "audio"),
        thinking=True,
    )
    add("text", "text_dialogue_sft", "text_chat", WRITE, input_text="How are you today?")
    add("text_multiturn", "text_dialogue_sft_multiturn", "text_chat", WRITE, message_list=told(CHAT, "text"))
    examples = [
        {
            "input_audio": {"wav": "sweep"},
            "output_audio": {"wav": "noise"},
            "output_transcription": "Hello there, how are you?",
        },
        {"input_audio": {"wav": "tiny"}, "output_audio": {"wav": "pulses"}, "output_transcription": "你好"},
    ]
    task: dict[str, Any] = {
        "instruction": "Convert the voice.",
        "prompt_examples": examples,
        "audio": {"wav": "odd_f4"},
    }
    add("icl_s2s", "in_context_learning_s2s", "in_context_learning_s2s", CONTINUE, **task)
    add(
        "dialogue_add_history",
        "spoken_dialogue_sft",
        "spoken_dialogue",
        SPEAK,
        input_speech={"wav": "sweep"},
        add_history=True,
    )
    cases["dialogue_add_history"]["function"] += " (add_history=True, self.history set)"
    return cases


def build_prompt(r: Reference, case: Mapping[str, Any], tokens: Mapping[str, Array]) -> Array:
    """Map a case's reference function and arguments to the stage that builds it. tokens: clip -> [T, K]."""
    k, function = case["kwargs"], case["function"]

    def codes(of: Mapping[str, str] | None) -> Array | None:
        return None if of is None else np.ascontiguousarray(tokens[of["wav"]].T)

    def sure(of: Mapping[str, str]) -> Array:
        return np.ascontiguousarray(tokens[of["wav"]].T)

    if "asr" in function:
        return r.prompt_asr(sure(k["input"]), case["template"])
    if "tts" in function:
        voice = codes(k.get("prompt_speech"))
        only = k.get("read_text_only", True)
        return r.prompt_tts(k["input"], case["template"] or "", k.get("instruct"), voice, only, parity=True)
    if "understanding" in function:
        return r.prompt_understanding(sure(k["input_speech"]), k["input_text"], k.get("thinking", False))
    if "in_context" in function:
        examples = [
            (sure(e["input_audio"]), e["output_transcription"], sure(e["output_audio"])) for e in k["prompt_examples"]
        ]
        return r.prompt_in_context(k["instruction"], examples, sure(k["audio"]))
    if k.get("add_history"):
        return r.prompt_followup(("user", None, sure(k["input_speech"])), True, False)
    first = {"role": "user", "content": k.get("input_speech", k.get("input_text"))}
    turns: list[tuple[str, str | None, Array | None]] = []
    for turn in k.get("message_list", [first]):
        content = turn["content"]
        if isinstance(content, str):
            turns.append((turn["role"], content, None))
        else:
            turns.append(
                (turn["role"], content.get("text"), codes(content.get("audio", content if "wav" in content else None)))
            )
    spoken = "spoken" in function
    return r.prompt_dialogue(
        turns, k.get("system_prompt"), codes(k.get("prompt_speech")), spoken, k.get("thinking", False)
    )


def prompts(r: Reference, encoder: Section, rng: np.random.Generator) -> Section:
    tokens = {
        name.removesuffix(".audio_tokens"): a for name, a in encoder.arrays.items() if name.endswith(".audio_tokens")
    }
    section, patch = Section(), r.config["lm"]["group_size"]

    def add(name: str, ids: Array, facts: Mapping[str, Any]) -> None:
        section.arrays[f"{name}.input_ids"] = ids
        row = ids[0, ::patch].tolist()
        section.facts[name] = {**facts, "columns": ids.shape[1], "groups": len(row), "text_row": row}

    for name, case in prompt_cases().items():
        add(name, build_prompt(r, case, tokens), case)
    none: dict[str, Any] = {"kwargs": {}, "template": None, "task_name": None, "stop_tokens": []}
    add("synth", synthetic_prompt(r, rng), {"function": "none (synthetic)", **none})
    section.facts["synth"] |= {"note": "codes under text must be ignored, empty codes inside patches must add nothing"}
    levels = r.config["lm"]["audio_channels"]
    audio = random_codes(rng, r.config["codec"]["codebook_size"][:levels], 13 * patch)
    section.arrays["seg.audio13.audio_tokens"] = audio.T
    cut = 5 * patch
    add("seg.empty_text", r.prompt_text(""), segment('InputSegment(text="")'))
    add("seg.newlines", r.prompt_text("\n\n"), segment('InputSegment(text="\\n\\n")'))
    note = f"InputSegment(audio=audio13[:{cut} frames]"
    add("seg.audio_no_sosp", r.prompt_audio(audio[:, :cut], marks=False), segment(f"{note}, add_sosp_eosp=False)"))
    add("seg.audio_sosp", r.prompt_audio(audio[:, :cut]), segment(f"{note})"))
    same = r.prompt_audio(audio[:, :cut], empty=[7] * levels)
    add("seg.audio_int_zeroemb", same, segment("InputSegment with integer speech_zeroemb_idx=7"))
    ten = "The weather today is fine"
    while len(r.tokenize(ten)) > 10:
        ten = ten[:-1]
    texts = {
        "text_shorter": ("Hi", 13),
        "text_longer": (ten + " and good", 5),
        "text_exact10": (ten, 13),
        "empty_text": ("", 5),
    }
    for name, (text, patches) in texts.items():
        ids = r.prompt_stream(text, audio[:, : patches * patch])
        count = f"text has {len(r.tokenize(text))} tokens"
        note = f"StreamingInputSegment(text={text!r}, audio=audio13[:{patches * patch} frames]); {count}"
        add(f"seg.stream_{name}", ids, {"function": "StreamingInputSegment.to_input_id", "note": note})
    section.facts["_special_ids"] = dict(r.tokens)
    return section


def segment(note: str) -> dict[str, str]:
    return {"function": "InputSegment.to_input_id", "note": note}


def synthetic_prompt(r: Reference, rng: np.random.Generator) -> Array:
    """Random tokens, each with codes; among the patches some codes are empty."""
    lm, count = r.config["lm"], 21
    tokens = np.where(rng.random(count) < 0.5, r.tokens["empty"], rng.integers(0, 300, count))
    ids = r.prompts.positions(tokens.tolist(), random_codes(rng, lm["speech_zeroemb_idx"], count * lm["group_size"]))
    empty = rng.random((lm["audio_channels"], ids.shape[1])) < 0.25
    ids[1:] = np.where(empty, np.array(lm["speech_zeroemb_idx"])[:, None], ids[1:])
    return ids


def fitting_examples(r: Reference, section: Section, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """What the backbone is taught to answer: (prompt ids, reply ids), the reply with its stop token."""
    lm = r.config["lm"]

    def spoken(text: str, patches: int) -> Array:
        codes = random_codes(rng, lm["speech_zeroemb_idx"], patches * lm["group_size"])
        return r.prompt_stream(text, codes)[:, lm["group_size"] :]  # the prompt has <|sostm|> already

    thought = r.prompt_text("好的。\n</think>\n<|sostm|>")
    replies = {
        "asr": r.prompt_text("今天天气很好<|im_end|>"),
        "tts_plain_en": spoken("She walked slowly.", 6),
        "tts_plain_zh": spoken("今天天气很好", 6),
        "tts_instruct": np.concatenate([thought, spoken("天气很好", 4)], axis=1),
        "understanding_think": r.prompt_text("好的。\n</think>\nThe speaker talks.<|im_end|>"),
        "dialogue_single": spoken("你好，公园。", 7),
        "text_multiturn": r.prompt_text("Hello there.<|im_end|>"),
        "icl_s2s": spoken("How are you?", 4),
    }
    examples = [(section.arrays[f"{name}.input_ids"], reply) for name, reply in replies.items()]
    first = [section.arrays["dialogue_single.input_ids"], replies["dialogue_single"]]
    followed = np.concatenate([*first, section.arrays["dialogue_add_history.input_ids"]], axis=1)
    return [*examples, (followed, spoken("天气好", 3))]
