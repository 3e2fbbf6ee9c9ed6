"""What is said by whom: the seeded lines of every training shard and of the test sets. No engine is needed here."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import grammar
from speakers import LISTENED, SPEAKERS, UNHEARD, Voice

ESPEAK_VARIANTS = [*[f"m{i}" for i in range(1, 8)], *[f"f{i}" for i in range(1, 6)]]
TURNS = 420  # dialogue turns in a shard; everything else is a share of it
CAR_LINES = 2000  # lines of a shard in which only the car speaks
SHIPPED = 40  # sentences
SHIPPED_VOICES = ["heart", "deep", "mellow", "h08", "slt_hts", "awb", "es_us"]  # and the one never heard
TEST_CLIPS = 600
UNHEARD_CLIPS = 500


@dataclass(slots=True)
class Line:
    """What to say, before it is said."""

    kind: str
    voice: Voice
    intent: str
    text: str
    reply: str = ""
    slots: dict[str, str] = field(default_factory=dict)
    asked: str = ""
    speed: float = 1.0


def listening_voice(r: random.Random) -> Voice:
    """hibari 45 %, festival and flite 38 %, espeak 17 %, each clip a little different from its voice."""
    engine = r.choices(["hibari", "festival", "flite", "espeak"], [45, 13, 25, 17])[0]
    voice = r.choice([v for v in LISTENED if v.engine == engine])
    if engine == "hibari":
        return replace(voice, f0=voice.f0 * r.uniform(0.88, 1.12), warp=voice.warp * r.uniform(0.95, 1.05))
    if engine == "espeak" and r.random() < 0.5:
        accent = r.choice(["en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp"])
        voice = replace(voice, name=f"{accent}+{r.choice(ESPEAK_VARIANTS)}")
    return replace(voice, resample=voice.resample * r.uniform(0.86, 1.16))


def speaking_voice(r: random.Random) -> Voice:
    return r.choices(SPEAKERS, [55, 15, 15, 15])[0]


def turns(r: random.Random, count: int, want_held_out: bool) -> list[tuple[grammar.Turn, str]]:
    """(turn, asked) pairs whose sentences are all in training, or whose driver's sentence is held out."""
    out: list[tuple[grammar.Turn, str]] = []
    while len(out) < count:
        t, asked = grammar.turn(r), ""
        if t.intent == "missing" and r.random() < 0.7:
            asked, t = t.text, grammar.answer(t, r)
        held = grammar.held_out(t.intent, t.text)
        if held == want_held_out and (want_held_out or not grammar.held_out(t.intent, t.reply)):
            out.append((t, asked))
    return out


def training_lines(shard: int) -> list[Line]:
    """The sentences of one shard: turns twice heard and once answered, random words and digits on both sides."""
    r = random.Random(1000 + shard)
    words = grammar.vocabulary()
    lines: list[Line] = []

    def listen(t: grammar.Turn, asked: str = "") -> None:
        pace = r.uniform(0.85, 1.2)
        lines.append(Line("listen", listening_voice(r), t.intent, t.text, t.reply, t.slots, asked, pace))

    def speak(intent: str, text: str) -> None:
        lines.append(Line("speak", speaking_voice(r), intent, text, speed=r.uniform(0.95, 1.1)))

    for t, asked in turns(r, TURNS, want_held_out=False):
        listen(t, asked)
        if r.random() < 0.5:
            listen(t, asked)
        speak(t.intent, t.reply)
        if r.random() < 0.2:
            speak(t.intent, t.text)
    for _ in range(TURNS // 2):
        listen(_free(r, "words", grammar.random_words(r, words)))
        speak(*_pair(_free(r, "words", grammar.random_words(r, words))))
    for _ in range(TURNS // 12):
        listen(_free(r, "digits", grammar.digit_string(r, r.randint(3, 7))))
        speak(*_pair(_free(r, "digits", grammar.digit_string(r, r.randint(3, 7)))))
    return lines


def car_lines(shard: int) -> list[Line]:
    """What the car says, for learning to read aloud: 88 % the default voice at its own pace.

    Three lines in five are words that do not follow from each other (random words, sentences with some words
    exchanged, digits), so that speech comes from the text and not from sentences known by heart.
    """
    r = random.Random(500000 + shard)
    words, lines = grammar.vocabulary(), []
    while len(lines) < CAR_LINES:
        t = grammar.turn(r)
        if t.intent == "missing" and r.random() < 0.5:
            t = grammar.answer(t, r)
        text, intent, kind = t.reply if r.random() < 0.7 else t.text, t.intent, r.random()
        if kind < 0.33:
            text, intent = grammar.random_words(r, words), "words"
        elif kind < 0.52:
            text, intent = " ".join(r.choice(words) if r.random() < 0.35 else w for w in text.split()), "words"
        elif kind < 0.6:
            text, intent = grammar.digit_string(r, r.randint(2, 7)), "digits"
        if not grammar.held_out(intent, text) and (kind < 0.6 or not grammar.held_out(intent, t.text)):
            voice = r.choices(SPEAKERS, [88, 4, 4, 4])[0]
            pace = r.choices([1.0, 0.88, 1.15], [92, 4, 4])[0]
            lines.append(Line("speak", voice, intent, text, speed=pace))
    return lines


def shipped_lines() -> list[Line]:
    """40 held-out sentences, all intents in turn, by each of eight voices: the speech of tests/speech."""
    r, texts = random.Random(40), {}
    intents = [name for name in grammar.MAKERS if name not in grammar.FIXED]
    while len(texts) < SHIPPED:
        t = grammar.MAKERS[intents[len(texts) % len(intents)]](r)
        if grammar.held_out(t.intent, t.text) and t.text not in texts:
            texts[t.text] = t
        elif r.random() < 0.001:  # an intent may have fewer held-out sentences than its share
            intents.remove(intents[len(texts) % len(intents)])
    said_by = [v for v in LISTENED if v.label in SHIPPED_VOICES] + [UNHEARD]
    return [Line("listen", v, t.intent, t.text, t.reply, t.slots) for t in texts.values() for v in said_by]


def _free(r: random.Random, intent: str, text: str) -> grammar.Turn:
    while grammar.held_out(intent, text):
        words = text.split()
        r.shuffle(words)
        text = " ".join([*words, r.choice(words)])
    return grammar.Turn(intent, text, "")


def _pair(t: grammar.Turn) -> tuple[str, str]:
    return t.intent, t.text


def test_lines(voice: Voice | None, count: int) -> list[Line]:
    """Held-out sentences; voice None: the training voices in turn."""
    r = random.Random(7)
    lines = []
    for i, (t, asked) in enumerate(turns(r, count, want_held_out=True)):
        who = voice or LISTENED[i % len(LISTENED)]
        lines.append(Line("listen", who, t.intent, t.text, t.reply, t.slots, asked, r.uniform(0.85, 1.2)))
    return lines
