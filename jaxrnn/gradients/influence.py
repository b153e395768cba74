"""The influence ds_t/dtheta that weights have had so far, as far as each method of `jaxrnn.online` keeps it."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from chex import Array
from jax.flatten_util import ravel_pytree

from jaxrnn.cells.base import Cell, Local, Params, State, hidden_of
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
            after = flatten(_step(self.cell, self.unravel(theta), unflatten(numbers, self.like), x))
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

    weight = 1.0  # of what a unit does to itself through its recurrent weights

    def __init__(self, cell: Cell, params: Params, state: State) -> None:
        self.cell, self.params, self.like = cell, params, state
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

        def step(params: Params, before: State, x: Array) -> tuple[State, Array, Params]:
            after, pull = jax.vjp(lambda params: _step(self.cell, params, before, x), params)
            own = self.cell.own_operands(self.cell.prepare(params), self.weight)
            local = self._local(params, before, x)
            rows, immediate = [], []
            for unit in self._units(after):  # as units reach but themselves, a sum over units is each one's own
                rows.append(jnp.stack(jax.tree.leaves(self.cell.step_adjoint(own, unit, local)[0])))
                immediate.append(pull(unit)[0])
            return after, jnp.stack(rows), jax.tree.map(lambda *leaves: jnp.stack(leaves), *immediate)

        for _ in self.batch:
            step = jax.vmap(step, (None, 0, 0))
        after, J, immediate = step(self.params, before, x)  # J [*batch, p, p, H]

        def moved(kept: Array, added: Array) -> Array:
            rows = kept.shape[len(self.batch) + 1]
            of_rows = jnp.tile(J, rows // J.shape[-1])  # [*batch, p, p, m H]
            of_rows = of_rows.reshape(*of_rows.shape, *(1,) * (kept.ndim - len(self.batch) - 2))
            return jnp.sum(of_rows * kept[(slice(None),) * len(self.batch) + (None,)], len(self.batch) + 1) + added

        return after, jax.tree.map(moved, influence, immediate)

    def gradient(self, g: Array, influence: Params) -> Params:
        """Multiplies g_t of each weight's own unit with its influence on the hidden number of that unit."""

        def of(leaf: Array) -> Array:
            hidden = jnp.moveaxis(leaf, len(self.batch), 0)[0]  # [*batch, m H, ...]
            asked = jnp.tile(g, hidden.shape[len(self.batch)] // g.shape[-1])
            asked = asked.reshape(*asked.shape, *(1,) * (hidden.ndim - asked.ndim))
            return jnp.sum(asked * hidden, tuple(range(len(self.batch))))

        return jax.tree.map(of, influence)

    def _local(self, params: Params, before: State, x: Array) -> Local:
        """Computes what `step_adjoint` needs of one step of one sequence."""
        operands = self.cell.prepare(params)
        after, residuals = self.cell.step_with_residuals(operands, before, self.cell.project(operands, x[None])[0])
        several = jax.tree.map(lambda leaf: leaf[None], (before, after, residuals))
        local = self.cell.linearize(operands, x[None], *several)
        return jax.tree.map(lambda leaf: leaf[0], local)

    def _units(self, after: State) -> list[State]:
        leaves, structure = jax.tree.flatten(after)
        return [
            jax.tree.unflatten(structure, [jnp.full_like(leaf, i == part) for i, leaf in enumerate(leaves)])
            for part in range(self.parts)
        ]


class Direct(OwnUnit):
    """Keeps the same for RFLO, without any recurrent weight in J."""

    weight = 0.0


METHODS: dict[Method, Any] = {"rtrl": Exact, "snap1": OwnUnit, "rflo": Direct}


def _step(cell: Cell, params: Params, state: State, x: Array) -> State:
    operands = cell.prepare(params)
    return cell.step(operands, state, jax.tree.map(lambda leaf: leaf[0], cell.project(operands, x[None])))
