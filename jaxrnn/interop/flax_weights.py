"""Conversions from and to the weights of flax's cells, as nnx and linen name them. Flax is not imported.

Every cell has kernels [in, out] of the inputs and of the recurrent product, for all gates together or one for each:

    U = (kernels of the inputs)^T        W = (recurrent kernels)^T        rows of r, z, n or of i, f, g, o

and one bias for each gate: on the inputs' side in SimpleCell and GRUCell, on the recurrent side in the LSTMs. Linen's
GRUCell has the bias of the recurrent product within n besides, which is d; nnx's has none.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from chex import Array

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Params
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM
from jaxrnn.interop.layers import (
    Activation,
    Kind,
    Merge,
    as_floats,
    assemble,
    check_layers,
    check_names,
    check_reset_after,
    check_shape,
    directions_of,
)
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.scan import check_params

Weights = Mapping[str, Mapping[str, Any]]  # such as {"dense_i": {"kernel": ..., "bias": ...}, "dense_h": {...}}
DIRECTIONS = ("forward_rnn", "backward_rnn")


class Names(NamedTuple):
    """Names the linear layers of one of flax's cells, in the order of the gates."""

    kind: Kind
    of_inputs: tuple[str, ...]
    recurrent: tuple[str, ...]
    biased: tuple[str, ...]  # those whose biases are b
    reset: tuple[str, ...] = ()  # that whose bias is d

    @property
    def leaves(self) -> dict[str, tuple[str, ...]]:
        """Names the arrays of every linear layer."""
        with_bias = (*self.biased, *self.reset)
        layers = (*self.of_inputs, *self.recurrent)
        return {layer: ("bias", "kernel") if layer in with_bias else ("kernel",) for layer in layers}


def _lstm(forget: str) -> Names:
    recurrent = ("hi", "hf", "hg", "ho")
    return Names(LSTM, ("ii", forget, "ig", "io"), recurrent, recurrent)


NNX = {
    "SimpleCell": Names(Elman, ("dense_i",), ("dense_h",), ("dense_i",)),
    "GRUCell": Names(GRU, ("dense_i",), ("dense_h",), ("dense_i",)),
    "LSTMCell": _lstm("if_"),
    "OptimizedLSTMCell": Names(LSTM, ("dense_i",), ("dense_h",), ("dense_h",)),
}
LINEN = {
    "SimpleCell": Names(Elman, ("i",), ("h",), ("i",)),
    "GRUCell": Names(GRU, ("ir", "iz", "in"), ("hr", "hz", "hn"), ("ir", "iz", "in"), ("hn",)),
    "LSTMCell": _lstm("if"),
    "OptimizedLSTMCell": _lstm("if"),
}
STYLES = {"nnx": NNX, "linen": LINEN}


def from_flax(
    cell: Literal["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"],
    weights: Mapping[str, Any],
    activation: Activation = "tanh",
    merge: Merge = "concatenate",
) -> tuple[Layer, Params]:
    """Returns a layer and its parameters from the weights of a flax cell, or of an RNN or a Bidirectional of one.

    Args:
        cell: the name of the cell's class.
        weights: nested dicts of arrays. Of nnx `nnx.to_pure_dict(nnx.state(module, nnx.Param))`, of linen
            `variables["params"]`; the module is a cell, an RNN ({"cell": ...}) or a Bidirectional
            ({"forward_rnn": {"cell": ...}, "backward_rnn": {"cell": ...}}). Of a stack those of one layer.
        activation: "tanh" or "relu", the `activation_fn` of a SimpleCell, which weights do not tell; all other
            functions must be flax's defaults, and `residual` False.
        merge: of a Bidirectional, "concatenate" for flax's default `merge_fn`, or "sum".

    Returns:
        A cell or a `jaxrnn.Bidirectional`, and its parameters, NumPy arrays in the dtypes of the weights.

    Raises:
        TypeError: weights that are not nested dicts of arrays of floats.
        ValueError: an unknown cell, activation or merge; names missing or unknown; wrong shapes.

    >>> import numpy as np, jaxrnn.interop
    >>> dense_i, dense_h = {"kernel": np.ones((3, 15)), "bias": np.ones(15)}, {"kernel": np.ones((5, 15))}
    >>> cell, params = jaxrnn.interop.from_flax("GRUCell", {"dense_i": dense_i, "dense_h": dense_h})
    >>> cell.inputs, cell.hidden, params.U.shape, params.d
    (3, 5, (15, 3), array([0., 0., 0., 0., 0.]))
    """
    check_choice("cell", cell, tuple(NNX))
    both_ways = isinstance(weights, Mapping) and DIRECTIONS[0] in weights
    if both_ways:
        check_names("weights", weights, DIRECTIONS, "a Bidirectional has these two")
    elif merge != "concatenate":
        raise ValueError(f"merge is for a Bidirectional, with weights of {' and '.join(DIRECTIONS)}; got {merge!r}")
    parts = {f"weights[{name!r}]": weights[name] for name in DIRECTIONS} if both_ways else {"weights": weights}
    directions = [_from_direction(name, cell, part) for name, part in parts.items()]
    return assemble(NNX[cell].kind, activation, directions, merge)


def to_flax(
    cell: Literal["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"],
    layer: Layer,
    params: Params,
    style: Literal["nnx", "linen"] = "nnx",
) -> dict[str, Any]:
    """Returns the weights of the flax cell that computes the same: the inverse of `from_flax`.

    For nnx: `nnx.update(module, weights)`; for linen they are the "params" of the cell. Flax's cells always have their
    bias: it is zero where the layer has none.

    Args:
        cell: the name of the cell's class.
        layer: an Elman, GRU or LSTM cell, or a `jaxrnn.Bidirectional` of two of one kind.
        params: its parameters.
        style: "nnx" or "linen": they name the arrays differently.

    Returns:
        Nested dicts of NumPy arrays, of a cell, or of both cells of a flax Bidirectional, as `from_flax` takes them.

    Raises:
        TypeError: a layer that is not one of jaxrnn's own, or parameters of another layer.
        ValueError: an unknown cell or style; a layer of another kind than the cell; a GRU that resets before the
            product; a GRU whose d is not zero, which nnx's GRUCell cannot hold.

    >>> import jax, jaxrnn, jaxrnn.interop
    >>> cell = jaxrnn.LSTM(3, 5)
    >>> weights = jaxrnn.interop.to_flax("LSTMCell", cell, cell.init(jax.random.key(0)))
    >>> weights["if_"]["kernel"].shape, weights["hf"]["bias"]
    ((3, 5), array([1., 1., 1., 1., 1.], dtype=float32))
    """
    check_choice("cell", cell, tuple(NNX))
    check_choice("style", style, tuple(STYLES))
    check_layers("layer", {"layer": layer}, "the directions of a flax layer")
    check_reset_after("layer", [layer], "flax's GRUCell")
    check_params(layer, params)
    names = STYLES[style][cell]
    both = [_to_direction(names, own, arrays) for own, arrays in directions_of(layer, params)]
    if isinstance(layer, Bidirectional):
        return {name: {"cell": weights} for name, weights in zip(DIRECTIONS, both, strict=True)}
    return both[0]


def gather(names: Names, weights: Weights, numpy: types.ModuleType) -> list[Any]:
    """Returns U, W, b and, where there is one, d, of the weights of one cell.

    Args:
        names: of the cell.
        weights: arrays of them.
        numpy: NumPy, or `jax.numpy` for traced arrays.
    """

    def joined(layers: tuple[str, ...], leaf: str) -> Array:
        arrays = [weights[layer][leaf] for layer in layers]
        return arrays[0] if len(arrays) == 1 else numpy.concatenate(arrays, -1)

    arrays = [joined(names.of_inputs, "kernel").T, joined(names.recurrent, "kernel").T, joined(names.biased, "bias")]
    return [*arrays, weights[names.reset[0]]["bias"]] if names.reset else arrays


def _from_direction(place: str, cell: str, weights: Any) -> list[np.ndarray]:
    """Returns U, W and torch's biases of the weights of one cell, or of an RNN of it; checked."""
    if isinstance(weights, Mapping) and set(weights) == {"cell"}:
        place, weights = f"{place}['cell']", weights["cell"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, Mapping) for value in weights.values()):
        raise TypeError(f"{place} must be dicts of dicts of arrays, one for each linear layer of a {cell}")
    names = next((style[cell] for style in STYLES.values() if set(style[cell].leaves) == set(weights)), NNX[cell])
    check_names(place, weights, names.leaves, f"are they of a {cell}, of nnx or linen?")
    arrays: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in weights}
    for layer, leaves in names.leaves.items():
        check_names(f"{place}[{layer!r}]", weights[layer], leaves, f"are they of a {cell}?")
        for leaf in leaves:
            arrays[layer][leaf] = as_floats(f"{place}[{layer!r}][{leaf!r}]", weights[layer][leaf])
    _check_shapes(place, names, arrays)
    U, W, b, *d = gather(names, arrays, np)
    if names.kind is GRU:
        H = W.shape[1]
        d = [np.concatenate([np.zeros(2 * H, b.dtype), d[0] if d else np.zeros(H, b.dtype)])]
    return [np.ascontiguousarray(U), np.ascontiguousarray(W), b, *d]


def _check_shapes(place: str, names: Names, arrays: Weights) -> None:
    """Raises unless kernels and biases have the shapes that the first kernels give."""
    D = arrays[names.of_inputs[0]]["kernel"].shape[0] if arrays[names.of_inputs[0]]["kernel"].ndim else 0
    H = arrays[names.recurrent[0]]["kernel"].shape[0] if arrays[names.recurrent[0]]["kernel"].ndim else 0
    for layer, leaves in arrays.items():
        columns = names.kind.blocks * H // (len(names.of_inputs))
        rows = D if layer in names.of_inputs else H
        for leaf, array in leaves.items():
            shape = (columns,) if leaf == "bias" else (rows, columns)
            check_shape(f"{place}[{layer!r}][{leaf!r}]", array, shape, "are they the weights of one cell?")


def _to_direction(names: Names, cell: Any, arrays: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the weights of one cell from U, W and torch's biases."""
    if type(cell) is not names.kind:
        raise ValueError(f"layer must be of kind {names.kind.__name__} for this cell, got {cell}")
    U, W, *biases = arrays
    b = biases[0] if biases else np.zeros(len(W), W.dtype)
    d = biases[1][2 * cell.hidden :] if biases and names.kind is GRU else np.zeros(cell.hidden, W.dtype)
    if names.kind is GRU and not names.reset and np.any(d):
        raise ValueError(
            "params.d must be zero: the GRUCell of flax nnx has no bias of the recurrent product within n, which the "
            'reset scales, so it cannot hold one; linen\'s can (style="linen")'
        )
    weights: dict[str, dict[str, np.ndarray]] = {}
    for layers, array in ((names.of_inputs, U), (names.recurrent, W)):
        for layer, rows in zip(layers, np.split(array, len(layers)), strict=True):
            weights[layer] = {"kernel": np.ascontiguousarray(rows.T)}
    for layers, array in ((names.biased, b), (names.reset, d)):
        for layer, rows in zip(layers, np.split(array, len(layers)) if layers else (), strict=True):
            weights[layer]["bias"] = rows.copy()
    return weights
