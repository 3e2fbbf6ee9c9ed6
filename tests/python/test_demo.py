"""The bundle that ships in the package: it hears the command that ships with it and answers, in text and in sound."""

from __future__ import annotations

import numpy as np
import pytest

import mimo_edge


@pytest.fixture(scope="module")
def model() -> mimo_edge.Model:
    return mimo_edge.load()


def test_hears_the_command(model: mimo_edge.Model) -> None:
    heard = model.transcribe(mimo_edge.demo_command()).result()
    assert heard.text == "Set the temperature to twenty one degrees."
    assert heard.stop_reason == "stop token"


def test_answers_in_text_and_sound(model: mimo_edge.Model) -> None:
    for seed in range(3):
        answer = model.respond(mimo_edge.demo_command(), options=mimo_edge.Options(seed=seed)).result()
        assert "twenty one" in answer.text
        assert answer.audio is not None
        assert len(answer.audio) > 0.5 * model.rate_hz
        assert np.sqrt(np.mean(answer.audio**2)) > 0.01


def test_says_the_same_in_every_form(model: mimo_edge.Model) -> None:
    written = model.answer(mimo_edge.demo_command()).result()
    assert "twenty one" in written.text
