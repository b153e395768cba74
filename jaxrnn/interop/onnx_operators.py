"""The operators that stand around recurrent ones in ONNX graphs: one line of NumPy or `jax.numpy` for each.

What is computed of arrays of NumPy only stays NumPy: so constants, and shapes and what is computed of them, are known
when a graph is traced, as a Reshape needs it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from chex import Array

LARGEST = 2**28  # entries of an array that an operator may make out of small ones


class Node(NamedTuple):
    """Holds one operator of a graph."""

    operator: str
    name: str
    inputs: tuple[str, ...]  # an empty name where an optional one is left out
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} {self.name!r}"


def evaluate(node: Node, values: Sequence[Array | None]) -> tuple[Array, ...]:
    """Computes the outputs of a node; raises a ValueError that names it where they cannot be."""
    check_supported(node)
    numpy = np if all(value is None or isinstance(value, np.ndarray) for value in values) else jnp
    try:
        found = OPERATORS[node.operator](numpy, node, *values)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{node} cannot be computed: {error}") from error
    made = tuple(found) if isinstance(found, list) else (found,)
    return tuple(map(np.asarray, made)) if numpy is np else made


def check_supported(node: Node) -> None:
    """Raises a ValueError that lists the operators that can be computed unless the node's is one of them."""
    if node.operator not in OPERATORS:
        raise ValueError(f"{node} is not supported; beside RNN, GRU and LSTM these are: {', '.join(OPERATORS)}")


def _check_size(shape: Iterable[int]) -> None:
    """Raises where an array would be larger than any that a network needs, before it is made."""
    shape = tuple(shape)
    if math.prod(shape) > LARGEST or min(shape, default=0) < 0:
        raise ValueError(f"it would make an array of shape {shape}, which is beyond {LARGEST} entries")


def _known(values: Array) -> list[int]:
    """Returns integers that say a shape, an axis or an index; raises where they depend on the inputs' values."""
    if not isinstance(values, np.ndarray):
        raise ValueError("its shape, axes or indices depend on the values of the model's inputs")
    return [int(value) for value in values.ravel()]


def _elementwise(name: str) -> Callable[..., Array]:
    def compute(numpy: types.ModuleType, node: Node, *values: Array) -> Array:
        _check_size(np.broadcast_shapes(*(np.shape(value) for value in values)))
        return getattr(numpy, name)(*values)

    return compute


def _constant(numpy: types.ModuleType, node: Node) -> Array:
    ((kind, value),) = node.attributes.items()
    if kind not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise ValueError(f"its value must be numbers, got {kind}")
    return value if kind == "value" else np.asarray(value, np.float32 if "float" in kind else np.int64)


def _dropout(numpy: types.ModuleType, node: Node, x: Array, ratio: Any = None, training: Array | None = None) -> Array:
    if training is not None and np.any(training):
        raise ValueError("its training_mode must be False: a loaded model leaves nothing out")
    return x


def _cast(numpy: types.ModuleType, node: Node, x: Array) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"])
    return x.astype(dtype if numpy is np else jax.dtypes.canonicalize_dtype(dtype))


def _shape(numpy: types.ModuleType, node: Node, x: Array) -> np.ndarray:
    return np.array(np.shape(x)[node.attributes.get("start", 0) : node.attributes.get("end")], np.int64)


def _squeeze(numpy: types.ModuleType, node: Node, x: Array, axes: Array | None = None) -> Array:
    return numpy.squeeze(x, None if axes is None else tuple(_known(axes)))


def _unsqueeze(numpy: types.ModuleType, node: Node, x: Array, axes: Array) -> Array:
    return numpy.expand_dims(x, tuple(_known(axes)))


def _reshape(numpy: types.ModuleType, node: Node, x: Array, shape: Array) -> Array:
    sizes = _known(shape)
    if not node.attributes.get("allowzero", 0):
        sizes = [size or x.shape[i] for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(numpy: types.ModuleType, node: Node, x: Array) -> Array:
    axis = node.attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _slice(
    numpy: types.ModuleType,
    node: Node,
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    first, last = _known(starts), _known(ends)
    where = list(range(len(first))) if axes is None else _known(axes)
    stride = [1] * len(first) if steps is None else _known(steps)
    index = [slice(None)] * x.ndim
    for axis, *of_axis in zip(where, first, last, stride, strict=True):
        index[axis] = slice(*of_axis)
    return x[tuple(index)]


def _split(numpy: types.ModuleType, node: Node, x: Array, sizes: Array | None = None) -> list[Array]:
    axis = node.attributes.get("axis", 0)
    size, count = x.shape[axis], len(node.outputs)
    parts = [math.ceil(size / count)] * count if sizes is None else _known(sizes)
    return numpy.split(x, np.cumsum(parts)[:-1].tolist(), axis)


def _gather(numpy: types.ModuleType, node: Node, x: Array, indices: Array) -> Array:
    axis = node.attributes.get("axis", 0)
    _check_size((*x.shape[:axis], *np.shape(indices), *x.shape[axis:][1:]))
    return numpy.take(x, indices, axis)


def _expand(numpy: types.ModuleType, node: Node, x: Array, shape: Array) -> Array:
    _check_size(_known(shape))
    wanted = np.broadcast_shapes(x.shape, _known(shape))
    _check_size(wanted)
    return numpy.broadcast_to(x, wanted)


def _constant_of_shape(numpy: types.ModuleType, node: Node, shape: Array) -> np.ndarray:
    _check_size(_known(shape))
    value = node.attributes.get("value", np.zeros(1, np.float32))
    return np.full(_known(shape), value.reshape(()), value.dtype)


def _one_hot(numpy: types.ModuleType, node: Node, indices: Array, depth: Array, values: Array) -> Array:
    (size,) = _known(depth)
    _check_size((*np.shape(indices), size))
    indices = numpy.where(indices < 0, indices + size, indices)
    hot = numpy.where(indices[..., None] == np.arange(size), values[1], values[0])
    return numpy.moveaxis(hot, -1, node.attributes.get("axis", -1))


def _concat(numpy: types.ModuleType, node: Node, *values: Array) -> Array:
    _check_size([sum(math.prod(np.shape(value)) for value in values)])
    return numpy.concatenate(values, node.attributes["axis"])


def _matmul(numpy: types.ModuleType, node: Node, A: Array, B: Array) -> Array:
    batch = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    _check_size((*batch, *A.shape[-2:-1], *B.shape[-1:]))
    return A @ B


def _gemm(numpy: types.ModuleType, node: Node, A: Array, B: Array, C: Array | None = None) -> Array:
    given = node.attributes.get
    A, B = (value.T if given(f"trans{name}", 0) else value for name, value in (("A", A), ("B", B)))
    product = given("alpha", 1.0) * _matmul(numpy, node, A, B)
    return product if C is None else product + given("beta", 1.0) * C


def _reduce_sum(numpy: types.ModuleType, node: Node, x: Array, axes: Array | None = None) -> Array:
    if (axes is None or not axes.size) and node.attributes.get("noop_with_empty_axes", 0):
        return x
    over = None if axes is None or not axes.size else tuple(_known(axes))
    return numpy.sum(x, over, dtype=x.dtype, keepdims=bool(node.attributes.get("keepdims", 1)))


def _activation(function: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda numpy, node, x: function(x)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": lambda numpy, node, x: x,
    "Dropout": _dropout,
    "Cast": _cast,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda numpy, node, x: numpy.transpose(x, node.attributes.get("perm")),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "OneHot": _one_hot,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceSum": _reduce_sum,
    "Add": _elementwise("add"),
    "Sub": _elementwise("subtract"),
    "Mul": _elementwise("multiply"),
    "Equal": _elementwise("equal"),
    "Where": _elementwise("where"),
    "Softmax": lambda numpy, node, x: jax.nn.softmax(x, node.attributes.get("axis", -1)),
    "LogSoftmax": lambda numpy, node, x: jax.nn.log_softmax(x, node.attributes.get("axis", -1)),
    "Sigmoid": _activation(jax.nn.sigmoid),
    "Tanh": _activation(jnp.tanh),
    "Relu": _activation(jax.nn.relu),
}
