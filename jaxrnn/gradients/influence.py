"""The influence ds_t/dtheta that weights have had so far, as far as each method of `jaxrnn.online` keeps it."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax.flatten_util import ravel_pytree

from jaxrnn.arguments import cast_like
from jaxrnn.cells.base import Cell, Params, State, StepResiduals, hidden_of
from jaxrnn.layer.associative import WARN_BYTES, flatten, unflatten

Method: TypeAlias = Literal["rtrl", "snap1", "rflo"]


class Exact:
    """Keeps all of the influence, for RTRL: one matrix for each sequence, [*batch, n, P]."""

    def __init__(self, cell: Cell, params: Params, state: State) -> None:
        self.cell, self.like = cell, state
        self.theta, self.unravel = ravel_pytree(params)
        self.batch = hidden_of(state).shape[:-1]
        n = flatten(state).shape[-1]
        self.shape = (*self.batch, n, self.theta.size)
        size = math.prod(self.shape) * self.theta.dtype.itemsize
        if size > WARN_BYTES:
            warnings.warn(f"the influence of RTRL, {self.shape}, takes {size:,} bytes; BPTT takes none", stacklevel=4)

    def nothing(self) -> Array:
        """Makes the influence before the first step: zeros."""
        return jnp.zeros(self.shape, self.theta.dtype)

    def ahead(self, before: State, x: Array, influence: Array) -> tuple[State, Array]:
        """Takes a step: P_t = J_t P_{t-1} + d+ s_t/dtheta."""

        def step(theta: Array, numbers: Array, x: Array) -> tuple[Array, Array]:
            after = flatten(_step(self.cell, self.unravel(theta), unflatten(numbers, self.like), x)[0])
            return after, after

        both = jax.jacrev(step, argnums=(0, 1), has_aux=True)
        for _ in self.batch:
            both = jax.vmap(both, (None, 0, 0))
        (immediate, J), after = both(self.theta, flatten(before), x)
        return unflatten(after, self.like), jnp.einsum("...ij,...jp->...ip", J, influence) + immediate

    def gradient(self, g: Array, influence: Array) -> Params:
        """Computes (dE_t/ds_t) P_t, summed over the batch; the loss sees the hidden part of a state, which is first."""
        H = g.shape[-1]
        return self.unravel(
            jnp.einsum("nh,nhp->p", g.reshape(-1, H), influence[..., :H, :].reshape(-1, H, self.theta.size))
        )


class OwnUnit:
    """Keeps for every weight its influence on the p numbers of its own unit, for SnAp-1; leaves [*batch, p, m H, ...].

    The first axis of a weight tells its unit: row r of the m H rows is of unit r mod H. A cell laid out otherwise is
    found by its shapes, but for a square weight, whose shape cannot tell.
    """

    def __init__(self, cell: Cell, params: Params, state: State, weight: float = 1.0) -> None:
        self.cell, self.params, self.weight = cell, params, weight  # of what a unit does to itself through W
        self.batch = hidden_of(state).shape[:-1]
        self.parts = len(jax.tree.leaves(state))
        for path, leaf in jax.tree.leaves_with_path(params):
            if leaf.ndim < 1 or leaf.shape[0] % cell.hidden:
                raise ValueError(
                    f"params.layers[0]{jax.tree_util.keystr(path)} must have a first axis that is a multiple of "
                    f"H = {cell.hidden}, got shape {leaf.shape}; the first axis tells which unit a weight belongs to"
                )

    def nothing(self) -> Params:
        """Makes the influence before the first step: zeros."""
        return jax.tree.map(lambda leaf: jnp.zeros((*self.batch, self.parts, *leaf.shape), leaf.dtype), self.params)

    def ahead(self, before: State, x: Array, influence: Params) -> tuple[State, Params]:
        """Takes a step: P_t = J_t P_{t-1} + d+ s_t/dtheta, as far as both are kept."""

        def step(before: State, x: Array, influence: Params) -> tuple[State, Params]:
            cell, operands, one = self.cell, self.cell.prepare(self.params), x[None]
            after, residuals = _step(cell, self.params, before, x)
            kept = jax.tree.map(lambda leaf: leaf[None], (before, after, residuals))
            of_one = cell.linearize(operands, one, *kept)
            previous, local = cell.recurrent_inputs(kept[0], of_one), jax.tree.map(lambda leaf: leaf[0], of_one)
            own, carried = cell.own_operands(operands), cell.own_operands(operands, self.weight)
            leaves, structure = jax.tree.flatten(after)
            rows, immediate = [], []
            for ones in np.eye(self.parts):  # as units reach but themselves, a sum over units is each one's own
                unit = jax.tree.unflatten(structure, list(map(jnp.full_like, leaves, ones)))
                rows.append(jnp.stack(jax.tree.leaves(cell.step_adjoint(carried, unit, local)[0])))
                # Of the way from a weight to its unit within the step, what leads through other units is left out too.
                deltas = jax.tree.map(lambda leaf: leaf[None], cell.step_adjoint(own, unit, local)[1])
                grads = cell.weight_grads(self.params, own, one, previous, deltas)
                immediate.append(cast_like(grads, self.params))
            J = jnp.stack(rows)  # [p, p, H]

            def moved(kept: Array, *added: Array) -> Array:  # kept [p, m H, ...]
                of_rows = jnp.tile(J, kept.shape[1] // cell.hidden)  # [p, p, m H]
                return jnp.sum(_beside(of_rows, kept[None]) * kept, 1) + jnp.stack(added)

            return after, jax.tree.map(moved, influence, *immediate)

        for _ in self.batch:
            step = jax.vmap(step)
        return step(before, x, influence)

    def gradient(self, g: Array, influence: Params) -> Params:
        """Multiplies g_t of each weight's own unit with its influence on the hidden number of that unit."""
        g = g.reshape(-1, self.cell.hidden)

        def of(leaf: Array) -> Array:
            hidden = leaf.reshape(-1, *leaf.shape[len(self.batch) :])[:, 0]  # [B, m H, ...]
            return jnp.sum(_beside(jnp.tile(g, hidden.shape[1] // self.cell.hidden), hidden) * hidden, 0)

        return jax.tree.map(of, influence)


METHODS: dict[Method, Any] = {
    "rtrl": Exact,
    "snap1": OwnUnit,
    "rflo": functools.partial(OwnUnit, weight=0.0),  # J without any recurrent weight
}


def _step(cell: Cell, params: Params, state: State, x: Array) -> tuple[State, StepResiduals]:
    operands = cell.prepare(params)
    return cell.step_with_residuals(
        operands, state, jax.tree.map(lambda leaf: leaf[0], cell.project(operands, x[None]))
    )


def _beside(array: Array, other: Array) -> Array:
    """Reshapes an array [...] to go with another [..., features]."""
    return array.reshape(*array.shape, *(1,) * (other.ndim - array.ndim))
