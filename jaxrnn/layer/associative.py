"""The reverse recurrence as an associative scan: a segment in log2(K) rounds, from the Jacobians of its steps."""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

from jaxrnn.cells.base import Deltas, Local, State, add_to_hidden
from jaxrnn.layer.masking import Adjoint, Flags, adjoint_step
from jaxrnn.layer.prepared import PreparedCell
from jaxrnn.layer.scan import Residuals, previous_states

# From here on a warning says what the Jacobians take; lax.associative_scan holds about three times as much.
WARN_BYTES = 2**30


def scan_adjoints(
    layer: PreparedCell, flags: Flags, g: Array | None, local: Local, adjoint: Adjoint
) -> tuple[Adjoint, Deltas]:
    """Computes the adjoint before a segment and the deltas of its steps: the twin of `lax.scan` over `adjoint_step`.

        c_{t-1} = (c_t + g_t) J_t        J_t = ds_t/ds_{t-1}        c_t = dE/ds_t through the steps after t

    is c -> c J_t + g_t J_t, and such maps compose: (J, v) then (J', v') is (J J', v J' + v').
    Source: Blelloch (1990), "Prefix sums and their applications", section 1.4.
    """
    backwards = not layer.options.reverse
    J = jacobians(layer, adjoint.state, local, flags)  # [K, *batch, n, n]
    asked = jax.tree.map(lambda leaf: jnp.zeros((J.shape[0], *leaf.shape), leaf.dtype), adjoint.state)
    asked = flatten(asked if g is None else add_to_hidden(asked, g))
    J, v = solve(J, jnp.einsum("...i,...ij->...j", asked, J), backwards)
    c = jnp.einsum("...i,...ij->...j", flatten(adjoint.state), J) + v  # [K, *batch, n], before each step
    before = unflatten(c, adjoint.state)
    after = previous_states(Residuals(adjoint.state, before, None), backwards)
    # Every step once more, all of them at once: for the deltas, and for what reaches the initial state through resets.
    at_resets, deltas, _ = adjoint_step(layer, Adjoint(after, None), g, local, flags)
    first = jax.tree.map(lambda leaf: leaf[0 if backwards else -1], before)
    return Adjoint(first, jax.tree.map(lambda s, cut: s + cut.sum(0), adjoint.initial, at_resets.initial)), deltas


def jacobians(layer: PreparedCell, state: State, local: Local, flags: Flags, rows: Array | None = None) -> Array:
    """Forms v J_t of every step for each of the rows v [m, n], [K, *batch, m, n]; by default J_t, from unit vectors.

    A masked step's J_t is the identity, and that of a step with a reset is zero; n counts all numbers of one state.
    """
    steps = jax.tree.leaves(local)[0].shape[0]
    numbers = flatten(state)
    *batch, n = numbers.shape
    rows = jnp.eye(n, dtype=numbers.dtype) if rows is None else rows.astype(numbers.dtype)
    size = math.prod((steps, *batch, *rows.shape)) * rows.dtype.itemsize
    if size > WARN_BYTES:
        warnings.warn(
            f"the Jacobians of all steps, {(steps, *batch)} of {rows.shape[0]} x {n}, take {size:,} bytes; "
            f"the sequential scan takes none",
            stacklevel=2,
        )

    return times_jacobian(layer, jnp.broadcast_to(rows, (steps, *batch, *rows.shape)), state, local, flags)


def times_jacobian(layer: PreparedCell, rows: Array, like: State, local: Local, flags: Flags) -> Array:
    """Computes v J_t for each of the rows v, [..., m, n], of one step or of several side by side."""

    def back(row: Array) -> Array:
        adjoint = Adjoint(unflatten(row, like), None)
        return flatten(adjoint_step(layer, adjoint, None, local, flags)[0].state)

    return jax.vmap(back, -2, -2)(rows)


def solve(J: Array, v: Array, reverse: bool = False) -> tuple[Array, Array]:
    """Composes each of the maps c -> c J + v, [K, *batch, n, n] and [K, *batch, n], with all before it."""

    def then(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] @ second[0], jnp.einsum("...i,...ij->...j", first[1], second[0]) + second[1]

    return lax.associative_scan(then, (J, v), reverse=reverse)


def flatten(state: State) -> Array:
    """Puts all numbers of each state side by side, [..., n]."""
    return jnp.concatenate(jax.tree.leaves(state), -1)


def unflatten(numbers: Array, like: State) -> State:
    """Undoes `flatten`."""
    leaves, structure = jax.tree.flatten(like)
    edges = [sum(leaf.shape[-1] for leaf in leaves[: i + 1]) for i in range(len(leaves) - 1)]
    return jax.tree.unflatten(structure, jnp.split(numbers, edges, -1))
