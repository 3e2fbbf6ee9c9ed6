"""Laws of a conversation: whatever was fed in pieces, taken back, cached or dropped, it equals one that never knew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mimo_edge
from mimo_edge import InputError, Model, Options, Sampling, _core
from mimo_edge.conversation import Conversation
from mimo_edge.prefix_cache import PrefixCache

GREEDY = Options(text_sampling=Sampling(False), speech_sampling=Sampling(False), max_new_tokens=24)
RATES = (8000, 16000, 24000, 44100, 48000)


@pytest.fixture(scope="module", params=["random", "trained"])
def model(request: pytest.FixtureRequest) -> Model:
    return open_model(request.param)


def open_model(name: str) -> Model:
    return mimo_edge.load(None if name == "trained" else bundle_of(BUNDLED), threads=1)


TRAINED, RANDOM = open_model("trained"), open_model("random")


def noise(seconds: float, rate_hz: int = 24000, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)


def speech() -> NDArray[np.float32]:
    wave, rate_hz = mimo_edge.read_audio(mimo_edge.demo_command())
    return _core.resample(wave, rate_hz, 24000)


def pieces(wave: NDArray[np.float32], sizes: list[int]) -> Iterator[NDArray[np.float32]]:
    for size in sizes:
        yield wave[:size]
        wave = wave[size:]
    yield wave


def before(model: Model) -> NDArray[np.int32]:
    """What stands before the sound of a first question."""
    return np.concatenate(
        [model.engine.core.prompt_text("<|im_start|>user\n"), model.engine.core.prompt_text("<|sosp|>")], axis=1
    )


# listening


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(RATES), st.integers(1, 9000), st.lists(st.integers(0, 3000), max_size=8))
def test_resampling_in_pieces_is_resampling(rate_hz: int, samples: int, sizes: list[int]) -> None:
    wave = noise(samples / rate_hz, rate_hz)
    listener = _core.Listener(_core.State(RANDOM.engine.core), before(RANDOM))
    for piece in pieces(wave, sizes):
        assert listener.feed(piece, rate_hz) == len(piece)
    whole = _core.resample(wave, rate_hz, RANDOM.rate_hz)
    if len(whole) < RANDOM.engine.facts.least_samples:
        with pytest.raises(InputError, match="samples of sound"):
            listener.settle()
        return
    positions = listener.settle().positions
    patches = RANDOM.engine.patches(whole).shape[1] // RANDOM.engine.facts.group
    assert positions == patches + before(RANDOM).shape[1] // RANDOM.engine.facts.group


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["random", "trained"]),
    st.sampled_from(RATES),
    st.floats(0.1, 2.0),
    st.lists(st.tuples(st.integers(0, 20000), st.booleans()), max_size=5),
)
def test_incremental_prefill_is_offline_prefill(
    name: str, rate_hz: int, seconds: float, parts: list[tuple[int, bool]]
) -> None:
    """Codes, keys and values, next tokens: settled anywhere, any number of times, then to the end."""
    model = TRAINED if name == "trained" else RANDOM
    engine, wave = model.engine, noise(seconds, rate_hz)
    state = _core.State(engine.core)
    listener = _core.Listener(state, before(model))
    for piece, (_, settle) in zip(pieces(wave, [n for n, _ in parts]), [*parts, (0, True)], strict=True):
        listener.feed(piece, rate_hz)
        if settle and listener.is_long_enough:
            listener.settle()
    whole = engine.wave(wave, rate_hz)
    offline = _core.State(engine.core)
    offline.prefill(np.concatenate([before(model), engine.core.prompt_audio(engine.patches(whole), False)], axis=1))
    group = engine.facts.group
    read = state.ids()
    report = listener.settle()
    assert report.positions == offline.length
    assert report.kept >= before(model).shape[1] // group
    if read.shape[1] < report.positions * group:
        changed = np.flatnonzero((state.ids()[:, : read.shape[1]] != read).any(axis=0))
        assert report.kept == (changed[0] if len(changed) else read.shape[1]) // group
        assert report.redone == read.shape[1] // group - report.kept
    np.testing.assert_array_equal(state.ids(), offline.ids())
    np.testing.assert_array_equal(state.text_logits(), offline.text_logits())
    assert state.save() == offline.save()  # every key and value


def test_whole_segments_are_encoded_once_and_their_borders_hold() -> None:
    """A minute of sound is one segment of the encoder; what follows does not change it."""
    engine, wave = RANDOM.engine, noise(64.0, RANDOM.rate_hz)
    state = _core.State(engine.core)
    listener = _core.Listener(state, before(RANDOM))
    for piece in pieces(wave, [RANDOM.rate_hz * 61, RANDOM.rate_hz]):
        listener.feed(piece, RANDOM.rate_hz)
        listener.settle()
    patches = state.ids()[1:, before(RANDOM).shape[1] :]
    np.testing.assert_array_equal(patches, engine.patches(wave))


def test_a_settled_turn_is_answered_without_more_work(model: Model) -> None:
    talk = model.conversation(options=GREEDY)
    hearing = talk.listen()
    wave = speech()
    for piece in pieces(wave, [480] * 20):
        hearing.feed(piece, 24000)
    report = hearing.settle()
    again = hearing.settle()
    assert again.positions == report.positions
    assert again.kept == report.positions - 1  # the last position is read again for its scores
    assert again.redone == 0
    heard = hearing.respond().result()
    talk2 = model.conversation(options=GREEDY)
    whole = talk2.respond((wave, 24000)).result()
    assert heard.text == whole.text
    assert (heard.codes is None) == (whole.codes is None)
    if heard.codes is not None and whole.codes is not None:
        np.testing.assert_array_equal(heard.codes, whole.codes)


def test_a_person_who_goes_on_after_all_is_heard_whole(model: Model) -> None:
    wave = speech()
    talk = model.conversation(options=GREEDY)
    hearing = talk.listen()
    hearing.feed(wave[:30000], 24000)
    early = hearing.respond()
    next(iter(early), None)
    early.cancel()
    early.result()
    hearing.retract()
    hearing.feed(wave[30000:], 24000)
    answered = hearing.respond().result()
    assert answered.text == model.conversation(options=GREEDY).respond((wave, 24000)).result().text


def test_broken_sound_is_heard_as_silence_and_counted() -> None:
    wave = speech()
    broken = wave.copy()
    broken[1000:1100] = np.nan
    broken[2000] = np.inf
    silenced = wave.copy()
    silenced[1000:1100] = 0
    silenced[2000] = 0
    states = []
    for sound in (broken, silenced):
        states.append(_core.State(TRAINED.engine.core))
        listener = _core.Listener(states[-1], before(TRAINED))
        listener.feed(sound, 24000)
        listener.settle()
    np.testing.assert_array_equal(states[0].text_logits(), states[1].text_logits())
    hearing = TRAINED.conversation().listen()
    hearing.feed(broken, 24000)
    assert hearing.settle().broken_samples == 101


def test_a_rate_that_changes_goes_on_where_the_other_ended() -> None:
    hearing = TRAINED.conversation().listen()
    for seconds, rate_hz in ((0.5, 16000), (0.5, 48000), (0.5, 24000), (0.0, 16000), (0.5, 16000)):
        hearing.feed(noise(seconds, rate_hz), rate_hz)
    assert hearing.heard_s == pytest.approx(2.0, abs=0.01)
    assert hearing.settle().positions > 12
    with pytest.raises(InputError, match="rates"):
        hearing.feed(noise(0.1), 0)
    assert hearing.heard_s == pytest.approx(2.0, abs=0.01)


def test_minutes_of_sound_end_at_the_longest_turn_and_memory_with_them() -> None:
    hearing = TRAINED.conversation().listen(most_s=3.0)
    taken = sum(hearing.feed(np.zeros(16000, np.float32), 16000) for _ in range(300))
    assert taken == pytest.approx(3 * 16000, abs=16)  # what the resampler keeps back at the end
    assert hearing.heard_s == pytest.approx(3.0, abs=0.001)
    assert hearing.settle().positions < 30


def test_too_little_sound_is_refused_and_changes_nothing() -> None:
    talk = TRAINED.conversation(options=GREEDY)
    hearing = talk.listen()
    hearing.feed(np.zeros(100, np.float32), 24000)
    with pytest.raises(InputError, match="samples of sound"):
        hearing.settle()
    with pytest.raises(InputError):
        hearing.respond().result()
    assert talk.respond(text="hello").result().stop_reason


# barge-in


def spoken(talk: Conversation, wave: NDArray[np.float32], positions: int | None = None) -> Any:
    """A finished answer with at least three patches of speech."""
    options = GREEDY if positions is None else replace(GREEDY, max_new_tokens=positions)
    generation = talk.respond((wave, 24000), options=replace(options, min_new_tokens=options.max_new_tokens or 0))
    generation.result()
    return generation


def test_rollback_then_going_on_equals_never_having_said_it() -> None:
    model, wave = TRAINED, speech()
    group, empty = model.engine.facts.group, model.engine.facts.tokens["empty"]
    talk = model.conversation(options=GREEDY)
    first = spoken(talk, wave)
    patches = np.flatnonzero(first.new_ids[0, ::group] == empty)
    assert len(patches) >= 3
    heard_s = 2.4 * model.engine.facts.patch_s  # two whole patches and a bit
    text = talk.truncate(heard_s)
    said = first.new_ids[:, : (patches[1] + 1) * group]
    marks = model.engine.facts.marks
    assert text == model.engine.core.detokenize([int(t) for t in said[0, ::group] if t not in marks]).strip()
    second = spoken(talk, wave)

    core = model.engine.core
    closing = core.prompt_text("<|eostm|><|im_end|>\n")
    question = model.conversation(options=GREEDY).respond((wave, 24000))
    question.result()
    everything = np.concatenate([question.prompt_ids, said, closing, question.prompt_ids], axis=1)
    fresh = _core.State(core)
    _, _, stop = core.task("spoken_dialogue")
    straight = _core.Generation(
        fresh, np.ascontiguousarray(everything), Sampling(False), Sampling(False), stop, 24, 24, True
    )
    while straight.next() is not None:
        pass
    np.testing.assert_array_equal(straight.ids(), second.new_ids)


def test_an_answer_heard_whole_stays_and_one_not_heard_at_all_goes() -> None:
    wave = speech()
    for heard_s, kept in ((99.0, True), (0.0, False)):
        talk = TRAINED.conversation(options=GREEDY)
        first = spoken(talk, wave)
        text = talk.truncate(heard_s)
        assert bool(text) == kept
        spoken(talk, wave)
        said = talk._turns[0].shape[1] - first.prompt_ids.shape[1]
        assert (said > first.new_ids.shape[1] // 2) == kept
    with pytest.raises(InputError, match="to cut"):
        TRAINED.conversation().truncate(1.0)


def test_forgetting_a_turn_equals_never_having_had_it(model: Model) -> None:
    wave = speech()
    straight, back = (model.conversation(options=GREEDY) for _ in range(2))
    for talk in (straight, back):
        spoken(talk, wave)
    spoken(back, wave[:20000])
    back.forget()
    np.testing.assert_array_equal(spoken(straight, wave).new_ids, spoken(back, wave).new_ids)


def test_cancelling_ends_within_one_position() -> None:
    talk = TRAINED.conversation(options=GREEDY)
    running = talk.respond((speech(), 24000), options=replace(GREEDY, max_new_tokens=400, min_new_tokens=400))
    for piece in running:
        if piece.audio is not None:
            break
    at = running.positions
    running.cancel()
    assert running.result().stop_reason == "cancelled"
    assert running.positions <= at + 1


# beginnings


def test_a_cached_beginning_is_a_computed_one(tmp_path: Path, model: Model) -> None:
    voice, wave = (noise(1.0, seed=3), 24000), speech()
    folder = tmp_path / "voices"

    def answer(cache: PrefixCache | None, who: Any = voice) -> Any:
        talk = model.conversation(system="Be brief.", voice=who, cache=cache, options=GREEDY)
        generation = talk.respond((wave, 24000))
        pieces_of = [piece.audio for piece in generation if piece.audio is not None]
        generation.result()
        return talk, generation.new_ids, np.concatenate([np.zeros(0, np.float32), *pieces_of])

    _, ids, sound = answer(None)
    cold = PrefixCache(str(folder))
    answer(cold)
    files = list(folder.iterdir())
    assert len(files) == 1
    for cache in (cold, PrefixCache(folder)):  # from memory, from another process's file
        talk, again, same = answer(cache)
        np.testing.assert_array_equal(again, ids)
        np.testing.assert_array_equal(same, sound)
        assert talk.length > 0
    answer(cold, (noise(1.0, seed=4), 24000))
    assert len(list(folder.iterdir())) == 2  # another voice is another beginning
    saved = files[0].read_bytes()
    files[0].write_bytes(saved[:-10])
    np.testing.assert_array_equal(answer(PrefixCache(folder))[1], ids)  # a broken file is made anew
    assert files[0].read_bytes() == saved


@pytest.mark.parametrize("how", [{}, {"voice": (noise(1.0, seed=3), 24000)}, {"instruct": "softly"}, {"natural": True}])
def test_a_cached_voice_reads_other_texts(tmp_path: Path, model: Model, how: dict[str, Any]) -> None:
    def read(text: str, cache: PrefixCache | None) -> Any:
        generation = model.speak(text, cache=cache, options=GREEDY, **how)
        sound = [piece.audio for piece in generation if piece.audio is not None]
        generation.result()
        return generation, np.concatenate([np.zeros(0, np.float32), *sound])

    plain, sound = read("Good morning to you.", None)
    cold = PrefixCache(tmp_path)
    read("Another text.", cold)
    for cache in (cold, PrefixCache(tmp_path)):  # from memory, from the file
        generation, same = read("Good morning to you.", cache)
        assert generation.prompt_ids.shape[1] < plain.prompt_ids.shape[1]
        np.testing.assert_array_equal(generation.new_ids, plain.new_ids)
        np.testing.assert_array_equal(same, sound)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_saved_conversation_is_restored_bit_for_bit_or_refused(model: Model) -> None:
    core = model.engine.core
    state = _core.State(core)
    state.prefill(core.prompt_text("hello, this is a beginning of some length"))
    saved = state.save("a note")
    other = _core.State(core, context=state.length)
    assert other.restore(saved) == "a note"
    np.testing.assert_array_equal(other.text_logits(), state.text_logits())
    np.testing.assert_array_equal(other.ids(), state.ids())
    assert other.save("a note") == saved
    sizes = saved.index(b"\n") + 1 + 64  # after the magic and the model's identity: note, positions, floats
    absurd = [np.int64(size).tobytes() for size in (-1, 2**62)]
    for wrong, message in (
        *((saved[:at] + size + saved[at + 8 :], "impossible") for at in range(sizes, sizes + 24, 8) for size in absurd),
        (b"x" * len(saved), "other bytes"),
        (saved[:-1], "shorter"),
        (saved + b"x", "altered"),
        (saved[:-1000] + bytes([saved[-1000] ^ 64]) + saved[-999:], "altered"),
        (np.repeat(np.frombuffer(saved, np.uint8), 2)[::2], "strided"),
        (saved[:200] + bytes([saved[200] ^ 1]) + saved[201:], "altered|impossible|shorter|more"),
        (b"", "shorter"),
    ):
        with pytest.raises(InputError, match=message):
            other.restore(wrong)
        np.testing.assert_array_equal(other.text_logits(), state.text_logits())
    with pytest.raises(InputError, match="more"):
        _core.State(core, context=state.length - 1).restore(saved)
    stranger = RANDOM if model.engine.core is not RANDOM.engine.core else TRAINED
    if stranger.config["name"] != model.config["name"]:
        with pytest.raises(InputError, match="another's"):
            _core.State(stranger.engine.core).restore(saved)


def test_keep_leaves_something_to_read(model: Model) -> None:
    core, group = model.engine.core, model.engine.facts.group
    ids = core.prompt_text("one two three four five six")
    state = _core.State(core)
    assert state.keep(ids) == 0
    state.prefill(ids)
    assert state.keep(ids) == ids.shape[1] // group - 1
    state.prefill(np.ascontiguousarray(ids[:, -group:]))
    other = core.prompt_text("one two three and more")
    kept = state.keep(other)
    assert 0 < kept < other.shape[1] // group
    np.testing.assert_array_equal(state.ids()[0, ::group], other[0, : kept * group : group])


def test_examples_stand_before_every_conversation_and_are_cached(tmp_path: Path) -> None:
    wave, cache = (speech(), 24000), PrefixCache(tmp_path)
    shown = [
        mimo_edge.Turn(role="user", audio=wave),
        mimo_edge.Turn(role="assistant", text="Opening the window.", audio=(noise(0.5), 24000)),
        mimo_edge.Turn(role="user", text="and the roof"),
        mimo_edge.Turn(role="assistant", text="Opening the roof."),
    ]
    whole = TRAINED.respond([*shown, mimo_edge.Turn(role="user", audio=wave)], options=GREEDY)
    whole.result()
    for talk in (TRAINED.conversation(examples=shown, cache=cache, options=GREEDY) for _ in range(2)):
        answer = talk.respond(wave)
        answer.result()
        np.testing.assert_array_equal(answer.new_ids, whole.new_ids)
    other = [*shown[:3], replace(shown[3], text="Closing the roof.")]
    TRAINED.conversation(examples=other, cache=cache, options=GREEDY).listen()
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match="turn"):
        TRAINED.conversation(examples=[mimo_edge.Turn(role="user")])


# long sessions


def test_a_turn_waits_for_itself_alone(model: Model) -> None:
    """All that came before, old turns that left included, is read when the listening begins, not when it ends."""
    group = model.engine.facts.group
    talk = model.conversation(system="Be brief.", options=GREEDY, context=300)
    lengths = []
    for seed in range(8):
        hearing = talk.listen(most_s=5.0)
        lengths.append(talk.length)
        hearing.feed(noise(1.0, seed=seed), 24000)
        report = hearing.settle()
        assert report.kept >= lengths[-1] - 1
        assert report.positions - report.kept <= 2 + 24000 // (model.rate_hz * model.engine.facts.patch_s) * group
        hearing.respond().result()
    assert any(np.diff(lengths) < 0)


def test_old_turns_leave_whole_and_the_beginning_stays() -> None:
    model, wave = TRAINED, speech()
    group, limit = model.engine.facts.group, 300
    talk = model.conversation(system="Be brief.", options=GREEDY, context=limit)
    lengths = []
    for _ in range(12):
        spoken(talk, wave)
        lengths.append(talk.length)
        begins = talk._state.ids()[:, : talk._beginning.shape[1]]  # type: ignore[union-attr]
        np.testing.assert_array_equal(begins, talk._beginning)
    assert max(lengths) <= limit
    drops = [i for i in range(1, 12) if lengths[i] < lengths[i - 1]]
    assert drops  # the context was filled more than once
    # what is left equals a conversation that never had the turns that left
    kept = list(talk._turns)
    fresh = model.conversation(system="Be brief.", options=GREEDY, context=limit)
    fresh._begin()
    fresh._turns = kept
    talk.forget()
    np.testing.assert_array_equal(spoken(fresh, wave).new_ids, spoken(talk, wave).new_ids)
    assert all(turn.shape[1] % group == 0 for turn in talk._turns)


# beside each other


def test_two_conversations_at_once_equal_each_alone(model: Model) -> None:
    waves = [speech()[:30000], noise(1.5, seed=7), np.full(30000, np.nan, np.float32)]

    def talk(index: int) -> list[Any]:
        conversation, said = model.conversation(options=replace(GREEDY, seed=index)), []
        for _ in range(2):
            hearing = conversation.listen()
            for piece in pieces(waves[index], [700] * 30):
                hearing.feed(piece, 24000)
            generation = hearing.respond()
            generation.result()
            said.append(generation.new_ids)
        return said

    alone = [talk(index) for index in range(3)]
    together: list[Any] = [None] * 3
    stalled = model.conversation(options=GREEDY).respond((waves[0], 24000))
    next(iter(stalled), None)  # a client that stops reading holds nobody up

    def run(index: int) -> None:
        together[index] = talk(index)

    workers = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    stalled.result()


def test_a_backend_that_cannot_save_has_no_cached_beginnings() -> None:
    class Unsaved(PrefixCache):
        def keep(self, key: str, state: Any, note: str) -> None:
            class Refuses:
                def save(self, note: str) -> bytes:
                    raise mimo_edge.DeviceError("save: cannot")

            super().keep(key, Refuses(), note)  # type: ignore[arg-type]

    talk = TRAINED.conversation(system="Be brief.", cache=Unsaved(), options=GREEDY)
    assert talk.respond(text="hello").result().stop_reason
