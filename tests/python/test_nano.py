"""The model that ships, end to end: it hears held-out commands, answers in sound, and a recogniser understands it.

The speech is tests/speech (sentences of no training set), the judge PocketSphinx with the domain's bigram.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import mimo_edge
from mimo_edge import Model, Options

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/nano"))
import grammar
import judge

SPEECH = Path(__file__).parents[1] / "speech"
LINES = [json.loads(line) for line in (SPEECH / "lines.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model() -> Model:
    return mimo_edge.load()


def test_hears_held_out_commands(model: Model) -> None:
    score = judge.Score()
    for line in [line for line in LINES if line["voice"] == "heart"]:
        score.add(line["text"], grammar.spoken(model.transcribe(SPEECH / line["file"]).result().text))
    assert score.count == 40
    assert score.error <= 0.05, str(score)


def test_judge_understands_the_answers(model: Model) -> None:
    score, understood = judge.Score(), 0
    lines = [line for line in LINES if line["voice"] == "heart"][:20]
    for i, line in enumerate(lines):
        reply = model.respond(SPEECH / line["file"], options=Options(seed=i)).result()
        assert reply.stop_reason == "stop token"
        assert reply.audio is not None
        heard = judge.pocketsphinx()(reply.audio)
        score.add(line["reply"], heard)
        understood += judge.intent(heard) == line["intent"]
    assert understood >= 0.9 * len(lines), f"{understood} of {len(lines)} intents, {score}"
