"""Write goldens for `mimo_goldens`, which reads neither .npz nor a checkpoint: a bundle and one file of cases.

    python tests/golden_cases.py tests/goldens FOLDER

Left out are sampled replies and replies with a history: `mimo-edge verify` has those.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge.export.safetensors_io import SafetensorsWriter
from mimo_edge.verify import build_bundle
from mimo_edge.verify.codec import MARGIN_OWN_MEL, clip_wave
from mimo_edge.verify.goldens import WAVE, Goldens

Cases = dict[str, np.ndarray[Any, Any]]


def sounds(goldens: Goldens) -> Cases:
    """encode.N: wave [samples], codes [n, T], -1 where rounding may decide. decode.N: codes, wave."""
    out: Cases = {"wave_limit": np.array([WAVE])}
    clips = [c for c in goldens.json("wav_index") if goldens.has(f"encoder:{c}.margins")]
    for i, clip in enumerate(clips):
        near = np.logical_or.accumulate(goldens.peek(f"encoder:{clip}.margins") <= MARGIN_OWN_MEL)  # and what follows
        out[f"encode.{i}.wave"] = clip_wave(goldens, clip)
        out[f"encode.{i}.codes"] = np.where(near, -1, goldens.peek(f"encoder:{clip}.codes"))
    whole = [c for c, facts in goldens.cases("decoder").items() if "segments" not in facts]
    for i, case in enumerate(c for c in whole if goldens.has(f"decoder:{c}.codes")):
        out[f"decode.{i}.codes"] = goldens.peek(f"decoder:{case}.codes")
        out[f"decode.{i}.wave"] = goldens.peek(f"decoder:{case}.wav")
    return out


def replies(goldens: Goldens, group: int) -> Cases:
    """reply.N: prompt, stop tokens, [most, least] positions, and the reply; codes as [positions, G, K]."""
    out: Cases = {}
    runs = [r for r in goldens.cases("generate").items() if "samplers" not in r[1] and not r[1]["history_groups"]]
    for i, (run, facts) in enumerate(runs):
        file, name = facts["prompt"].split(".npz:")
        for ids, tokens, codes in (
            (goldens.peek(f"{file}:{name}"), "prompt_tokens", "prompt_codes"),
            (goldens.peek(f"generate:{run}.new_ids"), "tokens", "codes"),
        ):
            out[f"reply.{i}.{tokens}"] = ids[0, ::group]
            out[f"reply.{i}.{codes}"] = ids[1:].T
        out[f"reply.{i}.stop"] = np.array(facts["stop_token_ids"])
        out[f"reply.{i}.most_and_least"] = np.array([facts["max_new_tokens"], facts["min_new_tokens"]])
    return out


def main(source: Path, folder: Path) -> None:
    """Write FOLDER/bundle and FOLDER/cases.safetensors (all float32)."""
    folder.mkdir(parents=True)
    build_bundle(source, folder / "bundle")
    goldens = Goldens(source)
    group = json.loads((folder / "bundle/bundle.json").read_text(encoding="utf-8"))["lm"]["group_size"]
    cases = sounds(goldens) | replies(goldens, group)
    listed = [(name, "F32", array.shape) for name, array in cases.items()]
    with SafetensorsWriter(folder / "cases.safetensors", listed) as writer:
        for name, array in cases.items():
            writer.write(name, np.ascontiguousarray(array, np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
