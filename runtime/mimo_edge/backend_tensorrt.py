"""The networks as TensorRT engines, driven from Python: `mimo_edge.load(bundle, backend="tensorrt")`.

    <stage>.smNN.engine of build-engine -> identity held against this device -> contexts -> Backend (backend.py)

For machines that have TensorRT's Python bindings (`tensorrt` or `tensorrt_rtx`) but not its headers; a core built with
them does the same in csrc/backend/trt_graph.cpp. A cache is one buffer, input and output of a step; buffers are made
when a conversation begins and never after. Exercised against stand-ins of TensorRT and CUDA; not run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mimo_edge import _core
from mimo_edge._core import DeviceError
from mimo_edge.backend import Array, SequenceTap
from mimo_edge.cuda_memory import Cuda, Memory
from mimo_edge.engines import check_identity, find_engine, load_tensorrt
from mimo_edge.graphs import STAGES, bundle_sha256

UNSEEN = -30000.0  # added to the score of a position that may not be looked at; finite in float16
MASK_MULTIPLE = 64  # positions a mask is rounded up to: few shapes for the engine to choose tactics for
DECODE, PREFILL = 0, 1  # profiles of patch_encoder and backbone
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "I32": np.dtype(np.int32), "I64": np.dtype(np.int64),
}  # fmt: skip


def open_engines(folder: Path, bundle: Path) -> TensorRt | _core.NativeBackend:
    """Open the engines of `bundle`, by the core's own driver if it was built with TensorRT, else by the one below."""
    version = _core.tensorrt_version()
    if not version:
        return TensorRt(folder, bundle)
    sm, identity = Cuda().compute_capability(), bundle_sha256(bundle)
    paths = {stage: find_engine(folder, stage, sm) for stage in STAGES}
    for path in paths.values():
        check_identity(path, identity, sm, "tensorrt", version)
    return _core.open_tensorrt({stage: str(path) for stage, path in paths.items()})


class TensorRt:
    """The engines of one bundle, deserialised."""

    def __init__(self, folder: Path, bundle: Path, cuda: Cuda | None = None) -> None:
        """folder: of build-engine.

        Raises InputError (no package, engines of another bundle, SM or version: both are named), DeviceError (no GPU).
        """
        trt = load_tensorrt()
        self.cuda = cuda or Cuda()
        identity, sm = bundle_sha256(bundle), self.cuda.compute_capability()
        paths = {stage: find_engine(folder, stage, sm) for stage in STAGES}
        facts = {s: check_identity(path, identity, sm, trt.__name__, trt.__version__) for s, path in paths.items()}
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engines = {s: Engine(trt, self.runtime, self.cuda, path, facts[s]) for s, path in paths.items()}
        self.encoder = self.engines["codec_encoder"].context(0)
        self.decoder = self.engines["codec_decoder"].context(0)

    def sequence(self, capacity: int) -> TensorRtSequence:
        return TensorRtSequence(self, capacity)

    def encode(self, mel: Array, longest: int) -> Array:
        shorter = np.array([len(mel) < longest], np.float32)
        self.encoder.run(mel=mel, padded=shorter, batched=shorter)
        return self.encoder.output("hidden")

    def decode(self, codes: Array) -> Array:
        self.decoder.run(codes=codes)
        return self.decoder.output("wav")


class Engine:
    """A deserialised engine with its identity."""

    def __init__(self, trt: ModuleType, runtime: Any, cuda: Cuda, path: Path, identity: dict[str, Any]) -> None:
        self.trt, self.cuda, self.identity, self.path = trt, cuda, identity, path
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise DeviceError(f"tensorrt: {path}: TensorRT {trt.__version__} cannot read it; build it for this device")
        kinds = identity["inputs"] | identity["outputs"]
        float_ = identity["precision"].upper()
        if float_ == "BF16":
            raise DeviceError(f"tensorrt: {path}: expected an engine in f16, got bf16, which numpy lacks; build f16")
        self.dtypes = {name: DTYPES[float_ if kind == "FLOAT" else kind] for name, (_, kind) in kinds.items()}

    def caches(self) -> dict[str, Memory]:
        """New buffers, zero, under the names before and after a step: the same buffer."""
        shared: dict[str, Memory] = {}
        for before, after in self.identity["caches"]:
            shape = [self.identity["capacity"] if n == "capacity" else n for n in self.identity["inputs"][before][0]]
            shared[before] = shared[after] = self.cuda.allocate(int(np.prod(shape)) * self.dtypes[before].itemsize)
        return shared

    def context(self, profile: int, shared: dict[str, Memory] | None = None) -> Context:
        return Context(self, profile, shared or {})


class Context:
    """An execution context at one profile, with a buffer a tensor, as large as the profile allows.

    shared: buffers of others to use in place of own ones, by name: caches, embeddings.
    """

    def __init__(self, engine: Engine, profile: int, shared: dict[str, Memory]) -> None:
        self.cuda, self.dtypes, self.identity = engine.cuda, engine.dtypes, engine.identity
        self.sizes = engine.identity["profiles"][profile]
        self.context = engine.engine.create_execution_context()
        if self.context is None or not self.context.set_optimization_profile_async(profile, self.cuda.stream):
            raise DeviceError(f"tensorrt: {engine.path}: no execution context; is enough memory left on the GPU?")
        self.inputs, outputs = self.identity["inputs"], self.identity["outputs"]
        for name, (shape, _) in self.inputs.items():
            self._shape(name, tuple(self.sizes[n][2] if isinstance(n, str) else n for n in shape))
        self.memory = dict(shared)
        for name in (*self.inputs, *outputs):
            if name not in self.memory:
                most = tuple(self.context.get_tensor_shape(name))  # known now that the inputs are as large as can be
                self.memory[name] = self.cuda.allocate(int(np.prod(most)) * self.dtypes[name].itemsize)
            if not self.context.set_tensor_address(name, self.memory[name].address):
                raise DeviceError(f"tensorrt: {engine.path}: expected a tensor {name}, got none; build it again")
        for before, _ in self.identity["caches"]:
            self._shape(before, tuple(self.context.get_tensor_shape(before)))

    def run(self, shapes: dict[str, tuple[int, ...]] | None = None, **arrays: Array) -> None:
        """Copy arrays to their inputs and run. shapes: of inputs that are on the device already."""
        for name, value in arrays.items():
            array = np.ascontiguousarray(value, self.dtypes[name])
            self._shape(name, array.shape)
            self.cuda.to_device(self.memory[name].address, array)
        for name, shape in (shapes or {}).items():
            self._shape(name, shape)
        if not self.context.execute_async_v3(self.cuda.stream):
            raise DeviceError("tensorrt: a run failed; its log says why")

    def step(self, length: int, new: int, shapes: dict[str, tuple[int, ...]] | None = None, **arrays: Array) -> None:
        """Run with `new` positions after `length` filled ones."""
        wide = min(-(-(length + new) // MASK_MULTIPLE) * MASK_MULTIPLE, self.sizes["attended"][2])
        ahead = np.arange(wide)[None] - np.arange(length, length + new)[:, None]
        mask = np.where(ahead <= 0, 0.0, UNSEEN)[None, None]
        self.run(shapes, length=np.array([length]), mask=mask, **arrays)

    def output(self, name: str) -> Array:
        """An output of the last run; floats as float32."""
        shape = tuple(self.context.get_tensor_shape(name))
        made = self.cuda.to_host(self.memory[name].address, shape, self.dtypes[name])
        return made.astype(np.float32, copy=False)

    def _shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self.context.set_input_shape(name, shape):
            raise DeviceError(f"tensorrt: {name}: expected a shape within {self.sizes}, got {list(shape)}; "
                              "build engines of other limits")  # fmt: skip


class TensorRtSequence:
    """One conversation. Decoding and prefilling are two profiles over the same caches."""

    def __init__(self, backend: TensorRt, capacity: int) -> None:
        embed, backbone, local = (backend.engines[s] for s in ("patch_encoder", "backbone", "patch_decoder_step"))
        if capacity > backbone.identity["capacity"]:
            raise DeviceError(f"tensorrt: {backbone.path}: expected at least {capacity} positions, got "
                              f"{backbone.identity['capacity']}; build it with --capacity {capacity}")  # fmt: skip
        self._embed = [embed.context(profile) for profile in (DECODE, PREFILL)]
        caches = backbone.caches()
        self._backbone = [
            backbone.context(profile, caches | {"embeds": self._embed[profile].memory["embeds"]})
            for profile in (DECODE, PREFILL)
        ]
        self._local = local.context(0, local.caches())
        self._most = self._backbone[PREFILL].sizes["positions"][2]
        self._last = self._backbone[DECODE]

    def append(self, first: int, tokens: Array, codes: Array, tap: SequenceTap) -> Array:
        levels, _, group = self._embed[DECODE].inputs["codes"][0]
        patches = codes.reshape(len(tokens), group, levels).transpose(2, 0, 1)
        last = np.zeros((1, 0), np.float32)
        for start in range(0, len(tokens), self._most):
            part = slice(start, min(start + self._most, len(tokens)))
            new = part.stop - start
            profile = DECODE if new == 1 else PREFILL
            self._embed[profile].run(tokens=tokens[part], codes=patches[:, part])
            shape = (1, new, self._backbone[profile].inputs["embeds"][0][2])
            self._last = self._backbone[profile]
            self._last.step(first + start, new, {"embeds": shape})
            hidden = self._last.output("hidden")[0]
            if tap:
                tap("backbone.hidden", hidden)
            last = hidden[-1:]
        return last

    def text_logits(self) -> Array:
        logits: Array = self._last.output("logits")[0]
        return logits

    def local_hidden(self) -> Array:
        return self._last.output("local_hidden")

    def local_step(self, step: int, made: Array, tap: SequenceTap) -> list[Array]:
        local = self.local_hidden()
        self._local.step(step, 1, start=local if step == 0 else np.zeros_like(local), codes=made)
        if tap:
            tap("patch_decoder.hidden", self._local.output("hidden")[0])
        return [self._local.output(f"logits.{level}")[0] for level in range(len(made))]
