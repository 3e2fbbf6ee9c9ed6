"""The command line: every sub-command runs, says what it did, and fails with one sentence."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from golden_folders import BUNDLED, bundle_of

import mimo_edge
from mimo_edge import commands
from mimo_edge.answer import Answer
from mimo_edge.cli import main
from mimo_edge.verify.goldens import Goldens

COMMANDS = ["demo", "build", "verify", "calibrate", "inspect", "transcribe", "speak", "understand"]
COMMANDS += ["chat", "listen", "text", "convert", "continue", "encode", "decode"]


@pytest.fixture(scope="module")
def bundle() -> str:
    return str(bundle_of(BUNDLED))


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A golden clip of a second or so as a file."""
    goldens = Goldens(BUNDLED)
    name = min(goldens.names("wavs"), key=lambda n: abs(len(goldens.peek(f"wavs:{n}")) - 24000))
    path = tmp_path / "clip.wav"
    soundfile.write(path, goldens.peek(f"wavs:{name}"), 24000)
    return str(path)


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"mimo-edge {command}" in capsys.readouterr().out.split("examples:")[1]


def test_the_front_page_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "required: COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["speak"], "required: TEXT"),
        (["speak", "a", "--seed", "-1"], "whole number of 0 or more"),
        (["speak", "a", "--top-p", "nan"], "from 1e-06 to 1"),
        (["speak", "a", "-o", "a.xyz"], "ending in .wav or .flac"),
        (["speak", "a", "-o", "/nowhere/a.wav"], "a folder that exists"),
        (["encode", "a.wav", "-o", "."], "got the folder ."),
        (["evaluate", "small", "--json", "/nowhere/a.json"], "a folder that exists"),
        (["encode", "a.wav", "-o", "/locked/a.npy"], "a folder that can be written"),
        (["continue", "a.wav", "--seconds", "inf"], "a number from 0"),
        (["text", "\udcff"], "text in UTF-8"),
        (["listen", "--simulate", "a.wav", "-o", "a.mp3"], "ending in .wav or .flac"),
        (["listen", "--simulate", "a.wav", "--report", "/nowhere/a.json"], "a folder that exists"),
        (["listen", "--simulate", "a.wav", "--rate", "50"], "from 1000 to 768000"),
        (["listen", "--simulate", "a.wav", "--noise", "nan"], "a number"),
    ],
)
def test_wrong_usage_is_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = Path("/locked")  # the tests may run as root, who can write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path == locked or is_dir(path))
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_inspect(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", bundle, "--check"]) == 0
    out = capsys.readouterr().out
    for part in ("parameters", "backbone", "sha256", "tokens", "eostm", "hidden_size", "every file's sha256"):
        assert part in out
    assert main(["inspect", bundle, "--json"]) == 0
    assert said(capsys)["revision"] == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (9730, "9.73 K"),
        (110_592, "111 K"),
        (12_600_000, "12.6 M"),
        (268_000_000, "268 M"),
        (6_380_000_000, "6.38 B"),
    ],
)
def test_counts_have_three_digits(count: int, text: str) -> None:
    assert commands._short_count(count) == text


def test_transcribe(bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--bundle", bundle, "--max-new-tokens", "8"]
    assert main(["transcribe", clip, *short, "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert set(facts) == {"file", "text", "stop_reason", "timings"}
    assert "RTF" in captured.err
    out = tmp_path / "out.txt"
    assert main(["transcribe", clip, clip, *short, "-o", str(out)]) == 0
    assert [line.startswith(f"{clip}: ") for line in out.read_text(encoding="utf-8").splitlines()] == [True, True]
    capsys.readouterr()
    assert main(["transcribe", clip, *short, "--json", "--stream"]) == 0
    assert said(capsys)["text"] == facts["text"]


def test_what_was_written_down_is_kept(
    bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is wrong is told before the work; a file that is broken costs none of those before it."""
    broken, out = tmp_path / "broken.wav", tmp_path / "out.txt"
    soundfile.write(broken, np.full(24000, np.nan, np.float32), 24000, subtype="FLOAT")
    how = ["--bundle", bundle, "--max-new-tokens", "4"]
    for missing in (["transcribe", clip, "nowhere.wav", *how], ["chat", clip, "nowhere.wav", "--text-out", *how]):
        assert main(missing) == 1
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert main(["transcribe", clip, str(broken), *how]) == 1
    assert capsys.readouterr().out.startswith(f"{clip}: ")
    assert main(["transcribe", clip, str(broken), *how, "-o", str(out)]) == 1
    assert out.read_text(encoding="utf-8").startswith(f"{clip}: ")
    capsys.readouterr()
    for task in (["transcribe"], ["chat", "--text-out"]):
        assert main([*task, clip, str(broken), *how, "--json"]) == 1
        assert [reply["file"] for reply in said(capsys)] == [clip]


def test_writing_tasks(bundle: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--bundle", bundle, "--max-new-tokens", "8", "--greedy", "--json"]
    for words in (
        ["understand", clip, "What is said?", "--thinking"],
        ["text", "Hello."],
        ["chat", clip, "--text-out"],
    ):
        assert main([*words, *how]) == 0
        assert "stop_reason" in said(capsys)


def test_text_reads_standard_input(
    bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello."))
    assert main(["text", "--bundle", bundle, "--max-new-tokens", "8", "--greedy", "--json"]) == 0
    from_pipe = said(capsys)["text"]
    assert main(["text", "Hello.", "--bundle", bundle, "--max-new-tokens", "8", "--greedy", "--json"]) == 0
    assert said(capsys)["text"] == from_pipe


@pytest.mark.parametrize("words", [["text"], ["speak", "-"]])
def test_standard_input_that_is_no_text(
    words: list[str], bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for errors in ("strict", "surrogateescape"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8", errors))
        assert main([*words, "--bundle", bundle]) == 1
        assert "expected text in UTF-8 on standard input" in capsys.readouterr().err


def speech_words() -> list[str]:
    """What makes the tiny model speak: the text of a golden run."""
    goldens = Goldens(BUNDLED)
    for run_name, facts in goldens.cases("generate").items():
        prompt = goldens.cases("prompts").get(facts["prompt"].split(":")[1].removesuffix(".input_ids"), {})
        arguments = prompt.get("kwargs", {})
        if goldens.has(f"generate:{run_name}.decoded_codes") and "get_tts" in prompt.get("function", ""):
            if set(arguments) == {"input"}:
                return [arguments["input"]]
            if set(arguments) == {"input", "instruct"}:
                return [arguments["input"], "--instruct", arguments["instruct"]]
    pytest.fail("no golden run of speech")


@pytest.mark.parametrize("how", [[], ["--stream"], ["--parity"]])
def test_speak(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]) -> None:
    out = tmp_path / "s.wav"
    words = [
        "speak",
        *speech_words(),
        "--bundle",
        bundle,
        "--greedy",
        "--max-new-tokens",
        "40",
        "-o",
        str(out),
        "--json",
    ]
    assert main([*words, *how]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["out"] == str(out)
    assert soundfile.info(str(out)).duration == pytest.approx(facts["timings"]["audio_s"], abs=1e-3)
    assert "first sound after" in captured.err


def test_chat_writes_an_answer_a_turn(
    bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", clip, clip, "--bundle", bundle, "--greedy", "--max-new-tokens", "40"]
    status = main([*words, "-o", str(tmp_path / "a.wav")])
    written = {path.name for path in tmp_path.glob("a*.wav")}
    assert written <= {"a-1.wav", "a-2.wav"}
    assert (status == 0) == (len(written) == 2)  # an answer without sound is told by the status too
    err = capsys.readouterr().err
    assert all(f"a-{turn}.wav" in err for turn in (1, 2))  # written or not, each is named


def test_convert_and_continue(bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.wav"
    how = ["--bundle", bundle, "--greedy", "--max-new-tokens", "8", "-o", str(out)]
    for words in (
        ["convert", clip, "--example", clip, "What it says.", clip, "--instruction", "Convert."],
        ["continue", clip, "--seconds", "1"],
    ):
        out.unlink(missing_ok=True)
        status = main([*words, *how])
        assert (status == 0) == out.exists()
        assert (f"wrote {out}" if out.exists() else f"no sound came, {out} was not written") in capsys.readouterr().err
    out.unlink(missing_ok=True)
    assert main(["speak", "a", "--greedy", "--max-new-tokens", "1", "-o", str(out)]) == 1  # its text comes first
    assert f"no sound came, {out} was not written" in capsys.readouterr().err
    assert not out.exists()


def test_chat_in_text_writes_no_sound(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", clip, "--text-out", "-o", "a.wav"])
    assert "not allowed with" in capsys.readouterr().err


def test_encode_and_decode(bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes, wav = tmp_path / "c.npy", tmp_path / "d.wav"
    assert main(["encode", clip, "-o", str(codes), "--bundle", bundle]) == 0
    frames = np.load(codes).shape[1]
    assert f"{frames} frames" in capsys.readouterr().out
    assert main(["decode", str(codes), "--levels", "1", "-o", str(wav), "--bundle", bundle, "--json"]) == 0
    assert said(capsys)["samples"] == soundfile.info(str(wav)).frames
    assert main(["decode", str(codes), "--levels", "99", "-o", str(wav), "--bundle", bundle]) == 1
    assert "--levels of at most" in capsys.readouterr().err


def test_dump_numbers_every_stage(bundle: str, clip: str, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    assert main(["transcribe", clip, "--bundle", bundle, "--max-new-tokens", "2", "--dump", str(folder)]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["0001_wave.npy", "0002_mel.npy"]
    assert any(name.endswith("_backbone.hidden.npy") for name in names)
    assert all(np.load(folder / name).size > 0 for name in names)
    assert main(["transcribe", clip, "--bundle", bundle, "--dump", str(folder)]) == 1  # not into a folder in use


def test_demo_answers_in_text_and_voice(
    bundle: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--bundle", bundle, "--audio", clip, "--greedy", "--max-new-tokens", "40"]) == 0
    captured = capsys.readouterr()
    assert "heard:" in captured.out
    assert "answered:" in captured.out
    assert "in" in captured.err


def test_demo_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    assert "heard:" in captured.out
    assert "RTF" in captured.err
    assert "first sound after" in captured.err
    model = mimo_edge.load()
    assert soundfile.info("mimo-edge-demo.wav").samplerate == model.rate_hz
    assert model.config.get("trained", True) or "the voice is noise" in captured.out


def test_interruption_is_status_130(bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("mimo_edge.model.Model.transcribe", interrupt)
    assert main(["transcribe", clip, "--bundle", bundle]) == 130


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_an_interrupted_transcript_is_kept_as_far_as_it_came(
    stream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second piece of one recording: the first is printed and written, the third is not made."""
    sound, rate = soundfile.read(mimo_edge.demo_command(), dtype="float32")
    path, out = tmp_path / "long.wav", tmp_path / "said.txt"
    soundfile.write(path, np.tile(np.pad(sound, (0, 28 * rate)), 3), rate)
    whole = mimo_edge.load().transcribe(str(path)).result().text
    count, begin = 0, Answer.__init__

    def counting(self: Answer, *words: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(signal.SIGINT)
        begin(self, *words)

    monkeypatch.setattr(Answer, "__init__", counting)
    before = signal.getsignal(signal.SIGINT)
    assert main(["transcribe", str(path), "-o", str(out), *stream]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    said = out.read_text().strip()
    assert said
    assert whole.startswith(said)
    assert said != whole
    assert count == 2
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["transcribe", "nowhere.wav"],
        ["speak", "   "],
        ["speak", "a", "--natural", "--instruct", "b"],
        ["chat", "CLIP", "--thinking"],
        ["transcribe", "CLIP", "--template", "22"],
        ["transcribe", "CLIP", "--template", "-1"],
        ["transcribe", "CLIP", "--dump", "/nowhere/dump"],
        ["decode", "nowhere.npy"],
        ["decode", "CLIP"],
        ["text", ""],
        ["continue", "CLIP", "--seconds", "0"],
        ["speak", "a", "--temperature", "0"],
        ["speak", "a", "--greedy", "--top-p", "0.5"],
        ["speak", "a", "--seed", "99999999999999999999"],
        ["bench", "--context", "99999999"],
    ],
)
def test_errors_are_one_sentence(words: list[str], bundle: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([clip if word == "CLIP" else word for word in words] + ["--bundle", bundle]) == 1
    err = capsys.readouterr().err
    assert err.startswith("mimo-edge: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_full_disk_loses_nothing(bundle: str, clip: str, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the old file stays, no partial one is left."""
    out = tmp_path / "codes.npy"
    out.write_bytes(b"precious")
    limited = subprocess.run(
        [sys.executable, "-m", "mimo_edge.cli", "encode", clip, "-o", str(out), "--bundle", bundle],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert limited.returncode == 1
    assert "cannot write" in limited.stderr
    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.wav", "codes.npy"]
