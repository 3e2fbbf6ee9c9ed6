"""Sizes that no release has: on random configurations the core equals the executable spec, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the spec is written in torch")

from mimo_edge import _core
from mimo_edge.export.bundle_writer import write_bundle
from mimo_edge.export.random_checkpoint import _SHAPE_SMALL, RandomCheckpoint
from mimo_edge.export.reference import Reference
from mimo_edge.verify.stages import CoreStages

CONFIGURATIONS = 12
GREEDY = _core.Sampling(False)


def random_shape(seed: int) -> dict[str, dict[str, Any]]:
    """A legal pair of configs in which every size is drawn."""
    draw = np.random.default_rng(seed)

    def one(*choices: Any) -> Any:
        return choices[draw.integers(len(choices))]

    nfft, levels, quantizers = one(320, 400, 512, 960), int(draw.integers(1, 13)), int(draw.integers(12, 15))
    codebooks = [int(n) for n in draw.integers(5, 40, quantizers)]
    heads = [int(n) for n in draw.integers(1, 5, 4)]
    codec = {
        "sampling_rate": one(16000, 22050, 24000),
        "nfft": nfft,
        "window_size": one(nfft, nfft - 80),
        "hop_length": nfft // one(4, 5),
        "n_mels": int(draw.integers(20, 100)),
        "fmin": one(0, 40),
        "fmax": one(None, 7000),
        "d_model": 2 * heads[0] * heads[1] * int(draw.integers(2, 7)),  # an even share for each head
        "encoder_attention_heads": heads[0],
        "decoder_attention_heads": heads[1],
        "stride_size": (stride := one(1, 2, 3)),
        "kernel_size": one(3, 4, 5),
        "avg_pooler": one(1, 2, 3, 4),
        "encoder_layers": (layers := int(draw.integers(1, 4))),
        "encoder_skip_layer_id": one(None, layers),
        "encoder_ffn_dim": int(draw.integers(10, 90)),
        "encoder_causal": one(False, True),
        "encoder_attn_window_size": one([-1, -1], [7, 3]),
        "decoder_layers": int(draw.integers(1, 4)),
        "decoder_ffn_dim": int(draw.integers(10, 90)),
        "decoder_stride_size": stride,
        "decoder_kernel_size": int(draw.integers(stride, 6)),
        "decoder_causal": one(True, False),
        "decoder_attn_window_size": one([-1, -1], [9, -1]),
        "vocoder_attention_heads": heads[2],
        "vocoder_dim": heads[2] * 2 * int(draw.integers(1, 9)),
        "vocoder_num_layers": int(draw.integers(1, 3)),
        "vocoder_intermediate_dim": int(draw.integers(10, 60)),
        "vocoder_attn_window_size": one([40, 10], [12, 5], [3, -1]),
        "num_quantizers": quantizers,
        "codebook_size": codebooks,
        "rope_theta": one(10000, 500),
    }
    kv_heads = int(draw.integers(1, 4))
    lm = {
        "hidden_size": int(draw.integers(9, 70)),
        "num_hidden_layers": int(draw.integers(1, 4)),
        "num_attention_heads": kv_heads * int(draw.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * int(draw.integers(1, 12)),
        "intermediate_size": int(draw.integers(9, 130)),
        "rope_theta": one(640000, 1000),
        "rms_norm_eps": one(1e-6, 1e-5),
        "tie_word_embeddings": one(False, True),
        "group_size": int(draw.integers(1, 9)),
        "audio_channels": levels,
        "delay_pattern": one("-".join(str(n) for n in draw.integers(0, 9, levels)), 0) if levels > 1 else 2,
        "speech_vocab_size": "-".join(str(n + 1) for n in codebooks[:levels]) if levels > 1 else codebooks[0] + 1,
        "speech_zeroemb_idx": "-".join(str(n) for n in codebooks[:levels]) if levels > 1 else codebooks[0],
        "local_attn_heads": heads[3],
        "local_dim": heads[3] * 2 * int(draw.integers(1, 9)),
        "local_layers": int(draw.integers(1, 4)),
        "local_ffn_dim": int(draw.integers(9, 90)),
        "input_local_dim": heads[3] * 2 * int(draw.integers(1, 9)),
        "input_local_layers": int(draw.integers(1, 3)),
        "input_full_attention": one(True, False, None),
    }
    return {"lm": _SHAPE_SMALL["lm"] | lm, "codec": _SHAPE_SMALL["codec"] | codec}


def near(got: Any, want: Any, tolerance: float) -> None:
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(CONFIGURATIONS))
def test_core_equals_the_spec(tmp_path: Path, seed: int) -> None:
    write_bundle(RandomCheckpoint(random_shape(seed), seed), tmp_path / "bundle")
    spec = Reference.open(tmp_path / "bundle")
    core: Any = CoreStages(_core.Model.open(str(tmp_path / "bundle")))
    facts = core.config["codec"] | core.config["lm"]
    draw = np.random.default_rng(seed)

    # ears
    wave = draw.normal(scale=0.1, size=int(draw.integers(4000, 9000))).astype(np.float32)
    mel = spec.mel(wave)
    near(core.mel(wave), mel, 1e-3)
    hidden, codes = spec.encode_mel(mel)
    got, got_codes = core.encode_mel(mel)
    near(got, hidden, 1e-4)
    assert np.mean(got_codes != codes) < 0.02  # near ties
    np.testing.assert_array_equal(core.rvq_encode(hidden), codes)

    # voice
    near(core.decode(codes), spec.decode(codes), 1e-4)
    overlaps = [(12, 4), (3, 0), (2, 2)][seed % 3]  # code frames before and after
    streams = [stages.streaming_decoder(*overlaps) for stages in (core, spec)]
    for start, stop in ((0, 3), (3, 10), (10, codes.shape[1])):
        chunk, last = np.ascontiguousarray(codes[:, start:stop]), stop == codes.shape[1]
        for ours, theirs in zip(*(stream.push([chunk], last) for stream in streams), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                near(ours, theirs, 1e-4)

    # language model
    frames = facts["group_size"] * 5
    heard = np.ascontiguousarray(np.tile(codes, frames)[: facts["audio_channels"], :frames])
    ids = spec.prompt_dialogue([("user", None, heard)], "Be brief.", heard, True, False)
    np.testing.assert_array_equal(core.prompt_dialogue([("user", None, heard)], "Be brief.", heard, True, False), ids)
    states = [stages.forward(ids) for stages in (core, spec)]
    near(states[0].text_logits(), states[1].text_logits(), 2e-4)
    near(states[0].local_hidden(), states[1].local_hidden(), 1e-4)
    patches = [state.decode_patch(GREEDY) for state in states]
    assert np.mean(patches[0] != patches[1]) < 0.2  # a near tie changes what follows it
