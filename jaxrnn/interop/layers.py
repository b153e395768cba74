"""What the ways in and out share: a layer as the arrays of its directions, in the order that torch has them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Cell, Params
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams
from jaxrnn.layer.bidirectional import Bidirectional, BidirectionalParams, Layer

GATES: dict[Any, int] = {Elman: 1, GRU: 3, LSTM: 4}
PARAMS: dict[Any, Any] = {Elman: ElmanParams, GRU: GRUParams, LSTM: LSTMParams}


def assemble(kind: Any, activation: str, directions: list, merge: str = "concatenate") -> tuple[Layer, Params]:
    """The layer, and its parameters, from the rows of one direction or two."""
    cells = [_cell(kind, activation, *rows) for rows in directions]
    if len(cells) == 1:
        return cells[0]
    (forward, forward_params), (backward, backward_params) = cells
    return Bidirectional(forward, backward, merge), BidirectionalParams(forward_params, backward_params)


def _cell(kind: Any, activation: str, U: Any, W: Any, b: Any = None, b_hh: Any = None) -> tuple[Cell, Params]:
    """A cell and its parameters from U, W and one bias, or two of which the second acts inside the reset of a GRU."""
    H = W.shape[1]
    if b_hh is not None:
        total = np.where(b_hh == 0, b, b + b_hh)  # not b + 0, which would make 0 of -0
        b = total if kind is not GRU else np.concatenate([total[: 2 * H], b[2 * H :]])
    d = (None if b_hh is None else b_hh[2 * H :],) if kind is GRU else ()
    options = {"activation": activation} if kind is Elman else {}
    return kind(U.shape[1], H, bias=b is not None, **options), PARAMS[kind](U, W, b, *d)


def rows_of(cell: Any, params: Params) -> list[np.ndarray]:
    """U, W and, if there is a bias, the two of torch: the inverse of `_cell`."""
    U, W, *biases = (as_numpy("params", leaf) for leaf in params if leaf is not None)
    if not biases:
        return [U, W]
    b, *d = biases
    return [U, W, b, np.concatenate([np.zeros_like(b[: 2 * cell.hidden]), *d]) if d else np.zeros_like(b)]


def cells_of(name: str, layer: Any) -> list[Any]:
    """The cells of a layer; raise unless they are jaxrnn's own."""
    cells = [layer.forward, layer.backward] if isinstance(layer, Bidirectional) else [layer]
    for cell in cells:
        if type(cell) not in GATES:
            raise TypeError(f"{name} must be an Elman, GRU or LSTM cell or a Bidirectional of two, got {cell!r}")
    return cells


def directions_of(layer: Any, params: Params) -> list[tuple[str, Any, Params]]:
    """What torch's names end with, the cell, and its parameters."""
    if isinstance(layer, Cell):
        return [("", layer, params)]
    return [("", layer.forward, params.forward), ("_reverse", layer.backward, params.backward)]


def as_numpy(name: str, value: Any) -> np.ndarray:
    """A copy in NumPy's hands, row by row in memory: a file of safetensors takes the bytes as they lie."""
    try:
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        cause = "a torch tensor must be detached, on the CPU, and not in bfloat16"
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}; {cause}") from error


def as_floats(name: str, value: Any) -> np.ndarray:
    """The same, of floats."""
    array = as_numpy(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def check_activation(kind: Any, activation: str) -> None:
    """Raise unless the activation is one that the kind of layer can have."""
    check_choice("activation", activation, ("tanh", "relu"))
    if kind is not Elman and activation != "tanh":
        raise ValueError(
            f"activation is for a plain recurrent layer, got {activation!r} with weights of {kind.__name__}"
        )


def check_names(name: str, found: Any, expected: Any, cause: str) -> None:
    """Raise unless what was found has the names expected, and no others."""
    missing, unknown = ([n for n in these if n not in those] for these, those in ((expected, found), (found, expected)))
    if missing or unknown:
        lists = (", ".join([*names[:8], *["..."] * (len(names) > 8)]) or "none" for names in (missing, unknown))
        raise ValueError("{} do not fit: missing {}; unknown {}; {}".format(name, *lists, cause))


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...], cause: str) -> None:
    """Raise unless the array has the shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}; {cause}")


def check_alike(name: str, cells: list[Any], whose: str) -> None:
    """Raise unless cells differ in nothing but their inputs and what they are initialised with."""
    for trait in ("kind", "hidden", "bias", "activation"):
        found = [type(cell).__name__ if trait == "kind" else getattr(cell, trait, None) for cell in cells]
        if len(set(found)) > 1:
            raise ValueError(f"{name} must have one {trait}, as {whose} do, got {', '.join(map(str, found))}")
