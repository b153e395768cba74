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
from jaxrnn.interop.layers import Activation, Kind, Merge, as_floats, assemble, check_layers, check_shape, directions_of
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.scan import check_params

KINDS: dict[str, Kind] = {"SimpleRNN": Elman, "GRU": GRU, "LSTM": LSTM}


def from_keras(
    kind: Literal["SimpleRNN", "GRU", "LSTM"],
    weights: Sequence[ArrayLike],
    activation: Activation = "tanh",
    merge: Merge = "concatenate",
) -> tuple[Layer, Params]:
    """Returns a layer and its parameters from the `get_weights()` of a Keras layer, or of a Bidirectional of one.

        U = kernel^T       W = recurrent_kernel^T       b = bias
        GRU: b = bias[0] + bias[1], but in the rows of n b = bias[0], d = bias[1]

    Apart from `activation`, the activations must be Keras's defaults, tanh and sigmoid: weights do not tell. A GRU
    without bias does not tell `reset_after=False` either, a recurrence that jaxrnn does not have: True is assumed.

    Args:
        kind: "SimpleRNN", "GRU" or "LSTM".
        weights: kernel [D, G H], recurrent_kernel [H, G H] and, unless `use_bias=False`, the bias: [H] of a SimpleRNN,
            [4H] of an LSTM, [2, 3H] of a GRU. Of a Bidirectional those of the forward layer, then of the backward one.
        activation: "tanh" or "relu", of a SimpleRNN.
        merge: of a Bidirectional, "concatenate" for Keras's `merge_mode="concat"`, or "sum".

    Returns:
        A cell or a `jaxrnn.Bidirectional`, and its parameters, NumPy arrays in the dtypes of the weights.

    Raises:
        TypeError: weights that are not a list of arrays of floats.
        ValueError: an unknown kind, activation or merge; an activation or a merge that the layer does not have; a
            wrong number of arrays, or wrong shapes; a GRU with `reset_after=False`.

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
    directions = [_from_direction(KINDS[kind], arrays[i : i + count], i) for i in range(0, len(arrays), count)]
    return assemble(KINDS[kind], activation, directions, merge)


def to_keras(layer: Layer, params: Params) -> list[np.ndarray]:
    """Returns the arrays for `set_weights` of the Keras layer that computes the same: the inverse of `from_keras`.

        kernel = U^T       recurrent_kernel = W^T       bias = b       (GRU: bias[0] = b, bias[1] = (0, 0, d))

    Args:
        layer: an Elman, GRU or LSTM cell, or a `jaxrnn.Bidirectional` of two of one kind.
        params: its parameters.

    Returns:
        kernel [D, G H], recurrent_kernel [H, G H] and bias as `from_keras` takes them, of both directions in turn.

    Raises:
        TypeError: a layer that is not one of jaxrnn's own, or parameters of another layer.
        ValueError: directions of different kind, activation or bias.

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
            biases = [np.stack(biases)] if biases else []
        arrays += [U.T, W.T, *biases[:1]]
    return arrays


def _from_direction(kind: Kind, arrays: list[np.ndarray], first: int) -> list[np.ndarray]:
    """Returns U, W and the biases of one direction, from its arrays; the first of them is weights[first]."""
    (D, H), gates = (array.shape[0] if array.ndim else 0 for array in arrays[:2]), kind.blocks
    if kind is GRU and arrays[-1].shape == (3 * H,):
        raise ValueError(
            f"weights[{first + 2}] must be {(2, 3 * H)}, the biases of a GRU with reset_after=True, got {(3 * H,)}, as "
            f"with reset_after=False: to reset before the product is another recurrence, which jaxrnn does not have"
        )
    shapes = [(D, gates * H), (H, gates * H), (2, 3 * H) if kind is GRU else (gates * H,)]
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=False), first):
        check_shape(f"weights[{i}]", array, shape, f"are they the weights of one {kind.__name__} layer?")
    U, W, *bias = arrays
    if kind is GRU:
        return list(map(_exchange, (U.T, W.T, *(row for pair in bias for row in pair))))
    return [U.T, W.T, *bias]


def _exchange(rows: np.ndarray) -> np.ndarray:
    """Exchanges the rows of the gates r and z: r, z, n to z, r, n, and back."""
    first, second, third = np.split(rows, 3)
    return np.concatenate([second, first, third])
