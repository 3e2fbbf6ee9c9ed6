"""What every training shares: a line of progress every 50 steps, and checkpoints that are whole or not there."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EVERY = 50


class Progress:
    """Prints step, CPU seconds and the mean of each loss since the last line."""

    def __init__(self, what: str, steps: int) -> None:
        self.what, self.steps = what, steps
        self.began, self.sums, self.since = time.process_time(), defaultdict[str, float](float), 0

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """step: how many are done."""
        self.since += 1
        for name, loss in losses.items():
            self.sums[name] += loss.item()
        if step % EVERY == 0:
            line = "  ".join(f"{name} {total / self.since:.3f}" for name, total in self.sums.items())
            cpu_s = time.process_time() - self.began
            print(f"{self.what} {step}/{self.steps} cpu {cpu_s:.0f} s  {line}", flush=True)
            self.sums.clear()
            self.since = 0


def keep(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; an interruption leaves the one before."""
    new = path.with_suffix(".new")
    torch.save(state, new)
    new.replace(path)
