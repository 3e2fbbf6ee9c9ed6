"""`mimo-edge bench` measures every stage of a bundle, and makes one of random weights if asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimo_edge.cli import main


def test_bench_of_a_random_quantised_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "random"
    words = ["bench", "--shape", "small", "--recipe", "int8", "--keep", str(kept), "--context", "16", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"] == "random-small-seed0-int8"
    stages = report["stages"]
    assert all(stage["seconds"] > 0 and stage["bandwidth"] > 0 for stage in stages.values())
    # one byte a weight and float32 scales: the head is [320, 64]
    assert stages["text head"]["read_bytes"] == 320 * 64 + 320 * 4
    rates = report["rates"]
    assert 0 < rates["RTF, steady speech"] < rates["RTF, interleaved opening"]
    assert rates["RTF, opening, read aloud"] > rates["RTF, steady speech"]
    assert (kept / "bundle.json").is_file()


def test_bench_prints_shares_of_the_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--context", "16", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "backbone step" in out
    assert "%" in out
    assert "RTF, interleaved opening" in out
    assert "ms of work for 160 ms of sound" in out
