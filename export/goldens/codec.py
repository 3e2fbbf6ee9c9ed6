"""The codec's goldens: generated sound -> log-mel -> hidden -> codes, and codes -> sound, whole and streamed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mimo_edge.export.goldens.checkpoint import CODEC_CONFIG
from mimo_edge.export.goldens.section import Section, Taps, random_codes
from mimo_edge.export.reference import Reference
from mimo_edge.export.reference_ops import Array


def make_clips(seed: int) -> dict[str, Array]:
    """Sweeps, filtered noise, pulses, silence: float32 [S] at the codec's rate, on the int16 grid.

    All but `silence` carry a floor of noise: where a spectrum holds nothing but rounding, log-mel compares nothing.
    """
    rng = np.random.default_rng(seed)
    rate, hop = CODEC_CONFIG["sampling_rate"], CODEC_CONFIG["hop_length"]

    def seconds(samples: int) -> Array:
        t: Array = np.arange(samples) / rate
        return t

    def noise(samples: int, low_hz: float, high_hz: float) -> Array:
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        hz = np.fft.rfftfreq(samples, 1 / rate)
        wav: Array = np.fft.irfft(spectrum / (1 + (hz / high_hz) ** 4) * (hz > low_hz), samples)
        return wav

    def sweep(samples: int, from_hz: float, to_hz: float) -> Array:
        t = seconds(samples)
        wav: Array = np.sin(2 * np.pi * (from_hz * t + (to_hz - from_hz) * t**2 / (2 * t[-1])))
        return wav

    def pulses(samples: int, hz: float) -> Array:
        train = (seconds(samples) * hz % 1.0 < hz / rate).astype(float)
        return np.convolve(train, np.exp(-np.arange(60) / 12) * np.cos(np.arange(60)), "same")

    def finish(wav: Array) -> Array:
        wav = wav + 0.004 * rng.standard_normal(len(wav))
        return (np.round(np.clip(wav, -1, 1) * 32767) / 32768).astype(np.float32)

    def mixed(samples: int) -> Array:
        return finish(0.3 * noise(samples, 80, 4000) + 0.2 * pulses(samples, 90))

    loop = finish(0.2 * noise(5003, 100, 3000) + 0.3 * pulses(5003, 140) + 0.1 * sweep(5003, 200, 3000))
    clips = {
        "sweep": finish(0.4 * sweep(5203, 120, 5000) * np.hanning(5203)),
        "noise": finish(0.3 * noise(5650, 300, 2500) * (0.2 + np.abs(sweep(5650, 3, 3)))),
        "pulses": finish(0.6 * pulses(4201, 110) + 0.1 * sweep(4201, 900, 700)),
        "mixture": finish(0.3 * pulses(5377, 170) + 0.1 * noise(5377, 50, 1500) + 0.2 * sweep(5377, 400, 2400)),
        **{f"odd_f{i}": mixed(hop * (13 + i)) for i in range(6)},  # every remainder of a code frame
        "tiny": finish(0.3 * sweep(450, 500, 1500)),
        "min_201": finish(0.3 * sweep(201, 700, 900)),
        "silence": np.zeros(1900, np.float32),
        "long": np.tile(loop, -(-hop * 6024 // len(loop)))[: hop * 6024],  # repeats, so that it compresses
    }
    return {name: wav.astype(np.float32) for name, wav in clips.items()}


def clip_of(clips: Mapping[str, Array], name: str) -> tuple[Array, str]:
    """A clip and where its samples are: "long_N" is the beginning of "long" that has N mel frames."""
    if name in clips:
        return clips[name], f"wavs.npz:{name}"
    samples = (int(name.removeprefix("long_")) - 1) * CODEC_CONFIG["hop_length"] + 17
    return clips["long"][:samples], f"first {samples} samples of wavs.npz:long"


def codec_input(r: Reference, clips: Mapping[str, Array]) -> dict[str, Section]:
    """wav_index, frontend and encoder: every clip to log-mel, hidden states and codes."""
    index, frontend, encoder = Section(), Section(), Section()
    frontend.arrays = {"mel_fb": r.mel_filterbank(), "stft_window": r.stft_window()}
    for name in [*clips, "long_6001"]:
        wav, source = clip_of(clips, name)
        mel = r.mel(wav)
        taps = Taps()
        hidden, codes = r.encode_mel(mel, taps)
        margins = rvq_margins(r, hidden)
        segments = [min(6000, len(mel) - start) for start in range(0, len(mel), 6000)]
        encoded = [r.encoder_frames(n) for n in segments]
        counts = [-(-n // r.config["codec"]["avg_pooler"]) for n in encoded]
        tokens = whole_patches(r, codes)
        encoder.arrays |= {f"{name}.codes": codes, f"{name}.margins": margins, f"{name}.audio_tokens": tokens}
        if source.startswith("first") or len(segments) > 1:
            encoder.arrays[f"{name}.hidden_seg0_tail"] = hidden[counts[0] - 24 : counts[0]]
        else:
            encoder.arrays[f"{name}.hidden"] = hidden
            frontend.arrays[f"{name}.mel"] = mel
        if len(segments) > 1:
            encoder.arrays |= segment_ends(name, taps, hidden, segments[-1], encoded[-1], counts[-1])
            alone = r.encode_mel(mel[-segments[-1] :])[0]
            encoder.arrays[f"{name}.dbg.hidden_lastseg_if_encoded_alone"] = alone
        if name == "long":
            frontend.arrays |= {"long.mel_head": mel[:8], "long.mel_tail": mel[-segments[-1] - 7 :]}
        if name in ("odd_f3", "tiny"):
            encoder.arrays |= encoder_insides(name, taps)
        index.facts[name] = {
            "samples": len(wav),
            "stored": name in clips,
            "source": source,
            "mel_frames": len(mel),
            "segments": segments,
            "enc_frames": encoded,
            "code_frames": counts,
            "n_codes": codes.shape[1],
            "n_groups": len(tokens) // r.config["lm"]["group_size"],
            "min_margin": float(margins.min()),
            "frac_margin_lt_1e3": float((margins < 1e-3).mean()),
        }
    return {"wav_index": index, "wavs": Section(dict(clips)), "frontend": frontend, "encoder": encoder}


def rvq_margins(r: Reference, hidden: Array) -> Array:
    """[Q, T]: how much nearer, in squared distance, the best row is than the next."""
    rest, margins = torch.from_numpy(hidden).double(), []
    for level, codes in enumerate(r.rvq_encode(hidden)):
        rows = r.codec.codebook(level).double()
        nearest = torch.cdist(rest, rows).square().topk(2, largest=False).values
        margins.append(nearest[:, 1] - nearest[:, 0])
        rest = rest - rows[torch.from_numpy(codes).long()]
    return torch.stack(margins).float().numpy()


def whole_patches(r: Reference, codes: Array) -> Array:
    """codes [Q, T] -> [T', K]: the levels of the language model, the last frame repeated up to a whole patch."""
    lm = r.config["lm"]
    kept = codes[: lm["audio_channels"]].T
    return np.concatenate([kept, np.repeat(kept[-1:], -len(kept) % lm["group_size"], axis=0)])


def encoder_insides(name: str, taps: Taps) -> dict[str, Array]:
    names = {"conv1_pre_gelu": "conv1", "conv2_pre_gelu": "conv2", "down_sample_gelu": "pool"}
    arrays = {f"{name}.dbg.{long}": taps[f"codec_encoder.{short}"].T[None] for long, short in names.items()}
    layers = [tap.split(".")[1] for tap in taps.seen if "encoder.layer" in tap]
    arrays |= {f"{name}.dbg.{tap}": taps[f"codec_encoder.{tap}"] for tap in ["rope_cos", "rope_sin", *layers]}
    return arrays | {f"{name}.dbg.down_sample_norm": taps["codec_encoder.hidden"]}


def segment_ends(name: str, taps: Taps, hidden: Array, mel: int, encoded: int, codes: int) -> dict[str, Array]:
    """What happens where the last, padded segment ends; the columns of the public goldens."""

    def around(tap: str, end: int, before: int, after: int) -> Array:
        part = taps[f"codec_encoder.{tap}"][max(0, end - before) : end + after]
        transposed: Array = part.T
        return transposed

    return {
        f"{name}.hidden_lastseg": hidden[-codes:],
        f"{name}.dbg.conv1_pre_gelu_seg1_end": around("conv1", mel, 6, 6),
        f"{name}.dbg.conv2_pre_gelu_seg1_end": around("conv2", encoded, 4, 4),
        f"{name}.dbg.layer_norm_seg1_tail": taps["codec_encoder.layer_norm"][-8:],
        f"{name}.dbg.down_sample_gelu_seg1_end": around("pool", codes, 3, 2),
    }


def codec_output(r: Reference, encoder: Section, rng: np.random.Generator) -> dict[str, Section]:
    """decoder and streaming: codes to sound."""
    levels, books = r.config["lm"]["audio_channels"], r.config["codec"]["codebook_size"]
    drawn = random_codes(rng, books, 6)
    cases = {
        "rand6_q6": drawn[:levels],
        "rand6_q7": drawn,
        "rand6_q1": drawn[:1],
        **{f"{name}_q6": encoder.arrays[f"{name}.codes"][:levels] for name in ("odd_f3", "tiny", "min_201", "silence")},
    }
    decoder, streaming = Section(), Section()
    for name, codes in cases.items():
        taps = Taps()
        wav = r.decode(codes, taps)
        decoder.arrays |= {f"{name}.codes": codes, f"{name}.wav": wav}
        decoder.arrays |= {
            f"{name}.hidden_vq": r.rvq_decode(codes),
            f"{name}.coarse_mel": taps["codec_decoder.coarse_mel"],
        }
        if name == "rand6_q6":
            decoder.arrays |= decoder_insides(name, taps)
        decoder.facts[name] = {"n_q": len(codes), "frames": codes.shape[1], **loudness(wav, taps)}
    codes = encoder.arrays["odd_f3.codes"][:levels]
    pieces = [2, codes.shape[1] - 2]
    parts = [r.decode(part) for part in np.split(codes, np.cumsum(pieces)[:-1], axis=1)]
    wav = np.concatenate(parts)
    decoder.arrays["odd_f3_q6_pieces.wav"] = wav
    decoder.facts["odd_f3_q6_pieces"] = {
        "frames": sum(pieces),
        "segments": pieces,
        "samples": len(wav),
        "codes": f"encoder.npz:odd_f3.codes[:{levels}]",
        "max_abs_diff_vs_unsegmented_decode": float(np.abs(wav - r.decode(codes)).max()),
    }
    runs = {
        "small_cfg": (7, 3, [[2], [1], [4], [5], [6], [1], [2]]),
        "single_last": (9, 3, [[4]]),
        "batch2": (6, 2, [[4, 3], [4, 3], [5, 5], [3, 1]]),
    }
    for name, (left, right, steps) in runs.items():
        arrays, facts = stream(r, rng, left, right, steps)
        streaming.arrays |= {f"{name}.{key}": value for key, value in arrays.items()}
        streaming.facts[name] = facts
    return {"decoder": decoder, "streaming": streaming}


def decoder_insides(name: str, taps: Taps) -> dict[str, Array]:
    arrays = {
        f"{name}.dbg.dconv1_conv_pre_norm": taps["codec_decoder.dconv1_conv"].T[None],
        f"{name}.dbg.dconv1": taps["codec_decoder.dconv1"][None],
        f"{name}.dbg.dconv2_conv_pre_norm": taps["codec_decoder.dconv2_conv"].T[None],
        f"{name}.dbg.dconv2_groupnorm_untrimmed": taps["codec_decoder.dconv2_norm"].T[None],
        f"{name}.dbg.voc_head": taps["vocoder.head"][None],
    }
    for tap in taps.seen:
        stage, part = tap.split(".")
        if stage == "codec_decoder" and part.startswith("layer"):
            arrays[f"{name}.dbg.{part}"] = taps[tap]
        if stage == "vocoder" and part != "head":
            arrays[f"{name}.dbg.voc_{part}"] = taps[tap]
    return arrays


def loudness(wav: Array, taps: Taps) -> dict[str, Any]:
    head = taps["vocoder.head"]
    bins = head[:, : head.shape[1] // 2]
    return {
        "samples": len(wav),
        "wav_rms": float(np.sqrt(np.mean(wav.astype(np.float64) ** 2))),
        "wav_peak": float(np.abs(wav).max()),
        "clipped_magnitude_bins": int((bins > math.log(100)).sum()),
        "total_bins": bins.size,
    }


def stream(
    r: Reference, rng: np.random.Generator, left: int, right: int, steps: Sequence[Sequence[int]]
) -> tuple[dict[str, Array], dict[str, Any]]:
    books = r.config["codec"]["codebook_size"][: r.config["lm"]["audio_channels"]]
    arrays = {f"b{b}.codes": random_codes(rng, books, sum(column)) for b, column in enumerate(zip(*steps, strict=True))}
    decoder, taken = r.streaming_decoder(left, right), [0] * len(steps[0])
    facts: dict[str, Any] = {"left_overlap": left, "right_overlap": right, "steps": []}
    for i, lengths in enumerate(steps):
        chunks = [arrays[f"b{b}.codes"][:, taken[b] : taken[b] + n] for b, n in enumerate(lengths)]
        taken = [a + b for a, b in zip(taken, lengths, strict=True)]
        wavs = decoder.push(chunks, last=i == len(steps) - 1)
        arrays |= {f"step{i}.b{b}.wav": wav for b, wav in enumerate(wavs) if wav is not None}
        facts["steps"].append(
            {
                "chunk_lengths": list(lengths),
                "last_chunk": i == len(steps) - 1,
                "returned_samples": [None if wav is None else len(wav) for wav in wavs],
                "processed_lengths": list(decoder.processed),
                "cached_frames": list(decoder.cached),
            }
        )
    return arrays, facts
