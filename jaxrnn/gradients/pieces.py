"""What a truncated gradient is the gradient of: a plain twin of `truncation.py`, slow, for autodiff and differences.

A truncation cuts the sequence into pieces, and takes the state before each of them for a constant:

    E = sum over pieces of E_piece(theta)        E_piece(theta) = sum_t w_t^piece E_t
    s_t = step(theta, s_{t-1}) from the piece's first step on, and step(theta', s_{t-1}) before it, theta' = theta held

    Carried(k)   a piece for each chunk of k steps, with the chunk's weights
    Window(k)    a piece for each t, from t - k on, with the weight of t alone
    Tail(k)      one piece, the last k steps, with all weights

The readout is that of theta everywhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

from jaxrnn.cells.base import State
from jaxrnn.gradients.truncation import Carried, Truncation, Window
from jaxrnn.network.network import Network, NetworkParams


def loss_of_pieces(
    net: Network,
    truncate: Truncation,
    params: NetworkParams,
    held: NetworkParams,
    inputs: Array,
    targets: Array,
    mask: Array | None = None,
    reset: Array | None = None,
) -> Array:
    """Computes E as a function of `params`, whose gradient where `params` are `held` is the truncated one.

    Every piece takes all T steps again: T operations for a `Tail`, T^2 / k for `Carried`, T^2 for a `Window`.

    Raises:
        ValueError: a network with `last_step`.
    """
    if net.last_step:
        raise ValueError("net must have a loss at every step, not last_step, for its truncated gradient to be checked")
    steps = targets.shape[:2]
    there = jnp.ones(steps, bool) if mask is None else mask  # [T, B]
    begins = jnp.zeros(steps, bool) if reset is None else reset
    batch, time = steps[1:], jnp.arange(steps[0])

    @jax.checkpoint
    def piece(first: Array, weights: Array) -> Array:
        def seen(t: Array) -> NetworkParams:
            now = jax.tree.map(lambda mine, constant: jnp.where(t < first, constant, mine), params, held)
            return now._replace(readout=params.readout)

        def step(state: tuple[State, ...], x: tuple[Array, ...]) -> tuple[tuple[State, ...], Array]:
            t, *here = x
            inputs, targets, weights, mask, reset = (array[None] for array in here)
            E, state = net.loss(seen(t), inputs, targets, weights, state, mask, reset, return_state=True)
            return state, E

        start = net.initial_state(batch, params.readout.V.dtype)
        if net.learn_state:
            start = jax.tree.map(jnp.broadcast_to, seen(jnp.int32(0)).state, jax.tree.map(jnp.shape, start))
        return lax.scan(step, start, (time, inputs, targets, weights, there, begins))[1].sum()

    firsts, chosen = _pieces(truncate, steps[0])
    weights = there / jnp.maximum(there.sum(), 1)
    return lax.map(lambda x: piece(x[0], jnp.where(x[1][:, None], weights, 0)), (firsts, chosen)).sum()


def _pieces(truncate: Truncation, T: int) -> tuple[Array, Array]:
    """Returns the first step of every piece [n], and whose losses are in it [n, T]."""
    k, time = truncate.k, jnp.arange(T)
    if isinstance(truncate, Carried):
        firsts = time[::k]
        return firsts, time // k == firsts[:, None] // k
    if isinstance(truncate, Window):
        return jnp.maximum(time - k, 0), time == time[:, None]
    return jnp.array([max(T - k, 0)]), jnp.ones((1, T), bool)
