"""Which `jaxrnn.Network` an ONNX graph is, told by labels that run through it.

Every number of the inputs, and every number that a layer makes, gets a random label of 64 bits. What stands between
layers moves numbers or adds them, so it is applied to the labels: a sum of labels, modulo 2^64, is the label of the
sum. Where labels reach a layer or the readout, they say what it is fed, however many operators they came through: what
the layer below hands up, its directions concatenated or summed, with a residual path or without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from chex import Array

from jaxrnn.cells.base import Params, State
from jaxrnn.interop.onnx_graph import Graph
from jaxrnn.interop.onnx_layers import INPUTS, KINDS, Recurrent, to_state
from jaxrnn.interop.onnx_operators import Node, evaluate
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.network.readout import Readout, ReadoutParams

LABEL = np.dtype(np.uint64)
MOST = 2**26  # labels for one tensor: 512 MB, where a model says how many steps and sequences there are
# Operators that only move the numbers of their first input, or of all.
MOVES: tuple[str, ...]
MOVES = ("Identity", "Dropout", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Slice", "Split", "Gather")
MOVES += ("Expand", "ReduceSum")
JOINS = ("Concat", "Add")
OF_OBJECTIVES = ("Softmax", "LogSoftmax", "Sigmoid")  # a network's outputs are what stands before them


class Handed(NamedTuple):
    """Holds the labels of what a layer hands up, and how it does."""

    steps: np.ndarray  # [T, B, outputs]
    last: np.ndarray  # [B, outputs], after each sequence's last step
    merge: Literal["concatenate", "sum"]  # of its directions
    residual: bool


def network_of(
    graph: Graph, recurrent: Mapping[tuple[str, ...], Recurrent], objective: Callable[[Array, Array], Array]
) -> tuple[Network, NetworkParams]:
    """Returns the network that a graph computes, and its parameters; raises a ValueError that names what is in the way.

    Args:
        graph: whose nodes are all supported.
        recurrent: its recurrent operators, by the names of their outputs.
        objective: of the network.
    """
    reading = _Reading(graph, recurrent)
    for node in graph.nodes:
        reading.take(node)
    return reading.network(objective)


class _Reading:
    """Collects the parts of a network, node by node from the inputs on."""

    def __init__(self, graph: Graph, recurrent: Mapping[tuple[str, ...], Recurrent]) -> None:
        self.graph, self.recurrent = graph, recurrent
        self.random = np.random.default_rng(0)
        given = {name: self.labels(shape) for name, shape in _probe_shapes(graph).items()}
        self.values: dict[str, np.ndarray] = {**graph.constants, **given}
        self.inputs = list(given.values())
        self.lengths: np.ndarray | None = None
        self.layers: list[Layer] = []
        self.params: list[Params] = []
        self.states: list[State | None] = []  # s_0 of each layer where it is learned
        self.residual: list[bool] = []  # of each layer but the lowest
        self.choices: list[Handed] = []  # how the top layer may hand up what it does
        self.readout: ReadoutParams | None = None
        self.last_step = False
        self.outputs = np.zeros(0, LABEL)  # of the readout

    def labels(self, shape: tuple[int, ...]) -> np.ndarray:
        """Draws labels that no other number has."""
        _check_room(shape)
        return self.random.integers(0, 2**64, shape, LABEL)

    def take(self, node: Node) -> None:
        """Applies a node to the labels of its inputs."""
        values = [self.values.get(name) for name in node.inputs]
        self.values.update(zip(node.outputs, self._made_by(node, values), strict=False))

    def _made_by(self, node: Node, values: list[Any]) -> tuple[Any, ...]:
        labelled = [value is not None and value.dtype == LABEL for value in values]
        if node.operator in KINDS:
            return self._layer(node, dict(zip(INPUTS, values, strict=False)))
        if node.operator == "Shape" or not any(labelled):
            return evaluate(node, values)
        if node.operator == "OneHot":
            return (self._tokens(node, *values),)
        if node.operator in ("MatMul", "Gemm"):
            return (self._product(node, *values),)
        if node.operator == "Add" and not all(labelled):
            return (self._bias(node, *(values if labelled[0] else reversed(values))),)
        if node.operator == "Cast" or (node.operator in OF_OBJECTIVES and np.isin(values[0], self.outputs).all()):
            return (values[0],)
        if (node.operator in JOINS and all(labelled)) or (node.operator in MOVES and not any(labelled[1:])):
            return evaluate(node, values)
        raise _no_place(node, "it is neither a layer nor a readout, and does more than move or add numbers")

    def _layer(self, node: Node, values: dict[str, Any]) -> tuple[np.ndarray, ...]:
        """Puts a recurrent operator on top of the layers, and returns the labels of its Y, Y_h and Y_c."""
        layer, params, reverse, batch_first = self.recurrent[node.outputs]
        if reverse:
            raise _no_place(node, "its direction is reverse, and layers run forward or both ways")
        X, *states = (_exchange(values.get(name), batch_first) for name in ("X", "initial_h", "initial_c"))
        if self.layers and not self._hands_up(lambda top: np.array_equal(X, top.steps)):
            raise _no_place(node, "its X is not what the layer below hands up")
        if not self.layers and not self._given(X):
            raise _no_place(node, "its X is not an input of the model as it is")
        self._take_lengths(node, values.get("sequence_lens"), len(X))
        self.layers.append(layer)
        self.params.append(params)
        self.states.append(self._learned(node, layer, *states))
        hidden = self.labels((2 if isinstance(layer, Bidirectional) else 1, *X.shape[:2], layer.hidden))
        last = np.stack([hidden[0, -1], hidden[-1, 0]][: len(hidden)])
        last = last if self.lengths is None else self.labels(last.shape)
        self.choices = list(_choices(hidden, last, self.choices[0] if self.choices else None))
        Y = hidden.transpose(2, 1, 0, 3) if batch_first else hidden.swapaxes(0, 1)
        return Y, _exchange(last, batch_first), _exchange(self.labels(last.shape), batch_first)

    def _hands_up(self, fits: Callable[[Handed], bool]) -> bool:
        """Settles how the top layer hands up what it does, and tells whether any way fits what is fed with it."""
        top = next((choice for choice in self.choices if fits(choice)), None)
        if top is None or self.readout is not None:
            return False
        self.choices = [top]
        layer = self.layers[-1]
        if isinstance(layer, Bidirectional):
            self.layers[-1] = Bidirectional(layer.forward, layer.backward, top.merge)
        self.residual += [top.residual] if len(self.layers) > 1 else []
        return True

    def _product(self, node: Node, A: np.ndarray, B: np.ndarray, C: np.ndarray | None = None) -> np.ndarray:
        """Takes a product with weights as the readout V s_t, and the C of a Gemm as c."""
        if A.dtype != LABEL or B.dtype == LABEL or B.ndim != 2 or node.attributes.get("transA", 0):
            raise _no_place(node, "a readout multiplies hidden states by weights")
        rows = A.reshape(-1, A.shape[-1])
        if not self._hands_up(lambda top: _same_rows(rows, top.steps)):
            self.last_step = self._hands_up(lambda top: np.array_equal(rows, top.last))
            if not self.last_step:
                raise _no_place(node, "it does not read what the top layer hands up, or stands behind a readout")
        V = B if node.attributes.get("transB", 0) else B.T
        self.readout = ReadoutParams(np.ascontiguousarray(V * V.dtype.type(node.attributes.get("alpha", 1))), None)
        self.outputs = self.labels((*A.shape[:-1], len(V)))
        return self.outputs if C is None else self._bias(node, self.outputs, C, node.attributes.get("beta", 1))

    def _bias(self, node: Node, outputs: np.ndarray, bias: np.ndarray, factor: float = 1) -> np.ndarray:
        """Takes what is added to the outputs as the readout's c."""
        if self.readout is None or self.readout.c is not None or not np.isin(outputs, self.outputs).all():
            raise _no_place(node, "weights are added to the outputs of the readout only, and once")
        V = self.readout.V
        if bias.size not in (1, len(V)) or bias.shape[-1:] not in ((), (1,), (len(V),)):
            raise _no_place(node, f"the readout's bias must be [{len(V)}], got shape {bias.shape}")
        c = np.broadcast_to(bias.reshape(-1) * bias.dtype.type(factor), len(V))
        self.readout = ReadoutParams(V, c.copy())
        return outputs

    def _tokens(self, node: Node, indices: np.ndarray, depth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Takes one-hot vectors of tokens as inputs: a network takes the tokens in their place."""
        axis = node.attributes.get("axis", -1)
        if not self._given(indices) or axis not in (-1, indices.ndim) or values.tolist() != [0, 1]:
            raise _no_place(node, "one-hot vectors must be of an input of the model, 0 and 1, along the last axis")
        size = int(depth.item())
        _check_room((*indices.shape, size))
        hot = indices[..., None] * (self.labels((size,)) | np.uint64(1))
        self.inputs.append(hot)
        return hot

    def _take_lengths(self, node: Node, lengths: np.ndarray | None, steps: int) -> None:
        """Raises unless all layers have the same lengths, an input of the model."""
        if lengths is not None and lengths.dtype != LABEL and (lengths == steps).all():
            lengths = None
        first = lengths if not self.layers else self.lengths
        alike = lengths is first if lengths is None or first is None else np.array_equal(lengths, first)
        if not alike or not (lengths is None or self._given(lengths)):
            raise _no_place(node, "sequence_lens must be one input of the model for all layers")
        self.lengths = lengths

    def _learned(self, node: Node, layer: Layer, h: np.ndarray | None, c: np.ndarray | None) -> State | None:
        """Returns the initial state [directions, H] of a file's weights; None for zeros, or where it is given."""
        arrays = [array for array in (h, c) if array is not None]
        if any(array.dtype == LABEL for array in arrays):
            known = np.concatenate([labels.ravel() for labels in self.inputs])
            if not all(array.dtype == LABEL and np.isin(array, known).all() for array in arrays):
                raise _no_place(node, "its initial state must be an input of the model, or weights")
            return None
        if not all((array == array[:, :1]).all() for array in arrays):
            raise _no_place(node, "its initial state differs from sequence to sequence")
        if not any(map(np.any, arrays)) and not any(map(self._spread, node.inputs[5:7])):
            return None
        h, c = (None if array is None else array[:, 0].copy() for array in (h, c))
        return to_state(layer, h, c, np.zeros_like(arrays[0][:, 0]))

    def _spread(self, name: str) -> bool:
        """Tells whether a value is a row of weights for each direction, of which there is a copy for each sequence.

        So a saved network has a learned state: it is one even where all of it is zero.
        """
        node = self.graph.made_by(name)
        return node is not None and node.operator == "Expand" and self.values[node.inputs[0]].ndim == 3

    def _given(self, labels: np.ndarray) -> bool:
        """Tells whether labels are those of an input, but for axes of size 1 and the order of the first two.

        Their shape counts: steps and sequences that a Reshape has mixed up have the same labels in the same order.
        """
        sides = (side for given in self.inputs for side in _both_orders(given))
        return any(np.array_equal(labels.squeeze(), side.squeeze()) for side in sides)

    def network(self, objective: Callable[[Array, Array], Array]) -> tuple[Network, NetworkParams]:
        """Returns the network and its parameters."""
        if not self.layers:
            raise ValueError("the model is no jaxrnn.Network: it has no RNN, GRU or LSTM")
        if self.readout is None:
            made = [self.values[name] for name in self.graph.outputs]
            if not self._hands_up(lambda top: any(_same_rows(labels, top.steps) for labels in made)):
                self._hands_up(lambda top: True)
            dtype = jax.tree.leaves(self.params)[0].dtype
            self.readout = ReadoutParams(np.eye(self.layers[-1].outputs, dtype=dtype), None)
        if len(set(self.residual)) > 1:
            raise ValueError("the model is no jaxrnn.Network: some layers have a residual path, and others do not")
        V, c = self.readout
        learned = any(state is not None for state in self.states)
        options = {"residual": any(self.residual), "last_step": self.last_step, "learn_state": learned}
        net = Network(tuple(self.layers), Readout(V.shape[1], len(V), c is not None), objective, **options)
        zeros = jax.tree.map(np.asarray, net.initial_state((), V.dtype))
        state = tuple(s_0 if s is None else s for s, s_0 in zip(self.states, zeros, strict=True))
        return net, NetworkParams(tuple(self.params), ReadoutParams(V, c), state if learned else None)


def _choices(hidden: np.ndarray, last: np.ndarray, below: Handed | None) -> Iterator[Handed]:
    """Yields every way to hand up hidden states [directions, T, B, H] and last ones [directions, B, H]."""
    for merge in ("concatenate", "sum"):
        steps, end = (
            np.concatenate(ways, -1) if merge == "concatenate" else ways.sum(0, LABEL) for ways in (hidden, last)
        )
        yield Handed(steps, end, merge, False)
        if below is not None and below.steps.shape == steps.shape:
            yield Handed(steps + below.steps, end + below.last, merge, True)


def _check_room(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MOST:
        raise ValueError(f"the model has a tensor of shape {shape}, too large to be read as a jaxrnn.Network")


def _same_rows(labels: np.ndarray, steps: np.ndarray) -> bool:
    """Tells whether labels [..., outputs] are those of all steps [T, B, outputs], of each in turn or each sequence."""
    return any(np.array_equal(labels.ravel(), side.ravel()) for side in _both_orders(steps))


def _both_orders(labels: np.ndarray) -> list[np.ndarray]:
    return [labels, labels.swapaxes(0, 1)] if labels.ndim > 1 else [labels]


def _exchange(array: np.ndarray | None, batch_first: bool) -> Any:
    return array.swapaxes(0, 1) if batch_first and array is not None else array


def _no_place(node: Node, why: str) -> ValueError:
    return ValueError(f"{node} has no place in a jaxrnn.Network: {why}")


def _probe_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Returns a shape for every input: an axis of any size is small, of another size than those of other names."""
    sizes: dict[str | None, int] = {}
    return {
        name: tuple(size if isinstance(size, int) else sizes.setdefault(size, 3 + len(sizes)) for size in shape)
        for name, (_, shape) in graph.inputs.items()
    }
