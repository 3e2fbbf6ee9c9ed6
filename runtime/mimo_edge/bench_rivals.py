"""Other runtimes on the same shape, in the same minutes: `mimo-edge bench --compare`.

ONNX Runtime: the matrices of one backbone position, and of the steps of one patch, as MatMulNBits (as many bits as the
bundle has there, in blocks of 128, accuracy level 4: its fast one), without attention, norms or sampling, so its times
are lower bounds. A few distinct layers take turns, together far larger than the caches.
llama.cpp, through llama-cpp-python and gguf if they are installed: a step of a Qwen2 of the backbone's shape and a few
of its layers in Q4_0, random weights in a temporary file, scaled to all layers.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
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
    bits, local_bits = (
        _bits(folder, f"{stack}.layers.0.mlp.up_proj.weight") for stack in ("model", "local_transformer")
    )
    found = {
        f"ONNX Runtime int{bits}, backbone matrices": _seconds(backbone, lm["num_hidden_layers"], threads, bits),
        f"ONNX Runtime int{local_bits}, patch decoder matrices": steps
        * _seconds(local, lm["local_layers"], threads, local_bits),
    }
    if all(importlib.util.find_spec(package) for package in ("llama_cpp", "gguf")):
        found["llama.cpp Q4_0, backbone"] = _llama_seconds(lm, threads)
    else:
        print("bench: --compare: llama.cpp is left out; pip install llama-cpp-python gguf", file=sys.stderr)
    return found


def _bits(folder: Path, name: str) -> int:
    """Of a weight of the bundle: 4 or, for all that is finer, 8, the most that MatMulNBits knows."""
    with open(folder / "lm.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return 4 if header[name]["dtype"] == "U8" else 8


def _layer(width: int, queries: int, keys: int, ffn: int) -> list[tuple[int, int]]:
    """[N, K] of the matrices of a layer; q, k and v, gate and up are one each, as its own optimiser would have it."""
    return [(queries + 2 * keys, width), (width, queries), (2 * ffn, width), (width, ffn)]


def _seconds(layer: Sequence[tuple[int, int]], layers: int, threads: int, bits: int) -> float:
    """The median time of one position through `layers` such layers."""
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    random = np.random.default_rng(0)
    distinct = min(layers, max(1, round(_DISTINCT_BYTES / (sum(n * k for n, k in layer) * bits / 8))))
    weights, nodes, outputs = [], [], []
    for i in range(distinct):
        for j, (n, k) in enumerate(layer):
            blocks = -(-k // BLOCK)
            packed = random.integers(0, 256, (n, blocks, BLOCK * bits // 8), np.uint8)
            scales = np.full(n * blocks, 0.01, np.float32)
            weights.append(onnx.numpy_helper.from_array(packed, f"w{i}_{j}"))
            weights.append(onnx.numpy_helper.from_array(scales, f"s{i}_{j}"))
    for i in range(layers):
        for j, (n, k) in enumerate(layer):
            inputs = [f"x{k}", f"w{i % distinct}_{j}", f"s{i % distinct}_{j}"]
            sizes = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
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


def _llama_seconds(lm: dict[str, Any], threads: int) -> float:
    """The median time of one position of llama.cpp, its few layers scaled to the backbone's."""
    gguf: Any = importlib.import_module("gguf")
    llama: Any = importlib.import_module("llama_cpp")
    hidden, ffn, heads, kv_heads = (
        lm[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    keys, queries, vocabulary = kv_heads * lm["head_dim"], heads * lm["head_dim"], 256
    shapes = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    layer_bytes = sum(n * k * 18 / 32 for n, k in shapes.values())
    all_layers: int = lm["num_hidden_layers"]
    layers: int = min(all_layers, max(1, round(_DISTINCT_BYTES / layer_bytes)))
    random = np.random.default_rng(0)

    def q4_0(n: int, k: int) -> Any:  # blocks of 32: a scale in half precision, 16 bytes of nibbles
        blocks = random.integers(0, 256, (n, k // 32, 18), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.003).tobytes(), np.uint8)
        return blocks.reshape(n, -1)

    with tempfile.TemporaryDirectory(prefix="mimo-edge-bench-") as folder:
        path = Path(folder) / "backbone.gguf"
        writer = gguf.GGUFWriter(path, "qwen2")
        writer.add_vocab_size(vocabulary)
        writer.add_context_length(RUNS + 1)
        writer.add_embedding_length(hidden)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(ffn)
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(lm["rms_norm_eps"])
        writer.add_rope_freq_base(float(lm["rope_theta"]))
        writer.add_tokenizer_model("no_vocab")
        for name in ("token_embd", "output"):
            writer.add_tensor(f"{name}.weight", q4_0(vocabulary, hidden), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
        for i in range(layers):
            for name, (n, k) in shapes.items():
                writer.add_tensor(f"blk.{i}.{name}.weight", q4_0(n, k), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
            for name, n in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
                writer.add_tensor(f"blk.{i}.{name}.bias", np.zeros(n, np.float32))
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(hidden, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        silent = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(silent, None)
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = 256, threads, threads
        context = model and llama.llama_init_from_model(model, options)
        if not context:
            raise DeviceError("bench: --compare: llama.cpp did not open a Qwen2 of Q4_0; update llama-cpp-python")
        token = (llama.llama_token * 1)(1)
        times = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            if llama.llama_decode(context, llama.llama_batch_get_one(token, 1)) != 0:
                raise DeviceError("bench: --compare: llama.cpp failed to read a token; update llama-cpp-python")
            times.append(time.perf_counter() - start)
        llama.llama_free(context)
        llama.llama_model_free(model)
    return statistics.median(times[1:]) * all_layers / layers
