"""The networks as exported graphs in ONNX Runtime: `mimo_edge.load(bundle, backend="onnxruntime")`.

    export.json -> a graph a stage, by provider -> sessions -> Backend (backend.py); caches are bound in place

Prompts, RVQ, sampler, delay pattern and loop are the core's, and so is streamed sound. On the CPU provider attention
over a cache is ONNX Runtime's own GroupQueryAttention (the flavour "cpu"), elsewhere the standard operators.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mimo_edge._core import DeviceError, InputError
from mimo_edge.backend import Array, SequenceTap
from mimo_edge.graphs import STAGES, check_files, check_source, read_export

CPU = "CPUExecutionProvider"
ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
PREFILL_POSITIONS = 256  # computed at once: bounds the memory of a long prompt
MAPPED_BYTES = 4 << 30  # weights of a graph beyond which the CPU provider gives up speed for memory
MASK_MULTIPLE = 64  # positions a mask is rounded up to: few shapes, since some providers compile each
UNSEEN = -30000.0  # added to the score of a position that may not be looked at; finite in float16
DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
NUMPY = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip


class OnnxRuntime:
    """The graphs of one bundle, opened."""

    def __init__(self, graphs: Path, bundle: Path, providers: Sequence[str], threads: int, check: bool) -> None:
        """graphs: folder of export-onnx. providers: of ONNX Runtime, by name; none: the CPU. threads: 0 = all cores.
        check: hash the weights too.

        Raises InputError (no such package or provider, graphs of another bundle or altered), DeviceError (ONNX Runtime
        refuses a graph, or there is not enough memory).
        """
        providers = providers or (CPU,)
        ort = _onnxruntime()
        _check_providers(ort, providers)
        described = read_export(graphs)
        check_source(graphs, described, bundle)
        if described["dtype"] not in DTYPES:
            raise InputError(f"onnxruntime: expected graphs in {' or '.join(DTYPES)}, got {described['dtype']}; "
                             "export again with --dtype f32")  # fmt: skip
        chosen = {stage: _choose(described["graphs"], stage, providers, graphs) for stage in STAGES}
        check_files(graphs, list(chosen.values()), check)
        _check_memory(chosen)
        self.dtype = DTYPES[described["dtype"]]
        self.device = "cuda" if providers[0] in ON_CUDA else "cpu"
        self.graphs = {stage: Graph(ort, graphs, entry, providers, threads) for stage, entry in chosen.items()}

    def sequence(self, capacity: int) -> OnnxSequence:
        return OnnxSequence(self, capacity)

    def encode(self, mel: Array, longest: int) -> Array:
        shorter = np.array([len(mel) < longest], np.float32)
        return self.graphs["codec_encoder"].run("hidden", mel=mel, padded=shorter, batched=shorter)

    def decode(self, codes: Array) -> Array:
        return self.graphs["codec_decoder"].run("wav", codes=codes)


class Graph:
    """A session with its entry in export.json."""

    def __init__(
        self, ort: ModuleType, folder: Path, entry: dict[str, Any], providers: Sequence[str], threads: int
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what it says is raised, in one sentence
        self.ort, self.entry, path = ort, entry, folder / entry["file"]
        if providers[0] == CPU and entry["weights"]["bytes"] > MAPPED_BYTES:
            # The weights stay mapped and are cast where they are used; folded or packed they would lie in memory twice.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        try:
            self.session = ort.InferenceSession(str(path), options, providers=list(providers))
        except MemoryError as error:
            raise DeviceError(f"onnxruntime: {path}: not enough memory; export with --dtype f16") from error
        except Exception as error:  # its classes have no common base
            said = str(error).splitlines()[0]
            needs = f"opset {entry['opset']}" + (", GroupQueryAttention" if entry["flavour"] == "cpu" else "")
            raise DeviceError(f"onnxruntime: {path} ({needs}): onnxruntime {ort.__version__} refuses it: {said}; "
                              "install a newer one, or export --flavour opset21") from error  # fmt: skip
        started = self.session.get_providers()
        if providers[0] not in started:
            raise DeviceError(f"onnxruntime: expected {providers[0]} to start, got {', '.join(started)}; its drivers "
                              "or libraries are missing here")  # fmt: skip
        caches = {after for _, after in entry["caches"]}
        self.made = [name for name in entry["outputs"] if name not in caches]
        self.types = {value.name: NUMPY[value.type] for value in self.session.get_inputs()}

    def run(self, name: str, **inputs: Array) -> Array:
        """Run a graph without caches; returns one of its outputs."""
        made: Array = self.session.run([name], inputs)[0]
        return made

    def bind(self, capacity: int, dtype: np.dtype[Any], device: str) -> Any:
        """A binding with caches of `capacity` positions, each one buffer as input and output."""
        binding = self.session.io_binding()
        for before, after in self.entry["caches"]:
            shape = [capacity if size == "capacity" else size for size in self.entry["inputs"][before][0]]
            cache = self.ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), device)
            binding.bind_ortvalue_input(before, cache)
            binding.bind_ortvalue_output(after, cache)
        return binding

    def step(self, binding: Any, length: int, capacity: int, new: int, **inputs: Array) -> dict[str, Array]:
        """Run with `new` positions after `length` filled ones. Returns the outputs but for the caches, as float32."""
        inputs["length"] = np.array([length])
        if "mask" in self.types:
            wide = min(-(-(length + new) // MASK_MULTIPLE) * MASK_MULTIPLE, capacity)
            ahead = np.arange(wide)[None] - np.arange(length, length + new)[:, None]
            inputs["mask"] = np.where(ahead <= 0, 0.0, UNSEEN)[None, None]
        kept = {name: np.ascontiguousarray(value, self.types[name]) for name, value in inputs.items()}
        for name, value in kept.items():
            binding.bind_cpu_input(name, value)  # does not own it
        for name in self.made:  # anew: a binding would write into the last run's, whatever its shape
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        made = binding.get_outputs()[len(self.entry["caches"]) :]
        return {name: value.numpy().astype(np.float32, copy=False) for name, value in zip(self.made, made, strict=True)}


class OnnxSequence:
    """One conversation: a backbone cache and a patch decoder cache, bound once."""

    def __init__(self, backend: OnnxRuntime, capacity: int) -> None:
        self._embed, self._backbone = backend.graphs["patch_encoder"], backend.graphs["backbone"]
        self._local, self._capacity = backend.graphs["patch_decoder_step"], capacity
        self._cache = self._backbone.bind(capacity, backend.dtype, backend.device)
        self._steps = self._local.entry["limits"]["capacity"]
        self._local_cache = self._local.bind(self._steps, backend.dtype, backend.device)
        self._last: dict[str, Array] = {}

    def append(self, first: int, tokens: Array, codes: Array, tap: SequenceTap) -> Array:
        levels, _, group = self._embed.entry["inputs"]["codes"][0]
        patches = np.ascontiguousarray(codes.reshape(len(tokens), group, levels).transpose(2, 0, 1))
        embeds = self._embed.run("embeds", tokens=tokens, codes=patches)
        rows = []
        for start in range(0, len(tokens), PREFILL_POSITIONS):
            part = embeds[:, start : start + PREFILL_POSITIONS]
            self._last = self._backbone.step(self._cache, first + start, self._capacity, part.shape[1], embeds=part)
            rows.append(self._last["hidden"][0])
        if tap:
            tap("backbone.embeds", embeds[0].astype(np.float32))
            tap("backbone.hidden", np.concatenate(rows))
        last: Array = rows[-1][-1:]
        return last

    def text_logits(self) -> Array:
        logits: Array = self._last["logits"][0]
        return logits

    def local_hidden(self) -> Array:
        return self._last["local_hidden"]

    def local_step(self, step: int, made: Array, tap: SequenceTap) -> list[Array]:
        start = self.local_hidden() if step == 0 else np.zeros_like(self.local_hidden())
        got = self._local.step(self._local_cache, step, self._steps, 1, start=start, codes=made)
        if tap:
            tap("patch_decoder.hidden", got["hidden"][0])
        return [got[f"logits.{level}"][0] for level in range(len(made))]


def _onnxruntime() -> ModuleType:
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("onnxruntime: expected the package onnxruntime, which is not installed; pip install "
                         "onnxruntime, or onnxruntime-gpu")  # fmt: skip
    return importlib.import_module("onnxruntime")


def _check_providers(ort: ModuleType, providers: Sequence[str]) -> None:
    known = ort.get_available_providers()
    if not providers:
        raise InputError(f"onnxruntime: expected at least one provider of {', '.join(known)}, got none")
    if unknown := [name for name in providers if name not in known]:
        raise InputError(f"onnxruntime: expected providers of {', '.join(known)}, got {unknown[0]}; install an "
                         "onnxruntime that has it")  # fmt: skip


def _choose(graphs: list[dict[str, Any]], stage: str, providers: Sequence[str], folder: Path) -> dict[str, Any]:
    """The graph of a stage in the best flavour that was exported."""
    flavours = {graph["flavour"]: graph for graph in graphs if graph["stage"] == stage}
    for flavour in (["cpu"] if providers[0] == CPU else []) + ["opset24", "opset21"]:
        if flavour in flavours:
            return flavours[flavour]
    raise InputError(f"onnxruntime: {folder}: expected a graph of {stage}, got none; export every stage")


def _check_memory(chosen: dict[str, dict[str, Any]]) -> None:
    """Where the system says how much memory is free, weights that do not fit are refused before they are read."""
    needed = sum(entry["weights"]["bytes"] for entry in chosen.values())
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), needed)
    if needed > free:
        raise DeviceError(f"onnxruntime: expected {needed / 1e9:.1f} GB of memory for the weights, got "
                          f"{free / 1e9:.1f} GB; export with --dtype f16, or use the native backend, which maps them"
                          )  # fmt: skip
