"""A cell made ready for the loops over time: what is the same for all segments of one layer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, TypeAlias

import jax
from chex import Array
from jax.typing import DTypeLike

from jaxrnn.arguments import cast, check_choice
from jaxrnn.cells.base import Cell, Operands, Params, State

Recompute: TypeAlias = Literal["none", "gates", "states"]
Backward: TypeAlias = Literal["sequential", "associative"]


class ScanOptions(NamedTuple):
    """Says how a layer is scanned through time and back."""

    reverse: bool = False  # whether the forward scan runs from the last step to the first
    recompute: Recompute = "none"  # what the reverse pass computes again instead of keeping it
    backward: Backward = "sequential"
    return_norms: bool = False  # whether the reverse scan returns the norms of what it carries
    return_adjoints: bool = False  # whether it returns what it carries
    clip: float | None = None  # the largest norm that dE/ds_t of one sequence may have
    unroll: int = 1  # how many steps one turn of a compiled loop takes
    precision: str | None = None  # `jax.default_matmul_precision` of the forward pass

    def same_precision(self) -> AbstractContextManager:
        """Returns the context for a rule's way back: what the forward pass was in, as autodiff keeps to it.

        JAX takes a rule back after a context that was set within a loss has ended.
        """
        return jax.default_matmul_precision(self.precision or current_precision())


FORWARD_IN_TIME = ScanOptions()


class PreparedCell(NamedTuple):
    """Holds a cell, its parameters, and all that its segments share."""

    cell: Cell
    params: Params  # in the dtype that is computed in
    operands: Operands  # `cell.prepare` of them
    initial: State | None  # the state that resets begin from
    options: ScanOptions = FORWARD_IN_TIME


def prepare_cell(
    cell: Cell,
    params: Params,
    dtype: DTypeLike,
    dropout_mask: Array | None = None,
    initial: State | None = None,
    options: ScanOptions = FORWARD_IN_TIME,
) -> PreparedCell:
    """Casts the parameters and lays them out for the loops.

    Args:
        cell, params: the layer.
        dtype: of states and products.
        dropout_mask: 0 or 1/(1 - rate) for the units that the recurrent products see, [*batch, H].
        initial: the state that resets begin from; None where there are none.
        options: how it is scanned.
    """
    params = cast(params, dtype)
    operands = cell.prepare(params)
    if dropout_mask is not None:
        operands = cell.with_dropout(operands, dropout_mask)
    return PreparedCell(cell, params, operands, initial, options)


def current_precision() -> str | None:
    """Returns what `jax.default_matmul_precision` is set to here."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def as_recompute(value: object) -> Recompute:
    """Returns the name of a choice of `recompute`, for which False and True stand as well.

    Raises:
        ValueError: an unknown choice.
    """
    if isinstance(value, bool):
        return "states" if value else "none"
    if isinstance(value, str) and value in ("none", "gates", "states"):
        return value  # type: ignore[return-value]
    raise ValueError(f'recompute must be "none" (or False), "gates" or "states" (or True), got {value!r}')


def check_backward(value: object) -> None:
    """Raises unless the value names a way to solve the reverse recurrence."""
    check_choice("backward", value, ("sequential", "associative"))
