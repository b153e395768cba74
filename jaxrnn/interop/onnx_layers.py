"""The operators RNN, GRU and LSTM of ONNX as layers of jaxrnn, and back.

    W [directions, G H, D] is U      R [directions, G H, H] is W      B [directions, 2 G H] is (Wb, Rb)

with gates in the order z, r, h (GRU) and i, o, f, c (LSTM), where jaxrnn has r, z, n and i, f, g, o. The two biases
add, b = Wb + Rb, but for h in a GRU with linear_before_reset=1: there Wb is b and Rb is d, as in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Params, State, hidden_of
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM, LSTMState
from jaxrnn.interop.layers import (
    Activation,
    Kind,
    Reset,
    as_floats,
    assemble,
    cells_of,
    check_layers,
    check_shape,
    directions_of,
)
from jaxrnn.interop.onnx_operators import Node
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.masking import lengths_to_mask
from jaxrnn.layer.unroll import unroll

KINDS: dict[str, Kind] = {"RNN": Elman, "GRU": GRU, "LSTM": LSTM}
ORDERS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}  # where jaxrnn's gates stand among ONNX's
FUNCTIONS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


class Recurrent(NamedTuple):
    """Holds what a recurrent operator computes."""

    layer: Layer
    params: Params
    reverse: bool  # whether a cell reads from the last step to the first
    batch_first: bool  # layout=1: the batch comes first in X and Y, and in the states


def from_node(node: Node, constants: Mapping[str, np.ndarray]) -> Recurrent:
    """Returns the layer of a recurrent operator; raises a ValueError that names what jaxrnn has no equal of."""
    _check_attributes(node)
    activation = _activation(node)
    names = dict(zip(INPUTS, node.inputs, strict=False))
    arrays = {place: _weight(node, place, names[place], constants) for place in "WRB" if names.get(place)}
    _check_shapes(node, arrays)
    order = ORDERS[node.operator]
    rows = [_reorder(arrays["W"], order), _reorder(arrays["R"], order)]
    if "B" in arrays:
        rows += [_reorder(bias, order) for bias in np.split(arrays["B"], 2, 1)]
    reset: Reset = "after" if node.attributes.get("linear_before_reset", 0) else "before"
    directions = [list(map(np.ascontiguousarray, direction)) for direction in zip(*rows, strict=True)]
    layer, params = assemble(KINDS[node.operator], activation, directions, reset=reset)
    reverse = node.attributes.get("direction", "forward") == "reverse"
    return Recurrent(layer, params, reverse, bool(node.attributes.get("layout", 0)))


def to_operator(name: str, layer: Layer, params: Params) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Returns the operator that computes what a layer does, its attributes, and its weights W, R and B."""
    check_layers(name, {name: layer}, "the directions of an operator of ONNX")
    cell = cells_of(layer)[0]
    operator = next(operator for operator, kind in KINDS.items() if type(cell) is kind)
    directions = [arrays for _, arrays in directions_of(layer, params)]
    order = np.argsort(ORDERS[operator])
    W, R, *biases = (_reorder(np.stack(arrays), order) for arrays in zip(*directions, strict=True))
    weights = {"W": W, "R": R} | ({"B": np.concatenate(biases, 1)} if biases else {})
    attributes: dict[str, Any] = {"hidden_size": layer.hidden}
    attributes["direction"] = "bidirectional" if isinstance(layer, Bidirectional) else "forward"
    if isinstance(cell, Elman):
        attributes["activations"] = [cell.activation.capitalize()] * len(directions)
    if isinstance(cell, GRU):
        attributes["linear_before_reset"] = int(cell.reset == "after")
    return operator, attributes, weights


def run(
    recurrent: Recurrent,
    X: Array,
    lengths: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
) -> tuple[Array, Array, Array | None]:
    """Computes Y, Y_h and, of an LSTM, Y_c.

    Behind its end a sequence has zeros in Y, as in onnxruntime. A sequence of no steps keeps its initial state: the
    specification says nothing of it, and onnxruntime makes zeros.

    Args:
        recurrent: the operator.
        X: [T, B, D], or with layout=1 [B, T, D].
        lengths: integers [B].
        initial_h, initial_c: [directions, B, H], or with layout=1 [B, directions, H]; zeros by default.
    """
    layer, batch_first = recurrent.layer, recurrent.batch_first
    X, initial_h, initial_c = (_exchange(array, batch_first) for array in (jnp.asarray(X), initial_h, initial_c))
    T, B = X.shape[:2]
    mask = None if lengths is None else lengths_to_mask(lengths, T)
    state = to_state(layer, initial_h, initial_c, jnp.zeros((len(cells_of(layer)), B, layer.hidden), X.dtype))
    hidden, final = unroll(layer, recurrent.params, X, state, mask=mask, reverse=recurrent.reverse)
    if mask is not None:
        hidden = jnp.where(mask[..., None], hidden, 0)
    finals = final if isinstance(layer, Bidirectional) else (final,)
    Y_h, Y_c = jnp.stack([hidden_of(state) for state in finals]), None  # [directions, B, H]
    if isinstance(finals[0], LSTMState):
        Y_c = _exchange(jnp.stack([state.m for state in finals]), batch_first)
    Y = hidden.reshape(T, B, len(finals), layer.hidden)
    Y = jnp.moveaxis(Y, (0, 1), (1, 0)) if batch_first else jnp.moveaxis(Y, 2, 1)
    return Y, _exchange(Y_h, batch_first), Y_c


def to_state(layer: Layer, h: Array | None, c: Array | None, zeros: Array) -> State | None:
    """Returns the state of a layer from arrays [directions, ...], of which a missing one is zeros."""
    if h is None and c is None:
        return None
    h, c = (zeros if array is None else array for array in (h, c))
    lstm = isinstance(cells_of(layer)[0], LSTM)
    states = tuple(LSTMState(*pair) if lstm else pair[0] for pair in zip(h, c, strict=True))
    return states if isinstance(layer, Bidirectional) else states[0]


def _exchange(array: Array | None, batch_first: bool) -> Array | None:
    return jnp.swapaxes(array, 0, 1) if batch_first and array is not None else array


def _reorder(rows: np.ndarray, order: Any) -> np.ndarray:
    """Puts the blocks of rows [directions, G H, ...] into an order."""
    blocks = np.split(rows, len(order), 1)
    return np.concatenate([blocks[i] for i in order], 1)


def _check_attributes(node: Node) -> None:
    """Raises where an operator has what no layer of jaxrnn does."""
    given = node.attributes
    check_choice(f"direction of {node}", given.get("direction", "forward"), tuple(DIRECTIONS))
    refused: list[str] = [name for name in ("clip", "activation_alpha", "activation_beta") if name in given]
    refused += ["input_forget"] if given.get("input_forget", 0) else []
    refused += ["P (peepholes)"] if any(node.inputs[7:8]) else []
    if refused:
        raise ValueError(f"{node} has {', '.join(refused)}, which no layer of jaxrnn has")


def _activation(node: Node) -> Activation:
    """Returns "tanh", or what else an RNN has; raises for other activations than the gates of jaxrnn have."""
    ways, usual = DIRECTIONS[node.attributes.get("direction", "forward")], FUNCTIONS[node.operator]
    found = tuple(name.lower() for name in node.attributes.get("activations", ()))
    if node.operator == "RNN" and set(found[:ways]) == {"relu"}:
        return "relu"
    # A forward RNN has two by default, of which the second counts for nothing.
    if found[: ways * len(usual)] not in ((), usual * ways):
        wanted = f"{', '.join(usual)} for each direction" + (", or relu" if node.operator == "RNN" else "")
        raise ValueError(f"activations of {node} must be {wanted}, as in jaxrnn, got {', '.join(found)}")
    return "tanh"


def _weight(node: Node, place: str, name: str, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in constants:
        raise ValueError(f"{place} of {node} must be weights in the file, but it depends on the model's inputs")
    return as_floats(f"{place} of {node}", constants[name])


def _check_shapes(node: Node, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises unless the weights are of the shapes that R gives."""
    ways, gates = DIRECTIONS[node.attributes.get("direction", "forward")], KINDS[node.operator].blocks
    (D, H), cause = (arrays[place].shape[-1] if arrays[place].ndim else 0 for place in "WR"), "is the file damaged?"
    shapes = {"W": (ways, gates * H, D), "R": (ways, gates * H, H), "B": (ways, 2 * gates * H)}
    for place, array in arrays.items():
        check_shape(f"{place} of {node}", array, shapes[place], cause)
    if node.attributes.get("hidden_size", H) != H:
        raise ValueError(f"hidden_size of {node} must be {H}, as its R says, got {node.attributes['hidden_size']}")
