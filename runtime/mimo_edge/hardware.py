"""Open a bundle with the networks computed by whom the caller names, or by the first that works here."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from mimo_edge import _core
from mimo_edge._core import DeviceError, InputError

BACKENDS = ("native", "onnxruntime", "tensorrt", "auto")
log = logging.getLogger("mimo_edge")


def open_core(
    bundle: Path,
    backend: str = "native",
    providers: Sequence[str] = (),
    graphs: str | os.PathLike[str] | None = None,
    threads: int = 0,
    check: bool = False,
    device: str = "cpu",
    kernels: str | None = None,
) -> _core.Model:
    """Open a bundle with the networks computed by `backend`; the arguments are those of mimo_edge.load.

    kernels: an instruction set for the native core instead of the widest (csrc/kernels/kernels.h names them).
    """
    if backend not in BACKENDS:
        raise InputError(f"load: backend: expected {' or '.join(BACKENDS)}, got {backend!r}")
    if providers and backend != "onnxruntime":
        raise InputError('load: expected providers with backend="onnxruntime" only, got them without')
    if backend == "native":
        if graphs:
            raise InputError('load: expected graphs with another backend than "native", got them with it')
        return _core.Model.open(str(bundle), threads, check, kernels, device=device)
    if kernels:
        raise InputError(f'load: expected kernels with backend="native" only, got {kernels!r}')
    if device != "cpu":
        raise InputError(f'load: expected a device with backend="native" only, got {device!r}; choose providers')
    if backend == "auto":
        return _open_first(bundle, graphs, threads, check)
    if backend == "tensorrt":
        engines = Path(graphs) if graphs else bundle / "engines"
        driver = importlib.import_module("mimo_edge.backend_tensorrt")
        return _core.Model.open(str(bundle), threads, check, None, driver.open_engines(engines, bundle))
    folder = Path(graphs) if graphs else bundle / "onnx"
    if not (folder / "export.json").is_file():
        raise InputError(f"load: expected graphs in {folder}, got none; mimo-edge export-onnx {bundle} -o {folder}")
    networks = importlib.import_module("mimo_edge.backend_onnxruntime")  # only where it is asked for
    return _core.Model.open(
        str(bundle), threads, check, None, networks.OnnxRuntime(folder, bundle, providers, threads, check)
    )


CHAIN = (  # what "auto" tries: name, backend, device
    ("TensorRT", "tensorrt", "cpu"),
    ("the native core on CUDA", "native", "cuda"),
    ("the native core on the CPU", "native", "cpu"),
)


def _open_first(bundle: Path, graphs: str | os.PathLike[str] | None, threads: int, check: bool) -> _core.Model:
    """Open with the first of CHAIN that works here; every step down is logged as a warning, with its reason."""
    for (name, backend, device), (below, _, _) in pairwise(CHAIN):
        engines = graphs if backend == "tensorrt" else None
        try:
            model = open_core(bundle, backend, (), engines, threads, check, device)
        except (InputError, DeviceError) as error:
            log.warning("%s; falling back to %s", error, below)
        else:
            log.info("the networks are computed by %s", name)
            return model
    return open_core(bundle, "native", threads=threads, check=check)
