"""Other runtimes on the same shape, in the same minutes: `mimo-edge bench --compare`.

ONNX Runtime: the matrices of one backbone position, and of the steps of one patch, as MatMulNBits (4 bits in blocks of
128, accuracy level 4: its fast one), without attention, norms or sampling, so its times are lower bounds. A few
distinct layers take turns, together far larger than the caches. llama.cpp, through llama-cpp-python, needs a GGUF file
of this architecture, which no checkpoint ships; it is not run.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_edge._core import DeviceError

BLOCK = 128
RUNS = 5
_DISTINCT_BYTES = 400e6  # of weights that take turns


def measure_rivals(folder: Path, threads: int) -> dict[str, float]:
    """Return name -> seconds. Raises DeviceError if neither onnx nor onnxruntime is installed."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise DeviceError(f"bench: --compare: expected the package {package}, got none; pip install {package}")
    lm = json.loads((folder / "bundle.json").read_bytes())["lm"]
    keys, queries = (lm[name] * lm["head_dim"] for name in ("num_key_value_heads", "num_attention_heads"))
    backbone = _layer(lm["hidden_size"], queries, keys, lm["intermediate_size"])
    local = _layer(lm["local_dim"], lm["local_dim"], lm["local_dim"], lm["local_ffn_dim"])
    steps = lm["group_size"] + max(lm["delay_pattern"])
    return {
        "ONNX Runtime int4, backbone matrices": _seconds(backbone, lm["num_hidden_layers"], threads),
        "ONNX Runtime int4, patch decoder matrices": steps * _seconds(local, lm["local_layers"], threads),
    }


def _layer(width: int, queries: int, keys: int, ffn: int) -> list[tuple[int, int]]:
    """[N, K] of the matrices of a layer; q, k and v, gate and up are one each, as its own optimiser would have it."""
    return [(queries + 2 * keys, width), (width, queries), (2 * ffn, width), (width, ffn)]


def _seconds(layer: Sequence[tuple[int, int]], layers: int, threads: int) -> float:
    """The median time of one position through `layers` such layers."""
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    random = np.random.default_rng(0)
    distinct = min(layers, max(1, round(_DISTINCT_BYTES / (sum(n * k for n, k in layer) / 2))))
    weights, nodes, outputs = [], [], []
    for i in range(distinct):
        for j, (n, k) in enumerate(layer):
            blocks = -(-k // BLOCK)
            packed = random.integers(0, 256, (n, blocks, BLOCK // 2), np.uint8)
            scales = np.full(n * blocks, 0.01, np.float32)
            weights.append(onnx.numpy_helper.from_array(packed, f"w{i}_{j}"))
            weights.append(onnx.numpy_helper.from_array(scales, f"s{i}_{j}"))
    for i in range(layers):
        for j, (n, k) in enumerate(layer):
            inputs = [f"x{k}", f"w{i % distinct}_{j}", f"s{i % distinct}_{j}"]
            sizes = {"K": k, "N": n, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            nodes.append(onnx.helper.make_node("MatMulNBits", inputs, [f"y{i}_{j}"], domain="com.microsoft", **sizes))
            outputs.append(onnx.helper.make_tensor_value_info(f"y{i}_{j}", 1, [1, n]))
    inputs = [onnx.helper.make_tensor_value_info(f"x{k}", 1, [1, k]) for k in sorted({k for _, k in layer})]
    graph = onnx.helper.make_graph(nodes, "layers", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {f"x{k}": np.ones((1, k), np.float32) for k in {k for _, k in layer}}
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
