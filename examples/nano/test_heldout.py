"""No training shard contains a held-out sentence, replies and second turns included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grammar
import pytest
import sentences
from speakers import LISTENED, UNHEARD


@pytest.mark.parametrize("shard", [0, 1, 7, 40])
@pytest.mark.parametrize("lines", [sentences.training_lines, sentences.car_lines])
def test_training_lines_hold_nothing_out(lines: Callable[[int], list[sentences.Line]], shard: int) -> None:
    for line in lines(shard):
        assert not grammar.held_out(line.intent, line.text)
        assert not line.reply or not grammar.held_out(line.intent, line.reply)
        assert (line.voice.engine, line.voice.name) != (UNHEARD.engine, UNHEARD.name)
        assert line.voice.label in {v.label for v in LISTENED}


def test_test_lines_are_held_out() -> None:
    makers = sentences.training_lines, sentences.car_lines
    trained = {line.text for shard in range(4) for lines in makers for line in lines(shard)}
    for line in [*sentences.test_lines(None, 200), *sentences.shipped_lines()]:
        assert grammar.held_out(line.intent, line.text)
        assert line.text not in trained


def test_shipped_speech_is_what_was_drawn() -> None:
    folder = Path(__file__).parents[2] / "tests/speech"
    lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    assert [(x["voice"], x["text"]) for x in lines] == [(x.voice.label, x.text) for x in sentences.shipped_lines()]
    assert {x["file"] for x in lines} == {file.name for file in folder.glob("*.ogg")}


def test_written_and_spoken_are_inverse() -> None:
    for line in sentences.test_lines(None, 200):
        assert grammar.spoken(grammar.written(line.text)) == line.text
