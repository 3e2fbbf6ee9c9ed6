"""Check that the training modules compute what the reference computes: load a goldens folder's weights and compare.

python parity.py GOLDENS/pairA
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import codec
import lm
import numpy as np
import torch
from safetensors.torch import load_file


@torch.no_grad()
def codec_distance(folder: Path) -> dict[str, float]:
    """Largest differences of hidden states and waves, and the number of codes that differ."""
    model = codec.Codec(json.loads((folder / "tokenizer_model/config.json").read_text())).eval()
    model.load_state_dict(load_file(folder / "tokenizer_model/model.safetensors"))
    front, inside, outside = (np.load(folder / f"{n}.npz") for n in ("frontend", "encoder", "decoder"))
    found = {"hidden": 0.0, "codes": 0.0, "wave": 0.0}
    for clip in ("zh_m", "q_weather", "odd_f1"):
        hidden = model.encoder(torch.from_numpy(front[f"{clip}.mel"])[None])
        codes = model.encoder.quantizer(hidden, learn=False)[2][:, 0].numpy()
        found["hidden"] = max(found["hidden"], float(np.abs(hidden[0].numpy() - inside[f"{clip}.hidden"]).max()))
        found["codes"] += int((codes != inside[f"{clip}.codes"]).sum())
    for clip in ("q_weather_q8", "q_weather_q20"):
        wave = model.decode(torch.from_numpy(outside[f"{clip}.codes"].astype(np.int64))[:, None])[0].numpy()
        found["wave"] = max(found["wave"], float(np.abs(wave - outside[f"{clip}.wav"]).max()))
    return found


@torch.no_grad()
def lm_distance(folder: Path) -> dict[str, float]:
    """Largest differences of hidden states, text logits and patch-decoder logits."""
    model = lm.MimoLm(json.loads((folder / "lm/config.json").read_text())).eval()
    model.load_state_dict(load_file(folder / "lm/model.safetensors"))
    empty = json.loads((folder / "lm/added_tokens.json").read_text())["<|empty|>"]
    gold, asked = np.load(folder / "lm_forward.npz"), np.load(folder / "prompts.npz")
    found = {"hidden": 0.0, "text": 0.0, "codes": 0.0}
    for case in ("asr", "tts_plain_en", "tts_instruct_prompt_speech"):
        ids = torch.from_numpy(asked[f"{case}.input_ids"].astype(np.int64))
        text = ids[:1, :: lm.G]
        patches = ids[1:].view(lm.K, -1, lm.G).permute(1, 2, 0)[text[0] == empty]
        hidden = model(text, text == empty, model.patches(patches)).hidden[0]
        logits = model.lm_head(hidden[-1]).numpy()
        found["hidden"] = max(found["hidden"], float(np.abs(hidden.numpy() - gold[f"{case}.hidden_all"]).max()))
        found["text"] = max(found["text"], float(np.abs(logits - gold[f"{case}.text_logits"]).max()))
        made = torch.from_numpy(gold[f"{case}.local_tokens"].astype(np.int64))[None]
        for k, scores in enumerate(model.code_logits(hidden[-1:], made)):
            for t in range(lm.G):
                other = gold[f"{case}.local_logits"][t + k, k, : scores.shape[-1]]
                known = np.isfinite(other)
                found["codes"] = max(found["codes"], float(np.abs(scores[0, t].numpy() - other)[known].max()))
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("goldens", type=Path)
    folder = p.parse_args().goldens
    print("codec", codec_distance(folder), "LM", lm_distance(folder))


if __name__ == "__main__":
    main()
