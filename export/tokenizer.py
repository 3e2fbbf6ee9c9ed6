"""The text tokenizer of a bundle: one Hugging Face fast tokenizer file and the ids of the special tokens.

    tokenizer.json (as it is, if it has all tokens)  |  vocab.json + merges.txt in Qwen2's layout  ->  bytes + ids

Tokens the reference adds at start-up (mimo_audio.py, MimoAudio.__init__) are added here once, by the rule of its
tokenizer library: a new token takes the id after the highest one in use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_edge.export.safetensors_io import input_error

MIMO_TOKENS = ("<|sosp|>", "<|eosp|>", "<|empty|>", "<|Human|>", "<|SpeechLM|>", "<|sostm|>", "<|eostm|>", "<|eot|>")
_NAMED = {  # name in bundle.json -> the token's text
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "sosp": "<|sosp|>",
    "eosp": "<|eosp|>",
    "empty": "<|empty|>",
    "sostm": "<|sostm|>",
    "eostm": "<|eostm|>",
    "eot": "<|eot|>",
}
# How Qwen2 cuts text into words before byte pairs are merged.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """json: the bytes of tokenizer.json. ids: the `tokens` of bundle.json."""

    json: bytes
    ids: dict[str, int]


def read_tokenizer(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """Read the tokenizer of a released language model folder.

    config: its config.json, for eos_token_id and pad_token_id where tokenizer_config.json names no token.
    Raises InputError if files are missing or damaged, a token cannot be found, or an id has no embedding row.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    listed = _listed_tokens(folder, settings)
    path = folder / "tokenizer.json"
    if path.is_file():
        original = path.read_bytes()
        model = read_json(path)
        _check_model(path, model)
    else:
        original = b""
        model = _assemble(folder, listed)
    added = _add_missing(model, [*listed, *({"content": token, "special": True} for token in MIMO_TOKENS)])
    data = original if original and not added else json.dumps(model, ensure_ascii=False, indent=2).encode()
    ids = _ids(model)
    named = _special_ids(folder, ids, settings, config)
    over = max([*ids.items(), *named.items()], key=lambda item: item[1])
    if over[1] >= vocab_size:
        raise input_error(
            f"build: tokenizer of {folder}: expected ids below vocab_size ({vocab_size}), got {over[1]} for {over[0]!r}"
        )
    return Tokenizer(data, named)


def byte_level_tokenizer(size: int, first_special: int, specials: Iterable[str]) -> Tokenizer:
    """Make a tokenizer for random weights: the 256 bytes, then pairs and longer runs of them up to first_special ids.

    size: the vocabulary of the model. specials: texts of the special tokens, ids first_special, first_special + 1, ...
    """
    tokens = byte_alphabet()
    merges: list[list[str]] = []
    for n in range(first_special - 256):  # token 256 + n joins token n // 256 and byte n % 256
        merges.append([tokens[n // 256], tokens[n % 256]])
        tokens.append("".join(merges[-1]))
    model = _qwen2_layout({token: i for i, token in enumerate(tokens)}, merges)
    model["added_tokens"] = [
        _added_token({"content": text, "special": True}, first_special + i) for i, text in enumerate(specials)
    ]
    ids = _ids(model)
    if max(ids.values()) >= size:
        raise input_error(f"build: random tokenizer: expected a vocabulary above {max(ids.values())}, got {size}")
    named = {name: ids[text] for name, text in _NAMED.items()}
    return Tokenizer(
        json.dumps(model, ensure_ascii=False).encode(), {"eos": first_special, "pad": first_special} | named
    )


def byte_alphabet() -> list[str]:
    """List the 256 characters that stand for bytes in a byte-level vocabulary, in vocabulary order: printable bytes as
    themselves, the others as U+0100 and up (the convention of GPT-2's encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError if the file is missing, damaged or something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise input_error(f"build: expected {path}, but there is no such file") from None
    except (ValueError, RecursionError) as error:
        raise input_error(f"build: {path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise input_error(f"build: {path}: expected a JSON object, got {type(value).__name__}")
    return value


def _check_model(path: Path, model: dict[str, Any]) -> None:
    bpe = model.get("model")
    if not isinstance(bpe, dict) or bpe.get("type", "BPE") != "BPE" or not isinstance(bpe.get("vocab"), dict):
        raise input_error(
            f"build: {path}: expected a BPE model with a vocab; only byte-level BPE tokenizers are supported"
        )
    for token in model.setdefault("added_tokens", []):
        if (
            not isinstance(token, dict)
            or not isinstance(token.get("content"), str)
            or not isinstance(token.get("id"), int)
        ):
            raise input_error(f"build: {path}: expected added_tokens with id and content, got {token!r}")


def _listed_tokens(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the added tokens named beside the vocabulary, in order of their ids."""
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        try:
            return [
                {**token, "id": int(number)} for number, token in sorted(decoder.items(), key=lambda item: int(item[0]))
            ]
        except (ValueError, TypeError) as error:
            raise input_error(
                f"build: {folder / 'tokenizer_config.json'}: added_tokens_decoder is damaged: {error}"
            ) from error
    path = folder / "added_tokens.json"
    added = read_json(path) if path.is_file() else {}
    special = {_text(token) for token in settings.get("additional_special_tokens") or []}
    special |= {_text(settings.get("eos_token")), _text(settings.get("pad_token")), *MIMO_TOKENS}
    return [
        {"content": text, "id": number, "special": text in special}
        for text, number in sorted(added.items(), key=lambda item: item[1])
    ]


def _assemble(folder: Path, listed: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the fast tokenizer file from vocab.json and merges.txt."""
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    if not vocab_path.is_file() or not merges_path.is_file():
        raise input_error(
            f"build: {folder}: expected tokenizer.json, or vocab.json with merges.txt; copy them from the release"
        )
    lines = merges_path.read_text(encoding="utf-8").split("\n")
    merges = [
        line.split() for n, line in enumerate(lines) if line.strip() and not (n == 0 and line.startswith("#version:"))
    ]
    wrong = next((pair for pair in merges if len(pair) != 2), None)
    if wrong is not None:
        raise input_error(f"build: {merges_path}: expected two parts a line, got {wrong!r}")
    model = _qwen2_layout(read_json(vocab_path), merges)
    model["added_tokens"] = [_added_token(token, token["id"]) for token in listed]
    return model


def _qwen2_layout(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _added_token(token: Mapping[str, Any], number: int) -> dict[str, Any]:
    flags = {
        flag: bool(token.get(flag, False)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
    }
    return {"id": number, "content": token["content"], **flags}


def _add_missing(model: dict[str, Any], wanted: Iterable[Mapping[str, Any]]) -> bool:
    """Add tokens the tokenizer does not know yet; tell whether there were any."""
    ids = _ids(model)
    added = False
    for token in wanted:
        if token["content"] not in ids:
            number = max(
                max((entry["id"] for entry in model["added_tokens"]), default=-1) + 1, len(model["model"]["vocab"])
            )
            model["added_tokens"].append(_added_token(token, number))
            ids[token["content"]] = number
            added = True
    return added


def _ids(model: Mapping[str, Any]) -> dict[str, int]:
    return {**model["model"]["vocab"], **{token["content"]: token["id"] for token in model["added_tokens"]}}


def _text(token: object) -> str | None:
    """Return the text of a token given as a string or as {"content": ...}."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _special_ids(
    folder: Path, ids: Mapping[str, int], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, int]:
    missing = [text for text in _NAMED.values() if text not in ids]
    if missing:
        raise input_error(
            f"build: tokenizer of {folder}: expected the special tokens {', '.join(missing)}, but they are absent"
        )
    eos = _end_id("eos", ids, settings, config)
    if eos is None:
        raise input_error(
            f"build: {folder}: expected eos_token (tokenizer_config.json) or eos_token_id (config.json), found neither"
        )
    pad = _end_id("pad", ids, settings, config)
    return {"eos": eos, "pad": eos if pad is None else pad} | {name: ids[text] for name, text in _NAMED.items()}


def _end_id(kind: str, ids: Mapping[str, int], settings: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    text = _text(settings.get(f"{kind}_token"))
    if text is not None and text in ids:
        return ids[text]
    number = config.get(f"{kind}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) and not isinstance(number, bool) else None
