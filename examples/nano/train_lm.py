"""Train the language model on codes and prompts; continues CKPT if it exists.

    python train_lm.py DATA TOKENIZER CODEC_CKPT CKPT --mix listen --steps 2000
    python train_lm.py DATA TOKENIZER CODEC_CKPT CKPT --mix speak --steps 8000

Losses: next token (0.3 where a patch follows, which is nearly certain), codes of the next patch (levels 1, 2,
others as 6 : 3 : 1), and three that are thrown away: character CTC where a driver is heard, the phones that the next
patch says, and guided attention (where the guided heads should look while reading aloud or writing down). A share of
the spoken history is hidden, and a little is wrong, so that speech is planned from text. CKPT also holds the running
average of the weights, which is what gets evaluated and exported; the learning rate stays constant unless --minutes is
given, so training may stop and go on at any time.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import grammar
import numpy as np
import prompts
import torch
import torch.nn.functional as fn
from corpus import Corpus
from encode import load_codec
from lm import MimoLm
from prompts import Audio, Builder, Sample
from speakers import SPEAKERS
from tokenizers import Tokenizer
from torch import Tensor, nn
from train_codec import LETTERS
from training import Progress, keep

MIXES = {
    "listen": {"transcribe": 60, "understand": 15, "reply": 20, "text": 5},
    "all": {
        "transcribe": 14,
        "understand": 5,
        "reply": 5,
        "text": 1,
        "speak": 30,
        "dialogue": 18,
        "voice": 15,
        "style": 7,
        "voiced": 5,
    },
    "speak": {
        "transcribe": 10,
        "understand": 3,
        "reply": 3,
        "text": 1,
        "speak": 62,
        "dialogue": 14,
        "voice": 3,
        "style": 2,
        "voiced": 2,
    },
}
LEVEL_WEIGHTS = torch.tensor([6.0, 3, 1, 1, 1, 1, 1, 1]) / 12  # the first two carry the words
ALL_LEVELS = 0.4  # share of batches that learn all levels; the others stop after the first two, which costs half
PHONES = 178  # hibari's ids
CODE_FRAME_SAMPLES = 960
STYLES = {"Speak fast": ("speed", 1.08, 9.0), "Speak slowly": ("speed", 0.0, 0.98)}


class Clips:
    """Coded clips, looked up by what they are for."""

    def __init__(self, folder: Path, pattern: str = "[ct]*[0-9]") -> None:
        self.clips: list[dict] = []
        self.listen: list[int] = []
        self.speak: dict[str, list[int]] = defaultdict(list)  # by voice
        self.styled: list[int] = []  # the default voice at another pace
        self.said: dict[tuple[str, str], list[int]] = defaultdict(list)  # by voice and text
        default = SPEAKERS[0].label
        for index in sorted(folder.glob(pattern + ".codes.npz")):
            stem = index.name.removesuffix(".codes.npz")
            arrays = dict(np.load(index))
            leads = arrays.get("leads")
            for i, clip in enumerate(Corpus(folder, stem).clips):
                for kind in ("clean", "noisy"):
                    stops = arrays[f"{kind}_stops"]
                    clip[kind] = arrays[kind][(int(stops[i - 1]) if i else 0) : int(stops[i])]
                clip["lead"] = int(leads[i]) if leads is not None else 0
                at = len(self.clips)
                self.clips.append(clip)
                if clip["kind"] == "listen":
                    self.listen.append(at)
                    continue
                self.said[clip["voice"], clip["text"]].append(at)
                if clip["voice"] == default and clip["speed"] != 1.0:
                    self.styled.append(at)
                else:
                    self.speak[clip["voice"]].append(at)
        self.turns = [i for i in self.listen if self.clips[i]["reply"]]

    def audio(self, clip: dict, noisy: bool = False) -> Audio:
        words = clip["words"]
        if words:
            lead = clip["lead"]
            words = [((a + lead) / CODE_FRAME_SAMPLES, (b + lead) / CODE_FRAME_SAMPLES) for a, b in words]
        phones = [(i, a / CODE_FRAME_SAMPLES, b / CODE_FRAME_SAMPLES) for i, a, b in clip.get("phones") or ()]
        return Audio(clip["noisy" if noisy else "clean"], clip["text"], words, phones)


class Tasks:
    """Draws samples of each task."""

    def __init__(self, clips: Clips, tokenizer: Tokenizer, seed: int) -> None:
        self.clips, self.r, self.b = clips, random.Random(seed), Builder(tokenizer)

    def draw(self, mix: dict[str, int]) -> Sample:
        while True:
            s = getattr(self, self.r.choices(list(mix), list(mix.values()))[0])()
            if s is not None and len(s.ids) <= 200:
                return s

    def driver(self, turn: bool) -> tuple[dict, Audio]:
        clip = self.clips.clips[self.r.choice(self.clips.turns if turn else self.clips.listen)]
        return clip, self.clips.audio(clip, noisy=self.r.random() < 0.5)

    def car(self, voice: str) -> tuple[dict, Audio]:
        clip = self.clips.clips[self.r.choice(self.clips.speak[voice])]
        return clip, self.clips.audio(clip)

    def reading(self, voice: str, text: str) -> Audio | None:
        found = [self.clips.clips[i] for i in self.clips.said.get((voice, text), ())]
        usual = [clip for clip in found if clip["speed"] == 1.0] or found
        return self.clips.audio(self.r.choice(usual)) if usual else None

    def voice_sample(self, voice: str) -> Audio:
        """A short clip of the voice, its text not to be spelled."""
        for _ in range(8):
            a = self.car(voice)[1]
            if len(a.codes) <= 60:
                break
        return Audio(a.codes)

    def prompted(self, text: str) -> str:
        """A sentence as people and the runtime's capitalisation may give it."""
        return self.r.choice([grammar.written(text), text.capitalize(), text.capitalize() + "."])

    def transcribe(self) -> Sample:
        clip, a = self.driver(turn=False)
        return self.b.transcribe(a, grammar.written(clip["text"]), self.r.choice(prompts.ASR))

    def understand(self) -> Sample:
        clip, a = self.driver(turn=True)
        t = grammar.Turn(clip["intent"], clip["text"], clip["reply"], clip["slots"])
        question, answer = self.r.choice(grammar.questions(t))
        thought = grammar.written(clip["text"]) if self.r.random() < 0.5 else ""
        return self.b.understand(a, question, thought, answer)

    def reply(self) -> Sample:
        clip, a = self.driver(turn=True)
        turns: list[tuple[Audio | str, str]] = [(a, grammar.written(clip["reply"]))]
        if clip["asked"]:
            first = [i for i in self.clips.turns if self.clips.clips[i]["text"] == clip["asked"]][:20]
            if not first:
                return self.transcribe()
            before = self.clips.clips[self.r.choice(first)]
            turns.insert(0, (self.clips.audio(before), grammar.written(before["reply"])))
        return self.b.chat(turns)

    def text(self) -> Sample:
        clip = self.driver(turn=True)[0]
        return self.b.chat([(self.prompted(clip["text"]), grammar.written(clip["reply"]))])

    def speak(self) -> Sample:
        """Plain: the default voice reads."""
        clip, a = self.car(SPEAKERS[0].label)
        text = clip["text"]
        return self.b.speak(self.prompted(text), grammar.written(text), a, self.r.choice(prompts.TTS), "", None)

    def voice(self) -> Sample:
        """The voice of the prompt reads."""
        label = self.r.choice(SPEAKERS).label
        clip, a = self.car(label)
        text, template = clip["text"], self.r.choice(prompts.TTS)
        return self.b.speak(self.prompted(text), grammar.written(text), a, template, "", self.voice_sample(label))

    def style(self) -> Sample | None:
        clip = self.clips.clips[self.r.choice(self.clips.styled)]
        a = self.clips.audio(clip)
        fits = [name for name, (key, low, high) in STYLES.items() if low <= clip[key] <= high]
        if not fits:
            return None
        text = clip["text"]
        return self.b.speak(self.prompted(text), grammar.written(text), a, self.r.choice(prompts.TTS), fits[0], None)

    def dialogue(self, voice: str = "") -> Sample | None:
        """Up to three exchanges; the default voice answers unless another is named."""
        exchanges = self.r.choices([1, 2, 3], [14, 4, 2])[0]
        turns = [turn for _ in range(exchanges) for turn in self.exchange(voice or SPEAKERS[0].label)]
        return self.b.dialogue(turns, self.voice_sample(voice) if voice else None) if turns else None

    def exchange(self, label: str) -> list[tuple[Audio, str, Audio]]:
        """What a driver says, the answer as written and as spoken; twice where a slot is asked for. Empty: none."""
        clip, a = self.driver(turn=True)
        said = self.reading(label, clip["reply"])
        if said is None:
            return []
        turns = [(a, grammar.written(clip["reply"]), said)]
        if clip["asked"]:
            first = [i for i in self.clips.turns if self.clips.clips[i]["text"] == clip["asked"]][:20]
            before = self.clips.clips[self.r.choice(first)] if first else None
            question = self.reading(label, before["reply"]) if before else None
            if before is None or question is None:
                return []
            turns.insert(0, (self.clips.audio(before), grammar.written(before["reply"]), question))
        return turns

    def voiced(self) -> Sample | None:
        return self.dialogue(self.r.choice(SPEAKERS).label)


@dataclass(slots=True)
class Batch:
    """ids, speech [B, P]; patches int64 [N, G, K] in row-major order of speech."""

    ids: Tensor
    speech: Tensor
    patches: Tensor
    text_at: Tensor  # [M] flat positions whose next token is learnt
    text_to: Tensor  # [M] those tokens
    code_at: Tensor  # [L] flat positions whose next patch is learnt
    code_to: Tensor  # [L] rows of patches
    hidden_share: Tensor  # [N] probability that a patch's embedding is hidden
    phones: Tensor  # [L, G], -1 unknown
    look: Tensor  # bool [B, P, P]
    heard: list[tuple[int, int, int, str]]  # (row, first, stop, text)
    levels: int  # learnt


def collate(samples: list[Sample], r: random.Random, pad: int, empty: int) -> Batch:
    batch, width = len(samples), -(-max(len(s.ids) for s in samples) // 8) * 8
    ids, learnt = torch.full((batch, width), pad), torch.zeros(batch, width, dtype=torch.bool)
    phones = torch.full((batch, width, prompts.G), -1)
    look = torch.zeros(batch, width, width, dtype=torch.bool)
    shares, heard = torch.zeros(batch, width), []
    for b, s in enumerate(samples):
        ids[b, : len(s.ids)] = torch.tensor(s.ids)
        learnt[b, : len(s.ids)] = torch.tensor(s.learnt, dtype=torch.bool)
        shares[b] = r.uniform(0.2, 0.9) if r.random() < 0.6 else 0.0
        for position, row in s.phones.items():
            phones[b, position] = torch.tensor(row)
        for position, keys in s.points:
            look[b, position, keys] = True
        heard += [(b, *h) for h in s.heard if h[2]]
    speech = ids == empty
    order = torch.full((batch, width), -1).masked_scatter(speech, torch.arange(int(speech.sum())))
    after = torch.zeros_like(learnt)
    after[:, :-1] = learnt[:, 1:]
    next_ids = ids.roll(-1, 1)
    code_at = (after & speech.roll(-1, 1)).flatten().nonzero()[:, 0]
    text_at = after.flatten().nonzero()[:, 0]
    return Batch(
        ids, speech, torch.from_numpy(np.stack([p for s in samples for p in s.patches]).astype(np.int64)),
        text_at, next_ids.flatten()[text_at], code_at, order.roll(-1, 1).flatten()[code_at],
        (shares * learnt)[speech], phones.roll(-1, 1).flatten(0, 1)[code_at], look, heard,
        prompts.K if r.random() < ALL_LEVELS else 2,
    )  # fmt: skip


class Aids(nn.Module):
    """Heads that only help to learn: characters heard and phones about to be said, G of each a position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heard = nn.Linear(dim, prompts.G * (len(LETTERS) + 1))
        self.said = nn.Linear(dim, prompts.G * PHONES)


def losses(model: MimoLm, aids: Aids, b: Batch) -> dict[str, Tensor]:
    """Every loss of one batch, unweighted; zero where a batch has nothing of the kind."""
    patches = model.patches(b.patches)
    wrong = torch.rand(len(patches)) < 0.1 * b.hidden_share  # as after a mistake of the model's own
    patches = torch.where(wrong[:, None], patches[torch.randperm(len(patches))], patches)
    patches = patches * (torch.rand(len(patches)) >= b.hidden_share)[:, None]
    out = model(b.ids, b.speech, patches, guided=True)
    flat, zero = out.hidden.flatten(0, 1), out.hidden.new_zeros(())
    scores = model.lm_head(flat[b.text_at]).float()
    certain = b.text_to == int(b.ids[b.speech][0]) if bool(b.speech.any()) else torch.zeros_like(b.text_to).bool()
    weight = torch.where(certain, 0.3, 1.0)
    found = {"text": (fn.cross_entropy(scores, b.text_to, reduction="none") * weight).sum() / weight.sum()}
    found["codes"] = found["phones"] = found["looks"] = found["ctc"] = zero
    if len(b.code_at):
        codes = b.patches[b.code_to]
        logits = model.code_logits(flat[b.code_at], codes, b.levels)
        each = [fn.cross_entropy(x.float().flatten(0, 1), codes[..., k].flatten()) for k, x in enumerate(logits)]
        found["codes"] = (torch.stack(each) * LEVEL_WEIGHTS[: b.levels]).sum()
        found["level1"] = each[0].detach()
        if bool((b.phones >= 0).any()):
            guess = aids.said(flat[b.code_at]).float().view(-1, PHONES)
            found["phones"] = fn.cross_entropy(guess, b.phones.flatten(), ignore_index=-1)
    rows = b.look.any(-1)
    if out.seen is not None and bool(rows.any()):
        mass = (out.seen.float() * b.look[:, None]).sum(-1).transpose(1, 2)[rows]
        found["looks"] = -(mass + 1e-4).log().mean()
    if b.heard:
        found["ctc"] = heard_loss(aids, out.hidden, b.heard)
    return found


def heard_loss(aids: Aids, hidden: Tensor, heard: list[tuple[int, int, int, str]]) -> Tensor:
    """Character CTC over the patch positions of drivers' speech, per character."""
    spans = [hidden[row, first:stop] for row, first, stop, _ in heard]
    lengths = torch.tensor([len(s) * prompts.G for s in spans])
    scores = aids.heard(nn.utils.rnn.pad_sequence(spans, batch_first=True)).float()
    scores = scores.view(len(spans), -1, len(LETTERS) + 1).log_softmax(-1).transpose(0, 1)
    targets = [torch.tensor([LETTERS.index(c) + 1 for c in text]) for *_, text in heard]
    sizes = torch.tensor([len(t) for t in targets])
    loss = fn.ctc_loss(scores, torch.cat(targets), lengths, sizes, reduction="none", zero_infinity=True)
    return (loss / sizes).mean()


WEIGHTS = {"text": 1.0, "codes": 1.0, "phones": 0.4, "looks": 0.15, "ctc": 0.4}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("tokenizer", type=Path)
    p.add_argument("codec", type=Path)
    p.add_argument("ckpt", type=Path)
    p.add_argument("--mix", choices=list(MIXES), required=True)
    p.add_argument("--steps", type=int, required=True, help="stop when this many steps are done in all")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rate", type=float, default=1.5e-3)
    p.add_argument("--minutes", type=float, help="finish in this time, the rate falling to 0 on the way")
    args = p.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    pad, empty = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|empty|>")

    model, step = MimoLm(), 0
    aids = Aids(model.c["hidden_size"])
    both = nn.ModuleList([model, aids])
    optimiser = torch.optim.AdamW(both.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    if args.ckpt.exists():
        state = torch.load(args.ckpt, weights_only=True)
        model.load_state_dict(state["lm"])
        aids.load_state_dict(state["aids"])
        optimiser.load_state_dict(state["optimiser"])
        average, step = state["average"], state["step"]
    else:
        model.start_from_codebooks([b.embed for b in load_codec(args.codec).encoder.quantizer.books])
        average = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(step)
    tasks = Tasks(Clips(args.data), tokenizer, seed=step)
    progress = Progress(args.mix, args.steps)
    ready: list[list[Sample]] = []

    def keep_all() -> None:
        kept = {"lm": model.state_dict(), "aids": aids.state_dict(), "optimiser": optimiser.state_dict()}
        keep(args.ckpt, kept | {"average": average, "step": step})

    left, started = 1.0, time.monotonic()
    while step < args.steps:
        if args.minutes:
            left = 1.0 - (time.monotonic() - started) / 60 / args.minutes
            if left <= 0.0:
                break
        if not ready:
            drawn = sorted((tasks.draw(MIXES[args.mix]) for _ in range(8 * args.batch)), key=lambda s: len(s.ids))
            ready = [drawn[i : i + args.batch] for i in range(0, len(drawn), args.batch)]
            tasks.r.shuffle(ready)
        batch = collate(ready.pop(), tasks.r, pad, empty)
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 150) * left
        with torch.autocast("cpu", torch.bfloat16):
            found = losses(model, aids, batch)
        loss = sum(found[k] * w for k, w in WEIGHTS.items())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.995, step / (step + 20))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        progress.add(step, found)
        if step % 100 == 0:
            keep_all()
    keep_all()


if __name__ == "__main__":
    main()
