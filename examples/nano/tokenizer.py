"""A byte-level BPE in Qwen2's format for the domain, with every MiMo special token.

python tokenizer.py OUT --merges 1010        # writes the tokenizer files of the LM folder
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import grammar
import prompts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPLIT = "|".join(  # Qwen2's pre-tokenisation
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<|fim_pad|>", "<think>", "</think>"]
SPEECH = [f"<|{n}|>" for n in ("sosp", "eosp", "empty", "Human", "SpeechLM", "sostm", "eostm", "eot")]


def texts(count: int) -> list[str]:
    """Sentences as they are written, and the prompts' strings."""
    r = random.Random(3)
    words = grammar.vocabulary()
    out = [*prompts.ASR, *prompts.TTS, prompts.STYLE, prompts.STYLE_VOICE, prompts.VOICE] * 300
    out += ["user\n", "assistant\n", "system\n", "\n\n", "\n", ": ", prompts.THINK_ON] * 300
    while len(out) < count:
        t = grammar.turn(r)
        out += [grammar.written(t.text), grammar.written(t.reply), *(x for pair in grammar.questions(t) for x in pair)]
        out.append(grammar.written(grammar.random_words(r, words)))
    return out


def train(merges: int) -> Tokenizer:
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    t.train_from_iterator(texts(60000), trainer)
    for names, special in ((SPECIAL, True), (PLAIN, False), (SPEECH, True)):
        added = [AddedToken(n, special=special, normalized=False) for n in names]
        (t.add_special_tokens if special else t.add_tokens)(added)
    return t


def save(t: Tokenizer, folder: Path) -> None:
    """tokenizer.json, vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json, added_tokens.json."""
    folder.mkdir(parents=True, exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    model = json.loads(t.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    dump(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    ids = {name: t.token_to_id(name) for name in [*SPECIAL, *PLAIN, *SPEECH]}
    dump(folder / "added_tokens.json", ids)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    entry = {str(i): {"content": n} | plain | {"special": n not in PLAIN} for n, i in ids.items()}
    dump(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": entry,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "extra_special_tokens": {},
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    marks = [{"content": n} | plain for n in ("<|im_start|>", "<|im_end|>")]
    end = {"content": "<|endoftext|>"} | plain
    dump(folder / "special_tokens_map.json", {"additional_special_tokens": marks, "eos_token": end, "pad_token": end})


def dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--merges", type=int, default=1010)
    args = p.parse_args()
    save(train(args.merges), args.folder)


if __name__ == "__main__":
    main()
