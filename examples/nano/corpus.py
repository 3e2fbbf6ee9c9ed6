"""Reading back what data.py wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class Corpus:
    """All shards of a folder that match a pattern, memory-mapped. clips[i] is the index line with `shard` added."""

    def __init__(self, folder: Path, pattern: str = "train*") -> None:
        self.waves: dict[str, np.ndarray] = {}
        self.clips: list[dict] = []
        for index in sorted(folder.glob(pattern + ".jsonl")):
            self.waves[index.stem] = np.memmap(index.with_suffix(".pcm"), "<i2", "r")
            for text in index.read_text().splitlines():
                self.clips.append(json.loads(text) | {"shard": index.stem})

    def wave(self, clip: dict) -> np.ndarray:
        """float32 [samples]."""
        part = self.waves[clip["shard"]][clip["start"] : clip["start"] + clip["samples"]]
        return part.astype(np.float32) / 32768.0
