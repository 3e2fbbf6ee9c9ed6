"""One stage to one ONNX graph: traced without its weights, which it then names in the stage's file.

    module on fake tensors -> torch.export -> ONNX -> initialisers become references into <stage>.weights -> optimise
                                                   -> packed weights become DequantizeLinear of the bundle's own numbers

Nothing of the size of the model is ever in memory, so the way is the same for a test model and for seven billion.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mimo_edge.export.onnx.ops import FLAVOURS, Ops
from mimo_edge.export.onnx.stages import FLOAT, Port, Stage
from mimo_edge.export.onnx.weights import TORCH_DTYPES, Dequantized, Weight, offsets

FOLD_BYTES = 1 << 16  # the optimiser computes constants up to this size; larger weights are never read
# of the axes while tracing; any would do, if they differ
SIZES = {"mel_frames": 17, "levels": 3, "code_frames": 9, "positions": 5, "attended": 11, "capacity": 13}
_IR_DTYPES = {
    "F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16, "I32": ir.DataType.INT32,
    "I8": ir.DataType.INT8, "I4": ir.DataType.INT4, "F8": ir.DataType.FLOAT8E4M3FN,
}  # fmt: skip


def trace(stage: Stage, flavour: str, dtype: str, folder: Path, metadata: Mapping[str, str]) -> ir.Model:
    """Make the graph of `stage`, as stage.of(flavour) gave it; its weights lie in `folder` already. dtype: F32, F16 or
    BF16."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = stage.module(Ops(flavour)).eval()
        inputs = [_example(port, dtype) for port in stage.inputs.values()]
        shapes = [{axis: _dim(size) for axis, size in enumerate(port[0])} for port in stage.inputs.values()]
        plain = len(inputs) - len(stage.caches)
        arguments, dynamic = (tuple(a[:plain]) + ((a[plain:],) if stage.caches else ()) for a in (inputs, shapes))
        with _quiet():
            program = torch.onnx.export(
                module, arguments, dynamo=True, opset_version=FLAVOURS[flavour], dynamic_shapes=dynamic, optimize=False,
                input_names=list(stage.inputs), output_names=list(stage.outputs), verbose=False,
            )  # fmt: skip
    assert program is not None
    model = program.model
    _refer_to_weights(model, stage, folder)
    with _quiet():
        onnxscript.optimizer.optimize(model, input_size_limit=FOLD_BYTES, output_size_limit=FOLD_BYTES)
    _dequantize(model, stage, folder)
    for value in [value for value in model.graph.inputs if value.name in stage.ignored]:
        model.graph.inputs.remove(value)
    _name_ports(model, stage)
    model.graph.name = stage.name
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version = "mimo-edge", metadata["mimo_edge.version"]
    return model


def _example(port: Port, dtype: str) -> torch.Tensor:
    shape, kind = port
    kind = dtype if kind == FLOAT else kind
    size = [SIZES[n] if isinstance(n, str) else n for n in shape]
    return torch.zeros(size, dtype=torch.int64 if kind == "I64" else TORCH_DTYPES[kind])


def _dim(size: int | str) -> Any:
    return torch.export.Dim.DYNAMIC if isinstance(size, str) else torch.export.Dim.STATIC


def _refer_to_weights(model: ir.Model, stage: Stage, folder: Path) -> None:
    """Give every initialiser its place in the stage's file."""
    table, by_name = offsets(stage.weights), {weight.name: weight for weight in stage.weights}
    for name, value in list(model.graph.initializers.items()):
        weight = by_name.get(name)
        if weight is None:
            continue  # a constant of the trace itself
        value.dtype, value.shape = _IR_DTYPES[weight.dtype], ir.Shape(weight.shape)
        # a quantised one has no values to fold; _dequantize makes them
        value.const_value = None if weight.dequantized else _external(stage, weight, table, folder)


def _external(stage: Stage, weight: Weight, table: Mapping[str, int], folder: Path) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        f"{stage.name}.weights", table[weight.name], weight.nbytes, _IR_DTYPES[weight.dtype],
        shape=ir.Shape(weight.shape), name=weight.name, base_dir=folder,
    )  # fmt: skip


def _dequantize(model: ir.Model, stage: Stage, folder: Path) -> None:
    """Put DequantizeLinear in the place of every quantised weight: numbers and scales are what the file holds."""
    graph, table = model.graph, offsets(stage.weights)
    rounded: dict[tuple[ir.Value, ir.DataType, float], ir.Value] = {}
    for weight in stage.weights:
        made = weight.dequantized
        if made is None or weight.name not in graph.initializers:
            continue
        parts = []
        for part in (made.numbers, made.scale):
            tensor = _external(stage, part, table, folder)
            parts.append(ir.Value(name=part.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(part.shape),
                                  const_value=tensor))  # fmt: skip
            graph.register_initializer(parts[-1])
        attributes = {"axis": made.axis} | ({"block_size": made.block_size} if made.block_size else {})
        node = ir.node("DequantizeLinear", parts, attributes, name=f"{weight.name}_dequantize")
        old, new = graph.initializers[weight.name], node.outputs[0]
        new.name, new.type, new.shape = f"{weight.name}_dequantized", old.type, old.shape
        if made.input_scale is not None:
            for user in [user for user, index in old.uses() if index == 1]:  # MatMul, Gemm, Conv: the input comes first
                if (x := user.inputs[0]) is not None:
                    user.replace_input_with(0, _rounded(graph, x, made, rounded))
        ir.convenience.replace_all_uses_with(old, new)
        del graph.initializers[weight.name]
        graph.insert_before(graph[0], node)


def _rounded(
    graph: ir.Graph, x: ir.Value, made: Dequantized, known: dict[tuple[ir.Value, ir.DataType, float], ir.Value]
) -> ir.Value:
    """x through QuantizeLinear and DequantizeLinear, in the numbers of the weight it meets; once for all its users."""
    assert made.input_scale is not None
    kind, dtype, name = _IR_DTYPES[made.numbers.dtype], _IR_DTYPES[made.scale.dtype], f"{x.name}_{len(known)}"
    key = x, kind, made.input_scale
    if key in known:
        return known[key]
    tensor = ir.tensor(np.array(made.input_scale, dtype.numpy()), dtype, name=f"{name}_scale")
    scale = ir.Value(name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(()), const_value=tensor)
    graph.register_initializer(scale)
    quantized = ir.node("QuantizeLinear", [x, scale], {"output_dtype": kind}, name=f"{name}_quantize")
    dequantized = ir.node("DequantizeLinear", [quantized.outputs[0], scale], name=f"{name}_dequantize")
    for node, label, type_ in ((quantized, "quantized", ir.TensorType(kind)), (dequantized, "dequantized", x.type)):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"{name}_{label}", type_, x.shape
    maker = x.producer()
    if maker is None:
        graph.insert_before(graph[0], [quantized, dequantized])
    else:
        graph.insert_after(maker, [quantized, dequantized])
    known[key] = dequantized.outputs[0]
    return known[key]


def _name_ports(model: ir.Model, stage: Stage) -> None:
    """Write readable names on the dynamic axes of inputs and outputs."""
    for values, ports in ((model.graph.inputs, stage.inputs), (model.graph.outputs, stage.outputs)):
        for value in values:
            value.shape = ir.Shape(ports[value.name or ""][0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter talks on standard output and warns about its own internals; onnx_ir, about weights to come."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
