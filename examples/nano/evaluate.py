"""Measure a bundle on held-out sentences, in the runtime (C++) as users run it. One line a task, for LOG.md.

    python evaluate.py all                             # every task, the package's bundle, the speech of tests/speech
    python evaluate.py speak --bundle W/bundle_bf16 --speech W/data --clips 500
    python evaluate.py listen --speech W/data --shard test_unheard     # or --noisy: cabin noise at 5-20 dB

    codec       rebuilt speech, as the judge hears it                  understand  which intent, number, name
    listen      transcripts                                            speak       texts read aloud
    answer      speech to speech: text, sound and intent of the reply  reply       speech to text: the written reply
    dialogue    the same in conversations of four turns and more       voice       texts read in the voice of a prompt
    pace        texts read as told, fast and slowly

Every task counts runaways: replies that did not end by themselves, or are longer than twice what was expected.
--judge whisper hears without knowing the domain; --mos adds DistillMOS; --out keeps the waves. Ctrl-C prints what was
measured so far.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grammar
import judge
import numpy as np
import soundfile as sf
from judge import Score, intent
from speakers import SPEAKERS
from tqdm import tqdm

import mimo_edge
from mimo_edge import Conversation, Model, Options, Reply, Sampling
from mimo_edge.listen import DEMO_CONTEXT

SHIPPED = Path(__file__).parents[2] / "tests/speech"
WORD_S = 0.38  # a word of the default voice at its own pace
Clip = tuple[dict, np.ndarray]  # {voice, intent, text, reply, slots, asked}, float32 [samples] at 24 kHz


def speech(folder: Path, shard: str, count: int) -> list[Clip]:
    """Clips of a data folder's shard or of the shipped speech, spread over it."""
    if (folder / "lines.jsonl").exists():
        lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
        every = [(line, folder / line["file"]) for line in lines]
        chosen = [every[i] for i in np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)]
        return [(line, sf.read(file, dtype="float32")[0]) for line, file in chosen]
    from corpus import Corpus

    corpus = Corpus(folder, shard)
    order = np.linspace(0, len(corpus.clips) - 1, min(count, len(corpus.clips))).astype(int)
    return [(corpus.clips[i], corpus.wave(corpus.clips[i])) for i in order]


def noisy(clips: list[Clip]) -> Iterator[Clip]:
    import noise

    r = np.random.default_rng(5)
    for clip, wave in clips:
        yield clip, noise.drive(r, wave, (5.0, 20.0))


class Evaluation:
    """One task over many clips. Every method takes (number, clip, wave) and adds to the figures."""

    def __init__(self, model: Model, clips: list[Clip], args: argparse.Namespace) -> None:
        self.model, self.clips, self.args = model, clips, args
        self.hear = {"pocketsphinx": judge.pocketsphinx, "whisper": judge.whisper}[args.judge]()
        self.text, self.sound, self.before = Score(), Score(), Score()
        self.runaways = self.count = 0
        self.intents = {"written": 0, "heard": 0}
        self.mos: list[float] = []
        self.right = self.asked = 0
        self.conversation: Conversation | None = None
        self.speakers: dict[str, tuple[float, np.ndarray]] = {}  # median pitch in Hz, a prompt
        self.seconds = {"plain": 0.0, "Speak fast": 0.0, "Speak slowly": 0.0}

    def codec(self, i: int, clip: dict, wave: np.ndarray) -> None:
        levels = self.model.engine.facts.levels
        again = self.model.decode(np.ascontiguousarray(self.model.encode((wave, judge.RATE_HZ))[:levels]))
        self.before.add(clip["text"], self.hear(wave))
        self._listen(i, clip["text"], again)

    def listen(self, i: int, clip: dict, wave: np.ndarray) -> None:
        reply = self.model.transcribe((wave, judge.RATE_HZ), template=10 + i % 12).result()
        self._read(clip["text"], reply, clip)

    def understand(self, i: int, clip: dict, wave: np.ndarray) -> None:
        if clip["asked"]:
            return
        turn = grammar.Turn(clip["intent"], clip["text"], clip["reply"], clip["slots"])
        options = Options(seed=i, text_sampling=Sampling(False))
        for question, answer in grammar.questions(turn):
            reply = self.model.understand((wave, judge.RATE_HZ), question, thinking=i % 2 > 0, options=options).result()
            self.right += grammar.spoken(reply.text) == grammar.spoken(answer)
            self.asked += 1
            self._ended(reply, 0.0, len((reply.thinking or "").split()) > 2 * len(clip["text"].split()) + 2)

    def reply(self, i: int, clip: dict, wave: np.ndarray) -> None:
        if not clip["asked"]:
            reply = self.model.answer((wave, judge.RATE_HZ), options=Options(seed=i)).result()
            self._read(clip["reply"], reply, clip)

    def speak(self, i: int, clip: dict, wave: np.ndarray) -> None:
        reply = self.model.speak(grammar.written(clip["text"]), template=i % 10, options=Options(seed=i)).result()
        self._read(clip["text"], reply, clip)
        self._listen(i, clip["text"], reply.audio)

    def voice(self, i: int, clip: dict, wave: np.ndarray) -> None:
        labels = [speaker.label for speaker in SPEAKERS]
        if not self.speakers:
            for label in labels:
                said = [w for c, w in self.clips if c["voice"] == label]
                self.speakers[label] = float(np.median([judge.pitch_hz(w) for w in said])), said[0]
        asked = labels[i % len(labels)]
        prompt = (self.speakers[asked][1], judge.RATE_HZ)
        options = Options(seed=i)
        reply = self.model.speak(grammar.written(clip["text"]), template=i % 10, voice=prompt, options=options).result()
        self._read(clip["text"], reply, clip)
        self._listen(i, clip["text"], reply.audio)
        pitch = 1.0 if reply.audio is None else judge.pitch_hz(reply.audio)
        self.right += asked == min(labels, key=lambda label: abs(np.log(pitch / self.speakers[label][0])))
        self.asked += 1

    def pace(self, i: int, clip: dict, wave: np.ndarray) -> None:
        for style in self.seconds:
            told = None if style == "plain" else style
            reply = self.model.speak(grammar.written(clip["text"]), instruct=told, options=Options(seed=i)).result()
            self.seconds[style] += 0.0 if reply.audio is None else len(reply.audio) / judge.RATE_HZ
            self._listen(i, clip["text"], reply.audio)

    def dialogue(self, i: int, clip: dict, wave: np.ndarray) -> None:
        if i % 4 == 0 or self.conversation is None:
            self.conversation = self.model.conversation(context=DEMO_CONTEXT, options=Options(seed=i))
        if clip["asked"]:
            import voices

            before = voices.hibari().say(clip["asked"], SPEAKERS[0], 1.0, i).wav.astype(np.float32)
            self.conversation.respond((before, judge.RATE_HZ)).result()
        self._answered(i, clip, self.conversation.respond((wave, judge.RATE_HZ)).result())

    def answer(self, i: int, clip: dict, wave: np.ndarray) -> None:
        if not clip["asked"]:
            self._answered(i, clip, self.model.respond((wave, judge.RATE_HZ), options=Options(seed=i)).result())

    def _answered(self, i: int, clip: dict, reply: Reply) -> None:
        self._read(clip["reply"], reply, clip)
        heard = self._listen(i, clip["reply"], reply.audio)
        self.intents["written"] += intent(grammar.spoken(reply.text)) == intent(clip["reply"])
        self.intents["heard"] += intent(heard) == intent(clip["reply"])

    def _read(self, said: str, reply: Reply, clip: dict) -> None:
        text = grammar.spoken(reply.text)
        self.text.add(said, text)
        self._ended(reply, WORD_S * len(said.split()) + 0.3, len(text.split()) > 2 * len(said.split()) + 2)
        if self.count <= self.args.show:
            print(f"{clip['voice']} | {clip['text']} | {reply.text}")

    def _ended(self, reply: Reply, expected_s: float, long_text: bool) -> None:
        long_sound = reply.audio is not None and len(reply.audio) > 2 * expected_s * judge.RATE_HZ
        self.runaways += reply.stop_reason != "stop token" or long_text or long_sound
        self.count += 1

    def _listen(self, i: int, said: str, wave: np.ndarray | None) -> str:
        wave = np.zeros(2400, np.float32) if wave is None or len(wave) < 2400 else wave
        heard = self.hear(wave)
        self.sound.add(said, heard)
        if self.args.mos:
            self.mos.append(judge.mos()(wave))
        if self.sound.count <= self.args.show:
            print(f"    heard: {heard}")
        if self.args.out:
            self.args.out.mkdir(parents=True, exist_ok=True)
            sf.write(self.args.out / f"{self.args.what}_{i:03d}.wav", np.clip(wave, -1, 1), judge.RATE_HZ)
        return heard

    def __str__(self) -> str:
        parts = [f"original {self.before}"] if self.before.count else []
        parts += [f"text {self.text}"] if self.text.count else []
        parts += [f"heard by {self.args.judge} {self.sound}"] if self.sound.count else []
        if any(self.intents.values()):
            shares = ", ".join(f"{k} {100 * n / self.sound.count:.1f} %" for k, n in self.intents.items())
            parts.append(f"intent {shares}")
        parts += [f"right answers {100 * self.right / self.asked:.1f} % ({self.asked})"] if self.asked else []
        if self.seconds["plain"]:
            parts.append(", ".join(f"{k}: {v / self.seconds['plain']:.2f}" for k, v in self.seconds.items()))
        parts += [f"DistillMOS {np.mean(self.mos):.2f}"] if self.mos else []
        parts += [f"runaways {self.runaways} of {self.count}"] if self.count else []
        return " | ".join(parts)


TASKS = ["codec", "listen", "understand", "reply", "speak", "voice", "pace", "answer", "dialogue"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=[*TASKS, "all"])
    p.add_argument("--bundle", type=Path, help="default: the one in the package")
    p.add_argument("--speech", type=Path, default=SHIPPED, help="a data folder, or the shipped speech")
    p.add_argument("--shard", default="test_known")
    p.add_argument("--clips", type=int, default=500)
    p.add_argument("--noisy", action="store_true")
    p.add_argument("--judge", choices=["pocketsphinx", "whisper"], default="pocketsphinx")
    p.add_argument("--mos", action="store_true")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--show", type=int, default=0, help="print this many")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    model = mimo_edge.load(args.bundle, threads=args.threads)
    clips = speech(args.speech, args.shard, args.clips)
    for what in TASKS if args.what == "all" else [args.what]:
        began, done = time.process_time(), Evaluation(model, clips, args)
        each = noisy(clips) if args.noisy else iter(clips)
        with suppress(KeyboardInterrupt):
            for i, (clip, wave) in enumerate(tqdm(each, desc=what, total=len(clips), mininterval=5, leave=False)):
                getattr(done, what)(i, clip, wave)
        where = args.shard if args.speech != SHIPPED else "shipped speech"
        where += " noisy" if args.noisy else ""
        print(f"{what}, {where}: {done}  cpu {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
