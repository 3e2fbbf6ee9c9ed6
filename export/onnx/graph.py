"""An exported graph, opened in ONNX Runtime on the CPU, for checking it: inputs by name, caches bound in place.

Where a `static` recipe made it round inputs by fixed scales, it is opened without: two computations whose sums differ
in the last bit round to other numbers here and there, and only what comes before the rounding can be held to a narrow
limit. The scales are read, to be compared with those of the bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]

from mimo_edge.export.onnx.ops import UNSEEN
from mimo_edge.export.reference_ops import Array

_DTYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}
GARBAGE = 7.0  # what a cache holds where nothing was written: reading it shows


class Graph:
    """One graph of an export; entry: its description in export.json."""

    def __init__(self, folder: Path, entry: dict[str, Any], dtype: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        # inputs of 4-bit layers as they are, not rounded to 8 bits: what is compared is the graph
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.entry, self.dtype = entry, _DTYPES[dtype.upper()]
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        model = onnx.load(str(folder / entry["file"]), load_external_data=False)
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.input_scales = _take_rounding_out(model)  # by name of the weight that meets the input
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.buffers: list[ort.OrtValue] = []
        self.length = self.capacity = 0

    def reset(self, capacity: int) -> None:
        """Forget: new caches of `capacity` positions, none filled."""
        self.length, self.capacity = 0, capacity
        self.buffers = []
        for before, _ in self.entry["caches"]:
            shape = [capacity if size == "capacity" else size for size in self.entry["inputs"][before][0]]
            self.buffers.append(ort.OrtValue.ortvalue_from_numpy(np.full(shape, GARBAGE, self.dtype)))

    def step(self, new: int, attended: int | None = None, **inputs: Array) -> dict[str, Array]:
        """Run with `new` positions after those filled, causal; the mask is `attended` wide (None: no wider than
        needed)."""
        filled = self.length + new
        wide = filled if attended is None else attended
        ahead = np.arange(wide)[None, :] - np.arange(self.length, filled)[:, None]
        mask = np.where(ahead <= 0, 0.0, UNSEEN)[None, None]
        if "mask" in self.entry["inputs"]:
            inputs["mask"] = mask
        outputs = self(**inputs, length=np.array([self.length]))
        self.length = filled
        return outputs

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run; floats are cast to the graph's dtype. Returns the outputs but for the caches, floats as float32."""
        binding, ports = self.session.io_binding(), self.entry["inputs"]
        kept = []  # a binding does not own what it binds
        for name, value in inputs.items():
            kind = ports[name][1]
            kept.append(np.ascontiguousarray(value, self.dtype if kind == "FLOAT" else _DTYPES[kind]))
            binding.bind_cpu_input(name, kept[-1])
        for (before, after), buffer in zip(self.entry["caches"], self.buffers, strict=True):
            binding.bind_ortvalue_input(before, buffer)
            binding.bind_ortvalue_output(after, buffer)
        afters = {after for _, after in self.entry["caches"]}
        names = [name for name in self.entry["outputs"] if name not in afters]
        for name in names:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        arrays = [value.numpy() for value in binding.get_outputs()[len(self.buffers) :]]
        return {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in zip(names, arrays, strict=True)}


def _take_rounding_out(model: onnx.ModelProto) -> dict[str, float]:
    """Let every matrix product read what QuantizeLinear and DequantizeLinear rounded for it; return their scales."""
    maker = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales: dict[str, float] = {}
    for node in model.graph.node:
        back = maker.get(node.input[0]) if len(node.input) > 1 else None
        if back is None or back.op_type != "DequantizeLinear" or back.input[0] not in maker:
            continue
        there = maker[back.input[0]]
        (scale,) = {there.input[1], back.input[1]}
        scales[node.input[1].removesuffix("_dequantized")] = float(onnx.numpy_helper.to_array(constants[scale]))
        node.input[0] = there.input[0]
    return scales
