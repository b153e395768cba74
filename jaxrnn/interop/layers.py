"""The steps that all conversions share: a layer as the arrays of its directions, in the order that torch has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Params
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams
from jaxrnn.interop.arrays import as_numpy
from jaxrnn.layer.bidirectional import Bidirectional, BidirectionalParams, Layer

Activation = Literal["tanh", "relu"]
Merge = Literal["concatenate", "sum"]
OwnCell = Elman | GRU | LSTM
Kind = type[Elman] | type[GRU] | type[LSTM]

GATES: dict[Kind, int] = {Elman: 1, GRU: 3, LSTM: 4}
PARAMS: dict[Kind, Callable[..., Params]] = {Elman: ElmanParams, GRU: GRUParams, LSTM: LSTMParams}


def assemble(
    kind: Kind, activation: Activation, directions: list[list[np.ndarray]], merge: Merge = "concatenate"
) -> tuple[Layer, Params]:
    """Returns the layer and its parameters, from the arrays of one direction or two."""
    cells = [_cell(kind, activation, *arrays) for arrays in directions]
    if len(cells) == 1:
        return cells[0]
    (forward, forward_params), (backward, backward_params) = cells
    return Bidirectional(forward, backward, merge), BidirectionalParams(forward_params, backward_params)


def _cell(
    kind: Kind, activation: Activation, U: np.ndarray, W: np.ndarray, *biases: np.ndarray
) -> tuple[OwnCell, Params]:
    """Returns a cell and its parameters from U, W and up to two biases; a GRU has two or none."""
    H = W.shape[1]
    options: dict[str, Any] = {"activation": activation} if kind is Elman else {}
    cell = kind(U.shape[1], H, bias=bool(biases), **options)
    if len(biases) < 2:
        return cell, PARAMS[kind](U, W, *(biases or [None] * (1 + (kind is GRU))))
    b, second = biases
    total = np.where(second == 0, b, b + second)  # not b + 0, which would make 0 of -0
    if kind is GRU:  # the reset stands between the two biases of n
        return cell, GRUParams(U, W, np.concatenate([total[: 2 * H], b[2 * H :]]), second[2 * H :])
    return cell, PARAMS[kind](U, W, total)


def cells_of(name: str, layer: Layer) -> list[OwnCell]:
    """Returns the cells of a layer; raises unless they are jaxrnn's own."""
    cells: list[Any] = [layer.forward, layer.backward] if isinstance(layer, Bidirectional) else [layer]
    for cell in cells:
        if type(cell) not in GATES:
            raise TypeError(f"{name} must be an Elman, GRU or LSTM cell or a Bidirectional of two, got {cell!r}")
    return cells


def directions_of(layer: Layer, params: Params) -> Iterator[tuple[OwnCell, list[np.ndarray]]]:
    """Yields the cell of every direction, and its U, W and, if there is a bias, both biases of torch."""
    both = params if isinstance(layer, Bidirectional) else [params]
    for cell, cell_params in zip(cells_of("layer", layer), both, strict=True):
        U, W, *biases = (as_numpy("params", leaf) for leaf in cell_params if leaf is not None)
        if biases:
            b, *d = biases
            biases = [b, np.concatenate([np.zeros_like(b[: len(b) - sum(map(len, d))]), *d])]
        yield cell, [U, W, *biases]


def check_activation(kind: Kind, activation: Activation) -> None:
    """Raises unless the kind of layer can have the activation."""
    check_choice("activation", activation, ("tanh", "relu"))
    if kind is not Elman and activation != "tanh":
        raise ValueError(
            f"activation is for a plain recurrent layer, got {activation!r} with weights of {kind.__name__}"
        )


def check_alike(name: str, cells: Sequence[OwnCell], whose: str) -> None:
    """Raises unless the cells differ in their inputs and their initialization only."""
    for trait in ("kind", "hidden", "bias", "activation"):
        found = [type(cell).__name__ if trait == "kind" else getattr(cell, trait, None) for cell in cells]
        if len(set(found)) > 1:
            raise ValueError(f"{name} must have one {trait}, as {whose} do, got {', '.join(map(str, found))}")
