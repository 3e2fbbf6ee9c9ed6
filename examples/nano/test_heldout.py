"""No training shard contains a held-out sentence, replies and second turns included."""

from __future__ import annotations

import grammar
import pytest
import sentences
from speakers import LISTENED, UNHEARD


@pytest.mark.parametrize("shard", [0, 1, 7, 40])
def test_training_lines_hold_nothing_out(shard: int) -> None:
    for line in sentences.training_lines(shard):
        assert not grammar.held_out(line.intent, line.text)
        assert not line.reply or not grammar.held_out(line.intent, line.reply)
        assert (line.voice.engine, line.voice.name) != (UNHEARD.engine, UNHEARD.name)
        assert line.voice.label in {v.label for v in LISTENED}


def test_test_lines_are_held_out() -> None:
    trained = {line.text for shard in range(4) for line in sentences.training_lines(shard)}
    for line in sentences.test_lines(None, 200):
        assert grammar.held_out(line.intent, line.text)
        assert line.text not in trained


def test_written_and_spoken_are_inverse() -> None:
    for line in sentences.test_lines(None, 200):
        assert grammar.spoken(grammar.written(line.text)) == line.text
