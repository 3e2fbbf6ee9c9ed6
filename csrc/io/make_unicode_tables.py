"""Write unicode_tables.inc: what the core must know of Unicode, measured rather than looked up.

Every code point is put to the programs whose behaviour the core promises:
  `tokenizers`  the classes L, N and \\s of its regular expressions, and the tables behind its NFC
  CPython       str.lower, str.capitalize, str.isupper, str.islower and the context rule of the final sigma
unicodedata2 only proposes candidates (which code points may combine); each is confirmed by a probe. Run from anywhere:
    python make_unicode_tables.py            # needs tokenizers and unicodedata2, about a minute
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import tokenizers
import unicodedata2  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Regex
from tokenizers.normalizers import NFC, NFD
from tokenizers.pre_tokenizers import Split

CODE_POINTS = [*range(0xD800), *range(0xE000, 0x110000)]
HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)  # by arithmetic in unicode.cpp
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CLASSES = {"letter": r"\p{L}", "number": r"\p{N}", "space": r"\s"}

nfc: Callable[[str], str] = NFC().normalize_str
nfd: Callable[[str], str] = NFD().normalize_str


def matching(pattern: str) -> set[int]:
    """Code points that the regular expression matches: two of them in a row are split into two pieces."""
    split = Split(Regex(pattern), "isolated")
    return {cp for cp in CODE_POINTS if len(split.pre_tokenize_str(chr(cp) * 2)) == 2}


def char_classes() -> dict[int, int]:
    """Code point -> 1 letter, 2 number, 3 white space."""
    classes: dict[int, int] = {}
    for value, pattern in enumerate(CLASSES.values(), start=1):
        for cp in matching(pattern):
            assert cp not in classes, f"U+{cp:04X} has two classes"
            classes[cp] = value
    return classes


def check_contractions() -> None:
    """The matcher of tokenizer.cpp folds ASCII and U+017F only; see that nothing else ever matches."""
    split = Split(Regex(CONTRACTIONS), "isolated")
    for cp in CODE_POINTS:
        if cp < 0x80:
            continue
        for text in ("'?", "'?e", "'r?", "'v?", "'?l", "'l?", "?s", "?ll"):
            matched = len(split.pre_tokenize_str("!" + text.replace("?", chr(cp)) + "!")) > 1
            assert matched == (cp == 0x17F and text in ("'?", "'?e", "'?l")), f"U+{cp:04X} in {text}"


def combining_classes() -> dict[int, int]:
    """Code point -> canonical combining class, where it is not 0, as the reordering of NFD shows it."""
    overlay, iota = "\u0334", "\u0345"  # the lowest class, 1, and the highest, 240

    def moves(c: str) -> bool:
        return nfd(c) == c and (nfd(c + overlay) != c + overlay or nfd(iota + c) != iota + c)

    marks: dict[int, str] = {}  # class -> one mark of it that this version of `tokenizers` knows
    for cp in CODE_POINTS:
        value = unicodedata2.combining(chr(cp))
        if value and value not in marks and moves(chr(cp)):
            marks[value] = chr(cp)
    classes = {}
    for cp in CODE_POINTS:
        c = chr(cp)
        if not moves(c):
            continue
        same = [value for value, mark in marks.items() if nfd(c + mark) == c + mark and nfd(mark + c) == mark + c]
        assert len(same) == 1, f"U+{cp:04X} is level with classes {same}"
        classes[cp] = same[0]
    return classes


def decompositions() -> dict[int, tuple[int, int]]:
    """Code point -> (first, second) of one canonical step; second 0 for a singleton."""
    steps = {}
    for cp in CODE_POINTS:
        full = nfd(chr(cp))
        if full == chr(cp) or cp in HANGUL_SYLLABLES:
            continue
        parts = [int(part, 16) for part in unicodedata2.decomposition(chr(cp)).split()]
        assert nfd("".join(map(chr, parts))) == full, f"U+{cp:04X}"
        assert len(parts) <= 2, f"U+{cp:04X}"
        steps[cp] = (parts[0], parts[1] if len(parts) == 2 else 0)
    return steps


def compositions(steps: Mapping[int, tuple[int, int]]) -> dict[tuple[int, int], int]:
    """(first, second) -> primary composite."""
    pairs = {}
    for cp in CODE_POINTS:
        parts = unicodedata2.decomposition(chr(cp)).split()
        if len(parts) != 2 or parts[0].startswith("<") or cp in HANGUL_SYLLABLES:
            continue
        first, second = (int(part, 16) for part in parts)
        if nfc(chr(first) + chr(second)) == chr(cp):
            assert steps[cp] == (first, second)
            pairs[first, second] = cp
    return pairs


def mapping(convert: Callable[[str], str]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """The code points that `convert` changes: offset of a single result, and the results of several code points."""
    offsets, several = {}, {}
    for cp in CODE_POINTS:
        result = convert(chr(cp))
        if len(result) > 1:
            several[cp] = [ord(c) for c in result]
        elif result != chr(cp):
            offsets[cp] = ord(result) - cp
    return offsets, several


def with_property(test: Callable[[str], bool], value: int = 1) -> dict[int, int]:
    """Code point -> value, where the test holds."""
    return {cp: value for cp in CODE_POINTS if test(chr(cp))}


def is_final(text: str) -> bool:
    """Whether the lower case ends in a final sigma."""
    return text.lower().endswith("ς")


def sigma_context() -> dict[int, int]:
    """Code point -> 1 case-ignorable, 2 cased, as the final sigma rule of str.lower sees it."""
    ignorable = with_property(lambda c: is_final("A" + c + "Σ") and not is_final(c + "Σ"), 1)
    cased = with_property(lambda c: is_final(c + "Σ"), 2)
    return ignorable | cased


def ranges(values: Mapping[int, int]) -> list[tuple[int, int, int, int]]:
    """Compress to (first, last, step, value): runs of code points one or two apart with the same value."""
    runs: list[tuple[int, int, int, int]] = []
    for cp in sorted(values):
        value = values[cp]
        if runs:
            first, last, step, held = runs[-1]
            gap = cp - last
            if held == value and (gap == step or (first == last and gap <= 2)):
                runs[-1] = (first, cp, gap, value)
                continue
        runs.append((cp, cp, 1, value))
    return runs


def table(kind: str, name: str, comment: str, rows: Iterable[Iterable[int]]) -> str:
    """One constexpr array, several rows to a line."""
    cells = ["{" + ",".join(f"{v:#x}" if v > 9 else str(v) for v in row) + "}" for row in rows]
    lines = [f"// {comment}", f"constexpr {kind} {name}[] = {{"]
    line = ""
    for cell in cells:
        if len(line) + len(cell) + 1 > 118:
            lines.append(line)
            line = ""
        line += cell + ","
    return "\n".join([*lines, line, "};", ""])


def range_table(name: str, comment: str, values: Mapping[int, int]) -> str:
    """Code point -> value as an array of Range."""
    return table("Range", name, comment, ranges(values))


def several_table(name: str, comment: str, several: Mapping[int, list[int]]) -> str:
    """Code point -> up to three code points as an array of Expansion."""
    return table("Expansion", name, comment, ([cp, *(parts + [0] * (3 - len(parts)))] for cp, parts in several.items()))


def main() -> None:
    """Probe everything and write the file beside this one."""
    check_contractions()
    steps = decompositions()
    lower, lower_several = mapping(str.lower)
    title, title_several = mapping(str.capitalize)
    header = (
        "// Generated by make_unicode_tables.py; do not edit. Included by unicode.cpp.\n"
        f"// Probed: tokenizers {tokenizers.__version__} (classes, NFC), "
        f"CPython {sys.version_info.major}.{sys.version_info.minor}, Unicode {unicodedata.unidata_version} (case).\n"
    )
    tables = [
        range_table("class_ranges", "first, last, step, class: 1 letter, 2 number, 3 space", char_classes()),
        range_table("combining_ranges", "first, last, step, canonical combining class", combining_classes()),
        table(
            "Pair", "decompositions", "code point, first, second (0: singleton)", ([c, *p] for c, p in steps.items())
        ),
        table(
            "Pair",
            "compositions",
            "composite, first, second; in order of (first, second)",
            ([c, *p] for p, c in sorted(compositions(steps).items())),
        ),
        range_table("lower_ranges", "first, last, step, offset of the lower case", lower),
        several_table("lower_expansions", "code point, its lower case", lower_several),
        range_table("title_ranges", "first, last, step, offset of the title case", title),
        several_table("title_expansions", "code point, its title case (0: none)", title_several),
        range_table("small_ranges", "first, last, step, 1: str.islower", with_property(str.islower)),
        range_table("capital_ranges", "first, last, step, 1: str.isupper", with_property(str.isupper)),
        range_table(
            "title_case_ranges",
            "first, last, step, 1: str.istitle but not str.isupper",
            with_property(lambda c: c.istitle() and not c.isupper()),
        ),
        range_table("sigma_ranges", "first, last, step, around a sigma: 1 case-ignorable, 2 cased", sigma_context()),
    ]
    Path(__file__).with_name("unicode_tables.inc").write_text(header + "\n" + "\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
