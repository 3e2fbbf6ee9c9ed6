"""The text side of the core against what it must equal: `tokenizers` for ids and texts, CPython for letter case.

Strings are random but seeded. They mix what a user types with what breaks tokenizers: marks in any order, Hangul jamo,
every kind of white space, special tokens glued to words, unassigned code points.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from golden_folders import BUNDLED

from mimo_edge import _core
from mimo_edge.export.bundle_writer import write_bundle
from mimo_edge.export.checkpoint import Checkpoint

STRINGS = 12_000
CODE_POINTS = [cp for cp in range(0x110000) if not 0xD800 <= cp < 0xE000]
MARKS = [chr(cp) for cp in CODE_POINTS if unicodedata.combining(chr(cp))]
COMPOSED = [chr(cp) for cp in CODE_POINTS if unicodedata.decomposition(chr(cp))[:1] not in ("", "<")]
SPACES = [chr(cp) for cp in (9, 10, 11, 12, 13, 0x1C, 0x1F, 0x20, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x200E))]
SPACES += ["\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\0"]
TYPED = (
    "hello world the don't It's WE'VE I'LL they're youRE 'S 'ſ 'ſe that'll foo_bar 3.14 1,000 http://a.b/c?d=e "
    "C++ <| |> ... <|sostm русский Straße ελληνικός हिन्दी العربية 日本語のテキスト 今天天气真好，我们去公园吧！"
)
WORDS = TYPED.split()
EMOJI = ["👨\u200d👩\u200d👧\u200d👦", "👍🏽", "🏳️\u200d🌈", "🇩🇪", "❤️", "1️⃣"]

# The newest Unicode whose letter case csrc/io/unicode_tables.inc knows. A newer Python agrees on what is older still.
CASE_VERSION = (14, 0, 0)
RUNNING_VERSION = tuple(int(part) for part in unicodedata.unidata_version.split("."))
ASSIGNED_BY = unicodedata if RUNNING_VERSION <= CASE_VERSION else unicodedata.ucd_3_2_0
ASSIGNED = [chr(cp) for cp in CODE_POINTS if ASSIGNED_BY.category(chr(cp)) != "Cn"]
CASED = [c for c in ASSIGNED if c.lower() != c or c.upper() != c or c.title() != c]


class Texts:
    """Random strings. specials: token contents that are cut out whole."""

    def __init__(self, seed: int, specials: list[str]) -> None:
        self.random = random.Random(seed)
        self.specials = specials
        self.parts: list[Callable[[], str]] = [
            lambda: self.pick(WORDS),
            lambda: self.pick(EMOJI),
            lambda: self.pick(specials),
            lambda: self.pick(specials)[: self.random.randrange(12)],
            lambda: "'" + self.pick("sStTmMdDrRvVlLſK") + self.pick(["", "e", "E", "l", "L"]),
            lambda: self.pick(["\r\n", "\n\n", "\r", " \n ", "\n \n", "  ", "   "]) * self.random.randrange(4),
            lambda: self.many(lambda: self.pick(SPACES)),
            lambda: self.many(lambda: chr(self.random.randrange(32, 127))),
            lambda: self.many(lambda: chr(self.random.randrange(0x4E00, 0xA000))),
            lambda: self.many(self.hangul),
            lambda: self.pick([*"aeoAEOuUsSạΑωऀ", self.pick(COMPOSED)]) + self.many(lambda: self.pick(MARKS)),
            lambda: self.many(self.any_code_point),
            lambda: self.any_code_point() * self.random.randrange(4),
        ]

    def pick(self, options: list[str] | str) -> str:
        return self.random.choice(options)

    def many(self, one: Callable[[], str]) -> str:
        return "".join(one() for _ in range(self.random.randrange(7)))

    def hangul(self) -> str:
        """A jamo, a syllable, or a syllable that takes a final jamo."""
        jamo = self.random.randrange(0x1100, 0x1200)
        syllable = self.random.randrange(0xAC00, 0xD7A4)
        return chr(self.random.choice((jamo, syllable, 0xAC00 + (syllable - 0xAC00) // 28 * 28)))

    def any_code_point(self) -> str:
        """From one of the ranges: ASCII, scripts, the first plane, the next, all (mostly unassigned)."""
        end = self.random.choice((0x80, 0x3000, 0x10000, 0x20000, 0x110000))
        cp = self.random.randrange(end)
        return chr(cp) if not 0xD800 <= cp < 0xE000 else "\ue000"

    def text(self) -> str:
        return "".join(self.random.choice(self.parts)() for _ in range(self.random.randrange(1, 9)))

    def cased_text(self) -> str:
        """Letters with case, sigmas and what case rules look through, often in one case throughout."""
        near_sigma = "ΣΣσςAa'.·:\u0301\u00ad\u0345\u02b0 "
        pools = (CASED, near_sigma, ASSIGNED)
        letters = "".join(self.random.choice(self.random.choice(pools)) for _ in range(self.random.randrange(9)))
        return self.random.choice((str.upper, str.lower, str.title, str, str))(letters)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> tuple[_core.Model, tokenizers.Tokenizer]:
    """The core and `tokenizers` on the same file."""
    return _core.Model.open(str(tiny_bundle)), tokenizers.Tokenizer.from_file(str(Path(tiny_bundle) / "tokenizer.json"))


@pytest.fixture(scope="module")
def texts(bundle: tuple[_core.Model, tokenizers.Tokenizer]) -> Texts:
    added = bundle[1].get_added_tokens_decoder().values()
    return Texts(20250917, [token.content for token in added])


def test_ids_and_texts_equal_tokenizers(bundle: tuple[_core.Model, tokenizers.Tokenizer], texts: Texts) -> None:
    model, expected = bundle
    for _ in range(STRINGS):
        text = texts.text()
        ids = expected.encode(text, add_special_tokens=False).ids
        assert list(model.tokenize(text)) == ids, ascii(text)
        assert model.detokenize(ids) == expected.decode(ids, skip_special_tokens=False), ascii(text)


def test_every_code_point_equals_tokenizers(bundle: tuple[_core.Model, tokenizers.Tokenizer]) -> None:
    model, expected = bundle
    for start in range(0, len(CODE_POINTS), 16):
        text = "".join(f"a{chr(cp)} {chr(cp)}1" for cp in CODE_POINTS[start : start + 16])
        assert list(model.tokenize(text)) == expected.encode(text, add_special_tokens=False).ids, ascii(text)


def test_random_ids_decode_as_tokenizers(bundle: tuple[_core.Model, tokenizers.Tokenizer]) -> None:
    """Broken characters become U+FFFD, ids without a token are skipped."""
    model, expected = bundle
    choice = random.Random(7)
    end = expected.get_vocab_size() + 50
    for _ in range(STRINGS):
        ids = [choice.randrange(end) for _ in range(choice.randrange(12))]
        assert model.detokenize(ids) == expected.decode(ids, skip_special_tokens=False), ids


@pytest.mark.parametrize("letters", ["'sStTlLex", "'mMdDrvVe"])
def test_contractions_are_split_where_tokenizers_splits(tmp_path: Path, letters: str) -> None:
    """With a vocabulary that merges every pair of these letters, the ids tell where the text was cut."""
    shutil.copytree(BUNDLED / "lm", tmp_path / "lm")
    file = tmp_path / "lm" / "tokenizer.json"
    spec = json.loads(file.read_text())
    vocabulary, pairs = spec["model"]["vocab"], list(itertools.product(letters, repeat=2))
    bytes_only = {token: number for token, number in vocabulary.items() if len(token) == 1}
    free = sorted(set(vocabulary.values()) - set(bytes_only.values()))
    names = [*map("".join, pairs), *(f"spare{i}" for i in range(len(free) - len(pairs)))]
    spec["model"]["vocab"] = bytes_only | dict(zip(names, free, strict=True))
    spec["model"]["merges"] = pairs[::-1]  # letters before the apostrophe: they would join across a cut
    file.write_text(json.dumps(spec))
    write_bundle(Checkpoint.open(tmp_path / "lm", BUNDLED / "tokenizer_model"), tmp_path / "bundle")
    model, expected = _core.Model.open(str(tmp_path / "bundle")), tokenizers.Tokenizer.from_file(str(file))
    for text in map("".join, itertools.product(["", "x"], letters, letters, [*letters, " ", "ſ"], [*letters, ""])):
        assert list(model.tokenize(text)) == expected.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("letter", ["a", " ", "今", "!", "\u0301"])
def test_long_text_equals_tokenizers(bundle: tuple[_core.Model, tokenizers.Tokenizer], letter: str) -> None:
    model, expected = bundle
    text = letter * 100_000
    assert list(model.tokenize(text)) == expected.encode(text, add_special_tokens=False).ids


def test_capitalize_text_equals_python(texts: Texts) -> None:
    for text in [*CASED, *(texts.cased_text() for _ in range(STRINGS * 4))]:
        expected = text.capitalize() if text.isupper() or text.islower() else text
        assert _core.capitalize_text(text) == expected, ascii(text)
