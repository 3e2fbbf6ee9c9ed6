"""The Python driver of TensorRT engines, on stand-ins: engines whose contexts run the ONNX graph of their stage on host
memory. What it copies, binds, shapes and checks is the same as on a GPU; what a GPU computes is not tested here."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from golden_folders import BUNDLED, bundle_of, graphs_of

for needed in ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime"):
    pytest.importorskip(needed, reason="the stand-in runs graphs made with the extra [onnx]")

import onnxruntime as ort  # noqa: E402

import mimo_edge  # noqa: E402
from mimo_edge import DeviceError, InputError, _core, backend_tensorrt, cuda_memory  # noqa: E402
from mimo_edge.engines import FORMAT, REVISION  # noqa: E402
from mimo_edge.export.onnx.trt import profiles  # noqa: E402
from mimo_edge.verify import CoreStages, Stages  # noqa: E402
from mimo_edge.verify.codec import check_decoder  # noqa: E402
from mimo_edge.verify.goldens import Check, Goldens  # noqa: E402
from mimo_edge.verify.lm import check_forward, check_generations  # noqa: E402

SM, VERSION = 86, "10.15.1.29"


class HostCuda:
    """Device memory that is host memory; counts what is allocated."""

    stream = 0

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.allocations = 0

    def compute_capability(self) -> int:
        return SM

    def allocate(self, size: int) -> cuda_memory.Memory:
        block = ctypes.create_string_buffer(max(size, 1))
        self.allocations += 1
        self.blocks[ctypes.addressof(block)] = block
        return cuda_memory.Memory(cast(Any, self), ctypes.addressof(block))

    def free(self, address: int) -> None:
        del self.blocks[address]

    def to_device(self, address: int, array: Any) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= len(self.blocks[address])
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def to_host(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return view(address, shape, dtype).copy()


def view(address: int, shape: Any, dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class HostEngine:
    """What `deserialize_cuda_engine` gives; its bytes are the path of an identity file."""

    def __init__(self, path: str) -> None:
        self.identity = json.loads(Path(path).read_bytes())
        self.session = ort.InferenceSession(self.identity["graph"]["path"], providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> HostContext:
        return HostContext(self)


class HostContext:
    def __init__(self, engine: HostEngine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, Any](), dict[str, int]()
        self.profile: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        self.profile = self.engine.identity["profiles"][profile]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        port = self.engine.identity["inputs"][name][0]
        ranges = [self.profile[n] if isinstance(n, str) else (n, n, n) for n in port]
        fits = len(port) == len(shape) and all(r[0] <= size <= r[2] for r, size in zip(ranges, shape, strict=True))
        if fits:
            self.shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return cast("tuple[int, ...]", self.shapes[name])
        sizes = {"capacity": self.profile.get("capacity", (0, 0, 0))[2]}
        if "embeds" in self.shapes or "tokens" in self.shapes:
            sizes["positions"] = self.shapes["embeds"][1] if "embeds" in self.shapes else self.shapes["tokens"][0]
        codec = json.loads((bundle_of(BUNDLED) / "bundle.json").read_bytes())["codec"]
        frame = codec["hop_length"] * codec["stride_size"] * codec["avg_pooler"]
        sizes["samples"] = self.shapes.get("codes", (0,))[-1] * frame
        if "mel" in self.shapes:
            sizes["code_frames"] = -(-((self.shapes["mel"][0] - 1) // codec["stride_size"] + 1) // codec["avg_pooler"])
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.engine.identity["outputs"][name][0])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _stream: int) -> bool:
        identity, caches = self.engine.identity, self.engine.identity["caches"]
        assert all(self.addresses[before] == self.addresses[after] for before, after in caches)
        kinds = {"FLOAT": np.float32, "F32": np.float32, "I32": np.int32, "I64": np.int64}
        ports, names = identity["inputs"].items(), list(identity["outputs"])
        inputs = {n: view(self.addresses[n], self.shapes[n], kinds[k]).copy() for n, (_, k) in ports}
        for name, made in zip(names, self.engine.session.run(names, inputs), strict=True):
            assert made.shape == self.get_tensor_shape(name)
            view(self.addresses[name], made.shape, made.dtype)[...] = made
        return True


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as build-engine leaves it, for the stand-ins."""
    folder, graphs = tmp_path_factory.mktemp("engines"), graphs_of(BUNDLED)
    described = json.loads((graphs / "export.json").read_bytes())
    for entry in described["graphs"]:
        if entry["flavour"] != "opset24":
            continue
        path = folder / f"{entry['stage']}.sm{SM}.engine"
        path.write_text(str(path.with_suffix(".json")))
        capacity = entry["limits"].get("capacity", 512)
        facts = {
            "format": FORMAT, "revision": REVISION, "bundle": described["bundle"], "sm": SM, "precision": "f32",
            "engine": {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
            "graph": {"stage": entry["stage"], "path": str(graphs / entry["file"])}, "capacity": capacity,
            "tensorrt": {"package": "tensorrt", "version": VERSION},
            "profiles": profiles(entry, capacity), "inputs": entry["inputs"], "outputs": entry["outputs"],
            "caches": entry["caches"],
        }  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """TensorRT and CUDA as stand-ins."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: HostEngine(data.decode()))
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    trt = SimpleNamespace(__name__="tensorrt", __version__=VERSION, Logger=logger, Runtime=lambda log: runtime)
    host = HostCuda()
    monkeypatch.setattr(backend_tensorrt, "load_tensorrt", lambda: trt)
    monkeypatch.setattr(backend_tensorrt, "Cuda", lambda: host)
    return host


def test_scores_patches_and_generations_are_those_of_the_goldens(engines: Path, cuda: HostCuda) -> None:
    model = mimo_edge.load(bundle_of(BUNDLED), threads=1, backend="tensorrt", graphs=engines)
    stages, goldens = cast(Stages, CoreStages(model.engine.core, sees_inside=False)), Goldens(BUNDLED)
    check = Check(goldens, sees_inside=False)
    for part in (check_forward, check_generations, check_decoder):
        part(stages, goldens, check)
    failed = [str(r) for r in check.reports() if not r.passed and r.name != "ledger"]
    assert not failed, "\n".join(failed)
    assert any(report.name == "generated ids" and report.compared > 1000 for report in check.reports())
    assert model.encode((np.zeros(12000, np.float32), model.rate_hz)).size > 0


def test_nothing_is_allocated_once_a_conversation_has_begun(engines: Path, cuda: HostCuda) -> None:
    model = mimo_edge.load(bundle_of(BUNDLED), threads=1, backend="tensorrt", graphs=engines)
    before = len(cuda.blocks)
    state = _core.State(model.engine.core)
    begun = cuda.allocations
    for _ in range(3):
        state.prefill(model.engine.core.prompt_text("one two three"))
        state.decode_patch(_core.Sampling(False))
    assert cuda.allocations == begun
    del state
    assert len(cuda.blocks) == before  # and all of it is given back


def test_engines_that_do_not_fit_are_refused_with_both_sides(engines: Path, cuda: HostCuda, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    shutil.copytree(engines, folder)
    path = folder / f"backbone.sm{SM}.json"
    whole = json.loads(path.read_bytes())
    for change, sentence in (
        ({"bundle": {"sha256": "0" * 64}}, r"backbone\.sm86\.engine: expected bundle \w{12}, got 000000000000; build"),
        ({"sm": 89}, "expected SM 86, got 89"),
        ({"tensorrt": {"package": "tensorrt", "version": "10.3.0.26"}}, f"tensorrt {VERSION}, got tensorrt 10.3.0.26"),
        ({"engine": {"bytes": 1}}, "expected bytes 1, got"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(InputError, match=sentence):
            mimo_edge.load(bundle_of(BUNDLED), backend="tensorrt", graphs=folder)
    path.write_text(json.dumps(whole | {"capacity": 4}))
    with pytest.raises(DeviceError, match=r"expected at least \d+ positions, got 4; build it with --capacity"):
        _core.State(mimo_edge.load(bundle_of(BUNDLED), backend="tensorrt", graphs=folder).engine.core)
    (folder / f"backbone.sm{SM}.engine").rename(folder / "backbone.sm89.engine")
    with pytest.raises(InputError, match=r"expected backbone\.sm86\.engine, got backbone\.sm89\.engine; mimo-edge"):
        mimo_edge.load(bundle_of(BUNDLED), backend="tensorrt", graphs=folder)


def test_auto_falls_back_aloud(
    engines: Path, cuda: HostCuda, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "mimo_edge")
    mimo_edge.load(bundle_of(BUNDLED), backend="auto", graphs=engines)
    assert [record.getMessage() for record in caplog.records] == ["the networks are computed by TensorRT"]
    caplog.clear()
    mimo_edge.load(bundle_of(BUNDLED), backend="auto", graphs=tmp_path)
    first, second = caplog.records
    assert first.levelno == second.levelno == logging.WARNING
    assert "expected codec_encoder.sm86.engine, got none" in first.getMessage()
    assert first.getMessage().endswith("falling back to the native core on CUDA")
    assert second.getMessage().endswith("falling back to the native core on the CPU")


def test_without_a_cuda_runtime_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_memory, "LIBRARIES", ("libnosuch.so",))
    with pytest.raises(DeviceError, match=r"cuda: expected one of libnosuch\.so, got none; install the CUDA runtime"):
        importlib.import_module("mimo_edge.cuda_memory").Cuda()
    if not _core.tensorrt_version():
        with pytest.raises(DeviceError, match="expected a build with TensorRT, got one without"):
            _core.open_tensorrt({})
