"""Goldens of rules without weights: replies from crafted ids, filters, the stop rule, text tokens, lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mimo_edge.export.goldens.checkpoint import LEARNED_TOKENS, SPECIAL_TOKENS, VOCAB_SIZE
from mimo_edge.export.goldens.section import Section, random_codes
from mimo_edge.export.reference import Reference, Sampling
from mimo_edge.export.reference_ops import Array


def postprocess(r: Reference, rng: np.random.Generator) -> Section:
    """Crafted generated ids, and what the reference makes of them."""
    lm, t, section = r.config["lm"], r.tokens, Section()
    think, unthink = r.tokenize("<think>")[0], r.tokenize("</think>")[0]
    hi, rare = r.tokenize("Hi"), r.tokenize("鑫")
    empty, sostm, eostm, eot, stop = t["empty"], t["sostm"], t["eostm"], t["eot"], t["im_end"]
    words = r.tokenize
    cases = {
        "stream_full": [think, *words("\n"), unthink, *words("\n"), sostm, *words("Hello there, my"), empty, empty,
                        empty, *words(" friend."), eot, empty, empty, eostm, *words("tail"), stop],
        "no_marks_audio_text_mixed": [*words("Hi "), empty, empty, *words(" you"), empty, stop],
        "stop_is_eostm": [*hi, empty, empty, eot, empty, eostm],
        "max_length_mid_audio": [*hi, empty, empty, empty],
        "text_only": [*words("\n  Hello world. \n"), stop],
        "inner_whitespace": [*words("\n"), sostm, *words("\nHi "), empty, *words(" \n"), eot, eostm, stop],
        "audio_before_sostm": [empty, empty, *words("x"), sostm, *words("y"), empty, eostm, empty, stop],
        "eostm_before_sostm": [empty, eostm, *words("z"), sostm, empty, empty, stop],
        "two_streams": [sostm, empty, eostm, sostm, empty, empty, eostm, stop],
        "split_utf8_around_audio": [rare[0], empty, *rare[1:], stop],
        "split_utf8_contiguous": [*rare, stop],
        "split_utf8_truncated_end": [*rare],
        "single_token": [stop],
        "special_kept": [think, *words("ok"), unthink, t["sosp"], t["im_start"], stop],
        "unused_vocab_id": [*words("a"), lm["vocab_size"] - 1, *words("b"), stop],
    }  # fmt: skip
    for name, tokens in cases.items():
        columns = []
        for token in tokens:
            codes = random_codes(rng, lm["speech_zeroemb_idx"], lm["group_size"]) if token == empty else None
            columns.append(r.prompts.positions([token], codes))
            columns[-1][0] = token
        ids = np.concatenate(columns, axis=1)
        text, codes = r.extract(ids)
        section.arrays[f"{name}.new_ids"] = ids
        raw, frames = r.detokenize(tokens[:-1]), codes.shape[1]
        section.facts[name] = {"text": text, "raw_decode": raw, "decoded_code_frames": [frames] if frames else []}
        section.facts[name] |= {"silent_placeholder": not frames}
        if frames:
            section.arrays[f"{name}.decoded_codes"] = codes
            section.facts[name] |= {"wav_samples": len(r.decode(codes))}
    texts = [
        "hello world",
        "HELLO WORLD",
        "Hello World",
        "今天天气很好",
        "abc今天",
        "ÉCOLE",
        "123",
        "",
        "ß",
        "ǆ abc",
        "ﬁne",
        "한국어",
    ]
    section.facts["_text_rules"] = [
        {"input": text, "preprocess_input": r.capitalize_text(text), "detect_language": r.detect_language(text)}
        for text in texts
    ]
    return section


def sampler(r: Reference, rng: np.random.Generator) -> Section:
    """Filters on several score vectors, and the stop rule."""
    lm, section = r.config["lm"], Section()
    last = lm["speech_vocab_size"][-1]
    vectors = {
        "text": rng.standard_normal(lm["vocab_size"]) * 3,
        "audio0": rng.standard_normal(lm["speech_vocab_size"][0]) * 2,
        f"audio{lm['audio_channels'] - 1}": rng.standard_normal(last) * 2,
        "peaked": rng.standard_normal(last) + 12 * (np.arange(last) == 9),
        "wide_underflow": rng.standard_normal(32) * 60,
        "ties": np.array([1, 3, 3, 0, 2, 2, 3, 1, 2, -1]),
    }
    combos: list[dict[str, Any]] = [
        {},
        {"temperature": 0.6},
        {"temperature": 0.9, "top_p": 0.95},
        {"temperature": 0.6, "top_p": 1.0},
        {"top_p": 0.5},
        {"top_p": 0.05},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 100000},
        {"temperature": 0.9, "top_k": 12, "top_p": 0.95},
        {"top_p": 1.5},
        {"temperature": 2.0, "top_k": 3, "top_p": 0.5},
    ]
    combos_before_removal = [combos[6], combos[2], combos[0], combos[5]]
    for name, values in vectors.items():
        logits = section.arrays[f"{name}.logits"] = values.astype(np.float32)
        for i, combo in enumerate(combos):
            scores = section.arrays[f"{name}.combo{i}.scores"] = r.filter_scores(logits, sampling(combo))
            kept = int(np.isfinite(scores).sum())
            section.facts[f"{name}.combo{i}"] = {
                "sampler": combo,
                "kept": kept,
                "nucleus_boundary_gap": nucleus_gap(logits, combo),
            }
        best = int(logits.argmax())
        for i, combo in enumerate(combos_before_removal):
            scores = r.filter_scores(logits, sampling(combo))
            scores[best] = -np.inf
            section.arrays[f"{name}.removed{i}.scores"] = scores
            section.facts[f"{name}.removed{i}"] = {
                "sampler": {**combo, "do_sample": False},
                "removed_tokens": [best],
                "argmax": int(scores.argmax()),
                "all_masked": not bool(np.isfinite(scores).any()),
            }
    section.facts["_stopper"] = [stop_case(r, *case) for case in STOP_CASES]
    return section


def sampling(combo: Mapping[str, Any]) -> Sampling:
    return Sampling(False, combo.get("temperature", 1.0), combo.get("top_k", 0), combo.get("top_p", 0.0))


def nucleus_gap(logits: Array, combo: Mapping[str, Any]) -> float | None:
    """How far the cumulative probability nearest to 1 - p stays from it; None where no nucleus is cut."""
    p = combo.get("top_p", 0.0)
    if not 0.0 < p < 1.0:
        return None
    scores = np.sort(logits.astype(np.float64) / combo.get("temperature", 1.0))
    if combo.get("top_k"):
        scores = scores[scores >= scores[-min(combo["top_k"], len(scores))]]
    weights = np.exp(scores - scores[-1])
    return float(np.abs(np.cumsum(weights / weights.sum()) - (1 - p)).min())


STOP_CASES: list[tuple[int, int | None, int | None, str, bool]] = [  # total, min, max, last position, stop tokens given
    (5, 0, 8192, "stop", True),
    (5, 6, 8192, "stop", True),
    (6, 6, 8192, "stop", True),
    (7, 0, 7, "text", True),
    (8, 0, 7, "text", True),
    (7, 0, 8, "text", True),
    (1, 0, 8192, "stop", True),
    (5, None, None, "stop", True),
    (5, 0, 0, "text", True),
    (5, 0, 8192, "stop", False),
    (5, 0, 8192, "stop_in_speech_channel", True),
    (5, 0, 8192, "stop_in_previous_group", True),
]


def stop_case(r: Reference, total: int, least: int | None, most: int | None, last: str, given: bool) -> dict[str, Any]:
    stop, token = [r.tokens["eos"], r.tokens["im_end"]], r.tokens["im_end"] if last == "stop" else 5
    done = r.is_done(total, token, stop if given else None, least or 0, most)
    facts = {"total_groups": total, "min_length": least, "max_length": most, "last_group": last}
    return {**facts, "stop_tokens_given": given, "is_done": done}


def text_tokenizer(r: Reference, rng: np.random.Generator) -> Section:
    texts = [
        "", "hello", " hello", "Hello World!", "\n\n", " \n\n", "a.\n\nb", "<think>\n\n</think>\n",
        "<|im_start|>user\n", "<|im_start|>assistant\n<|sostm|>", "今天天气很好，我们去公园吧！",
        "It's 3.14159, isn't it? I'LL see",
        "tabs\tand  spaces   \n  x", "e\u0301 vs \u00e9 (NFC)", "emoji 😀🎉", "Ünïcödé Straße",
        "<|empty|><|eot|>x<|eostm|>", "<|not_special|>", "1234567890", "русский", "日本語のテキスト", "\r\n\r\n",
        "  leading", "trailing  ", "...!!!???", "a\u00a0b", "[Int]:Convert.\n",
    ]  # fmt: skip
    drawn = [rng.integers(0, LEARNED_TOKENS, 9).tolist() for _ in range(12)]
    encode = [{"text": text, "ids": r.tokenize(text), "decoded": r.detokenize(r.tokenize(text))} for text in texts]
    facts = {"encode": encode, "decode": [{"ids": ids, "decoded": r.detokenize(ids)} for ids in drawn]}
    sizes = {"vocab_len": LEARNED_TOKENS + len(SPECIAL_TOKENS), "model_vocab_size": VOCAB_SIZE}
    return Section({}, {**facts, **sizes})


def misc(r: Reference) -> Section:
    groups = [
        ([6000] * 43 + [17], 256000),
        ([6000] * 42 + [4000], 256000),
        ([5, 3, 9, 1], 8),
        ([10, 1], 8),
        ([8, 8], 8),
    ]
    return Section(
        {},
        {
            "group_by_length": [
                {"segments": lengths, "max_length": most, "groups": r.group_segments(lengths, most)}
                for lengths, most in groups
            ],
            "mel_frames_of_samples": {str(n): r.mel_frames(n) for n in (201, 299, 300, 301, 16000, 16099, 16100)},
            "encoder_output_length_of_mel_frames": {str(n): r.encoder_frames(n) for n in range(1, 14)},
        },
    )
