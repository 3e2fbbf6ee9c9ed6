"""`mimo-edge bench`: where the time of a bundle goes on this machine, beside what its memory can deliver.

A step of the backbone or of the patch decoder reads each of its weights once, so its limit is the bandwidth of memory.
That is measured around every stage, in the same seconds, and the time is given as a share of it.

    first sound          of a spoken answer, from the prompt's last position: 5 text tokens, then patches until the
                         default look-ahead of the codec has what it waits for; of a text read aloud, whose tokens are
                         read together with that position, because they are known
    steady speech        a backbone position, its text token, a patch (11 local steps), its sound: per 160 ms
    interleaved opening  5 text tokens for every 5 patches: one more position and its text token per 160 ms; of a text
                         read aloud, one pass over 6 positions in the place of each fifth
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mimo_edge import _core
from mimo_edge.progress import ProgressBar
from mimo_edge.reply import Ids
from mimo_edge.request import Options

RUNS = 7  # of a decoding stage; the median counts
SOUND_SECONDS = 8  # of the codec's offline stages
HISTORY_FRAMES = 250  # code frames that a stream of sound keeps by itself
PATCHES = 24  # of steady speech
OPENING_TOKENS = 5  # of text before the first patch of a spoken answer
SPEAKING = ("backbone step", "text head", "text token drawn", "patch decoder", "sound of a patch")  # a patch's work
PLOT_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class Stage:
    """One measured stage. read_bytes: weights and cached positions that it must read, 0 where arithmetic is the limit;
    bandwidth: bytes a second that this machine read around it."""

    name: str
    seconds: float
    read_bytes: int
    bandwidth: float

    @property
    def share(self) -> float:
        """The part of the read bandwidth that the stage reaches."""
        return self.read_bytes / self.seconds / self.bandwidth


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured. patch_seconds: how long a patch sounds. rates: real-time factors, positions a second."""

    bundle: str
    kernels: str
    threads: int
    context: int
    patch_seconds: float
    open_seconds: float
    stages: dict[str, Stage]
    rates: dict[str, float]
    resident_bytes: int


def run_bench(arguments: argparse.Namespace) -> int:
    """The sub-command."""
    with _folder(arguments) as folder:
        report = measure(Path(folder), arguments.threads, arguments.context)
        rivals: dict[str, float] = {}
        if arguments.compare:
            rivals = importlib.import_module("mimo_edge.bench_rivals").measure_rivals(Path(folder), report.threads)
    if arguments.json:
        print(json.dumps(asdict(report) | {"rivals": rivals}))
        return 0
    _print(report)
    for name, seconds in rivals.items():
        print(f"{name:<44}{1000 * seconds:9.2f} ms")
    return 0


def _folder(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """The bundle to measure: the one named, or one of random weights, which is kept only where the user says."""
    if arguments.shape is None:
        import mimo_edge

        return nullcontext(arguments.bundle or mimo_edge.demo_bundle())
    if arguments.keep is None:
        temporary = tempfile.TemporaryDirectory(prefix="mimo-edge-bench-")
        _make(arguments, Path(temporary.name))
        return temporary
    if not (arguments.keep / "bundle.json").exists():
        _make(arguments, arguments.keep)
    return nullcontext(arguments.keep)


def _make(arguments: argparse.Namespace, folder: Path) -> None:
    """Write random weights; the rooms that know how are a workstation's, opened only here."""
    with ProgressBar(None, "GB", "writing random weights") as bar:
        last = 0.0

        def progress(done: float, total: float, name: str) -> None:
            nonlocal last
            bar.total = total / 1e9
            bar.update((done - last) / 1e9)
            last = done

        if arguments.recipe == "bf16":
            source = importlib.import_module("mimo_edge.export.random_checkpoint").RandomCheckpoint(arguments.shape)
            importlib.import_module("mimo_edge.export.bundle_writer").write_bundle(source, folder, progress=progress)
            return
        recipe = importlib.import_module("mimo_edge.quantize.recipe").Recipe.read(arguments.recipe)
        maker = importlib.import_module("mimo_edge.quantize.random_bundle")
        maker.write_random_bundle(arguments.shape, recipe, folder, progress=progress)


def measure(folder: Path, threads: int, context: int) -> Report:
    """Open the bundle `folder` and time its stages. context: positions read before decoding is timed.

    Raises BundleError as opening does, InputError if the context is longer than the model's.
    """
    with ProgressBar(None, "", "measuring"):
        start = time.perf_counter()
        model = _core.Model.open(str(folder), threads)
        opened = time.perf_counter() - start
        return _Bench(model, folder, context).report(opened)


class _Voice(NamedTuple):
    """What a reply is made of: draw a token; read text, then draw one; read a patch, and the text foreseen after it,
    drawing all of it; make a patch; read one, draw a token, make the next."""

    draw: Callable[[], None]
    make_text: Callable[[], None]
    make_foreseen: Callable[[], None]
    make_patch: Callable[[], object]
    go_on: Callable[[], None]


class _Bench:
    """One opened model and the stages that were timed so far."""

    def __init__(self, model: _core.Model, folder: Path, context: int) -> None:
        self._model, self._folder, self._context = model, folder, context
        self._lm = json.loads(model.config_json)["lm"]
        self._codec = json.loads(model.config_json)["codec"]
        self._sizes = _tensor_bytes(folder / "lm.safetensors") | _tensor_bytes(folder / "codec.safetensors")
        self._stages: dict[str, Stage] = {}
        self._resident = 0
        self._random = np.random.default_rng(0)
        sizes = self._codec["codebook_size"][: self._lm["audio_channels"]]
        group = self._lm["group_size"]
        self._codes = np.stack([self._random.integers(0, size, group) for size in sizes]).astype(np.int32)
        self._past = np.tile(self._codes, (1, HISTORY_FRAMES // group + 1))  # after it every patch costs the same

    def report(self, opened: float) -> Report:
        voice = self._language_model()
        self._sound()
        self._speech(voice)
        seconds = {name: stage.seconds for name, stage in self._stages.items()}
        patch_seconds = self._patch_seconds()
        steady = seconds["speech, a patch"]
        token = seconds["backbone step"] + seconds["text head"] + seconds["text token drawn"]
        foreseen = (seconds[f"{OPENING_TOKENS} tokens foreseen"] - token) / OPENING_TOKENS
        rates = {
            "prefill, positions a second": self._context / seconds["prefill"],
            "RTF, steady speech": steady / patch_seconds,
            "RTF, interleaved opening": (steady + token) / patch_seconds,
            "RTF, opening, read aloud": (steady + foreseen) / patch_seconds,
            "RTF, codec encoder": seconds["codec encoder"] / SOUND_SECONDS,
            "RTF, codec decoder": seconds["codec decoder"] / SOUND_SECONDS,
        }
        return Report(
            bundle=str(json.loads(self._model.config_json)["name"]),
            kernels=self._model.kernels,
            threads=self._model.threads,
            context=self._context,
            patch_seconds=patch_seconds,
            open_seconds=opened,
            stages=self._stages,
            rates=rates,
            resident_bytes=self._resident,
        )

    def _patch_seconds(self) -> float:
        c = self._codec
        frame = c["hop_length"] * c["stride_size"] * c["avg_pooler"] / c["sampling_rate"]
        return float(self._lm["group_size"] * frame)

    def _language_model(self) -> _Voice:
        lm, model = self._lm, self._model
        group, levels = lm["group_size"], lm["audio_channels"]
        if self._context >= lm["max_position_embeddings"]:
            most = lm["max_position_embeddings"]
            raise _core.InputError(f"bench: expected a context below the model's {most} positions, got {self._context}")
        word = model.prompt_text(model.detokenize(model.tokenize("a" * 4)[:1]))[:, :group]
        prompt = np.tile(word, (1, self._context))
        state = _core.State(model, context=min(self._context + 64, lm["max_position_embeddings"]))
        state.prefill(prompt[:, :group])  # touches the weights
        state.rewind(0)
        self._time("prefill", lambda: state.prefill(prompt), runs=1)
        patch = np.stack([self._random.integers(0, size - 1, group) for size in lm["speech_vocab_size"]])
        patch_position = model.prompt_audio(patch.astype(np.int32), False)
        kv = json.loads(model.config_json).get("quantization", {}).get("kv")
        value_bytes = importlib.import_module("mimo_edge.quantize.recipe").kv_bytes(kv, lm["head_dim"])
        values = lm["num_hidden_layers"] * lm["num_key_value_heads"] * lm["head_dim"] * 2
        cached = int(values * value_bytes) * self._context

        def step(position: Ids = patch_position, guesses: Sequence[int] = ()) -> None:
            state.rewind(self._context)
            state.prefill(position, guesses=guesses)

        backbone = self._bytes(r"model\.(layers|norm)\.") + self._bytes(r"input_local_transformer|speech_group_down")
        self._time("backbone step", step, backbone + cached)
        head = "model.embed_tokens" if lm["tie_word_embeddings"] else "lm_head"
        self._time("text head", state.text_logits, self._bytes(re.escape(head) + r"\."))
        logits = state.text_logits()
        text, speech, _ = model.task("spoken_dialogue")
        reading, _, _ = model.task("tts")
        self._time("text token drawn", lambda: _core.sample(logits, text))  # random weights' flat scores take longest
        local = self._bytes(r"local_transformer\.|speech_embeddings_to_local") * (group + max(lm["delay_pattern"]))
        heads = sum(self._bytes(rf"local_transformer_lm_heads\.{k}\.") for k in range(levels)) * group
        local += heads + self._bytes("hidden_states_downcast")

        def make_patch() -> object:
            return state.decode_patch(speech)

        self._time("patch decoder", make_patch, local)

        def draw(sampling: _core.Sampling = text) -> None:
            _core.sample(state.text_logits(), sampling)

        def make_text() -> None:
            step(word)
            draw()

        def make_foreseen() -> None:
            step(guesses=[int(word[0, 0])] * OPENING_TOKENS)
            draw(reading)
            for _ in range(OPENING_TOKENS):
                state.prefill(word)
                draw(reading)

        def go_on() -> None:
            step()
            draw()
            make_patch()

        self._time(f"{OPENING_TOKENS} tokens foreseen", make_foreseen)
        return _Voice(draw, make_text, make_foreseen, make_patch, go_on)

    def _sound(self) -> None:
        model, stream = self._model, self._stream()
        stream.push(self._past, False)
        self._time("sound of a patch", lambda: stream.push(self._codes, False), self._bytes(r"decoder\."))
        rate = self._codec["sampling_rate"]
        wave = self._random.normal(scale=0.1, size=rate * SOUND_SECONDS).astype(np.float32)
        heard = self._time("codec encoder", lambda: model.encode(wave), runs=3)
        self._time("codec decoder", lambda: model.decode(heard), runs=3)

    def _speech(self, voice: _Voice) -> None:
        def until_it_sounds() -> None:
            stream = self._stream()
            while len(stream.push(self._codes, False)) == 0:
                voice.go_on()

        def answer() -> None:
            voice.draw()  # the first token follows from the prompt
            for _ in range(OPENING_TOKENS - 1):
                voice.make_text()
            voice.go_on()
            until_it_sounds()

        def read_aloud() -> None:
            voice.make_foreseen()
            voice.make_patch()
            until_it_sounds()

        def speak() -> None:
            voice.go_on()
            stream.push(self._codes, False)

        self._time("first sound", answer, runs=3)
        self._time("first, read aloud", read_aloud, runs=3)
        stream = self._stream()
        stream.push(self._past, False)
        self._time("speech, a patch", speak, sum(self._stages[name].read_bytes for name in SPEAKING), runs=PATCHES)

    def _stream(self) -> _core.DecoderStream:
        return _core.DecoderStream(self._model, look_ahead_frames=Options().look_ahead)

    def _bytes(self, pattern: str) -> int:
        return sum(size for name, size in self._sizes.items() if re.match(pattern, name))

    def _time(self, name: str, run: Callable[[], Any], read_bytes: int = 0, runs: int = RUNS) -> Any:
        before = self._model.read_bandwidth()
        times = []
        if runs > 1:
            run()  # touches its weights
        for _ in range(runs):
            start = time.perf_counter()
            result = run()
            times.append(time.perf_counter() - start)
        self._resident = max(self._resident, _resident_bytes())
        bandwidth = (before + self._model.read_bandwidth()) / 2
        self._stages[name] = Stage(name, statistics.median(times), read_bytes, bandwidth)
        return result


def _tensor_bytes(path: Path) -> dict[str, int]:
    """Sizes of the tensors of a safetensors file, from its header."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: end - begin for name, (begin, end) in spans.items()}


def _resident_bytes() -> int:
    """What this process holds in memory now, mapped weights included (Linux)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _print(report: Report) -> None:
    print(f"{report.bundle}: {report.kernels} on {report.threads} threads, {report.context} positions read before")
    print(f"{'stage':<20}{'ms':>10}{'MB':>9}{'GB/s':>8}{'read':>8}{'share':>8}")
    for stage in report.stages.values():
        line = f"{stage.name:<20}{1000 * stage.seconds:10.2f}"
        if stage.read_bytes:
            speed = stage.read_bytes / stage.seconds
            line += f"{stage.read_bytes / 1e6:9.1f}{speed / 1e9:8.1f}{stage.bandwidth / 1e9:8.1f}{stage.share:8.0%}"
        print(line)
    for name, value in report.rates.items():
        print(f"{name:<32}{value:10.3f}")
    print(f"{'opened in, s':<32}{report.open_seconds:10.3f}")
    print(f"{'resident, GB':<32}{report.resident_bytes / 1e9:10.3f}")
    print(_plot(report))


def _plot(report: Report) -> str:
    """The work of one patch of steady speech, stage after stage, above the time that the patch sounds."""
    spans = [(name, report.stages[name].seconds) for name in SPEAKING]
    work = sum(seconds for _, seconds in spans)
    columns_a_second = PLOT_COLUMNS / max(work, report.patch_seconds)
    lines, begin = [], 0.0
    for name, seconds in spans:
        end = begin + seconds
        first, last = round(begin * columns_a_second), round(end * columns_a_second)
        lines.append(f"{name:<20}{' ' * first}{'#' * max(1, last - first)}")
        begin = end
    sounds = f"{'it sounds':<20}{'=' * round(report.patch_seconds * columns_a_second)}"
    head = f"one patch: {1000 * work:.0f} ms of work for {1000 * report.patch_seconds:.0f} ms of sound"
    return "\n".join(["", head, *lines, sounds])
