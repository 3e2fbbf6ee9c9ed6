"""Write the trained checkpoints as the released Hugging Face folders: OUT/lm and OUT/tokenizer_model.

    python export.py CODEC_CKPT LM_CKPT TOKENIZER_FOLDER OUT [--dtype bf16]

Tensor names, config fields and tokenizer files are the released ones; the LM is the running average of its weights.
bf16 rounds matrices only: vectors and codebooks stay float32, as a bundle keeps them. --sharpen multiplies the heads
of the codes: at the reference's temperature of .9 they are then sampled as at .9 / SHARPEN, which a small model needs.
--blend takes a share of the weights from an earlier LM of the same run: what it could and the later one forgot.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import codec
import lm
import torch
from safetensors.torch import save_file
from tokenizer import dump
from tokenizers import Tokenizer
from torch import Tensor


def stored(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices in dtype, all else float32, contiguous."""
    return {
        name: t.to(dtype if t.dim() > 1 and "_codebook" not in name else torch.float32).contiguous()
        for name, t in tensors.items()
    }


def export_codec(ckpt: Path, out: Path, dtype: torch.dtype) -> int:
    """Returns the number of weights."""
    out.mkdir(parents=True, exist_ok=True)
    model = codec.Codec()
    model.load_state_dict(torch.load(ckpt, weights_only=True)["codec"])
    save_file(stored(model.state_dict(), dtype), out / "model.safetensors", metadata={"format": "pt"})
    dump(out / "config.json", codec.CONFIG)
    books = sum(b.embed.numel() for b in model.encoder.quantizer.books)
    return books + sum(p.numel() for p in model.parameters())


def export_lm(
    ckpt: Path, earlier: tuple[str, str] | None, tokenizer: Path, out: Path, dtype: torch.dtype, sharpen: float
) -> int:
    """Returns the number of weights. earlier: a checkpoint, and its share."""
    out.mkdir(parents=True, exist_ok=True)
    model = lm.MimoLm()
    weights = torch.load(ckpt, weights_only=True)["average"]
    if earlier:
        other, share = torch.load(earlier[0], weights_only=True)["average"], float(earlier[1])
        weights = {name: t.lerp(other[name], share) for name, t in weights.items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        for head in model.local_transformer_lm_heads:
            head.weight *= sharpen
    save_file(stored(model.state_dict(), dtype), out / "model.safetensors", metadata={"format": "pt"})
    for file in tokenizer.iterdir():
        shutil.copy(file, out / file.name)
    end = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id("<|endoftext|>")
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    dump(out / "config.json", lm.CONFIG | {"eos_token_id": end, "pad_token_id": end, "torch_dtype": name})
    dump(out / "generation_config.json", {"eos_token_id": end, "pad_token_id": end, "transformers_version": "4.49.0"})
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("codec", type=Path)
    p.add_argument("lm", type=Path)
    p.add_argument("tokenizer", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--sharpen", type=float, default=1.0)
    p.add_argument("--blend", nargs=2, metavar=("CKPT", "SHARE"))
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    args = p.parse_args()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    heard = export_codec(args.codec, args.out / "tokenizer_model", dtype)
    said = export_lm(args.lm, args.blend, args.tokenizer, args.out / "lm", dtype, args.sharpen)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"codec {heard / 1e6:.2f} M, LM {said / 1e6:.2f} M weights, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
