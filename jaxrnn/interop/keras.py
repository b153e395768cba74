"""Conversions from and to the weights of Keras's SimpleRNN, GRU and LSTM, and of a Bidirectional of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Params
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM
from jaxrnn.interop.layers import (
    Activation,
    Kind,
    Merge,
    Reset,
    as_floats,
    assemble,
    check_layers,
    check_shape,
    directions_of,
)
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.scan import check_params

KINDS: dict[str, Kind] = {"SimpleRNN": Elman, "GRU": GRU, "LSTM": LSTM}


def from_keras(
    kind: Literal["SimpleRNN", "GRU", "LSTM"],
    weights: Sequence[ArrayLike],
    activation: Activation = "tanh",
    merge: Merge = "concatenate",
    reset: Reset | None = None,
) -> tuple[Layer, Params]:
    """Returns a layer and its parameters from the `get_weights()` of a Keras layer, or of a Bidirectional of one.

        U = kernel^T       W = recurrent_kernel^T       b = bias
        GRU: b = bias[0] + bias[1], but in the rows of n b = bias[0], d = bias[1]; with reset_after=False b = bias

    Apart from `activation`, the activations must be Keras's defaults, tanh and sigmoid: weights do not tell. A GRU
    without bias does not tell its `reset_after` either: say `reset="before"` where that is False.

    Args:
        kind: "SimpleRNN", "GRU" or "LSTM".
        weights: kernel [D, G H], recurrent_kernel [H, G H] and, unless `use_bias=False`, the bias: [H] of a SimpleRNN,
            [4H] of an LSTM, [2, 3H] of a GRU, [3H] of one with `reset_after=False`. Of a Bidirectional those of
            the forward layer, then of the backward one.
        activation: "tanh" or "relu", of a SimpleRNN.
        merge: of a Bidirectional, "concatenate" for Keras's `merge_mode="concat"`, or "sum".
        reset: of a GRU, "after" for `reset_after=True` or "before" for False; by default what its bias tells, and
            without bias "after", as in Keras.

    Returns:
        A cell or a `jaxrnn.Bidirectional`, and its parameters, NumPy arrays in the dtypes of the weights.

    Raises:
        TypeError: weights that are not a list of arrays of floats.
        ValueError: an unknown kind, activation, merge or reset; one of these that the layer does not have; a wrong
            number of arrays, or wrong shapes.

    >>> import numpy as np, jaxrnn.interop
    >>> weights = [np.ones((3, 15)), np.ones((5, 15)), np.ones((2, 15))]
    >>> layer, params = jaxrnn.interop.from_keras("GRU", weights)
    >>> layer.inputs, layer.hidden, float(params.b[0]), float(params.b[-1]), float(params.d[-1])
    (3, 5, 2.0, 1.0, 1.0)
    """
    check_choice("kind", kind, tuple(KINDS))
    check_choice("activation", activation, ("tanh", "relu"))
    check_choice("merge", merge, ("concatenate", "sum"))
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights must be the list that get_weights() gives, got {type(weights).__name__}")
    if len(weights) not in (2, 3, 4, 6):
        came = f"{len(weights)}: are they of one layer?"
        raise ValueError(f"weights must be 2 or 3 arrays, or twice that if bidirectional, got {came}")
    count = len(weights) // 2 if len(weights) > 3 else len(weights)
    if count == len(weights) and merge != "concatenate":
        raise ValueError(f"merge is for a Bidirectional, of 4 or 6 arrays; got merge={merge!r} and {count} arrays")
    arrays = [as_floats(f"weights[{i}]", value) for i, value in enumerate(weights)]
    reset = _reset_of(kind, reset, arrays[2] if count == 3 else None)
    directions = [_from_direction(KINDS[kind], reset, arrays[i : i + count], i) for i in range(0, len(arrays), count)]
    return assemble(KINDS[kind], activation, directions, merge, reset)


def to_keras(layer: Layer, params: Params) -> list[np.ndarray]:
    """Returns the arrays for `set_weights` of the Keras layer that computes the same: the inverse of `from_keras`.

        kernel = U^T       recurrent_kernel = W^T       bias = b       (GRU: bias[0] = b, bias[1] = (0, 0, d))

    A GRU that resets before the product has one bias there too, and is for a Keras GRU with `reset_after=False`.

    Args:
        layer: an Elman, GRU or LSTM cell, or a `jaxrnn.Bidirectional` of two of one kind.
        params: its parameters.

    Returns:
        kernel [D, G H], recurrent_kernel [H, G H] and bias as `from_keras` takes them, of both directions in turn.

    Raises:
        TypeError: a layer that is not one of jaxrnn's own, or parameters of another layer.
        ValueError: directions of different kind, activation, bias or reset.

    >>> import jax, jaxrnn, jaxrnn.interop
    >>> cell = jaxrnn.GRU(3, 5)
    >>> [array.shape for array in jaxrnn.interop.to_keras(cell, cell.init(jax.random.key(0)))]
    [(3, 15), (5, 15), (2, 15)]
    """
    check_layers("layer", {"layer": layer}, "the directions of a Keras layer")
    check_params(layer, params)
    arrays = []
    for cell, (U, W, *biases) in directions_of(layer, params):
        if type(cell) is GRU:
            U, W, *biases = map(_exchange, (U, W, *biases))
            biases = [np.stack(biases)] if biases and cell.reset == "after" else biases
        arrays += [U.T, W.T, *biases[:1]]
    return arrays


def _reset_of(kind: str, reset: Reset | None, bias: np.ndarray | None) -> Reset:
    """Returns where the reset stands, as it is said or as the bias tells: two rows of it are for after the product."""
    if reset is not None:
        check_choice("reset", reset, ("after", "before"))
        if kind != "GRU":
            raise ValueError(f"reset is for a GRU, got {reset!r} with weights of {kind}")
        return reset
    return "before" if kind == "GRU" and bias is not None and bias.ndim == 1 else "after"


def _from_direction(kind: Kind, reset: Reset, arrays: list[np.ndarray], first: int) -> list[np.ndarray]:
    """Returns U, W and the biases of one direction, from its arrays; the first of them is weights[first]."""
    (D, H), gates = (array.shape[0] if array.ndim else 0 for array in arrays[:2]), kind.blocks
    two = kind is GRU and reset == "after"
    shapes = [(D, gates * H), (H, gates * H), (2, 3 * H) if two else (gates * H,)]
    cause = f"are they the weights of one {kind.__name__} layer"
    cause += f" with reset_after={two}?" if kind is GRU else "?"
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=False), first):
        check_shape(f"weights[{i}]", array, shape, cause)
    U, W, *bias = arrays
    if kind is GRU:
        return list(map(_exchange, (U.T, W.T, *(row for pair in bias for row in np.atleast_2d(pair)))))
    return [U.T, W.T, *bias]


def _exchange(rows: np.ndarray) -> np.ndarray:
    """Exchanges the rows of the gates r and z: r, z, n to z, r, n, and back."""
    first, second, third = np.split(rows, 3)
    return np.concatenate([second, first, third])
