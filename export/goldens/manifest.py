"""MANIFEST.md of the project's own goldens: what they are, how they were made, how near one has to come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mimo_edge.export.reference_ops import Array

_TEXT = """# The project's own goldens

Made by `python -m mimo_edge.export.goldens OUT_DIR --seed {seed}` (torch {torch}, one thread; the same command
gives the same bytes on the same machine). The numbers come from `export/reference.py`, the executable spec, which
itself is held against goldens made from the public reference (`test_reference.py`). Sound is generated, weights are
random, the backbone and text embedding are then fitted to a few dialogues so that greedy decoding interleaves tokens
and patches, and stops. Nothing here comes from a released model or from a recording.

`mimo-edge verify` reads this folder and the one made from the public reference alike: the same files, the same names.

## Files

| file | content |
|---|---|
| `lm/` `tokenizer_model/` | the checkpoint as released: LM in BF16, codec in F32 (matrices are BF16 values) |
| `wavs` `wav_index` | clips at {rate} Hz; `long` repeats, to compress; `long_N` is its beginning, N mel frames |
| `frontend` | `mel_fb`, `stft_window`, `<clip>.mel`; of `long` the first and last mel frames |
| `encoder` | `<clip>.hidden` [T, D], `.codes` [Q, T], `.margins` [Q, T], `.audio_tokens` [T', K]; `.dbg.*`: inside |
| `decoder` `streaming` | `<case>.codes` to `.wav`, and between; what every streamed call returns and keeps |
| `prompts` | `<case>.input_ids` [K+1, G*P]; the json has the reference's function, arguments, template and its index |
| `lm_forward` | prefill, one greedy patch step by step, then eight forced positions (t token, a patch) |
| `generate` | whole runs: greedy ids and logits; `sampled_*`: filtered scores, replayed by forcing `new_ids` |
| `postprocess` `sampler` `text_tokenizer` `misc` | replies of crafted ids; filters, stop rule; BPE; lengths |

float32 and int32, little endian; time first unless a shape says otherwise. NaN in `local_logits` and `local_scores`:
the level is silent at this step or has fewer codes. The tables of names, shapes and units are in `export/MODEL.md`.

## Sizes

{sizes}

The empty-code row of every speech embedding and the `<|empty|>` row of the text embedding are not zero: masking must be
done by id. Ids from {tokens} on have a row in the embedding and no token.

## Tolerances (largest absolute difference)

| what | limit |
|---|---|
| integers, strings | equal |
| log-mel | 99.9 % of bins 1e-3, all 1e-2; filterbank and window 1e-6 |
| hidden states from golden inputs | 1e-4; `inputs_embeds` 5e-5; encoder hidden from one's own mel 2e-3 |
| waveform from golden codes | 1e-4 |
| logits from golden ids | 2e-4 |
| filtered scores | same candidates, 1e-5 |
| codes | equal up to the first level whose margin is at most 1e-3 (golden mel) or 1e-2 (own mel), 99.9 % overall |

RVQ margins: {decisions} decisions, {tiny:.2%} below 1e-3, {small:.1%} below 1e-2, median {median:.3g}. Greedy runs:
smallest text margin {text:.2g}, smallest code margin {code:.2g}, forced steps {forced:.2g}.
"""


def manifest(seed: int, config: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]], margins: Array) -> str:
    """facts: section -> its json. margins: all RVQ margins in one vector."""
    greedy = [run for run in facts["generate"].values() if "samplers" not in run]
    forward = [case for case in facts["lm_forward"].values() if "groups" in case]
    rows = ["| | value |", "|---|---|"]
    for part in ("codec", "lm"):
        rows += [f"| {part} {name} | {value} |" for name, value in config[part].items()]
    return _TEXT.format(
        seed=seed,
        torch=torch.__version__.split("+")[0],
        rate=config["codec"]["sampling_rate"],
        sizes="\n".join(rows),
        tokens=facts["text_tokenizer"]["vocab_len"],
        decisions=margins.size,
        tiny=float(np.mean(margins < 1e-3)),
        small=float(np.mean(margins < 1e-2)),
        median=float(np.median(margins)),
        text=min(run["min_text_margin"] for run in greedy),
        code=min(run["min_local_margin"] for run in greedy if run["min_local_margin"] is not None),
        forced=min(m for case in forward for m in (case["local_min_margin"], *case["forced_local_min_margin"])),
    )
