"""A `jaxrnn.Network` as a graph of ONNX's operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from onnx import helper

from jaxrnn.cells.base import Params, State
from jaxrnn.cells.lstm import LSTM
from jaxrnn.interop.layers import as_numpy, cells_of
from jaxrnn.interop.onnx_layers import to_operator
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.network.network import Network, NetworkParams

OPSET, IR_VERSION = 22, 10  # the first opset whose recurrent operators are today's, and the first format that has it


class Options(NamedTuple):
    """Holds which inputs and outputs a saved model has."""

    tokens: bool
    lengths: bool
    state: bool
    time_major: bool


class Hidden(NamedTuple):
    """Names what a layer hands up: [T, B, outputs], and after the last step [B, outputs]."""

    steps: str
    last: str


class Parts:
    """Collects the parts of a graph."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def value(self, name: str, shape: tuple[int | str, ...], dtype: Any = None) -> onnx.ValueInfoProto:
        """Describes an input or output; floats of the network's dtype by default."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        return helper.make_tensor_value_info(name, kind, shape)

    def add(self, name: str, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Adds an operator of one output, and returns the name of that."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Adds weights as they are, or integers, and returns their name."""
        self.constants[name] = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        return name

    def drop_unused(self) -> None:
        """Drops the operators, constants and outputs of operators that no output needs."""
        needed = {value.name for value in self.outputs}
        for node in reversed(self.nodes):
            outputs = [name if name in needed else "" for name in node.output]
            needed |= set(node.input) if any(outputs) else set()
            while outputs and not outputs[-1]:
                outputs.pop()
            del node.output[:]
            node.output.extend(outputs)
        self.nodes = [node for node in self.nodes if node.output]
        self.constants = {name: values for name, values in self.constants.items() if name in needed}


def model_of(net: Network, params: NetworkParams, options: Options) -> onnx.ModelProto:
    """Returns the model that computes `net.apply`."""
    parts = Parts(np.dtype(params.readout.V.dtype))
    top = _inputs(parts, net.layers[0].inputs, options)
    lengths = ""
    if options.lengths:
        lengths = "lengths"
        parts.inputs.append(parts.value(lengths, ("B",), np.int32))
    below: Hidden | None = None
    for i, (layer, layer_params) in enumerate(zip(net.layers, params.layers, strict=True)):
        start = _start(parts, i, layer, None if params.state is None else params.state[i], top, options)
        hidden = _layer(parts, i, layer, layer_params, [top, lengths, *start], options.state)
        if net.residual and below is not None:
            pairs = zip(("steps", "last"), hidden, below, strict=True)
            hidden = Hidden(*(parts.add(f"layers.{i}.residual.{name}", "Add", [a, b]) for name, a, b in pairs))
        below, top = hidden, hidden.steps
    assert below is not None
    _readout(parts, net, params, below, options.time_major)
    parts.drop_unused()
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in parts.constants.items()]
    proto = helper.make_graph(parts.nodes, "jaxrnn", parts.inputs, parts.outputs, tensors)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(proto, producer_name="jaxrnn", opset_imports=opset, ir_version=IR_VERSION)


def _inputs(parts: Parts, size: int, options: Options) -> str:
    """Adds the inputs, and returns the name of them as floats [T, B, D]."""
    axes = ("T", "B") if options.time_major else ("B", "T")
    shape = axes if options.tokens else (*axes, size)
    parts.inputs.append(parts.value("inputs", shape, np.int64 if options.tokens else None))
    name = "inputs"
    if not options.time_major:
        name = parts.add("inputs.time_major", "Transpose", [name], perm=[1, 0, 2][: len(shape)])
    if options.tokens:
        depth, values = parts.constant("depth", [size]), parts.constant("off_on", np.array([0, 1], parts.dtype))
        name = parts.add("inputs.one_hot", "OneHot", [name, depth, values], axis=-1)
    return name


def _start(parts: Parts, i: int, layer: Layer, learned: State | None, top: str, options: Options) -> list[str]:
    """Returns the names of the initial states [directions, B, H]: given in the call, learned, or none."""
    ways, fields = len(cells_of(layer)), "hc" if isinstance(cells_of(layer)[0], LSTM) else "h"
    if options.state:
        names = [f"state_{i}_{field}" for field in fields]
        parts.inputs += [parts.value(name, (ways, "B", layer.hidden)) for name in names]
        return names
    if learned is None:
        return []
    if "batch" not in parts.constants:
        one = parts.constant("batch", [1])
        parts.add("batch.size", "Shape", [top], start=1, end=2)
        parts.add("batch.shape", "Concat", [one, "batch.size", one], axis=0)
    leaves = jax.tree.leaves(learned)  # of each direction in turn
    names = []
    for k, field in enumerate(fields):
        rows = np.stack([as_numpy("params.state", leaf) for leaf in leaves[k :: len(fields)]])[:, None]
        weights = parts.constant(f"state.{i}.{field}", rows)
        names.append(parts.add(f"state.{i}.{field}.batch", "Expand", [weights, "batch.shape"]))
    return names


def _layer(parts: Parts, i: int, layer: Layer, params: Params, inputs: list[str], state: bool) -> Hidden:
    """Adds a layer; its inputs are X, the lengths, and initial states."""
    operator, attributes, weights = to_operator(f"layers[{i}]", layer, params)
    X, lengths, *start = inputs
    W, R, B = (parts.constant(f"layers.{i}.{place}", weights[place]) if place in weights else "" for place in "WRB")
    ways, finals = len(cells_of(layer)), ["h", "c"] if operator == "LSTM" else ["h"]
    Y_h, *others = (f"final_{i}_{field}" for field in finals)
    outputs = [f"layers.{i}.Y", Y_h, *(others if state else [])]
    node = helper.make_node(operator, [X, W, R, B, lengths, *start], outputs, f"layers.{i}", **attributes)
    parts.nodes.append(node)
    if state:
        parts.outputs += [parts.value(name, (ways, "B", layer.hidden)) for name in (Y_h, *others)]
    return Hidden(*(_join(parts, layer, name, axis) for name, axis in ((outputs[0], 1), (Y_h, 0))))


def _join(parts: Parts, layer: Layer, name: str, axis: int) -> str:
    """Adds what makes [..., B, outputs] of [..., directions, B, H], and returns its name."""
    if isinstance(layer, Bidirectional) and layer.merge == "concatenate":
        perm = [0, 2, 1, 3] if axis else [1, 0, 2]
        ahead = parts.add(f"{name}.directions", "Transpose", [name], perm=perm)
        shape = parts.constant(f"both.{axis}", [0, 0, -1] if axis else [0, -1])
        return parts.add(f"{name}.joined", "Reshape", [ahead, shape])
    axes = parts.constant(f"directions.{axis}", [axis])
    if isinstance(layer, Bidirectional):
        return parts.add(f"{name}.joined", "ReduceSum", [name, axes], keepdims=0)
    return parts.add(f"{name}.joined", "Squeeze", [name, axes])


def _readout(parts: Parts, net: Network, params: NetworkParams, top: Hidden, time_major: bool) -> None:
    """Adds the readout, a Gemm of the hidden states side by side, and its outputs."""
    weights = {
        name: as_numpy("params.readout", leaf) for name, leaf in params.readout._asdict().items() if leaf is not None
    }
    names = [parts.constant(f"readout.{name}", array) for name, array in weights.items()]
    V = net.readout.outputs
    if net.last_step:
        parts.add("outputs", "Gemm", [top.last, *names], transB=1)
        parts.outputs.insert(0, parts.value("outputs", ("B", V)))
        return
    rows = parts.add("readout.rows", "Reshape", [top.steps, parts.constant("readout.flat", [-1, net.readout.hidden])])
    product = parts.add("readout", "Gemm", [rows, *names], transB=1)
    steps = parts.add("readout.steps", "Shape", [top.steps], start=0, end=2)
    shape = parts.add("readout.shape", "Concat", [steps, parts.constant("readout.outputs", [V])], axis=0)
    name = "outputs" if time_major else "outputs.time_major"
    parts.add(name, "Reshape", [product, shape])
    if not time_major:
        parts.add("outputs", "Transpose", [name], perm=[1, 0, 2])
    parts.outputs.insert(0, parts.value("outputs", ("T", "B", V) if time_major else ("B", "T", V)))
