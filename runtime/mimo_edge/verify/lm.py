"""The language model against its goldens: prefill, patches, forced steps, whole generations and their replies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from mimo_edge._core import Sampling
from mimo_edge.reply import Codes, Ids
from mimo_edge.verify.codec import Taps
from mimo_edge.verify.goldens import EMBEDS, HIDDEN, LOGITS, WAVE, Array, Check, Goldens
from mimo_edge.verify.sampler import sampling_of, undecided
from mimo_edge.verify.stages import Stages, StateStages

GREEDY = Sampling(False)
NUCLEUS_TIE_OWN = 1e-4  # a probability this near to the nucleus' edge is decided by rounding in scores computed here

# what lm_forward.npz calls the arrays that a prefill taps
PREFILL_TAPS = {
    "speech_embed_sum": ("patch_encoder.sum", HIDDEN),
    "inputs_embeds": ("backbone.embeds", EMBEDS),
    "hidden_all": ("backbone.hidden", HIDDEN),
}


def check_forward(stages: Stages, goldens: Goldens, check: Check) -> None:
    """lm_forward.npz: prefill from golden ids, a greedy patch, then eight positions fed one by one."""
    for case, facts in goldens.cases("lm_forward").items():
        with check.attempt("forward"):
            ids = _array(goldens, facts["prompt"])
            taps = Taps()
            state = stages.forward(ids, taps)
            check.equal("state length", case, facts["groups"], state.length)
            _check_prefill(stages, goldens, check, case, ids, taps, state)
            _check_patch(stages, goldens, check, case, state)
            _check_forced(stages, goldens, check, case, state)
    facts, lm = goldens.json("lm_forward")["_local"], stages.config["lm"]
    for name, expected, actual in [
        ("delay pattern", facts["delay_pattern"], lm["delay_pattern"]),
        ("patch size", facts["group_size"], lm["group_size"]),
        ("local steps", facts["iterations"], lm["group_size"] + max(lm["delay_pattern"])),
        ("codes of a level", facts["speech_vocab_sizes"], lm["speech_vocab_size"]),
        ("empty codes", facts["speech_empty_ids"], lm["speech_zeroemb_idx"]),
    ]:
        check.equal("patch layout", name, expected, actual)


def _check_prefill(
    stages: Stages, goldens: Goldens, check: Check, case: str, ids: Ids, taps: Taps, state: StateStages
) -> None:
    for name, (tap, limit) in PREFILL_TAPS.items():
        if check.has_tap(tap.replace(".", " "), f"lm_forward:{case}.{name}", taps.seen, tap):
            check.close(tap.replace(".", " "), f"lm_forward:{case}.{name}", taps.only(tap), limit)
    is_patch = ids[0, :: stages.config["lm"]["group_size"]] == stages.config["tokens"]["empty"]
    key = f"lm_forward:{case}.patch_encoder_out"
    if check.has_tap("patch_encoder out", key, taps.seen, "patch_encoder.out"):
        out = taps.only("patch_encoder.out")[is_patch]  # rows of text positions are masked later
        check.close("patch_encoder out", key, out, HIDDEN, lambda a: a[is_patch])
    for layer in range(stages.config["lm"]["num_hidden_layers"]):
        key, tap = f"lm_forward:{case}.dbg.layer{layer}", f"backbone.layer{layer}"
        if goldens.has(key) and check.has_tap("backbone layers", key, taps.seen, tap):
            check.close("backbone layers", key, taps.only(tap), HIDDEN)
    check.close("backbone hidden", f"lm_forward:{case}.hidden_last", state.hidden(), HIDDEN)
    check.close("text logits", f"lm_forward:{case}.text_logits", state.text_logits(), LOGITS)
    check.close("local hidden states", f"lm_forward:{case}.local_hidden_states", state.local_hidden(), HIDDEN)


def _check_patch(stages: Stages, goldens: Goldens, check: Check, case: str, state: StateStages) -> None:
    """The greedy patch of the last position, step by step."""
    taps, lm = Taps(), stages.config["lm"]
    codes = state.decode_patch(GREEDY, taps)
    check.same("patch codes", f"lm_forward:{case}.local_tokens", codes.T)
    for name, key in (("input", "local_inputs"), ("hidden", "local_hidden")):
        stage, tap = f"patch_decoder {name}", f"patch_decoder.{name}"
        if check.has_tap(stage, f"lm_forward:{case}.{key}", taps.seen, tap):
            check.close(stage, f"lm_forward:{case}.{key}", _stack(taps, tap), HIDDEN)
    expected = goldens.peek(f"lm_forward:{case}.local_logits")
    logits = np.full(expected.shape, np.nan, np.float32)  # NaN: the level is silent at this step, or has fewer codes
    for level, delay in enumerate(lm["delay_pattern"]):
        made = _stack(taps, f"patch_decoder.logits.{level}")
        logits[delay : delay + len(made), level, : made.shape[1]] = made
    active = ~np.isnan(logits)
    check.equal("patch logits layout", case, True, bool(np.array_equal(active, ~np.isnan(expected))))
    check.close("patch logits", f"lm_forward:{case}.local_logits", logits[active], LOGITS, lambda a: a[active])


def _check_forced(stages: Stages, goldens: Goldens, check: Check, case: str, state: StateStages) -> None:
    """Positions fed one by one after the prompt, through the cache."""
    forced, group = goldens.input(f"lm_forward:{case}.forced_ids"), stages.config["lm"]["group_size"]
    seen: dict[str, list[Array]] = {"text_logits": [], "local_hidden_states": [], "hidden_last": [], "local_tokens": []}
    for start in range(0, forced.shape[1], group):
        state.prefill(np.ascontiguousarray(forced[:, start : start + group]))
        seen["text_logits"].append(state.text_logits())
        seen["local_hidden_states"].append(state.local_hidden())
        seen["hidden_last"].append(state.hidden())
        seen["local_tokens"].append(state.decode_patch(GREEDY).T)
    arrays = {name: np.stack(values) for name, values in seen.items()}
    check.close("forced text logits", f"lm_forward:{case}.forced_text_logits", arrays["text_logits"], LOGITS)
    check.close("forced hidden", f"lm_forward:{case}.forced_hidden_last", arrays["hidden_last"], HIDDEN)
    key = f"lm_forward:{case}.forced_local_hidden_states"
    check.close("forced local hidden states", key, arrays["local_hidden_states"], HIDDEN)
    check.same("forced patch codes", f"lm_forward:{case}.forced_local_tokens", arrays["local_tokens"])


def _stack(taps: Taps, name: str) -> Array:
    taps.only(name)  # names the tap that is missing
    return np.stack(taps.seen[name])


def check_generations(stages: Stages, goldens: Goldens, check: Check) -> None:
    """generate.npz: whole runs, greedy ones id by id, sampled ones by the scores behind the golden ids."""
    history: Ids | None = None
    for run, facts in goldens.cases("generate").items():
        prompt = _array(goldens, facts["prompt"])
        if facts["history_groups"]:
            assert history is not None
            prompt = np.concatenate([history, prompt], axis=1)
        with check.attempt("generations"):
            _check_run(stages, goldens, check, run, facts, prompt)
        if goldens.has(key := f"generate:{run}.history_after"):
            new = goldens.peek(f"generate:{run}.new_ids")
            history = np.ascontiguousarray(np.concatenate([prompt, new], axis=1))
            check.same("history", key, history)


def _check_run(stages: Stages, goldens: Goldens, check: Check, run: str, facts: Any, prompt: Ids) -> None:
    group, tokens = stages.config["lm"]["group_size"], stages.config["tokens"]
    check.equal(
        "run lengths", f"{run} prompt", facts["history_groups"] + facts["prompt_groups"], prompt.shape[1] // group
    )
    stop = sorted(tokens[name] for name in facts["stop_tokens"])
    check.equal("stop tokens", run, sorted(facts["stop_token_ids"]), stop)
    new = goldens.input(f"generate:{run}.new_ids")
    if "samplers" in facts:
        _check_sampled(stages, goldens, check, run, facts, prompt, new)
    else:
        ids, reason = stages.generate(
            prompt, GREEDY, GREEDY, stop, facts["max_new_tokens"], facts["min_new_tokens"], parity=True
        )
        check.same("generated ids", f"generate:{run}.new_ids", ids)
        check.equal("stop reason", run, facts["stopped_by"], reason)
        logits = np.stack([state.text_logits() for state in _forced(stages, prompt, new)])
        check.close("generation text logits", f"generate:{run}.text_logits", logits, LOGITS)
    for margins in ("text_margins", "local_margins"):  # diagnostic: how far the second best choice was
        if goldens.has(key := f"generate:{run}.{margins}"):
            goldens.claim(key)
    _check_reply(stages, goldens, check, f"generate:{run}", facts, new)


def _forced(stages: Stages, prompt: Ids, new: Ids) -> Iterator[StateStages]:
    """Yield the state before each golden position."""
    state, group = stages.forward(prompt), stages.config["lm"]["group_size"]
    for start in range(0, new.shape[1], group):
        yield state
        state.prefill(np.ascontiguousarray(new[:, start : start + group]))


def _check_sampled(stages: Stages, goldens: Goldens, check: Check, run: str, facts: Any, prompt: Ids, new: Ids) -> None:
    """The processed scores from which the golden ids were drawn."""
    text, speech = sampling_of(facts["samplers"]["global"]), sampling_of(facts["samplers"]["local"])
    text_scores, group = goldens.input(f"generate:{run}.text_scores"), stages.config["lm"]["group_size"]
    local_scores, patches = goldens.input(f"generate:{run}.local_scores"), 0
    for position, state in enumerate(_forced(stages, prompt, new)):
        scores = stages.filter_scores(state.text_logits(), text)
        either = undecided(state.text_logits(), text, NUCLEUS_TIE_OWN)
        limit = LOGITS / text.temperature
        check.scores("sampled text scores", f"{run} {position}", text_scores[position], scores, either, limit)
        ids = new[:, position * group : (position + 1) * group]
        if ids[0, 0] == stages.config["tokens"]["empty"]:
            codes = np.ascontiguousarray(ids[1:])
            with check.attempt("sampled patch scores"):
                _check_sampled_patch(stages, check, f"{run} {position}", local_scores[patches], state, codes, speech)
            patches += 1
    check.equal("sampled patches", run, len(local_scores), patches)


def _check_sampled_patch(
    stages: Stages, check: Check, label: str, expected: Array, state: StateStages, codes: Codes, speech: Sampling
) -> None:
    """expected: scores [G, K, V] of one patch, NaN beyond a level's codes. codes int32 [K, G]: what was drawn."""
    taps = Taps()
    state.decode_patch(speech, taps, codes)
    for level, empty in enumerate(stages.config["lm"]["speech_zeroemb_idx"]):
        for frame in range(codes.shape[1]):
            logits = taps.at(f"patch_decoder.logits.{level}", frame)
            scores = stages.filter_scores(logits, speech)
            either = undecided(logits, speech, NUCLEUS_TIE_OWN)
            scores[empty], either[empty] = -np.inf, False
            golden = expected[frame, level]
            check.equal("sampled patch layout", label, True, bool(np.all(np.isnan(golden[len(scores) :]))))
            limit = LOGITS / speech.temperature
            check.scores("sampled patch scores", label, golden[: len(scores)], scores, either, limit)


def _check_reply(stages: Stages, goldens: Goldens, check: Check, key: str, facts: Any, new: Ids) -> None:
    """Text, codes and sound of a run or a crafted case, as the reference returns them."""
    file, run = key.split(":")
    text, codes = stages.extract(new)
    check.equal(f"{file} text", run, facts["text"], text)
    if "silent_placeholder" in facts:
        check.equal(f"{file} silence", run, facts["silent_placeholder"], codes.shape[1] == 0)
    if not goldens.has(f"{key}.decoded_codes"):
        return
    check.same(f"{file} codes", f"{key}.decoded_codes", codes)
    decoded = goldens.peek(f"{key}.decoded_codes")
    frames = facts.get("decoded_segments", facts.get("decoded_code_frames"))
    check.equal(f"{file} pieces", run, decoded.shape[1], sum(frames))
    starts = np.cumsum([0, *frames])
    wave = np.concatenate([stages.decode(np.ascontiguousarray(decoded[:, a:b])) for a, b in pairwise(starts)])
    samples = facts["wav_samples"] if "wav_samples" in facts else facts["wav_file"]["samples"]
    check.equal(f"{file} samples", run, samples, len(wave))
    if goldens.has(f"{key}.wav"):
        check.close(f"{file} waveform", f"{key}.wav", wave, WAVE)


def check_postprocess(stages: Stages, goldens: Goldens, check: Check) -> None:
    """postprocess.npz: replies extracted from crafted ids."""
    group = stages.config["lm"]["group_size"]
    for case, facts in goldens.cases("postprocess").items():
        with check.attempt("postprocess"):
            new = goldens.input(f"postprocess:{case}.new_ids")
            raw = stages.detokenize(new[0, ::group][:-1].tolist())
            check.equal("postprocess raw text", case, facts["raw_decode"], raw)
            _check_reply(stages, goldens, check, f"postprocess:{case}", facts, new)


def check_informational(stages: Stages, goldens: Goldens, check: Check) -> None:
    """bf16_info.npz: a run in another precision, to judge others by; nothing to compare."""
    for name in goldens.names("bf16_info"):
        goldens.claim(f"bf16_info:{name}")


def _array(goldens: Goldens, where: str) -> Array:
    """Return an array named as the json files do: "prompts.npz:asr.input_ids"."""
    return goldens.input(where.replace(".npz:", ":"))
