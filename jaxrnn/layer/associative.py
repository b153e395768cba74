"""Linear recurrences by halves: the reverse scan of a segment in log2(K) rounds, from the Jacobians of its steps."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import Array
from jaxrnn.cells.base import Cell, State, add_to_hidden
from jaxrnn.layer.masking import Adjoint, Breaks, enter_adjoint, leave

# From here on a warning says what the Jacobians take; lax.associative_scan holds about three times as much.
WARN_BYTES = 2**30


def reverse_scan(
    cell: Cell, operands: Any, adjoint: Adjoint, x: tuple[Array | None, Any, Breaks], reverse: bool = True
) -> tuple[Adjoint, Any]:
    """The adjoint before a segment and the deltas of its steps: the twin of a `lax.scan` over `step_adjoint`.

        c_{t-1} = (c_t + g_t) J_t        J_t = ds_t/ds_{t-1}        c_t = dE/ds_t through the steps after t

    is c -> c J_t + g_t J_t, and such maps compose: (J, v) then (J', v') is (J J', v J' + v').
    Source: Blelloch (1990), "Prefix sums and their applications", section 1.4.
    """
    g, local, breaks = x
    J = jacobians(cell, operands, adjoint.state, local, breaks)  # [K, *batch, n, n]
    steps = J.shape[0]
    asked = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), adjoint.state)
    asked = asked if g is None else add_to_hidden(asked, g)
    J, v = solve(J, jnp.einsum("...i,...ij->...j", flatten(asked), J), reverse)
    c = jnp.einsum("...i,...ij->...j", flatten(adjoint.state), J) + v  # [K, *batch, n], after the step's adjoint
    before = jax.tree.map(lambda last, rest: _shifted(last, rest, reverse), adjoint.state, unflatten(c, asked))
    after = jax.tree.map(jnp.add, before, asked)
    initial = jax.tree.map(jnp.zeros_like, after) if adjoint.initial is not None else None
    back, deltas = cell.step_adjoint(operands, after, local)
    at_resets = enter_adjoint(breaks, leave(breaks, after, back), initial).initial
    carried = jax.tree.map(lambda leaf: leaf[0 if reverse else -1], unflatten(c, asked))
    return Adjoint(carried, jax.tree.map(lambda s, cut: s + cut.sum(0), adjoint.initial, at_resets)), deltas


def jacobians(cell: Cell, operands: Any, state: State, local: Any, breaks: Breaks) -> Array:
    """J_t of every step, [K, *batch, n, n], in row i dE/ds_{t-1} for dE/ds_t the i-th unit vector.

    A masked step's is the identity, and behind a reset there is zero; n counts all the numbers of one state.
    """
    steps = jax.tree.leaves(local)[0].shape[0]
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), state)
    leading = jax.tree.leaves(like)[0].shape[:-1]
    n = sum(leaf.shape[-1] for leaf in jax.tree.leaves(like))
    dtype = jax.tree.leaves(like)[0].dtype
    _warn(math.prod(leading) * n * n * dtype.itemsize, leading, n)

    def row(unit: Array) -> Array:
        after = unflatten(jnp.broadcast_to(unit, (*leading, n)), like)
        before = leave(breaks, after, cell.step_adjoint(operands, after, local)[0])
        return flatten(enter_adjoint(breaks, before, jax.tree.map(jnp.zeros_like, before)).state)

    return jax.vmap(row, out_axes=-2)(jnp.eye(n, dtype=dtype))


def solve(J: Array, v: Array, reverse: bool = False) -> tuple[Array, Array]:
    """The maps c -> c J + v of [K, *batch, n, n] and [K, *batch, n], each composed with all before it."""

    def then(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] @ second[0], jnp.einsum("...i,...ij->...j", first[1], second[0]) + second[1]

    return lax.associative_scan(then, (J, v), reverse=reverse)


def flatten(state: State) -> Array:
    """All the numbers of each state side by side, [..., n]."""
    return jnp.concatenate(jax.tree.leaves(state), -1)


def unflatten(numbers: Array, like: State) -> State:
    """The inverse of `flatten`."""
    leaves, structure = jax.tree.flatten(like)
    edges = [sum(leaf.shape[-1] for leaf in leaves[: i + 1]) for i in range(len(leaves) - 1)]
    return jax.tree.unflatten(structure, jnp.split(numbers, edges, -1))


def _shifted(last: Array, rest: Array, reverse: bool) -> Array:
    order = [rest[1:], last[None]] if reverse else [last[None], rest[:-1]]
    return lax.concatenate(order, 0)


def _warn(size: int, leading: tuple[int, ...], n: int) -> None:
    if size > WARN_BYTES:
        warnings.warn(
            f"the Jacobians of all steps, {leading} of {n} x {n}, take {size:,} bytes; the sequential scan takes none",
            stacklevel=2,
        )
