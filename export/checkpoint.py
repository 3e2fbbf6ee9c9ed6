"""The released folders, opened and checked as one: configs, tensor tables, tokenizer.

LM folder (MiMo-Audio-7B-Base | -Instruct | MiMo-V2.5-ASR) + codec folder (MiMo-Audio-Tokenizer)  ->  Checkpoint
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mimo_edge.export.config import (
    ASR_ARCHITECTURE,
    CodecConfig,
    LmConfig,
    check_pair,
    read_codec_config,
    read_lm_config,
)
from mimo_edge.export.random_checkpoint import RandomCheckpoint
from mimo_edge.export.safetensors_io import Array, SafetensorsFolder, input_error
from mimo_edge.export.tensor_table import IGNORED, Shapes, codec_tensors, lm_tensors
from mimo_edge.export.tokenizer import Tokenizer, read_json, read_tokenizer

__all__ = ["Checkpoint", "RandomCheckpoint", "Source"]

_WEIGHT_DTYPES = ("F32", "F16", "BF16")
_TEXT_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
]


class Source(Protocol):
    """What a bundle is written from. Tensor names are released names; those of LM and codec never meet."""

    lm: LmConfig
    codec: CodecConfig
    lm_tensors: Shapes
    codec_tensors: Shapes
    tokenizer: Tokenizer
    name: str
    variant: str
    trained: bool
    warnings: list[str]
    source_files: dict[str, list[Path]]
    source_folders: dict[str, str]

    def dtype(self, name: str) -> str:
        """Return F32, F16 or BF16."""

    def read(self, name: str) -> Array:
        """Return a whole tensor, BF16 as uint16 bits."""

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of the first axis."""


class Checkpoint:
    """A released pair of folders whose tensors are exactly those its configs ask for. See Source for the fields."""

    def __init__(self, lm_dir: Path, codec_dir: Path) -> None:
        lm_raw, codec_raw = read_json(lm_dir / "config.json"), read_json(codec_dir / "config.json")
        self.lm, lm_warnings = read_lm_config(lm_raw)
        self.codec, codec_warnings = read_codec_config(codec_raw)
        check_pair(self.lm, self.codec)
        self.warnings = lm_warnings + codec_warnings
        self.name = lm_dir.resolve().name
        self.variant = "asr" if (lm_raw.get("architectures") or [None])[0] == ASR_ARCHITECTURE else "audio"
        self.trained = lm_raw.get("trained") is not False  # our own tiny checkpoints say so themselves
        lm_files, codec_files = SafetensorsFolder(lm_dir), SafetensorsFolder(codec_dir)
        if "lm_head.weight" in lm_files.tensors:  # the reference loads a head that is stored, whatever the config says
            self.lm = replace(self.lm, tie_word_embeddings=False)
        self.lm_tensors, self.codec_tensors = lm_tensors(self.lm), codec_tensors(self.codec)
        problems = _compare(lm_files, self.lm_tensors) + _compare(codec_files, self.codec_tensors)
        if problems:
            raise input_error("build: the checkpoint does not fit its config.json:\n  " + "\n  ".join(problems))
        self._home = dict.fromkeys(self.lm_tensors, lm_files) | dict.fromkeys(self.codec_tensors, codec_files)
        self.tokenizer = read_tokenizer(lm_dir, lm_raw, self.lm.vocab_size)
        self.source_folders = {"lm": self.name, "codec": codec_dir.resolve().name}
        self.source_files = {"lm": _files(lm_dir, lm_files), "codec": _files(codec_dir, codec_files)}

    @staticmethod
    def open(lm_dir: Path | str, codec_dir: Path | str) -> Checkpoint:
        """Open a language model folder and a codec folder.

        Raises InputError for a missing or damaged file, an unsupported config value, or tensors that do not match the
        configs (all of them in one message).
        """
        return Checkpoint(Path(lm_dir), Path(codec_dir))

    def dtype(self, name: str) -> str:
        """Return the released dtype of a tensor: F32, F16 or BF16."""
        return self._home[name].tensors[name].dtype

    def read(self, name: str) -> Array:
        """Return a whole tensor in its released shape, mapped read-only; BF16 as uint16 bits."""
        return self._home[name].read(name)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Copy rows [start, stop) of the first axis from the file; BF16 as uint16 bits."""
        return self._home[name].rows(name, start, stop)


def _files(folder: Path, tensors: SafetensorsFolder) -> list[Path]:
    small = [folder / name for name in _TEXT_FILES if (folder / name).is_file()]
    return small + ([tensors.index] if tensors.index else []) + [file.path for file in tensors.files]


def _compare(files: SafetensorsFolder, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List every way in which the tensors of a folder differ from the table."""
    problems = []
    for name, shape in expected.items():
        info = files.tensors.get(name)
        if info is None:
            problems.append(f"{name}: expected {list(shape)}, but it is missing")
        elif info.shape != shape:
            problems.append(f"{name}: expected {list(shape)}, got {list(info.shape)}")
        elif info.dtype not in _WEIGHT_DTYPES:
            problems.append(f"{name}: expected {', '.join(_WEIGHT_DTYPES)}, got {info.dtype}")
    for name in files.tensors:
        if name not in expected and not IGNORED.search(name):
            problems.append(f"{name}: unexpected tensor in {files.folder.name}")
    return problems
