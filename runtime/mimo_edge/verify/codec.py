"""The codec against its goldens: wav -> mel -> hidden -> codes, and codes -> mel -> wav, whole and streamed."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np

from mimo_edge.engine import whole_patches
from mimo_edge.verify.goldens import FILTERBANK, HIDDEN, HIDDEN_OWN_MEL, WAVE, WINDOW, Array, Check, Goldens
from mimo_edge.verify.stages import Stages

MARGIN_GOLDEN_MEL = 1e-3  # codes whose two best rows are nearer than this are decided by rounding
MARGIN_OWN_MEL = 1e-2

# what a "dbg" array of encoder.npz or decoder.npz is called as a tap, and whether it is stored channels first
ENCODER_TAPS = {
    "conv1_pre_gelu": ("conv1", True),
    "conv2_pre_gelu": ("conv2", True),
    "down_sample_gelu": ("pool", True),
    "down_sample_norm": ("hidden", False),
}
DECODER_TAPS = {
    "dconv1_conv_pre_norm": ("codec_decoder.dconv1_conv", True),
    "dconv2_conv_pre_norm": ("codec_decoder.dconv2_conv", True),
    "dconv2_groupnorm_untrimmed": ("codec_decoder.dconv2_norm", True),
    "voc_embed": ("vocoder.embed", False),
    "voc_norm": ("vocoder.norm", False),
    "voc_head": ("vocoder.head", False),
}


class Taps:
    """Keeps what passes the taps: name -> arrays in order of arrival."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Array]] = defaultdict(list)

    def __call__(self, name: str, array: Array) -> None:
        self.seen[name].append(np.array(array))

    def only(self, name: str) -> Array:
        return self.at(name, 0)

    def at(self, name: str, index: int) -> Array:
        if name not in self.seen:
            raise KeyError(f"no tap named {name}")
        return self.seen[name][index]


def check_lengths(stages: Stages, goldens: Goldens, check: Check) -> None:
    """wav_index.json and misc.json: how many frames come of how many samples, and which segments go together."""
    misc, codec = goldens.json("misc"), stages.config["codec"]
    for samples, frames in misc["mel_frames_of_samples"].items():
        check.equal("lengths", f"mel frames of {samples}", frames, stages.mel_frames(int(samples)))
    for frames, encoded in misc["encoder_output_length_of_mel_frames"].items():
        check.equal("lengths", f"encoder frames of {frames}", encoded, stages.encoder_frames(int(frames)))
    for case in misc["group_by_length"]:
        groups = stages.group_segments(case["segments"], case["max_length"])
        check.equal("segment groups", str(case["segments"][:4]), case["groups"], groups)
    for clip, facts in goldens.json("wav_index").items():
        encoded = [stages.encoder_frames(frames) for frames in facts["segments"]]
        check.equal("lengths", f"{clip} mel", facts["mel_frames"], stages.mel_frames(facts["samples"]))
        check.equal("lengths", f"{clip} encoder", facts["enc_frames"], encoded)
        check.equal("lengths", f"{clip} codes", facts["code_frames"], [-(-n // codec["avg_pooler"]) for n in encoded])


def check_frontend(stages: Stages, goldens: Goldens, check: Check) -> None:
    """frontend.npz: tables and log-mel of every clip."""
    check.close("mel filterbank", "frontend:mel_fb", stages.mel_filterbank(), FILTERBANK)
    check.close("stft window", "frontend:stft_window", stages.stft_window(), WINDOW)
    for clip in goldens.names("wavs"):
        mel = stages.mel(clip_wave(goldens, clip))
        for name in goldens.names("frontend"):
            if name == f"{clip}.mel":
                check.mel(f"frontend:{name}", mel)
            elif name == f"{clip}.mel_head":
                check.mel(f"frontend:{name}", mel[: len(goldens.peek(f"frontend:{name}"))])
            elif name == f"{clip}.mel_tail":
                check.mel(f"frontend:{name}", mel[-len(goldens.peek(f"frontend:{name}")) :])


def clip_wave(goldens: Goldens, clip: str) -> Array:
    """Return a clip's samples: stored, or the beginning of another clip ("first N samples of wavs.npz:long")."""
    facts = goldens.json("wav_index")[clip]
    source = facts["source"].rsplit("wavs.npz:", 1)[1]
    return goldens.input(f"wavs:{source}")[: facts["samples"]]


def check_encoder(stages: Stages, goldens: Goldens, check: Check) -> None:
    """encoder.npz: hidden states, codes and what lies inside, clip by clip."""
    for clip, facts in goldens.json("wav_index").items():
        with check.attempt("encoder"):
            _check_clip(stages, goldens, check, clip, facts)


def _check_clip(stages: Stages, goldens: Goldens, check: Check, clip: str, facts: Any) -> None:
    golden_mel = goldens.has(f"frontend:{clip}.mel")
    own_mel = stages.mel(clip_wave(goldens, clip))
    mel = goldens.input(f"frontend:{clip}.mel") if golden_mel else own_mel
    taps = Taps()
    hidden, codes = stages.encode_mel(mel, taps)
    _check_hidden(goldens, check, clip, facts, hidden, golden_mel)
    _check_encoder_taps(stages.config["codec"], goldens, check, clip, facts, taps, golden_mel)
    _check_codes(stages, goldens, check, clip, codes, own_mel if golden_mel else None)


def _check_hidden(goldens: Goldens, check: Check, clip: str, facts: Any, hidden: Array, golden_mel: bool) -> None:
    """Compare hidden [T, D]: whole, or the ends of segments where the clip is long."""
    stage, limit = _hidden_stage("encoder hidden", golden_mel)
    first_frames, last_frames = facts["code_frames"][0], facts["code_frames"][-1]
    if goldens.has(f"encoder:{clip}.hidden"):
        check.close(stage, f"encoder:{clip}.hidden", hidden, limit)
    if goldens.has(key := f"encoder:{clip}.hidden_seg0_tail"):
        check.close(stage, key, hidden[first_frames - len(goldens.peek(key)) : first_frames], limit)
    if goldens.has(f"encoder:{clip}.hidden_lastseg"):
        check.close(stage, f"encoder:{clip}.hidden_lastseg", hidden[-last_frames:], limit)
    if goldens.has(key := f"encoder:{clip}.dbg.hidden_lastseg_if_encoded_alone"):
        alone, right = goldens.input(key), goldens.peek(f"encoder:{clip}.hidden_lastseg")
        is_counterexample = not np.max(np.abs(alone - right)) <= limit
        mistaken = np.max(np.abs(alone - hidden[-last_frames:])) <= limit
        check.equal("last segment not encoded alone", clip, False, bool(is_counterexample and mistaken))


def _check_encoder_taps(
    codec: Any, goldens: Goldens, check: Check, clip: str, facts: Any, taps: Taps, golden_mel: bool
) -> None:
    """Compare the arrays inside the encoder; of a long clip, those at the end of its last segment.

    Upstream adds the skip into the last layer's own array, so what it recorded of that layer may hold it already.
    """
    encoder_layers, skip = codec["encoder_layers"], codec["encoder_skip_layer_id"]
    prefix = f"encoder:{clip}.dbg."
    for key in (f"encoder:{name}" for name in goldens.names("encoder")):
        if not key.startswith(prefix) or key.endswith("_if_encoded_alone"):
            continue
        name = key.removeprefix(prefix)
        base = re.sub(r"_seg\d+_(end|tail)$", "", name)
        tap, channels_first = ENCODER_TAPS.get(base, (base, False))
        stage, limit = _hidden_stage(f"encoder {tap}", golden_mel)
        if not check.has_tap(stage, key, taps.seen, f"codec_encoder.{tap}"):
            continue
        actual = taps.at(f"codec_encoder.{tap}", -1)
        if base == f"layer{encoder_layers - 1}" and skip:
            actual = _nearer(goldens.peek(key), actual, actual + taps.at(f"codec_encoder.layer{skip - 1}", -1))
        pick = time_major if channels_first else without_batch
        if name.endswith("_end"):
            _check_segment_end(check, stage, key, actual, pick(goldens.peek(key)), _end_of(base, facts), limit)
        elif name.endswith("_tail"):
            check.close(stage, key, actual[-len(goldens.peek(key)) :], limit)
        else:
            check.close(stage, key, actual, limit, pick)


def _nearer(expected: Array, first: Array, second: Array) -> Array:
    return min(first, second, key=lambda array: float(np.max(np.abs(expected - array))))


def _end_of(base: str, facts: Any) -> tuple[int, int]:
    """Return the last segment's length in frames of `base`, and how many frames before its end the golden begins."""
    ends = {
        "conv1_pre_gelu": ("segments", 6),
        "conv2_pre_gelu": ("enc_frames", 4),
        "down_sample_gelu": ("code_frames", 3),
    }
    lengths, before = ends[base]
    return facts[lengths][-1], before


def _check_segment_end(
    check: Check, stage: str, key: str, actual: Array, expected: Array, end: tuple[int, int], limit: float
) -> None:
    """Compare the last frames of a segment. The golden goes on into the padding, which the core need not compute."""
    length, before = end
    start = max(0, length - before)
    got = actual[start : start + len(expected)]
    if len(got) < length - start:
        check.fail(stage, f"{key}: expected frames up to {length}, got {len(actual)}")
        return
    check.goldens.claim(key)
    check.near(stage, key, expected[: len(got)], got, limit)


def _check_codes(
    stages: Stages, goldens: Goldens, check: Check, clip: str, codes: Array, own_mel: Array | None
) -> None:
    """Compare codes from the golden mel, from our own, from the golden hidden states, and the patches made of them."""
    key = f"encoder:{clip}.codes"
    margins = goldens.input(f"encoder:{clip}.margins")
    if own_mel is None:
        check.codes("codes from wav", key, codes, margins, MARGIN_OWN_MEL)
    else:
        check.codes("codes from golden mel", key, codes, margins, MARGIN_GOLDEN_MEL)
        check.codes("codes from wav", key, stages.encode_mel(own_mel)[1], margins, MARGIN_OWN_MEL)
    if goldens.has(f"encoder:{clip}.hidden"):
        hidden = goldens.input(f"encoder:{clip}.hidden")
        check.codes("codes from golden hidden", key, stages.rvq_encode(hidden), margins, MARGIN_GOLDEN_MEL)
    lm = stages.config["lm"]
    patches = whole_patches(goldens.input(key), lm["audio_channels"], lm["group_size"])
    check.same("audio tokens", f"encoder:{clip}.audio_tokens", patches.T)


def check_decoder(stages: Stages, goldens: Goldens, check: Check) -> None:
    """decoder.npz: codes to sound, and what lies between."""
    for case, facts in goldens.cases("decoder").items():
        with check.attempt("decoder"):
            _check_decoder_case(stages, goldens, check, case, facts)


def _check_decoder_case(stages: Stages, goldens: Goldens, check: Check, case: str, facts: Any) -> None:
    codes = _decoder_codes(goldens, case, facts)
    taps = Taps()
    starts = np.cumsum([0, *facts.get("segments", [facts["frames"]])])
    wave = np.concatenate([stages.decode(np.ascontiguousarray(codes[:, a:b]), taps) for a, b in pairwise(starts)])
    check.close("waveform", f"decoder:{case}.wav", wave, WAVE)
    for name in goldens.names("decoder"):
        if name == f"{case}.hidden_vq":
            check.close("rvq decode", f"decoder:{name}", stages.rvq_decode(codes), HIDDEN)
        elif name == f"{case}.coarse_mel":
            if check.has_tap("decoder coarse_mel", f"decoder:{name}", taps.seen, "codec_decoder.coarse_mel"):
                check.close("decoder coarse_mel", f"decoder:{name}", taps.only("codec_decoder.coarse_mel"), HIDDEN)
        elif name.startswith(f"{case}.dbg."):
            _check_decoder_tap(check, f"decoder:{name}", name.removeprefix(f"{case}.dbg."), taps)


def _decoder_codes(goldens: Goldens, case: str, facts: Any) -> Array:
    """Return the codes of a case: its own, or those another array names ("encoder.npz:long.codes[:8]")."""
    if "codes" not in facts:
        return goldens.input(f"decoder:{case}.codes")
    file, name, levels = re.fullmatch(r"(\w+)\.npz:(.+)\[:(\d+)\]", facts["codes"]).groups()  # type: ignore[union-attr]
    return goldens.input(f"{file}:{name}")[: int(levels)]


def _check_decoder_tap(check: Check, key: str, name: str, taps: Taps) -> None:
    layer = name.removeprefix("voc_") if name.startswith("voc_layer") else None
    tap, channels_first = DECODER_TAPS.get(name, (f"vocoder.{layer}" if layer else f"codec_decoder.{name}", False))
    stage = tap.replace("codec_decoder.", "decoder ").replace("vocoder.", "vocoder ")
    pick = time_major if channels_first else without_batch
    if check.has_tap(stage, key, taps.seen, tap):
        check.close(stage, key, taps.only(tap), HIDDEN, pick)


def check_streaming(stages: Stages, goldens: Goldens, check: Check) -> None:
    """streaming.npz: what every call of a stream returns and keeps."""
    for run, facts in goldens.cases("streaming").items():
        with check.attempt("streaming"):
            _check_stream(stages, goldens, check, run, facts)


def _check_stream(stages: Stages, goldens: Goldens, check: Check, run: str, facts: Any) -> None:
    stream = stages.streaming_decoder(facts["left_overlap"], facts["right_overlap"])
    items = len(facts["steps"][0]["chunk_lengths"])
    codes = [goldens.input(f"streaming:{run}.b{item}.codes") for item in range(items)]
    taken = [0] * items
    for index, step in enumerate(facts["steps"]):
        chunks = [
            np.ascontiguousarray(codes[b][:, taken[b] : taken[b] + step["chunk_lengths"][b]]) for b in range(items)
        ]
        taken = [a + b for a, b in zip(taken, step["chunk_lengths"], strict=True)]
        sounds = stream.push(chunks, step["last_chunk"])
        label = f"{run} step {index}"
        returned = [None if sound is None else len(sound) for sound in sounds]
        check.equal("streaming state", f"{label} samples", step["returned_samples"], returned)
        check.equal("streaming state", f"{label} processed", step["processed_lengths"], list(stream.processed))
        check.equal("streaming state", f"{label} cached", step["cached_frames"], list(stream.cached))
        for item, sound in enumerate(sounds):
            if sound is not None:
                check.close("streaming waveform", f"streaming:{run}.step{index}.b{item}.wav", sound, WAVE)


def without_batch(array: Array) -> Array:
    """[1, T, C] -> [T, C]; two dimensions stay."""
    plain: Array = array[0] if array.ndim == 3 else array
    return plain


def time_major(array: Array) -> Array:
    """[1, C, T] or [C, T] -> [T, C]."""
    frames: Array = without_batch(array).T
    return frames


def _hidden_stage(stage: str, golden_mel: bool) -> tuple[str, float]:
    return (stage, HIDDEN) if golden_mel else (f"{stage} from wav", HIDDEN_OWN_MEL)
