"""The model that ships, end to end: it hears held-out commands, answers in sound, and a recogniser understands it.

The speech is tests/speech (sentences of no training set), the judge PocketSphinx with the domain's bigram.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import soundfile as sf

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


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Meet Anna at 2.30.", "meet anna at two thirty"),
        ("at 230", "at two thirty"),
        ("at 12:15, at 1215", "at twelve fifteen at twelve fifteen"),
        ("green at 100%", "green at one hundred percent"),
        ("at 100 percent, at 10", "at one hundred percent at ten"),
        ("at 107.4", "at one hundred and seven point four"),
        ("101.3, 80 km/h, 80 km per hour", "one hundred and one point three" + 2 * " eighty kilometers per hour"),
        ("Dial 4 2 0 1", "dial four two zero one"),
    ],
)
def test_figures_a_recogniser_writes_are_read_as_they_were_said(written: str, said: str) -> None:
    assert judge.in_words(written) == said


def test_judge_hears_the_same_whatever_came_before() -> None:
    """Its estimate of noise swayed it: the second clip was "dial karen" after the third, else "call karen"."""
    before, clip, after = (sf.read(SPEECH / f"es_us_{i}.ogg", dtype="float32")[0] for i in (33, 34, 35))
    hear, heard = judge.pocketsphinx(), set()
    for wave in (before, after):
        hear(wave)
        heard.add(hear(clip))
    assert len(heard) == 1, heard


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
