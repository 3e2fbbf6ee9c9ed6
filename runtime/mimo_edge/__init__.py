"""MiMo-Audio on the edge: listens, thinks and speaks, without PyTorch.

    import mimo_edge
    model = mimo_edge.load("bundle")                                   # or load() for the demo bundle in the package
    print(model.transcribe("question.wav").result().text)
    for piece in model.speak("Good morning."):                         # pieces of text and sound as they are made
        ...

What computes is the C++ core `mimo_edge._core`; this package reads sound, names the tasks and holds the results.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mimo_edge._core import BundleError, DeviceError, Error, InputError, Sampling, ShapeError
from mimo_edge.audio import AudioInput, read_audio, write_wav
from mimo_edge.conversation import Conversation
from mimo_edge.dialogue import Turn
from mimo_edge.engine import Tap
from mimo_edge.generation import Generation
from mimo_edge.hardware import open_core
from mimo_edge.model import Example, Model
from mimo_edge.prefix_cache import PrefixCache
from mimo_edge.reply import Piece, Reply, Timings
from mimo_edge.request import Options

__version__ = version("mimo-edge")

__all__ = [
    "AudioInput",
    "BundleError",
    "Conversation",
    "DeviceError",
    "Error",
    "Example",
    "Generation",
    "InputError",
    "Model",
    "Options",
    "Piece",
    "PrefixCache",
    "Reply",
    "Sampling",
    "ShapeError",
    "Tap",
    "Timings",
    "Turn",
    "demo_bundle",
    "demo_command",
    "load",
    "read_audio",
    "write_wav",
]

DEMO = Path(__file__).parent / "demo"


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    threads: int = 0,
    device: str = "cpu",
    check: bool = False,
    parity: bool = False,
    tap: Tap | None = None,
    backend: str = "native",
    providers: Sequence[str] = (),
    graphs: str | os.PathLike[str] | None = None,
) -> Model:
    """Open a bundle made by `mimo-edge build`.

    bundle: its folder; None = the demo bundle inside the package. threads: 0 = all cores. device: where the core
    computes, "cpu", or "cuda" ("cuda:1", ...) for the language model on a GPU. check: verify the sha256 of every file,
    not only of the small ones. parity: reproduce the public reference with its bugs, for comparisons. tap: called with
    (name, array) at every stage.
    backend: who computes the networks: "native", the core itself; "onnxruntime", with `providers` by their names
    (default: the CPU) and the folder `graphs` of `mimo-edge export-onnx` (default: "onnx" in the bundle); "tensorrt",
    with `graphs` of `mimo-edge build-engine` (default: "engines" in the bundle); "auto": TensorRT where engines fit
    this device, else native on CUDA, else native on the CPU, and the log says why.
    Raises BundleError for a wrong, newer, truncated or altered bundle; InputError or DeviceError for a device, backend,
    package, provider or graphs that do not fit.
    """
    path = demo_bundle() if bundle is None else Path(bundle)
    return Model(open_core(path, backend, providers, graphs, threads, check, device), parity=parity, tap=tap)


def demo_bundle() -> Path:
    """Return the folder of the bundle that ships inside the package."""
    return _demo_file("bundle.json").parent


def demo_command() -> Path:
    """Return the spoken command that ships inside the package."""
    return _demo_file("*.wav")


def _demo_file(pattern: str) -> Path:
    found = sorted(DEMO.rglob(pattern))
    if not found:
        raise BundleError(f"load: expected {pattern} in {DEMO}, got none; install the package again or name a bundle")
    return found[0]
