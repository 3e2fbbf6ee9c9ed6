"""Synthetic speakers of four free engines -> float32 waves at 24 kHz, with word times where the engine tells them.

hibari (PyPI, Apache-2.0) is a network that predicts f0 and spectral envelopes; shifting the first and warping the
second makes a new speaker, and its duration output gives the time of every word. festival, flite and espeak-ng
(Debian) run as programs. Two of hibari's speakers and more are told apart by (f0 factor, envelope warp, tilt in dB
per octave).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import soundfile as sf
from hibari import Hibari, dsp
from scipy.signal import resample_poly
from speakers import Voice

RATE_HZ = 24000
FRAME_SAMPLES = 600  # one step of hibari's durations, 25 ms
MARGIN_SAMPLES = 1200  # silence kept on both sides, 50 ms


@dataclass(slots=True)
class Utterance:
    """wav float32 [samples] at 24 kHz; words: (start, stop) samples of each word, None if the engine hides them.

    phones: (hibari's id, start, stop) of every phone, likewise.
    """

    wav: np.ndarray
    words: list[tuple[int, int]] | None = None
    phones: list[tuple[int, int, int]] | None = None


def trim(u: Utterance) -> Utterance:
    """Cut silence (below -42 dB of the peak, 10 ms blocks) down to 50 ms and level the peak to 0.6."""
    wav = u.wav
    peak = float(np.abs(wav).max()) if wav.size else 0.0
    if peak < 1e-4:
        return Utterance(np.zeros(0, np.float32))
    blocks = np.abs(wav[: wav.size // 240 * 240]).reshape(-1, 240).max(1) > peak * 0.008
    loud = np.flatnonzero(blocks)
    start = max(0, int(loud[0]) * 240 - MARGIN_SAMPLES)
    stop = min(wav.size, int(loud[-1] + 1) * 240 + MARGIN_SAMPLES)
    words = None if u.words is None else [(max(0, a - start), max(0, b - start)) for a, b in u.words]
    phones = None if u.phones is None else [(i, max(0, a - start), max(0, b - start)) for i, a, b in u.phones]
    return Utterance((wav[start:stop] * (0.6 / peak)).astype(np.float32), words, phones)


class HibariEngine:
    """hibari's network with its frame-per-phoneme durations added to the outputs."""

    def __init__(self) -> None:
        self.tts = Hibari()
        graph = onnx.load(self.tts.model_path)
        _add_durations(graph)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.cache: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}

    def say(self, text: str, voice: Voice, speed: float, seed: int) -> Utterance:
        """text: lower-case words. speed: 1.0 is the voice's own pace, larger is faster."""
        ids, spans = self.phonemes(text)
        feed = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        *parts, frames = self.session.run(None, feed)
        lh, th, ln, lr, phi, f0 = (p[0] for p in parts)
        if voice.warp != 1.0:
            lh, th, ln, lr, phi = (_warp(x, voice.warp) for x in (lh, th, ln, lr, phi))
        if voice.tilt:
            octave = np.log2(np.maximum(np.arange(lh.shape[0]) * 20.0, 100.0) / 1000.0)  # bins of 20 Hz, 0 dB at 1 kHz
            gain = (voice.tilt * octave / 8.686).astype(np.float32)[:, None]  # dB -> natural log
            lh, ln, lr = lh + gain, ln + gain, lr + gain
        wav = dsp.synth(lh, th, ln, lr, phi, f0 * voice.f0, np.random.default_rng(seed))
        edges = np.concatenate([[0], np.cumsum(frames.reshape(-1).round())]).astype(int) * FRAME_SAMPLES
        phones = [(i, int(a), int(b)) for i, a, b in zip(ids, edges[:-1], edges[1:], strict=True)]
        return Utterance(wav, [(int(edges[a]), int(edges[b])) for a, b in spans], phones)

    def phonemes(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """ids with the two pads, and each word's [start, stop) in ids; words are said by their own pronunciation."""
        if text not in self.cache:
            marks = "".join(self.tts.phonemize(text + "."))
            ids = self.tts.ids(marks)
            kept = [c for c in marks if c in self.tts.vocab]
            spans, start = [], 1
            for i, c in enumerate(kept, 1):
                if c in " .":
                    spans.append((start, i))
                    start = i + 1
            self.cache[text] = (ids, spans)
        return self.cache[text]


def _warp(x: np.ndarray, factor: float) -> np.ndarray:
    """Stretch the frequency axis of x [bins, frames] by factor (> 1 moves formants up), linear interpolation."""
    at = np.minimum(np.arange(x.shape[0]) / factor, x.shape[0] - 1.001)
    low = at.astype(int)
    part = (at - low).astype(np.float32)[:, None]
    return x[low] * (1 - part) + x[low + 1] * part


def _add_durations(graph: onnx.ModelProto) -> None:
    """Make the input of hibari's only CumSum, the frames of every phoneme, the last output."""
    (node,) = (n for n in graph.graph.node if n.op_type == "CumSum")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.INT64, None))


def flite(text: str, voice: Voice, speed: float) -> np.ndarray:
    return _program(["flite", "-voice", voice.name, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o"])


def espeak(text: str, voice: Voice, speed: float) -> np.ndarray:
    return _program(["espeak-ng", "-v", voice.name, "-s", str(int(165 * speed)), text, "-w"])


def _program(command: Sequence[str]) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run([*command, file.name], check=True, capture_output=True)
        return read(Path(file.name))


def festival(texts: Sequence[str], voice: Voice, speeds: Sequence[float], folder: Path) -> list[np.ndarray]:
    """One festival run for many sentences: loading a voice costs more than speaking."""
    lines = [f"(voice_{voice.name})"]
    for i, (text, speed) in enumerate(zip(texts, speeds, strict=True)):
        lines.append(f"(Parameter.set 'Duration_Stretch {1 / speed:.3f})")
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{folder}/{i}.wav")')
    script = folder / "say.scm"
    script.write_text("\n".join(lines))
    subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
    waves = [read(folder / f"{i}.wav") for i in range(len(texts))]
    for i in range(len(texts)):
        (folder / f"{i}.wav").unlink()
    return waves


def read(path: Path) -> np.ndarray:
    """A wav of any rate -> float32 [samples] at 24 kHz."""
    wav, rate = sf.read(path, dtype="float32")
    return wav if rate == RATE_HZ else to_rate(wav, rate, RATE_HZ)


def to_rate(wav: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    shared = int(np.gcd(from_hz, to_hz))
    return resample_poly(wav, to_hz // shared, from_hz // shared).astype(np.float32)


def shift(wav: np.ndarray, factor: float) -> np.ndarray:
    """Play faster by factor: pitch, formants and pace move together."""
    return wav if factor == 1.0 else to_rate(wav, round(100 * factor), 100)


@lru_cache(maxsize=1)
def hibari() -> HibariEngine:
    return HibariEngine()
