"""The in-cabin domain of mimo-audio-nano: commands, questions and small talk with their replies, spelled out.

Sentences are lower-case words without punctuation (`text`); `written()` gives the sentence case that prompts,
transcripts and replies use. The command templates, and the rule that keeps one sentence in ten out of training, are
those of ../shared/nano/grammar.py; questions, small talk, missing slots and second turns are added here.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NAMES = [
    "anna",
    "ben",
    "carla",
    "david",
    "emma",
    "frank",
    "grace",
    "henry",
    "isabel",
    "jack",
    "karen",
    "leo",
    "maria",
    "nathan",
    "olivia",
    "peter",
    "rachel",
    "sam",
    "tina",
    "victor",
]
PLACES = [
    "home",
    "work",
    "the airport",
    "the train station",
    "the nearest gas station",
    "the nearest charging station",
    "the hospital",
    "the city center",
    "the hotel",
    "the school",
    "the supermarket",
    "the beach",
    "central park",
    "main street",
    "market square",
    "the parking garage",
]
SEATS = ["driver seat", "passenger seat", "left rear seat", "right rear seat"]
WINDOWS = ["driver window", "passenger window", "left rear window", "right rear window", "all windows"]
SONGS = [
    "some jazz",
    "classical music",
    "rock music",
    "my favorite playlist",
    "the radio",
    "the news",
    "a podcast",
    "relaxing music",
]
COLORS = ["red", "blue", "green", "white", "orange", "purple"]
CITIES = ["berlin", "london", "paris", "madrid", "vienna", "boston", "chicago", "dallas", "denver", "austin"]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
NOTES = ["i will be late", "i am on my way", "call me back"]
MINUTES = ["o clock", "thirty", "fifteen", "forty five"]
PROPER = {*NAMES, *CITIES, *DAYS, "i", "mimo"}

# Phrases without slots, with what the car says to them: always free to train on.
RELATIVE = {
    "make it warmer": "making it warmer",
    "make it cooler": "making it cooler",
    "i am cold": "turning up the heating",
    "i am too hot": "turning down the heating",
    "turn on the air conditioning": "turning on the air conditioning",
    "turn off the air conditioning": "turning off the air conditioning",
    "defrost the windshield": "defrosting the windshield",
    "turn on the rear defroster": "turning on the rear defroster",
}
MEDIA = {
    "next song": "playing the next song",
    "previous song": "playing the previous song",
    "pause the music": "pausing the music",
    "stop the music": "stopping the music",
    "turn the volume up": "turning the volume up",
    "turn the volume down": "turning the volume down",
    "mute the sound": "muting the sound",
}
QUERIES = {
    "what is the weather tomorrow": "tomorrow will be sunny and warm",
    "how much range is left": "you have two hundred kilometers of range left",
    "what time is it": "it is half past nine",
    "when will we arrive": "we will arrive in twenty minutes",
    "what is the tire pressure": "the tire pressure is fine",
    "how far is the next charging station": "the next charging station is ten kilometers away",
    "what is the speed limit here": "the speed limit here is fifty",
    "is there traffic ahead": "the road ahead is clear",
}
SWITCHES = {
    "open the trunk": "opening the trunk",
    "close the trunk": "closing the trunk",
    "lock the doors": "locking the doors",
    "unlock the doors": "unlocking the doors",
    "turn on the headlights": "turning on the headlights",
    "turn off the headlights": "turning off the headlights",
    "fold the mirrors": "folding the mirrors",
    "start the wipers": "starting the wipers",
    "stop the wipers": "stopping the wipers",
    "turn on the reading light": "turning on the reading light",
    "turn off the reading light": "turning off the reading light",
    "activate parking assist": "activating parking assist",
}
TALK = {
    "hello": "hello how can i help you",
    "hello car": "hello how can i help you",
    "good morning": "good morning where are we going today",
    "good evening": "good evening where are we going today",
    "how are you": "i am fine thank you",
    "thank you": "you are welcome",
    "thanks a lot": "you are welcome",
    "who are you": "i am the voice of your car",
    "what is your name": "my name is mimo",
    "what can you do": "i can help you with the climate the music and the route",
    "tell me a joke": "my favorite joke is still at the garage",
    "i am tired": "please take a break at the next rest stop",
    "i am hungry": "there is a restaurant ten minutes from here",
    "good night": "good night drive safely",
    "goodbye": "goodbye see you soon",
    "never mind": "okay",
}
# A command whose slot is missing -> (question, intent that the answer completes).
MISSING = {
    "set the temperature": ("to how many degrees", "climate_set"),
    "change the temperature": ("to how many degrees", "climate_set"),
    "set the fan": ("to which level", "fan"),
    "open a window": ("which window should i open", "window"),
    "navigate somewhere": ("where would you like to go", "nav"),
    "start the navigation": ("where would you like to go", "nav"),
    "make a call": ("who should i call", "call"),
    "call someone": ("who should i call", "call"),
    "play something": ("what would you like to hear", "media"),
    "set the volume": ("to which level", "volume"),
    "set the ambient light": ("to which color", "light"),
    "set cruise control": ("to which speed", "cruise"),
    "dial a number": ("which number should i dial", "dial"),
}
FIXED = {"climate_rel", "media_ctl", "query", "misc", "talk", "missing"}
LABELS = {  # the answer to "what does the speaker want"
    "climate_set": "set the temperature",
    "climate_set_zone": "set the temperature of a seat",
    "fan": "set the fan",
    "climate_rel": "change the climate",
    "sunroof": "move the sunroof",
    "window": "move a window",
    "nav": "navigate",
    "call": "call someone",
    "dial": "dial a number",
    "msg": "send a message",
    "media": "play something",
    "media_ctl": "control the music",
    "volume": "set the volume",
    "radio": "tune the radio",
    "light": "set the light",
    "seat_heat": "switch the seat heating",
    "cruise": "set cruise control",
    "query": "ask the car",
    "weather": "ask the weather",
    "remind": "set a reminder",
    "misc": "switch something",
    "talk": "talk",
    "missing": "something without details",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing the driver says. text and reply are lower-case words; slots name what a question may ask about."""

    intent: str
    text: str
    reply: str
    slots: dict[str, str] = field(default_factory=dict)


def number(n: int) -> str:
    """0..999 in words: 121 -> "one hundred and twenty one"."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + ("" if n % 10 == 0 else " " + ONES[n % 10])
    return ONES[n // 100] + " hundred" + ("" if n % 100 == 0 else " and " + number(n % 100))


def held_out(intent: str, text: str) -> bool:
    """True for sentences, replies included, that no training set may contain: one in ten of those with slots."""
    return intent not in FIXED and zlib.crc32(text.encode()) % 10 == 0


def written(text: str) -> str:
    """Words -> sentence case with a final mark: "set the fan" -> "Set the fan."."""
    first = text.split(" ", 1)[0]
    asks = first in {"what", "how", "when", "is", "who", "which", "where", "will"} or text.startswith("to how")
    asks = asks or text.startswith(("to which", "good morning where", "good evening where", "hello how"))
    cased = " ".join(w.capitalize() if w in PROPER else w for w in text.split(" "))
    return cased[:1].upper() + cased[1:] + ("?" if asks else ".")


def spoken(text: str) -> str:
    """The inverse of `written` for scoring: lower-case words, no marks."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _climate(r: random.Random) -> Turn:
    value = number(r.randint(16, 28)) + r.choice(["", " and a half"])
    text = f"{r.choice(['set', 'change', 'turn'])} the temperature to {value} degrees"
    return Turn("climate_set", text, f"setting the temperature to {value} degrees", {"number": value})


def _zone(r: random.Random) -> Turn:
    seat, value = r.choice(SEATS), number(r.randint(16, 28))
    what = f"the {seat} temperature to {value} degrees"
    return Turn("climate_set_zone", f"set {what}", f"setting {what}", {"number": value, "seat": seat})


def _fan(r: random.Random) -> Turn:
    value = number(r.randint(1, 7))
    text = f"{r.choice(['set', 'turn'])} the fan to level {value}"
    return Turn("fan", text, f"setting the fan to level {value}", {"number": value})


def _sunroof(r: random.Random) -> Turn:
    verb, how = r.choice([("open", "opening"), ("close", "closing")]), r.choice(["", " halfway", " completely"])
    return Turn("sunroof", f"{verb[0]} the sunroof{how}", f"{verb[1]} the sunroof{how}")


def _window_name(r: random.Random) -> str:
    what = r.choice(WINDOWS)
    return what if what.startswith("all") else f"the {what}"


def _window(r: random.Random) -> Turn:
    verb, what = r.choice([("open", "opening"), ("close", "closing")]), _window_name(r)
    value = r.choice(["", number(10 * r.randint(1, 9))])
    tail = f"{what} {value} percent" if value else what
    return Turn("window", f"{verb[0]} {tail}", f"{verb[1]} {tail}", {"number": value} if value else {})


def _nav(r: random.Random) -> Turn:
    verb = r.choice(["navigate", "take me", "drive", "find the fastest route"])
    place = r.choice(PLACES)
    to = place if place == "home" and not verb.startswith("find") else f"to {place}"
    doing = "finding the fastest route" if verb.startswith("find") else "navigating"
    return Turn("nav", f"{verb} {to}", f"{doing} {to}", {"place": place})


def _call(r: random.Random) -> Turn:
    name, where = r.choice(NAMES), r.choice(["", " at home", " on the mobile", " at work"])
    text = f"{r.choice(['call', 'phone', 'dial'])} {name}{where}"
    return Turn("call", text, f"calling {name}{where}", {"name": name})


def _dial(r: random.Random) -> Turn:
    digits = digit_string(r, r.choice([4, 6, 7]))
    return Turn("dial", f"dial {digits}", f"dialing {digits}", {"number": digits})


def _message(r: random.Random) -> Turn:
    name, note = r.choice(NAMES), r.choice([*NOTES, f"see you at {number(r.randint(1, 12))}"])
    return Turn("msg", f"send a message to {name} {note}", f"sending a message to {name} {note}", {"name": name})


def _media(r: random.Random) -> Turn:
    song = r.choice(SONGS)
    return Turn("media", f"{r.choice(['play', 'start'])} {song}", f"playing {song}")


def _volume(r: random.Random) -> Turn:
    value, unit = number(r.randint(0, 40)), r.choice(["", " percent"])
    what = f"the volume to {value}{unit}"
    return Turn("volume", f"set {what}", f"setting {what}", {"number": value})


def _radio(r: random.Random) -> Turn:
    value = f"{number(r.randint(88, 107))} point {number(r.randint(0, 9))}"
    return Turn("radio", f"tune the radio to {value}", f"tuning the radio to {value}", {"number": value})


def _light(r: random.Random) -> Turn:
    color, level = r.choice(COLORS), r.choice(["", number(10 * r.randint(1, 9))])
    what = f"the ambient light to {color}" + (f" at {level} percent" if level else "")
    return Turn("light", f"set {what}", f"setting {what}", {"number": level} if level else {})


def _seat_heat(r: random.Random) -> Turn:
    state, who = r.choice(["on", "off"]), r.choice(["driver", "passenger"])
    what = f"{state} the seat heating for the {who}"
    return Turn("seat_heat", f"turn {what}{r.choice(['', ' please'])}", f"turning {what}")


def _cruise(r: random.Random) -> Turn:
    value, unit = number(r.randint(50, 130)), r.choice(["kilometers", "miles"])
    what = f"cruise control to {value} {unit} per hour"
    return Turn("cruise", f"set {what}", f"setting {what}", {"number": value})


def _remind(r: random.Random) -> Turn:
    name, when = r.choice(NAMES), f"{number(r.randint(1, 12))} {r.choice(MINUTES)}"
    tail = f"to {r.choice(['call', 'pick up', 'meet'])} {name} at {when}"
    return Turn("remind", f"remind me {tail}", f"reminding you {tail}", {"name": name, "number": when})


def _weather(r: random.Random) -> Turn:
    city, day = r.choice(CITIES), r.choice(["today", "tomorrow", *[f"on {d}" for d in DAYS]])
    sky = ["sunny", "cloudy", "rainy", "windy"][zlib.crc32(f"{city} {day}".encode()) % 4]
    text = f"what is the weather in {city} {day}"
    return Turn("weather", text, f"the weather in {city} {day} will be {sky}", {"place": city})


def _fixed(intent: str, table: dict[str, str], r: random.Random) -> Turn:
    text = r.choice(list(table))
    return Turn(intent, text, table[text])


def _missing(r: random.Random) -> Turn:
    text = r.choice(list(MISSING))
    return Turn("missing", text, MISSING[text][0])


MAKERS = {
    "climate_set": _climate,
    "climate_set_zone": _zone,
    "fan": _fan,
    "climate_rel": lambda r: _fixed("climate_rel", RELATIVE, r),
    "sunroof": _sunroof,
    "window": _window,
    "nav": _nav,
    "call": _call,
    "dial": _dial,
    "msg": _message,
    "media": _media,
    "media_ctl": lambda r: _fixed("media_ctl", MEDIA, r),
    "volume": _volume,
    "radio": _radio,
    "light": _light,
    "seat_heat": _seat_heat,
    "cruise": _cruise,
    "query": lambda r: _fixed("query", QUERIES, r),
    "weather": _weather,
    "remind": _remind,
    "misc": lambda r: _fixed("misc", SWITCHES, r),
    "talk": lambda r: _fixed("talk", TALK, r),
    "missing": _missing,
}


def turn(r: random.Random) -> Turn:
    """One driver's turn, intents uniform."""
    return MAKERS[r.choice(list(MAKERS))](r)


def answer(asked: Turn, r: random.Random) -> Turn:
    """The driver's answer to the car's question about a missing slot, and the car's confirmation."""
    intent = MISSING[asked.text][1]
    if intent == "climate_set":
        value = number(r.randint(16, 28))
        return Turn(intent, f"{value} degrees", f"setting the temperature to {value} degrees", {"number": value})
    if intent == "fan":
        value = number(r.randint(1, 7))
        return Turn(intent, f"level {value}", f"setting the fan to level {value}", {"number": value})
    if intent == "window":
        what = _window_name(r)
        return Turn(intent, what, f"opening {what}")
    if intent == "nav":
        place = r.choice([p for p in PLACES if p != "home"])
        return Turn(intent, f"to {place}", f"navigating to {place}", {"place": place})
    if intent == "call":
        name = r.choice(NAMES)
        return Turn(intent, name, f"calling {name}", {"name": name})
    if intent == "media":
        song = r.choice(SONGS)
        return Turn(intent, song, f"playing {song}")
    if intent == "volume":
        value = number(r.randint(0, 40))
        return Turn(intent, f"to {value}", f"setting the volume to {value}", {"number": value})
    if intent == "light":
        color = r.choice(COLORS)
        return Turn(intent, color, f"setting the ambient light to {color}")
    if intent == "cruise":
        value = number(r.randint(50, 130))
        what = f"{value} kilometers per hour"
        return Turn(intent, what, f"setting cruise control to {what}", {"number": value})
    digits = digit_string(r, r.choice([4, 6, 7]))
    return Turn("dial", digits, f"dialing {digits}", {"number": digits})


def digit_string(r: random.Random, count: int) -> str:
    """count spoken digits: "four two zero"."""
    return " ".join(ONES[r.randint(0, 9)] for _ in range(count))


def vocabulary() -> list[str]:
    """Every word the grammar can say, sorted."""
    r = random.Random(0)
    words: set[str] = set()
    for _ in range(40000):
        t = turn(r)
        words.update(t.text.split(), t.reply.split())
        if t.intent == "missing":
            a = answer(t, r)
            words.update(a.text.split(), a.reply.split())
    words.update(number(n) for n in range(20))
    return sorted(w for w in words if " " not in w)


def random_words(r: random.Random, words: list[str]) -> str:
    """Three to eight words of the domain in no order: they force listening and reading instead of guessing."""
    return " ".join(r.choice(words) for _ in range(r.randint(3, 8)))


def questions(t: Turn) -> list[tuple[str, str]]:
    """(question about a recording of t, answer) pairs for audio understanding, all written."""
    pairs = [("What does the speaker want?", LABELS[t.intent])]
    pairs.append(("Which number is mentioned?", t.slots.get("number", "none")))
    pairs.append(("Which name is mentioned?", t.slots.get("name", "none")))
    return [(q, written(a)) for q, a in pairs]
