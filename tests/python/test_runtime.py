"""The Python runtime: tasks, streaming, conversations, sound. Laws rather than words: the models here are tiny."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from golden_folders import BUNDLED, bundle_of
from hypothesis import given
from hypothesis import strategies as st

import mimo_edge
from mimo_edge import Example, Generation, InputError, Model, Options, Sampling, Turn
from mimo_edge.audio import encode_wav, open_audio, read_audio, replace_file, write_wav
from mimo_edge.limits import ALLOWANCES, Allowance
from mimo_edge.progress import ProgressBar
from mimo_edge.templates import ASR_TEMPLATES, TTS_TEMPLATES, asr_template, tts_template
from mimo_edge.text_stream import TextStream
from mimo_edge.verify.goldens import Goldens

GREEDY = Options(text_sampling=Sampling(False), speech_sampling=Sampling(False), max_new_tokens=40)
SHORT = Options(max_new_tokens=12)


@pytest.fixture(scope="module")
def model() -> Model:
    return mimo_edge.load(bundle_of(BUNDLED), threads=1)


@pytest.fixture(scope="module")
def clip(model: Model) -> tuple[Any, int]:
    """One of the golden clips, a second or so."""
    goldens = Goldens(BUNDLED)
    name = min(goldens.names("wavs"), key=lambda n: abs(len(goldens.peek(f"wavs:{n}")) - model.rate_hz))
    return goldens.peek(f"wavs:{name}"), model.rate_hz


# generations


def spoken(model: Model) -> Any:
    """Return an argument list of `speak` for which the tiny model makes sound: a golden run's."""
    goldens = Goldens(BUNDLED)
    for run, facts in goldens.cases("generate").items():
        prompt = goldens.cases("prompts").get(facts["prompt"].split(":")[1].removesuffix(".input_ids"), {})
        if goldens.has(f"generate:{run}.decoded_codes") and "get_tts" in prompt.get("function", ""):
            arguments = prompt["kwargs"]
            if "prompt_speech" not in arguments:
                natural = not arguments.get("read_text_only", True)
                return arguments["input"], {"instruct": arguments.get("instruct"), "natural": natural}
    pytest.fail("no golden run of speech")


def test_every_task_answers(model: Model, clip: Any) -> None:
    example = Example(clip, "What it says.", clip)
    turns = [
        Turn(role="user", audio=clip),
        Turn(role="assistant", text="Yes.", audio=clip),
        Turn(role="user", audio=clip),
    ]
    runs = [
        model.transcribe(clip, options=SHORT),
        model.transcribe(clip, template="Write it down.", options=SHORT),
        model.speak("Good morning.", options=SHORT),
        model.speak("Good morning.", voice=clip, options=SHORT),
        model.speak("Good morning.", instruct="whisper", voice=clip, options=SHORT),
        model.speak("Say softly: good morning.", natural=True, options=SHORT),
        model.understand(clip, "What is said?", options=SHORT),
        model.understand(clip, "What is said?", thinking=True, options=SHORT),
        model.respond(clip, system="Be brief.", voice=clip, options=SHORT),
        model.respond(turns, options=SHORT),
        model.answer(clip, options=SHORT),
        model.answer(clip, thinking=True, options=SHORT),
        model.chat("Hello.", options=SHORT),
        model.chat(
            [Turn(role="user", text="a"), Turn(role="assistant", text="b"), Turn(role="user", text="c")], options=SHORT
        ),
        model.convert(clip, [example], "Convert the timbre.", options=GREEDY),
        model.continue_speech(clip, seconds=1, options=SHORT),
    ]
    for run in runs:
        reply = run.result()
        assert reply.stop_reason in ("stop token", "max_length", "guard")
        assert 1 <= run.positions <= 40
        assert reply.timings.total_s >= reply.timings.prefill_s > 0
        if reply.audio is not None:
            assert reply.codes is not None
            assert reply.audio.dtype == np.float32
            seconds = reply.codes.shape[1] * model.engine.facts.patch_s / model.engine.facts.group
            assert len(reply.audio) == pytest.approx(seconds * model.rate_hz)


def test_speech_has_sound_codes_and_timings(model: Model) -> None:
    text, how = spoken(model)
    reply = model.speak(text, **how, options=GREEDY).result()
    assert reply.audio is not None
    assert reply.codes is not None
    assert np.array_equal(reply.audio, model.decode(reply.codes))
    assert reply.timings.audio_s == len(reply.audio) / model.rate_hz
    assert reply.timings.rtf == pytest.approx(reply.timings.total_s / reply.timings.audio_s)
    assert reply.timings.first_audio_s is not None


def test_streamed_pieces_are_the_reply(model: Model) -> None:
    text, how = spoken(model)
    whole = model.speak(text, **how, options=GREEDY).result()
    running = model.speak(text, **how, options=GREEDY)
    pieces = list(running)
    reply = running.result()
    assert "".join(piece.text for piece in pieces) == reply.text == whole.text
    sounds = [piece.audio for piece in pieces if piece.audio is not None]
    assert reply.audio is not None
    assert whole.audio is not None
    assert np.array_equal(np.concatenate(sounds), reply.audio)
    assert reply.audio.shape == whole.audio.shape  # the samples differ: GroupNorm sees a window
    assert reply.codes is not None
    assert whole.codes is not None
    assert np.array_equal(reply.codes, whole.codes)


def test_same_seed_same_reply_on_any_number_of_threads(model: Model, clip: Any) -> None:
    def run(threads: int, seed: int) -> Any:
        one = mimo_edge.load(bundle_of(BUNDLED), threads=threads)
        generation = one.respond(clip, options=Options(seed=seed, max_new_tokens=30))
        generation.result()
        return generation.new_ids

    first = run(1, 7)
    assert all(np.array_equal(first, run(threads, 7)) for threads in (1, 2, 4))
    assert any(first.shape != run(1, seed).shape or not np.array_equal(first, run(1, seed)) for seed in range(8, 12))


def test_cancel_from_another_thread(model: Model) -> None:
    running = model.chat("Hello.", options=replace(GREEDY, max_new_tokens=900, min_new_tokens=900))
    started = threading.Event()
    replies: list[Any] = []
    worker = threading.Thread(target=lambda: replies.append(running.result(lambda _: started.set())))
    worker.start()
    assert started.wait(20)
    running.cancel()
    worker.join(20)
    assert replies[0].stop_reason == "cancelled"
    assert running.positions < 900


def test_cancel_before_the_start(model: Model) -> None:
    running = model.chat("Hello.")
    running.cancel()
    assert running.result().stop_reason == "cancelled"
    assert running.positions <= 1


def test_limits_have_their_names(model: Model, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = replace(GREEDY, max_new_tokens=None, min_new_tokens=500)
    assert model.transcribe(clip, options=replace(endless, max_new_tokens=3)).result().stop_reason == "max_length"
    monkeypatch.setitem(ALLOWANCES, "asr", Allowance(5))
    running = model.transcribe(clip, options=endless)
    assert running.result().stop_reason == "guard"
    assert running.positions == 5


class Scripted:
    """Stands for the core's generation: says these tokens; patch i holds code i."""

    def __init__(self, model: Model, tokens: list[int]) -> None:
        facts = model.engine.facts
        shape, empty = (facts.levels, facts.group), facts.tokens["empty"]
        self.steps = [(t, np.full(shape, i, np.int32) if t == empty else None) for i, t in enumerate(tokens)]
        self.reason = "stop token"

    def next(self, tap: object) -> Any:
        return self.steps.pop(0) if self.steps else None


@pytest.mark.parametrize("streams", [False, True])
def test_a_reply_is_every_word_and_every_patch_between_its_marks(
    model: Model, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, words = model.engine.facts.tokens, model.engine.core.tokenize("鑫")
    assert len(words) > 1  # a character that speech interrupts
    sostm, eostm, eosp, empty, eot = (tokens[name] for name in ("sostm", "eostm", "eosp", "empty", "eot"))
    thoughts = model.engine.core.tokenize("hm</think>\n")
    for instruct, said, heard in (
        (None, [words[0], empty, *words[1:], eot, empty, eostm, empty], 2),  # the prompt has opened the speech
        (None, [empty, eosp, empty, *words], 1),
        (None, [empty, sostm, empty, *words], 2),
        (None, words, 0),
        ("softly", [*thoughts, empty, sostm, words[0], empty, *words[1:], eot, empty], 2),
    ):
        monkeypatch.setattr("mimo_edge.answer._core.Generation", lambda *_, said=said, **__: Scripted(model, said))
        generation = model.speak("hello", instruct=instruct)
        for _ in generation if streams else ():
            pass
        reply = generation.result()
        assert reply.text == "鑫" if words[0] in said else not reply.text
        group = model.engine.facts.group
        if not heard:
            assert reply.codes is None
            assert reply.audio is None
            continue
        assert reply.codes is not None
        assert reply.audio is not None
        assert reply.codes.shape == (model.engine.facts.levels, heard * group)
        assert len(reply.audio) == pytest.approx(heard * model.engine.facts.patch_s * model.rate_hz)


def test_reading_aloud_foresees_its_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = []
    generation = mimo_edge._core.Generation

    def watched(*args: Any) -> Any:
        scripts.append(args[-1])
        return generation(*args)

    monkeypatch.setattr("mimo_edge.answer._core.Generation", watched)
    model.speak("turn it off", options=SHORT).result()
    model.speak("Say softly: hello.", natural=True, options=SHORT).result()
    model.chat("hello", options=SHORT).result()
    assert scripts == [model.engine.core.tokenize("Turn it off"), (), ()]


def test_a_full_context_is_no_runaway(model: Model) -> None:
    options = replace(GREEDY, max_new_tokens=None, min_new_tokens=500)
    reply = model.conversation(options=options, context=64, speaks=False).respond(text="hello").result()
    assert reply.stop_reason == "max_length"
    with pytest.raises(InputError, match="fewer than 64 positions"):
        model.conversation(context=64).respond(text="hello " * 70).result()


def test_parity_knows_no_allowance(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALLOWANCES, "asr", Allowance(5))
    model = mimo_edge.load(bundle_of(BUNDLED), threads=1, parity=True)
    running = model.transcribe(clip, options=replace(GREEDY, min_new_tokens=20, max_new_tokens=21))
    running.result()
    assert running.positions in (20, 21)


def test_allowances_grow_with_the_input() -> None:
    assert ALLOWANCES["asr"].positions(seconds=10) == 64 + 160
    assert ALLOWANCES["tts"].positions(tokens=10) == 128 + 60


def test_tap_sees_the_flow_in_order(clip: Any) -> None:
    names: list[str] = []
    model = mimo_edge.load(bundle_of(BUNDLED), threads=1, tap=lambda name, array: names.append(name))
    model.transcribe(clip, options=SHORT).result()
    order = [
        "wave",
        "mel",
        "codec_encoder.conv1",
        "codec_encoder.hidden",
        "codes",
        "backbone.embeds",
        "backbone.hidden",
    ]
    assert [name for name in names if name in order] == order


# conversations


def test_a_conversation_goes_on_from_its_cache(model: Model, clip: Any) -> None:
    """Cache on == cache off: the second answer is that of a fresh state that reads everything at once."""
    talk = model.conversation(options=GREEDY)
    first = talk.respond(clip)
    first.result()
    second = talk.respond(clip)
    second.result()
    group = model.engine.facts.group
    said = np.concatenate([first.prompt_ids, first.new_ids], axis=1)
    unread = 1  # the last position made is read with the next prompt
    everything = np.concatenate([said[:, : -unread * group], second.prompt_ids], axis=1)
    core = model.engine.core
    _, _, stop = core.task("spoken_dialogue")
    greedy = Sampling(False)
    fresh = mimo_edge._core.Generation(
        mimo_edge._core.State(core), np.ascontiguousarray(everything), greedy, greedy, stop, 40
    )
    while fresh.next() is not None:
        pass
    assert np.array_equal(fresh.ids(), second.new_ids)


def test_a_conversation_completes_the_markup(model: Model, clip: Any) -> None:
    talk = model.conversation(options=GREEDY)
    first = talk.respond(clip)
    first.result()
    second = talk.respond(clip)
    second.result()
    core, facts = model.engine.core, model.engine.facts
    text = core.detokenize([int(t) for t in second.prompt_ids[0, :: facts.group]])
    said = core.detokenize([int(first.new_ids[0, -1])])
    assert text.startswith(said)
    assert "<|im_end|>\n<|im_start|>user\n" in text


def test_a_conversation_reproduces_the_reference_history_in_parity_mode() -> None:
    goldens = Goldens(BUNDLED)
    runs = {
        run: facts for run, facts in goldens.cases("generate").items() if goldens.has(f"generate:{run}.history_after")
    }
    assert len(runs) >= 2
    model = mimo_edge.load(bundle_of(BUNDLED), threads=1, parity=True)
    talk = model.conversation()
    for run, facts in runs.items():
        prompt = goldens.cases("prompts")[facts["prompt"].split(":")[1].removesuffix(".input_ids")]
        clip = goldens.peek(f"wavs:{prompt['kwargs']['input_speech']['wav']}")
        limit = replace(GREEDY, max_new_tokens=facts["max_new_tokens"])
        generation = talk.respond((clip, model.rate_hz), options=limit)
        generation.result()
        assert np.array_equal(generation.new_ids, goldens.peek(f"generate:{run}.new_ids"))


def test_a_conversation_waits_for_its_answer(model: Model) -> None:
    talk = model.conversation(speaks=False, options=SHORT)
    running = talk.respond(text="Hello.")
    with pytest.raises(InputError, match="complete"):
        talk.respond(text="And?")
    running.result()
    assert talk.respond(text="And?").result().stop_reason


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(model: Model) -> None:
    talk = model.conversation(speaks=False, options=GREEDY)
    talk.respond(text="Hello.").result()
    with pytest.raises(InputError):
        talk.respond(text="a b c " * model.engine.facts.context).result()

    def interrupt(running: Generation) -> None:
        raise KeyboardInterrupt

    stopped = talk.respond(text="Say much.")
    with pytest.raises(KeyboardInterrupt):
        stopped.result(interrupt)
    assert stopped.failed
    again = talk.respond(text="And?")
    again.result()
    other = model.conversation(speaks=False, options=GREEDY)
    other.respond(text="Hello.").result()
    same = other.respond(text="And?")
    same.result()
    assert np.array_equal(again.new_ids, same.new_ids)


def test_states_run_side_by_side(model: Model, clip: Any) -> None:
    alone = model.respond(clip, options=GREEDY)
    alone.result()
    both = [model.respond(clip, options=GREEDY) for _ in range(2)]
    workers = [threading.Thread(target=generation.result) for generation in both]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(generation.new_ids, alone.new_ids) for generation in both)


# text


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=80))
def test_text_is_the_same_however_its_bytes_arrive(text: str, sizes: list[int]) -> None:
    data, stream, got = text.encode(), TextStream(thinking=False), ""
    for size in [*sizes, len(data) + 1]:
        chunk, data = data[:size], data[size:]
        got += stream.feed(chunk).text
    got += stream.close().text
    assert got == text.strip()


@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.integers(1, 5), max_size=60))
def test_thoughts_end_at_their_mark(thoughts: str, text: str, sizes: list[int]) -> None:
    thoughts = thoughts.replace("<", "")
    data, stream = f"{thoughts}</think>{text}".encode(), TextStream(thinking=True)
    seen = []
    for size in [*sizes, len(data) + 1]:
        chunk, data = data[:size], data[size:]
        seen.append(stream.feed(chunk))
    seen.append(stream.close())
    assert "".join(piece.thinking for piece in seen) == thoughts.strip()
    assert "".join(piece.text for piece in seen) == text.strip()


def test_an_unfinished_character_becomes_a_replacement() -> None:
    stream = TextStream(thinking=False)
    assert stream.feed("好".encode()[:2]).text == ""
    assert stream.close().text == "\ufffd"


def test_templates() -> None:
    assert (len(ASR_TEMPLATES), len(TTS_TEMPLATES["zh"]), len(TTS_TEMPLATES["en"])) == (22, 10, 10)
    assert asr_template() == "请将这段语音转换为文字"
    assert tts_template("en") == "Please convert this text to speech"
    assert asr_template("my own") == "my own"
    with pytest.raises(InputError, match="0 to 21"):
        asr_template(22)


# sound


def test_files_and_arrays_say_the_same(model: Model, clip: Any, tmp_path: Path) -> None:
    wave, rate_hz = clip
    codes = model.encode(clip)
    ints = np.round(wave * 32768).clip(-32768, 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", ints, rate_hz, subtype="PCM_16")
    soundfile.write(tmp_path / "a.flac", ints, rate_hz, subtype="PCM_16")
    soundfile.write(tmp_path / "24.wav", ints.astype(np.int32) << 16, rate_hz, subtype="PCM_24")
    soundfile.write(tmp_path / "f.wav", ints / 32768, rate_hz, subtype="FLOAT")
    exact = model.encode((ints, rate_hz))
    assert np.mean(exact == codes) > 0.9  # the clip may not lie on the int16 grid
    for name in ("a.wav", "a.flac", "24.wav", "f.wav"):
        assert np.array_equal(model.encode(str(tmp_path / name)), exact), name
    stereo = np.stack([ints, ints])
    assert np.array_equal(model.encode((stereo, rate_hz)), exact)
    assert np.array_equal(model.encode((stereo.T, rate_hz)), exact)


def test_channels_are_mixed_by_their_mean() -> None:
    left, right = np.full(100, 0.5, np.float32), np.full(100, -0.25, np.float32)
    wave, rate_hz = read_audio((np.stack([left, right]), 8000))
    assert rate_hz == 8000
    assert np.allclose(wave, 0.125)


@pytest.mark.parametrize("subtype", ["VORBIS", "MPEG_LAYER_III"])
@pytest.mark.parametrize("rate_hz", [16000, 44100, 48000])
def test_lossy_files_of_other_rates(model: Model, tmp_path: Path, subtype: str, rate_hz: int) -> None:
    path = tmp_path / ("a.ogg" if subtype == "VORBIS" else "a.mp3")
    soundfile.write(path, 0.3 * np.sin(np.arange(rate_hz) / 20), rate_hz, subtype=subtype)
    codes = model.encode(path)
    assert abs(codes.shape[1] - model.encode((np.zeros(rate_hz, np.float32), rate_hz)).shape[1]) <= 2


def test_blocks_join_to_the_whole() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 12345).astype(np.float32)
    recording = open_audio((wave, 8000))
    assert np.array_equal(np.concatenate(list(recording.blocks(0.1))), wave)
    assert np.array_equal(recording.read(), wave)


def test_long_recordings_are_cut_at_pauses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_edge.engine.LISTEN_BLOCK_S", 50.0)
    wave = np.random.default_rng(1).normal(0, 0.1, 8000 * 170).astype(np.float32)
    rate_hz, engine = 8000, model.engine
    pieces = list(engine.pieces(open_audio((wave, rate_hz))))
    seconds = [len(piece) / engine.facts.rate_hz for piece in pieces]
    assert max(seconds) <= engine.facts.longest_piece_s + 0.01
    assert sum(seconds) == pytest.approx(170, abs=0.01)


def test_transcripts_of_pieces_are_joined(model: Model) -> None:
    from mimo_edge.generation import _joint

    assert _joint("one", "two") == " "
    assert _joint("天气", "很好") == ""
    assert _joint("yes", "很好") == ""
    wave = np.random.default_rng(2).normal(0, 0.1, 8000 * 130).astype(np.float32)
    reply = model.transcribe((wave, 8000), options=Options(max_new_tokens=4)).result()
    assert reply.timings.audio_s == pytest.approx(130, abs=0.1)


def test_written_sound_is_clipped_pcm16(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([0.0, 2.0, -2.0], np.float32), 24000)
    ints, rate_hz = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert (rate_hz, list(ints)) == (24000, [0, 32767, -32768])
    assert soundfile.info(str(tmp_path / "a.wav")).subtype == "PCM_16"
    assert encode_wav(np.zeros(8, np.float32), 24000, ".flac")[:4] == b"fLaC"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("x" * 251 + ".txt")  # as long as names may be
    replace_file(path, b"first")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(mimo_edge.Error, match="No space left"):
        replace_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_a_pipe_is_written_into(tmp_path: Path) -> None:
    """/dev/stdout is both: renamed onto, it would be gone for every program of the machine."""
    file, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    file.write_bytes(b"old")
    link.symlink_to(file)
    replace_file(link, b"new")
    assert (link.is_symlink(), file.read_bytes()) == (True, b"new")
    os.mkfifo(pipe)
    through = tmp_path / "through"
    through.symlink_to(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        replace_file(through, b"sound")
        assert read.result() == b"sound"
    assert (through.is_symlink(), pipe.is_fifo()) == (True, True)
    with pytest.raises(mimo_edge.Error, match="directory"):
        replace_file(tmp_path, b"")


def test_silence_and_clipping_are_legal(model: Model) -> None:
    for wave in (np.zeros(24000, np.float32), np.sign(np.sin(np.arange(24000) / 9)).astype(np.float32) * 3):
        assert model.encode((wave, 24000)).shape[1] > 0


# progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_for_short_work() -> None:
    for stream in (Terminal(), io.StringIO()):
        with ProgressBar(10, "s", "working", stream) as bar:
            bar.update(5)
        assert stream.getvalue() == ""


def test_progress_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_edge.progress.SILENT_S", 0.0)
    stream = Terminal()
    with ProgressBar(10, "s", "working", stream) as bar:
        bar.update(5)
        wait_for(lambda: "\r" in stream.getvalue())
    assert "working [###############..............." in stream.getvalue()
    assert stream.getvalue().endswith("50 % of 10 s, 0 s\n")


def test_progress_writes_a_line_now_and_then_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_edge.progress.LINE_S", 0.01)
    stream = io.StringIO()
    with ProgressBar(None, "positions", "speaking", stream) as bar:
        wait_for(lambda: "speaking, 0 s\n" in stream.getvalue())
        bar.update(3)
        wait_for(lambda: "speaking 3 positions, 0 s\n" in stream.getvalue())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
