"""An ONNX file as plain nodes and NumPy arrays: read with care, checked, and with what is constant computed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import google.protobuf.message
import numpy as np
import onnx

from jaxrnn.interop.onnx_operators import OPERATORS, Node, evaluate

OPSETS = range(13, 29)  # before 13 the axes of Squeeze and Unsqueeze were attributes; 28 is the newest that was read
GROWTH = 8  # how many times the numbers in a file its computed constants may come to; most are weights in another order
DTYPES = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT16", "INT8", "UINT8", "BOOL")


class Input(NamedTuple):
    """Describes one input of a graph."""

    dtype: np.dtype
    shape: tuple[int | str | None, ...]  # a name, or None, for an axis of any size


class Graph(NamedTuple):
    """Holds what a file computes: every node after those that make its inputs."""

    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    constants: dict[str, np.ndarray]
    nodes: tuple[Node, ...]  # those that depend on the inputs

    def made_by(self, name: str) -> Node | None:
        """Returns the node that makes a value; None for an input or a constant."""
        return next((node for node in self.nodes if name in node.outputs), None)


def read(source: str | os.PathLike[str] | onnx.ModelProto) -> Graph:
    """Reads a file or a model, computes what is constant in it, and raises a ValueError that names what is damaged."""
    model = source if isinstance(source, onnx.ModelProto) else _read_file(pathlib.Path(source))
    _check(model)
    constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    inputs = {value.name: _input(value) for value in model.graph.input if value.name not in constants}
    outputs = tuple(value.name for value in model.graph.output)
    nodes, room = [], GROWTH * max(2**20, sum(array.size for array in constants.values()))
    for node in map(_node, model.graph.node):
        if node.operator not in OPERATORS or not all(name in constants or not name for name in node.inputs):
            nodes.append(node)
            continue
        made = evaluate(node, [constants[name] if name else None for name in node.inputs])
        constants.update(zip(node.outputs, made, strict=False))
        room -= sum(array.size for array in made)
        if room < 0:
            raise ValueError(f"{node} is one constant too many: they come to {GROWTH} times the numbers in the file")
    return Graph(inputs, outputs, constants, tuple(nodes))


def _read_file(path: pathlib.Path) -> onnx.ModelProto:
    """Reads a file, and what it keeps in other files of its folder."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except google.protobuf.message.DecodeError as error:
        raise ValueError(f"{str(path)!r} must be an ONNX file, but cannot be read as one: {error}") from error
    folder = path.parent.resolve()
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            _read_data(tensor, folder, location)
    return model


def _read_data(tensor: onnx.TensorProto, folder: pathlib.Path, location: str) -> None:
    """Reads a tensor that stands in another file; raises unless that is in the folder, links followed."""
    if not (folder / location).resolve().is_relative_to(folder):
        raise ValueError(f"{tensor.name!r} must stand in a file of the model's own folder, got {location!r}")
    try:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ValueError(f"{tensor.name!r} cannot be read from {location!r}: {error}") from error
    tensor.data_location = onnx.TensorProto.DEFAULT  # onnx 1.17 leaves it as it was
    del tensor.external_data[:]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _check(model: onnx.ModelProto) -> None:
    """Raises a ValueError unless the model is whole and of a version that is known."""
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise ValueError("a model whose data are in other files must be given by its path, so that these can be found")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ValueError(f"the model must be valid, but onnx.checker says: {error}") from error
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 1)
    if version not in OPSETS:
        cause = "onnx.version_converter may convert it"
        raise ValueError(f"the model must be of opset {OPSETS[0]} to {OPSETS[-1]}, got {version}; {cause}")
    if model.graph.sparse_initializer:
        raise ValueError("the model must have dense weights, got sparse ones")


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    """Returns the values of a tensor; raises unless there are as many as its shape says."""
    _check_kind(tensor.name, tensor.data_type)
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except ValueError as error:
        raise ValueError(f"{tensor.name!r} has not as many values as its shape says, {list(tensor.dims)}") from error
    if array.shape != tuple(tensor.dims):
        raise ValueError(f"{tensor.name!r} must have a shape without negative sizes, got {list(tensor.dims)}")
    return array


def _check_kind(name: str, number: int) -> None:
    kind = {value: kind for kind, value in onnx.TensorProto.DataType.items()}.get(number, str(number))
    if kind not in DTYPES:
        raise ValueError(f"{name!r} must be a tensor of {', '.join(DTYPES)}, got one of {kind}")


def _node(node: onnx.NodeProto) -> Node:
    name = node.name or next(filter(None, node.output), "")
    if node.domain not in ("", "ai.onnx"):
        raise ValueError(f"{node.op_type} {name!r} must be an operator of ONNX itself, got domain {node.domain!r}")
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    return Node(node.op_type, name, tuple(node.input), tuple(node.output), attributes)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode(errors="replace") for text in value]
    return value


def _input(value: onnx.ValueInfoProto) -> Input:
    tensor = value.type.tensor_type
    _check_kind(value.name, tensor.elem_type)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    sizes = (axis.dim_value if axis.dim_value > 0 else axis.dim_param or None for axis in tensor.shape.dim)
    return Input(dtype, tuple(sizes))
