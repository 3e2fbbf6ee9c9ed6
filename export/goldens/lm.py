"""The language model's goldens: prefill, forced steps, generations and the scores behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mimo_edge.export.goldens.section import Section, Taps, random_codes
from mimo_edge.export.reference import Reference, Sampling, State
from mimo_edge.export.reference_ops import Array

GREEDY = Sampling(sample=False)


def gap(scores: Array) -> float:
    """Best score minus the next; inf if a single candidate is left."""
    best = np.sort(scores[np.isfinite(scores)])[-2:]
    return float(best[1] - best[0]) if len(best) == 2 else math.inf


def patch_scores(r: Reference, taps: Taps, s: Sampling) -> Array:
    """[G, K, V] scores of a decoded patch, filtered, the empty code removed; NaN beyond a level's vocabulary."""
    lm = r.config["lm"]
    scores = np.full((lm["group_size"], lm["audio_channels"], max(lm["speech_vocab_size"])), np.nan, np.float32)
    for level, size in enumerate(lm["speech_vocab_size"]):
        for frame, logits in enumerate(taps.seen[f"patch_decoder.logits.{level}"]):
            scores[frame, level, :size] = r.filter_scores(logits, s)
            scores[frame, level, lm["speech_zeroemb_idx"][level]] = -np.inf
    return scores


def patch_margins(scores: Array) -> Array:
    return np.array([[gap(row) for row in frame] for frame in scores], np.float32)


def lm_forward(r: Reference, prompts: Section, rng: np.random.Generator) -> Section:
    section, lm = Section(), r.config["lm"]
    patch, levels = lm["group_size"], lm["audio_channels"]
    for name in ("asr", "tts_plain_zh", "text", "synth"):
        ids, taps = prompts.arrays[f"{name}.input_ids"], Taps()
        state = r.forward(ids, taps)
        arrays = {
            "speech_embed_sum": taps["patch_encoder.sum"],
            "patch_encoder_out": taps["patch_encoder.out"],
            "inputs_embeds": taps["backbone.embeds"],
            "hidden_all": taps["backbone.hidden"],
            "hidden_last": state.hidden(),
            "text_logits": state.text_logits(),
            "local_hidden_states": state.local_hidden(),
        }
        if name in ("text", "synth"):
            arrays |= {f"dbg.layer{i}": taps[f"backbone.layer{i}"] for i in range(lm["num_hidden_layers"])}
        taps = Taps()
        arrays["local_tokens"] = state.decode_patch(GREEDY, taps).T
        logits = np.full((patch + max(lm["delay_pattern"]), levels, max(lm["speech_vocab_size"])), np.nan, np.float32)
        for level, (delay, size) in enumerate(zip(lm["delay_pattern"], lm["speech_vocab_size"], strict=True)):
            logits[delay : delay + patch, level, :size] = taps.seen[f"patch_decoder.logits.{level}"]
        arrays |= {"local_logits": logits, "local_inputs": np.stack(taps.seen["patch_decoder.input"])}
        arrays["local_hidden"] = np.stack(taps.seen["patch_decoder.hidden"])
        local_margin = float(patch_margins(patch_scores(r, taps, GREEDY)).min())
        kinds = "ttaaatat"
        forced = np.concatenate([forced_position(r, rng, kind == "a") for kind in kinds], axis=1)
        steps, margins = [], []
        for i in range(len(kinds)):
            state.prefill(forced[:, i * patch : (i + 1) * patch])
            taps = Taps()
            codes = state.decode_patch(GREEDY, taps).T
            margins.append(float(patch_margins(patch_scores(r, taps, GREEDY)).min()))
            steps.append((state.text_logits(), state.local_hidden(), state.hidden(), codes))
        keys = ("forced_text_logits", "forced_local_hidden_states", "forced_hidden_last", "forced_local_tokens")
        arrays |= {key: np.stack(values) for key, values in zip(keys, zip(*steps, strict=True), strict=True)}
        arrays["forced_ids"] = forced
        at_once = r.forward(np.concatenate([ids, forced], axis=1)).text_logits()
        section.arrays |= {f"{name}.{key}": value for key, value in arrays.items()}
        section.facts[name] = {
            "prompt": f"prompts.npz:{name}.input_ids",
            "groups": ids.shape[1] // patch,
            "forced_groups": len(kinds),
            "forced_kinds": kinds,
            "argmax_text": int(arrays["text_logits"].argmax()),
            "text_margin": gap(arrays["text_logits"]),
            "local_min_margin": local_margin,
            "forced_local_min_margin": margins,
            "kv_cache_vs_full_prefill_max_abs": float(np.abs(at_once - steps[-1][0]).max()),
        }
    section.facts["_local"] = {
        "delay_pattern": lm["delay_pattern"],
        "group_size": patch,
        "iterations": patch + max(lm["delay_pattern"]),
        "speech_vocab_sizes": lm["speech_vocab_size"],
        "speech_empty_ids": lm["speech_zeroemb_idx"],
    }
    return section


def forced_position(r: Reference, rng: np.random.Generator, speech: bool) -> Array:
    """One position as generation appends it: a random token, or a patch of random codes."""
    lm = r.config["lm"]
    codes = random_codes(rng, lm["speech_zeroemb_idx"], lm["group_size"]) if speech else None
    ids = r.prompts.positions([r.tokens["empty"] if speech else int(rng.integers(0, 300))], codes)
    ids[0] = ids[0, 0]
    return ids


TASK_SAMPLERS = {  # global, local; mimo_audio.py:120-145
    "spoken_dialogue": (Sampling(True, 0.6, 0, 0.95), Sampling(True, 0.9, 0, 0.95)),
    "tts": (Sampling(True, 0.6, 0, 1.0), Sampling(True, 0.9, 0, 0.95)),
}
RUNS: dict[str, dict[str, Any]] = {
    "asr": {"max": 20},
    "asr_min_new": {"prompt": "asr", "max": 16, "min": 13},
    "understanding_think": {"max": 30},
    "tts_plain_zh": {"max": 30},
    "tts_plain_en": {"max": 30, "wav": True},
    "tts_max_new_8": {"prompt": "tts_plain_en", "max": 8},
    "tts_instruct": {"max": 40},
    "text_multiturn": {"max": 20},
    "icl_s2s": {"max": 20},
    "asr_max_new_1": {"prompt": "asr", "max": 1},
    "history_turn1": {"prompt": "dialogue_single", "max": 30, "history": True},
    "history_turn2": {"prompt": "dialogue_add_history", "max": 16, "history": True},
    "sampled_dialogue": {"prompt": "dialogue_single", "max": 14, "sampled": True},
    "sampled_tts": {"prompt": "tts_plain_zh", "max": 12, "sampled": True},
}


def generate(r: Reference, prompts: Section) -> Section:
    section, patch = Section(), r.config["lm"]["group_size"]
    history: Array | None = None
    for name, run in RUNS.items():
        source = run.get("prompt", name)
        case, prompt = prompts.facts[source], prompts.arrays[f"{source}.input_ids"]
        stop = sorted(r.tokens[token] for token in case["stop_tokens"])
        before = history if run.get("history") else None
        ids = prompt if before is None else np.concatenate([before, prompt], axis=1)
        text, speech = TASK_SAMPLERS[case["task_name"]] if run.get("sampled") else (GREEDY, GREEDY)
        new, reason = r.generate(ids, text, speech, stop, run["max"], run.get("min", 0))
        arrays = replay(r, ids, new, text, speech, stop if run.get("min") else [], run.get("min", 0))
        reply, codes = r.extract(new)
        tokens = new[0, ::patch]
        facts: dict[str, Any] = {
            "prompt": f"prompts.npz:{source}.input_ids",
            "task_name": case["task_name"],
            "stop_tokens": case["stop_tokens"],
            "stop_token_ids": stop,
            "min_new_tokens": run.get("min", 0),
            "max_new_tokens": run["max"],
            "add_history": bool(run.get("history")),
            "history_groups": 0 if before is None else before.shape[1] // patch,
            "prompt_groups": prompt.shape[1] // patch,
            "new_groups": len(tokens),
            "audio_groups": int((tokens == r.tokens["empty"]).sum()),
            "text_groups": int((tokens != r.tokens["empty"]).sum()),
            "stopped_by": reason,
            "text": reply,
            "min_text_margin": float(arrays["text_margins"].min()) if text == GREEDY else None,
            "min_local_margin": float(arrays["local_margins"].min()) if "local_margins" in arrays else None,
        }
        if run.get("sampled"):
            facts["samplers"] = {"global": as_reference(text), "local": as_reference(speech)}
        speaks = "tts" in case["task_name"] or "spoken" in case["task_name"] or "s2s" in case["task_name"]
        if speaks and codes.shape[1] and not run.get("sampled"):
            arrays["decoded_codes"] = codes
            wav = r.decode(codes)
            facts["decoded_segments"] = [codes.shape[1]]
            facts["wav_file"] = {"samples": len(wav)}
            if run.get("wav"):
                arrays["wav"] = wav
        if run.get("history"):
            history = arrays["history_after"] = np.concatenate([ids, new], axis=1)
        section.arrays |= {f"{name}.{key}": value for key, value in {"new_ids": new, **arrays}.items()}
        section.facts[name] = facts
    return section


def as_reference(s: Sampling) -> dict[str, Any]:
    return {"do_sample": s.sample, "temperature": s.temperature, "top_k": s.top_k or None, "top_p": s.top_p or None}


def replay(
    r: Reference, ids: Array, new: Array, text: Sampling, speech: Sampling, removed: Sequence[int], min_new: int
) -> dict[str, Array]:
    """Feed the new ids one by one and keep the scores they were chosen from."""
    patch, state = r.config["lm"]["group_size"], r.forward(ids)
    logits, scores, margins, local = [], [], [], []
    for i in range(new.shape[1] // patch):
        position = new[:, i * patch : (i + 1) * patch]
        logits.append(state.text_logits())
        scores.append(r.filter_scores(logits[-1], text))
        left = scores[-1].copy()
        left[list(removed) if i < min_new else []] = -np.inf
        margins.append(gap(left))
        if position[0, 0] == r.tokens["empty"]:
            local.append(forced_patch(r, state, position[1:], speech))
        state.prefill(position)
    arrays = {"text_scores": np.stack(scores)} if text.sample else {"text_logits": np.stack(logits)}
    arrays["text_margins"] = np.array(margins, np.float32)
    if local:
        arrays["local_margins"] = np.stack([patch_margins(patch_) for patch_ in local])
        arrays |= {"local_scores": np.stack(local)} if text.sample else {}
    return arrays


def forced_patch(r: Reference, state: State, codes: Array, speech: Sampling) -> Array:
    taps = Taps()
    state.decode_patch(speech, taps, forced=codes)
    return patch_scores(r, taps, speech)
