"""Score checkpoints on held-out sentences; torch, one clip at a time, with caches.

    python evaluate.py codec  DATA CODEC --clips 120                  # rebuilt speech, as PocketSphinx hears it
    python evaluate.py listen DATA CODEC LM TOKENIZER --clips 200     # transcripts; [--noisy] [--shard test_unheard]
    python evaluate.py reply  DATA CODEC LM TOKENIZER --clips 200     # speech to text: the written reply
    python evaluate.py speak  DATA CODEC LM TOKENIZER --clips 60      # held-out texts read aloud
    python evaluate.py answer DATA CODEC LM TOKENIZER --clips 60      # speech to speech: text and sound of the reply

The LM's running average is what counts. --out FOLDER keeps the waves. Every run ends in one line for LOG.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import grammar
import numpy as np
import prompts
import soundfile as sf
import torch
from codec import Codec
from corpus import Corpus
from encode import codes_of, load_codec
from judge import Score, hear
from lm import MimoLm, sample
from prompts import Audio, Builder, Sample
from tokenizers import Tokenizer
from tqdm import tqdm


class Speaker:
    """A trained LM with its tokenizer: prompts in, text and codes out."""

    def __init__(self, ckpt: Path, tokenizer: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self.model = MimoLm().eval()
        self.model.load_state_dict(torch.load(ckpt, weights_only=True)["average"])
        self.b = Builder(self.tokenizer)
        self.stops = {self.tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>", "<|eostm|>")}

    @torch.no_grad()
    def generate(
        self, s: Sample, limit: int, text: tuple[float, float], speech: tuple[float, float]
    ) -> tuple[str, np.ndarray]:
        """Continue a prompt; text and speech are (temperature, top-p). Returns the text and codes int64 [T, K]."""
        m, empty = self.model, self.b.empty
        caches = m.model.caches()
        ids = torch.tensor([s.ids])
        rows = np.stack(s.patches) if s.patches else np.zeros((0, prompts.G, prompts.K))
        x = m.embed(ids, ids == empty, m.patches(torch.from_numpy(rows.astype(np.int64))))
        tokens: list[int] = []
        patches: list[torch.Tensor] = []
        while len(tokens) < limit:
            hidden = m.model(x, caches=caches)[0][:, -1]
            token = int(sample(m.lm_head(hidden), *text)[0])
            tokens.append(token)
            if token in self.stops:
                break
            if token == empty:
                patches.append(m.decode_patch(hidden, *speech))
                x = m.patches(patches[-1])[:, None]
            else:
                x = m.model.embed_tokens(torch.tensor([[token]]))
        words = self.tokenizer.decode([t for t in tokens if t != empty], skip_special_tokens=True)
        codes = torch.cat(patches, 1)[0].numpy() if patches else np.zeros((0, prompts.K), np.int64)
        return words.strip(), codes


def prompt(s: Sample) -> Sample:
    """The part of a training sample before the first learnt position."""
    cut = s.learnt.index(1) if 1 in s.learnt else len(s.ids)
    return Sample(s.ids[:cut], s.learnt[:cut], s.patches)


def heard(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """codes [T, K] -> wave."""
    return codec.decode(torch.from_numpy(codes.astype(np.int64)).T[:, None])[0].numpy()


def clips(args: argparse.Namespace) -> Iterator[tuple[dict, np.ndarray]]:
    """(clip, wave) of the test shard, spread over it; --noisy through cabin noise at 5-20 dB."""
    import noise

    corpus, r = Corpus(args.data, args.shard), np.random.default_rng(5)
    order = np.linspace(0, len(corpus.clips) - 1, min(args.clips, len(corpus.clips))).astype(int)
    for i in tqdm(order, mininterval=10, leave=False):
        wave = corpus.wave(corpus.clips[i])
        yield corpus.clips[i], noise.drive(r, wave, (5.0, 20.0)) if args.noisy else wave


def keep(args: argparse.Namespace, name: str, wave: np.ndarray) -> None:
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        sf.write(args.out / f"{name}.wav", np.clip(wave, -1, 1), 24000)


def score_codec(args: argparse.Namespace, codec: Codec) -> str:
    before, after = Score(), Score()
    for i, (clip, wave) in enumerate(clips(args)):
        again = heard(codec, codes_of(codec, wave).astype(np.int64))
        before.add(clip["text"], hear(wave, args.scratch))
        after.add(clip["text"], hear(again, args.scratch))
        if i < 12:
            keep(args, f"codec_{i}_{clip['voice']}", again)
    return f"codec: original {before} | rebuilt {after}"


def score_listen(args: argparse.Namespace, codec: Codec, who: Speaker) -> str:
    score = Score()
    for i, (clip, wave) in enumerate(clips(args)):
        full = who.b.transcribe(Audio(codes_of(codec, wave)), "x", prompts.ASR[10 + i % 12])
        said, _ = who.generate(prompt(full), 40, (0.0, 1.0), (0.9, 0.95))
        score.add(clip["text"], grammar.spoken(said))
        if i < args.show:
            print(clip["voice"], "|", clip["text"], "|", said)
    return f"listen {args.shard}{' noisy' if args.noisy else ''}: {score}"


def score_reply(args: argparse.Namespace, codec: Codec, who: Speaker) -> str:
    score = Score()
    for i, (clip, wave) in enumerate(clips(args)):
        if clip["asked"]:
            continue
        said, _ = who.generate(prompt(who.b.chat([(Audio(codes_of(codec, wave)), "x")])), 40, (0.0, 1.0), (0.9, 0.95))
        score.add(clip["reply"], grammar.spoken(said))
        if i < args.show:
            print(clip["text"], "|", said)
    return f"reply: {score}"


def score_speak(args: argparse.Namespace, codec: Codec, who: Speaker) -> str:
    text, sound = Score(), Score()
    for i, (clip, _) in enumerate(clips(args)):
        nothing = Audio(np.zeros((prompts.G, prompts.K), np.int16))
        written = grammar.written(clip["text"])
        full = who.b.speak(written, written, nothing, prompts.TTS[i % 10], "", None)
        full.patches = []
        said, codes = who.generate(prompt(full), 100, (args.text_temperature, 1.0), (args.temperature, 0.95))
        text.add(clip["text"], grammar.spoken(said))
        wave = heard(codec, codes) if len(codes) else np.zeros(2400, np.float32)
        by_ear = hear(wave, args.scratch)
        sound.add(clip["text"], by_ear)
        if i < args.show:
            print(clip["text"], "|", said, "|", by_ear, f"| {len(codes) / 25:.1f} s of {clip['samples'] / 24000:.1f}")
        if i < 12:
            keep(args, f"speak_{i}", wave)
    return f"speak: text {text} | heard {sound}"


def score_answer(args: argparse.Namespace, codec: Codec, who: Speaker) -> str:
    text, sound = Score(), Score()
    for i, (clip, wave) in enumerate(clips(args)):
        if clip["asked"]:
            continue
        nothing = Audio(np.zeros((0, prompts.K), np.int16))
        full = who.b.dialogue([(Audio(codes_of(codec, wave)), "x", nothing)], None)
        said, codes = who.generate(prompt(full), 100, (args.text_temperature, 0.95), (args.temperature, 0.95))
        text.add(clip["reply"], grammar.spoken(said))
        wave = heard(codec, codes) if len(codes) else np.zeros(2400, np.float32)
        by_ear = hear(wave, args.scratch)
        sound.add(clip["reply"], by_ear)
        if i < args.show:
            print(clip["text"], "|", said, "|", by_ear)
        if i < 12:
            keep(args, f"answer_{i}", wave)
    return f"answer: text {text} | heard {sound}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["codec", "listen", "reply", "speak", "answer"])
    p.add_argument("data", type=Path)
    p.add_argument("codec", type=Path)
    p.add_argument("lm", type=Path, nargs="?")
    p.add_argument("tokenizer", type=Path, nargs="?")
    p.add_argument("--clips", type=int, default=120)
    p.add_argument("--shard", default="test_known")
    p.add_argument("--noisy", action="store_true")
    p.add_argument("--show", type=int, default=10)
    p.add_argument("--text-temperature", type=float, default=0.6)
    p.add_argument("--temperature", type=float, default=0.9)
    p.add_argument("--out", type=Path)
    p.add_argument("--scratch", type=Path, default=Path("/tmp"))
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec, began = load_codec(args.codec), time.process_time()
    if args.what == "codec":
        line = score_codec(args, codec)
    else:
        score = {"listen": score_listen, "reply": score_reply, "speak": score_speak, "answer": score_answer}[args.what]
        line = score(args, codec, Speaker(args.lm, args.tokenizer))
    print(f"{line}  cpu {time.process_time() - began:.0f} s")


if __name__ == "__main__":
    main()
