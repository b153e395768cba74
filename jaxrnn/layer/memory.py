"""What a step of one layer occupies in the two passes, from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
from chex import Array, ArrayTree

from jaxrnn.arguments import entries, is_integer
from jaxrnn.cells.affine import ONE_HOT_TOKENS
from jaxrnn.cells.base import Cell, Params, State


class StepBytes(NamedTuple):
    """Counts the bytes of one step of the whole batch."""

    state: int  # s_t: the least that the forward pass must keep, of some steps at least
    residuals: int  # what else it keeps
    work: int  # what else the reverse pass occupies: inputs, s_{t-1}, g, factors, deltas

    @property
    def total(self) -> int:
        """Adds them up."""
        return sum(self)


def layer_bytes(cell: Cell, params: Params, inputs: Array, state: State) -> StepBytes:
    """Counts what a step of one layer occupies.

    Args:
        cell, params, state: the layer, and its state for the batch; arrays or their shapes.
        inputs: of a segment, [K, *batch, D] or [K, *batch], or their shape.
    """

    def reverse_step(params: Params, x: Array, state: State) -> ArrayTree:
        operands = cell.prepare(params)
        after, residuals = cell.step_with_residuals(
            operands, state, jax.tree.map(lambda leaf: leaf[0], cell.project(operands, x))
        )
        previous, states, residuals = jax.tree.map(lambda leaf: leaf[None], (state, after, residuals))
        local = cell.linearize(operands, x, previous, states, residuals)
        delta = cell.step_adjoint(operands, after, jax.tree.map(lambda leaf: leaf[0], local))[1]
        return residuals, (local, delta, cell.recurrent_inputs(previous, local))

    step = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    residuals, factors = jax.eval_shape(reverse_step, params, step, state)
    seen = nbytes(step)
    if is_integer(inputs) and cell.inputs <= ONE_HOT_TOKENS:
        seen *= cell.inputs
    return StepBytes(nbytes(state), nbytes(residuals), seen + nbytes((state, factors)))


def nbytes(tree: ArrayTree) -> int:
    """Counts the bytes of all leaves of a pytree of arrays or their shapes."""
    return sum(entries(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
