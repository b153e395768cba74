"""The steps that all conversions share: a layer as the arrays of its directions, in the order that torch has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Cell, Params
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams
from jaxrnn.interop.arrays import as_numpy
from jaxrnn.layer.bidirectional import Bidirectional, BidirectionalParams, Layer

Activation = Literal["tanh", "relu"]
Merge = Literal["concatenate", "sum"]
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


def _cell(kind: Kind, activation: Activation, U: np.ndarray, W: np.ndarray, *biases: np.ndarray) -> tuple[Cell, Params]:
    """Returns a cell and its parameters from U, W and up to two biases; a GRU has two or none."""
    H = W.shape[1]
    options: dict[str, Any] = {"activation": activation} if kind is Elman else {}
    cell = kind(U.shape[1], H, bias=bool(biases), **options)
    if len(biases) == 2:
        b, second = biases
        total = np.where(second == 0, b, b + second)  # not b + 0, which would make 0 of -0
        # In a GRU the reset stands between the two biases of n.
        biases = (np.concatenate([total[: 2 * H], b[2 * H :]]), second[2 * H :]) if kind is GRU else (total,)
    without = (None, None) if kind is GRU else (None,)
    return cell, PARAMS[kind](U, W, *(biases or without))


def directions_of(layer: Layer, params: Params) -> Iterator[tuple[Cell, list[np.ndarray]]]:
    """Yields the cell of every direction, and its U, W and, if there is a bias, both biases of torch."""
    both = params if isinstance(layer, Bidirectional) else [params]
    for cell, cell_params in zip(_cells(layer), both, strict=True):
        U, W, *biases = (as_numpy("params", leaf) for leaf in cell_params if leaf is not None)
        if biases:
            b, *d = biases
            biases = [b, np.concatenate([np.zeros_like(b[: 2 * cell.hidden] if d else b), *d])]
        yield cell, [U, W, *biases]


def check_activation(kind: Kind, activation: Activation) -> None:
    """Raises unless the kind of layer can have the activation."""
    check_choice("activation", activation, ("tanh", "relu"))
    if kind is not Elman and activation != "tanh":
        raise ValueError(
            f"activation is for a plain recurrent layer, got {activation!r} with weights of {kind.__name__}"
        )


def check_layers(name: str, layers: Mapping[str, Layer], whose: str) -> None:
    """Raises unless the cells of all layers are jaxrnn's own and differ in their inputs and initialization only."""
    cells = []
    for place, layer in layers.items():
        for cell in _cells(layer):
            if type(cell) not in GATES:
                raise TypeError(f"{place} must be an Elman, GRU or LSTM cell or a Bidirectional of two, got {cell!r}")
            cells.append(cell)
    for trait in ("kind", "hidden", "bias", "activation"):
        found = [type(cell).__name__ if trait == "kind" else getattr(cell, trait, None) for cell in cells]
        if len(set(found)) > 1:
            raise ValueError(f"{name} must have one {trait}, as {whose} do, got {', '.join(map(str, found))}")


def _cells(layer: Layer) -> tuple[Cell, ...]:
    """Returns the cells of a layer, one for each direction."""
    return (layer.forward, layer.backward) if isinstance(layer, Bidirectional) else (layer,)
