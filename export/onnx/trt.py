"""Exported graphs to TensorRT engines, with a file beside each that says what it is.

    <stage>.opset24.onnx + shape profiles -> builder, strongly typed -> <stage>.sm86.engine, <stage>.sm86.json

`tensorrt` keeps how long each kernel took beside the engines (timings.*.cache), so that a second build is quicker.

Built with `tensorrt` where it is installed (for the GPU at hand) or `tensorrt_rtx` (TensorRT for RTX: needs no GPU, for
SM 75 80 86 89 120 121; 86 stands in for Orin's 87). The precision is the export's: the network is strongly typed, and
attention does not build in float32. Profiles: for patch encoder and backbone, number 0 decodes (one position a run) and
number 1 prefills; other stages have one. The capacity of a cache is fixed at build time, what is attended of it is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mimo_edge.engines import FORMAT, REVISION, load_tensorrt
from mimo_edge.export.safetensors_io import input_error
from mimo_edge.graphs import check_files

Sizes = Mapping[str, tuple[int, int, int]]  # dynamic axis -> least, usual, most
Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all

PREFILL_POSITIONS = 512  # a longer prompt is prefilled in runs


@dataclass(frozen=True, slots=True)
class Engine:
    """A built engine: its file, size in bytes, and what stands in the identity file."""

    path: Path
    size: int
    identity: dict[str, Any]


def profiles(entry: dict[str, Any], capacity: int) -> list[Sizes]:
    """Ranges of the dynamic axes of a graph; entry: from export.json."""
    stage, most = entry["stage"], entry["limits"]
    if stage == "codec_encoder":
        return [{"mel_frames": (1, 600, most["mel_frames"])}]
    if stage == "codec_decoder":
        levels, frames = most["levels"], most["code_frames"]
        return [{"levels": (1, min(8, levels), levels), "code_frames": (1, 250, frames)}]
    cache: Sizes = {"attended": (1, min(1024, capacity), capacity), "capacity": (capacity, capacity, capacity)}
    if stage == "patch_decoder_step":
        return [cache]
    prefill = (1, min(256, capacity), min(PREFILL_POSITIONS, capacity))
    return [{**cache, "positions": (1, 1, 1)}, {**cache, "positions": prefill}]


def build_engine(
    folder: Path, entry: dict[str, Any], described: dict[str, Any], sm: int, out: Path, *,
    capacity: int = 8192, progress: Progress | None = None,
) -> Engine:  # fmt: skip
    """Build the engine of one graph of an export for compute capability `sm` (86 = 8.6) into the folder `out`.

    entry, described: from export.json. capacity: positions of a conversation. Raises InputError: the hash is not the
    one in export.json; TensorRT refuses the graph (in its own words); the installed package has no such target.
    """
    source = folder / entry["file"]
    check_files(folder, [entry], weights=True)
    capacity = min(capacity, entry["limits"].get("capacity", capacity))
    trt = load_tensorrt()
    said = _log_of(trt)
    builder = trt.Builder(said)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, said)
    if not parser.parse(_with_fixed_capacity(source, capacity), str(source)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise input_error(f"build-engine: {entry['file']}: {trt.__name__} {trt.__version__} refuses it: {errors}")
    config = builder.create_builder_config()
    _target(trt, config, sm)
    ranges = profiles(entry, capacity)
    for sizes in ranges:
        config.add_optimization_profile(_profile(builder, entry, sizes))
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    out.mkdir(parents=True, exist_ok=True)
    timings = out / f"timings.{trt.__name__}-{trt.__version__}.sm{sm}.cache"
    keeps_timings = trt.__name__ == "tensorrt"  # TensorRT for RTX times kernels on the device
    if keeps_timings:
        known = timings.read_bytes() if timings.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        errors = "; ".join(said.errors[-3:])
        raise input_error(f"build-engine: {entry['file']}: {trt.__name__} {trt.__version__} cannot build it for "
                          f"SM {sm}: {errors}")  # fmt: skip
    path = out / f"{entry['stage']}.sm{sm}.engine"
    data = memoryview(plan)
    path.write_bytes(data)
    if keeps_timings:
        timings.write_bytes(memoryview(config.get_timing_cache().serialize()))
    identity = {
        "format": FORMAT,
        "revision": REVISION,
        "engine": {"file": path.name, "bytes": data.nbytes, "sha256": hashlib.sha256(data).hexdigest()},
        "bundle": described["bundle"],
        "graph": {key: entry[key] for key in ("stage", "flavour", "file", "sha256")},
        "weights_sha256": entry["weights"]["sha256"],
        "tensorrt": {"package": trt.__name__, "version": trt.__version__},
        "sm": sm,
        "precision": described["dtype"],
        "capacity": capacity,
        "profiles": [dict(sizes) for sizes in ranges],
        "inputs": entry["inputs"],
        "outputs": entry["outputs"],
        "caches": entry["caches"],
    }
    path.with_suffix(".json").write_text(json.dumps(identity, indent=1) + "\n", "utf-8")
    return Engine(path, data.nbytes, identity)


def _with_fixed_capacity(graph: Path, capacity: int) -> bytes:
    """The graph with its axis "capacity" made a number: TensorRT updates a cache in place only if its length is static.
    Weights stay outside; the parser finds them by the graph's path."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    for port in [*model.graph.input, *model.graph.output]:
        for size in port.type.tensor_type.shape.dim:
            if size.dim_param == "capacity":
                size.dim_value = capacity
    serialised: bytes = model.SerializeToString()
    return serialised


def _strongly_typed(trt: ModuleType) -> int:
    """The flag of the network; TensorRT 11 knows nothing else and may drop the name."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _target(trt: ModuleType, config: Any, sm: int) -> None:
    """Aim at SM `sm`. Full TensorRT builds for the GPU at hand and is not asked."""
    capabilities = getattr(trt, "ComputeCapability", None)
    if capabilities is None:
        return
    target = getattr(capabilities, f"SM{sm}", None)
    if target is None:
        known = ", ".join(name[2:] for name in dir(capabilities) if name.startswith("SM"))
        raise input_error(f"build-engine: {trt.__name__}: expected one of SM {known}, got {sm}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)


def _profile(builder: Any, entry: dict[str, Any], sizes: Sizes) -> Any:
    profile = builder.create_optimization_profile()
    for name, (shape, _) in entry["inputs"].items():
        if any(isinstance(size, str) for size in shape):
            corners = [tuple(sizes[n][i] if isinstance(n, str) else n for n in shape) for i in range(3)]
            profile.set_shape(name, *corners)
    return profile


def _log_of(trt: ModuleType) -> Any:
    """A logger that keeps errors for the one sentence the user gets, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _monitor(trt: ModuleType, report: Progress) -> Any:
    """TensorRT's phases, told to a progress callback."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            report(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            report(phase, step + 1, self.totals.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            report(phase, self.totals.pop(phase, 0), 0)

    return Monitor()
