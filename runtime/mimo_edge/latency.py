"""Where the time of a turn goes, from the end of speech to the first sound of the answer, over many turns.

Each part is what the listener waits for it: work done while the end of the turn was still being judged costs nothing.

detect    end of speech -> the turn is known to be over       prefill   what was left to read of the question
encode    what was left to encode (nothing, if it was done in the pause)
patch     until the first patch of speech is made: the text before it, and the patch
codec     until its sound is played: more patches for the look-ahead, the codec, the device's block
"""

from __future__ import annotations

import importlib
import json
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimo_edge._core import Heard, InputError
from mimo_edge.audio import replace_file
from mimo_edge.reply import Clock, Reply

PARTS = ("detect", "encode", "prefill", "patch", "codec")
PERCENTILES = (50, 95, 99)


@dataclass(slots=True)
class TurnTimes:
    """One turn. Moments are those of the taker's clock; durations in seconds, None where there was no sound."""

    speech_ended: float
    detected: float
    started: float = 0.0
    played: float | None = None
    encode_s: float = 0.0
    prefill_s: float = 0.0
    first_patch_s: float | None = None
    audio_s: float = 0.0
    kept: int = 0
    redone: int = 0
    positions: int = 0
    memory_mib: float = 0.0
    stop_reason: str = ""

    def settle(self, report: Heard, clock: Clock, reply: Reply) -> None:
        """Note what the answer took. clock: of its generation, which began at `started`."""
        self.encode_s, self.prefill_s = report.encode_s, report.prefill_s
        self.kept, self.redone, self.positions = report.kept, report.redone, report.positions
        self.first_patch_s, self.audio_s = (
            clock.first_patch_s,
            reply.timings.audio_s if reply.audio is not None else 0.0,
        )
        self.stop_reason = reply.stop_reason
        self.memory_mib = memory_mib()

    def parts(self) -> dict[str, float] | None:
        """Return the seconds of each part and their total, None if nothing was heard of the answer."""
        if self.played is None or self.first_patch_s is None:
            return None
        encoded = self.started + self.encode_s
        moments = [self.detected, encoded, encoded + self.prefill_s, self.started + self.first_patch_s, self.played]
        parts, at = {}, self.speech_ended
        for name, moment in zip(PARTS, moments, strict=True):
            parts[name] = max(0.0, moment - at)
            at = max(at, moment)
        return {**parts, "total": self.played - self.speech_ended}

    def line(self) -> str:
        """Return the time to the first sound and where it went, in words."""
        if (parts := self.parts()) is None:
            return "nothing to hear"
        spent = ", ".join(f"{name} {1000 * parts[name]:.0f}" for name in PARTS if parts[name] >= 0.0005)
        return f"first sound after {1000 * parts['total']:.0f} ms: {spent}"


def memory_mib() -> float:
    """Memory of this process now (where the system tells), else the most it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summarise(
    turns: list[TurnTimes], underruns: int, silenced: list[float], wall_s: float, cpu_s: float
) -> dict[str, Any]:
    """Return the report of many turns: percentiles in ms, what was played, what it cost.

    wall_s, cpu_s: seconds that all of it took, and seconds of the processor that this process used for it.
    """
    turns = [turn for turn in turns if turn.detected]  # the others were taken back unheard
    parts = [split for turn in turns if (split := turn.parts())]
    memory = [turn.memory_mib for turn in turns]
    tenth = max(1, len(memory) // 10)
    return {
        "turns": len(turns),
        "answered_in_sound": len(parts),
        "wall_s": round(wall_s, 1),
        "latency_ms": {
            name: {f"p{p}": round(1000 * percentile([split[name] for split in parts], p), 1) for p in PERCENTILES}
            for name in ((*PARTS, "total") if parts else ())
        },
        "cancel_to_silence_ms": [round(1000 * s, 1) for s in silenced],
        "underruns": underruns,
        "audio_s": round(sum(turn.audio_s for turn in turns), 1),
        "cpu_s_per_turn": round(cpu_s / max(1, len(turns)), 3),
        "cpu_share": round(cpu_s / wall_s, 3),
        "positions_ready": round(sum(turn.kept for turn in turns) / max(1, sum(turn.positions for turn in turns)), 3),
        "memory_mib": {
            name: round(sum(memory[at : at + tenth]) / tenth, 1) if memory else None
            for name, at in (("first", 0), ("middle", (len(memory) - tenth) // 2), ("last", len(memory) - tenth))
        },
    }


def percentile(values: list[float], percent: int) -> float:
    """The smallest of one or more values that `percent` of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def table(report: dict[str, Any]) -> str:
    """Return the latencies as a table in Markdown."""
    lines = ["| ms | " + " | ".join(f"p{p}" for p in PERCENTILES) + " |", "|---" * (len(PERCENTILES) + 1) + "|"]
    for name, row in report["latency_ms"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[f'p{p}']:.0f}" for p in PERCENTILES) + " |")
    return "\n".join(lines)


def write(path: Path, report: dict[str, Any], turns: list[TurnTimes]) -> None:
    """Write the report with every turn as JSON."""
    rows = [{**asdict(turn), "parts": turn.parts()} for turn in turns]
    replace_file(path, (json.dumps({**report, "each": rows}, indent=1) + "\n").encode())


def plot(path: Path, turns: list[TurnTimes]) -> None:
    """Draw every turn as a bar of its parts, and the memory of the process (pip install matplotlib)."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise InputError("listen: expected matplotlib for --plot, got none; pip install matplotlib") from error
    parts = [split for turn in turns if (split := turn.parts())]
    figure, (axes, below) = pyplot.subplots(2, 1, figsize=(9, 6), height_ratios=(3, 1))
    bottom = [0.0] * len(parts)
    for name in PARTS:
        values = [1000 * split[name] for split in parts]
        axes.bar(range(1, len(parts) + 1), values, bottom=bottom, label=name, width=0.9)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    axes.set(xlabel="turn", ylabel="ms", title="end of speech to first sound")
    axes.legend(loc="upper right")
    below.plot(range(1, len(turns) + 1), [turn.memory_mib for turn in turns])
    below.set(xlabel="turn", ylabel="memory, MiB", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
