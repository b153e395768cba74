"""What all conversions share: a layer as the arrays of its directions, in torch's order, and checks of arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Cell, Params
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM
from jaxrnn.layer.bidirectional import Bidirectional, BidirectionalParams, Layer

Activation = Literal["tanh", "relu"]
Merge = Literal["concatenate", "sum"]
Reset = Literal["after", "before"]
Kind = type[Elman] | type[GRU] | type[LSTM]
KINDS: tuple[Kind, ...] = (Elman, GRU, LSTM)


def assemble(
    kind: Kind,
    activation: Activation,
    directions: list[list[np.ndarray]],
    merge: Merge = "concatenate",
    reset: Reset = "after",
) -> tuple[Layer, Params]:
    """Returns the layer and its parameters, from the arrays of one direction or two; raises for a wrong activation."""
    check_choice("activation", activation, ("tanh", "relu"))
    if kind is not Elman and activation != "tanh":
        kinds = f"{activation!r} with weights of {kind.__name__}"
        raise ValueError(f"activation is for a plain recurrent layer, got {kinds}")
    options: dict[Kind, dict[str, str]] = {Elman: {"activation": activation}, GRU: {"reset": reset}, LSTM: {}}
    cells, params = zip(*(_cell(kind, options[kind], *arrays) for arrays in directions), strict=True)
    if len(cells) == 1:
        return cells[0], params[0]
    forward, backward = cells
    return Bidirectional(forward, backward, merge), BidirectionalParams(*params)


def _cell(kind: Kind, options: Any, U: np.ndarray, W: np.ndarray, *biases: np.ndarray) -> tuple[Cell, Params]:
    """Returns a cell and its parameters from U, W and up to two biases; a GRU that resets after has two or none."""
    H = W.shape[1]
    cell = kind(U.shape[1], H, bias=bool(biases), **options)
    if len(biases) == 2:
        b, second = biases
        total = np.where(second == 0, b, b + second)  # not b + 0, which would make 0 of -0
        # With the reset after the product it stands between the two biases of n.
        apart = options.get("reset") == "after"
        biases = (np.concatenate([total[: 2 * H], b[2 * H :]]), second[2 * H :]) if apart else (total,)
    count = len(kind.params_type._fields) - 2
    return cell, kind.params_type(U, W, *biases, *[None] * (count - len(biases)))


def directions_of(layer: Layer, params: Params) -> Iterator[tuple[Cell, list[np.ndarray]]]:
    """Yields the cell of every direction, and its U, W and, if there is a bias, both biases of torch."""
    both = params if isinstance(layer, Bidirectional) else [params]
    for cell, cell_params in zip(cells_of(layer), both, strict=True):
        U, W, *biases = (as_numpy("params", leaf) for leaf in cell_params if leaf is not None)
        if biases:
            b, *d = biases
            biases = [b, np.concatenate([np.zeros_like(b[: 2 * cell.hidden] if d else b), *d])]
        yield cell, [U, W, *biases]


def check_layers(name: str, layers: Mapping[str, Layer], whose: str) -> None:
    """Raises unless the cells of all layers are jaxrnn's own and differ in their inputs and initialization only."""
    cells = []
    for place, layer in layers.items():
        for cell in cells_of(layer):
            if type(cell) not in KINDS:
                raise TypeError(f"{place} must be an Elman, GRU or LSTM cell or a Bidirectional of two, got {cell!r}")
            cells.append(cell)
    for trait in ("kind", "hidden", "bias", "activation", "reset"):
        found = [type(cell).__name__ if trait == "kind" else getattr(cell, trait, None) for cell in cells]
        if len(set(found)) > 1:
            raise ValueError(f"{name} must have one {trait}, as {whose} do, got {', '.join(map(str, found))}")


def check_reset_after(name: str, layers: Iterable[Layer], whose: str) -> None:
    """Raises if a GRU among the layers resets before the product, in a library that has the other GRU alone."""
    for cell in (cell for layer in layers for cell in cells_of(layer)):
        if getattr(cell, "reset", "after") != "after":
            raise ValueError(f'{name} must have reset="after", as {whose} has, got {cell}: another recurrence')


def cells_of(layer: Layer) -> tuple[Cell, ...]:
    """Returns the cells of a layer, one for each direction."""
    return (layer.forward, layer.backward) if isinstance(layer, Bidirectional) else (layer,)


def as_numpy(name: str, value: ArrayLike) -> np.ndarray:
    """Returns a NumPy copy of the array, row by row in memory: a file of safetensors takes the bytes as they lie."""
    try:
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        cause = "a torch tensor must be detached, on the CPU, and not in bfloat16"
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}; {cause}") from error


def as_floats(name: str, value: ArrayLike) -> np.ndarray:
    """Returns a NumPy copy of an array of floats, row by row in memory; raises where the dtype is another."""
    array = as_numpy(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def check_names(name: str, found: Collection[str], expected: Collection[str], cause: str) -> None:
    """Raises unless the names found are those expected."""
    missing = [each for each in expected if each not in found]
    unknown = [each for each in found if each not in expected]
    if missing or unknown:
        lists = (", ".join([*names[:8], *["..."] * (len(names) > 8)]) or "none" for names in (missing, unknown))
        raise ValueError("{} do not fit: missing {}; unknown {}; {}".format(name, *lists, cause))


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...], cause: str) -> None:
    """Raises unless the array has the shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}; {cause}")
