"""Make the training speech: shards of <folder>/<name>.pcm (int16, 24 kHz mono) and <name>.jsonl (one line a clip).

    python data.py /work/nano/data --shards 0:12        # training shards, about one hour of speech each
    python data.py /work/nano/data --car 0:6            # the car alone, 2000 clips a shard: learning to read aloud
    python data.py ../../tests/speech --ship            # 40 held-out sentences by eight voices, 4 MB
    python data.py /work/nano/data --test               # held-out sentences: training voices, then a voice never heard

A line: {start, samples (into the .pcm), kind, voice, intent, text, reply, slots, asked, words, phones}. kind "listen"
is a driver (any voice, pace .85-1.2), "speak" is the car (four hibari voices). words: [start, stop] samples of every
word, phones: [hibari's id, start, stop] of every phone; hibari only. asked: for the answer to a question about a
missing slot, the driver's first sentence. Same seed, same shard.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import soundfile as sf
import voices
from sentences import TEST_CLIPS, UNHEARD_CLIPS, Line, car_lines, shipped_lines, test_lines, training_lines
from speakers import UNHEARD
from tqdm import tqdm
from voices import Utterance


def say_all(lines: list[Line], seed: int) -> list[Utterance]:
    """Say every line; festival's are said in one run a voice. Nothing but the seed is random."""
    out: list[Utterance | None] = [None] * len(lines)
    with tempfile.TemporaryDirectory() as name:
        for voice in {line.voice.name: line.voice for line in lines if line.voice.engine == "festival"}.values():
            mine = [i for i, line in enumerate(lines) if line.voice.name == voice.name]
            texts = [lines[i].text for i in mine]
            speeds = [lines[i].speed / lines[i].voice.resample for i in mine]
            for i, wav in zip(mine, voices.festival(texts, voice, speeds, Path(name)), strict=True):
                out[i] = Utterance(wav)
    for i, line in enumerate(tqdm(lines, desc=f"seed {seed}", mininterval=10, leave=False)):
        if line.voice.engine == "hibari":
            out[i] = voices.hibari().say(line.text, line.voice, line.speed, seed * 100000 + i)
        elif line.voice.engine != "festival":
            program = voices.flite if line.voice.engine == "flite" else voices.espeak
            out[i] = Utterance(program(line.text, line.voice, line.speed / line.voice.resample))
    said = [u for u in out if u is not None]
    for u, line in zip(said, lines, strict=True):
        u.wav = voices.shift(u.wav, line.voice.resample)
    return [voices.trim(u) for u in said]


def write(folder: Path, name: str, lines: list[Line], seed: int) -> float:
    """Write one shard; returns its hours. The index is written last, so a shard with an index is whole."""
    start = 0
    records = []
    with (folder / f"{name}.pcm").open("wb") as file:
        for line, u in zip(lines, say_all(lines, seed), strict=True):
            if not 0.25 * voices.RATE_HZ < u.wav.size < 12 * voices.RATE_HZ:
                continue
            file.write((u.wav * 32767).astype("<i2").tobytes())
            record = {"start": start, "samples": u.wav.size} | {k: v for k, v in asdict(line).items() if k != "voice"}
            record["voice"] = line.voice.label
            record["phones"] = u.phones if line.kind == "speak" else None
            record["words"] = u.words if u.words and len(u.words) == len(line.text.split()) else None
            records.append(record)
            start += u.wav.size
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in records) + "\n")
    return start / voices.RATE_HZ / 3600


def ship(folder: Path, lines: list[Line]) -> None:
    """Write the speech of tests/speech: lines.jsonl and Opus files of 24 kHz mono."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for line, u in zip(lines, say_all(lines, 9), strict=True):
        name = f"{line.voice.label}_{len(records) // len({x.voice.label for x in lines}):02d}.ogg"
        sf.write(folder / name, u.wav, voices.RATE_HZ, format="OGG", subtype="OPUS")
        kept = {k: v for k, v in asdict(line).items() if k in ("intent", "text", "reply", "slots", "asked")}
        records.append({"file": name, "voice": line.voice.label} | kept)
    (folder / "lines.jsonl").write_text("\n".join(json.dumps(r) for r in records) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--shards", default="", help="first:stop of the training shards")
    p.add_argument("--car", default="", help="first:stop of the shards in which only the car speaks")
    p.add_argument("--test", action="store_true")
    p.add_argument("--ship", action="store_true", help="folder becomes the speech of tests/speech")
    args = p.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.ship:
        ship(args.folder, shipped_lines())
    if args.test:
        write(args.folder, "test_known", test_lines(None, TEST_CLIPS), 7)
        write(args.folder, "test_unheard", test_lines(UNHEARD, UNHEARD_CLIPS), 8)
    for kind, asked, lines, seed in (("train", args.shards, training_lines, 1000), ("car", args.car, car_lines, 5000)):
        for shard in range(*map(int, asked.split(":"))) if asked else ():
            name = f"{kind}{shard:03d}"
            if not (args.folder / f"{name}.jsonl").exists():
                print(f"{name}: {write(args.folder, name, lines(shard), seed + shard):.2f} h", flush=True)


if __name__ == "__main__":
    main()
