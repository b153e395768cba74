"""The double sum: every term (t, k) of the gradient, the step t that errs and the step k that is blamed.

And its horizon: how many steps back the gradient of a loss reaches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax

from jaxrnn.arguments import as_array, check_positive, is_concrete
from jaxrnn.cells.base import Deltas, Params, State, hidden_of
from jaxrnn.flow.norms import norm, weight_norms
from jaxrnn.flow.sequence import Observed, compiled, observe
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.memory import nbytes
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.network.passes import backward, every_step, weight_grads

# What one block of rows t may occupy; measured at T = 200, B = 1, H = 128, where a block of all rows takes 40 ms.
BLOCK_BYTES = 2**25


class Terms(NamedTuple):
    """Holds the terms of the double sum. Row t errs, column k is blamed; above the diagonal, k > t, all is zero.

    Norms are over the units and the batch together. A network with `last_step` has one row, the last step's.
    """

    deltas: tuple[Array, ...]  # per layer |delta_{t,k}|, [T, T]
    adjoints: tuple[Array, ...]  # per layer |dE_t/ds_k|, [T, T]
    weights: tuple[Params, ...]  # per layer and weight the norm of its term, [T, T]: of dE/dW |delta_{t,k} s_{k-1}^T|
    grads: NetworkParams  # the sum of all terms: the gradient
    values: tuple[Deltas, ...] | None  # per layer delta_{t,k} itself, [T, T, *batch, ...], where asked for


class Horizon(NamedTuple):
    """Says how far back losses reach, in steps."""

    mean: Array  # over the losses counted
    spread: Array  # their standard deviation
    beyond: Array  # the share that had not fallen under the fraction by the first step: the mean is a lower bound then
    steps: Array  # of every loss t, [T]; t + 1 where it is beyond


@compiled("block", "return_values")
def terms(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    targets: Array,
    weights: Array | None = None,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    *,
    block: int | None = None,
    return_values: bool = False,
) -> Terms:
    """Computes the gradient as the double sum over (t, k), term by term, and their sum.

        dE/dW = sum_t sum_{k<=t} delta_{t,k} s_{k-1}^T        delta_{t,k} := dE_t/dz_k
        delta_{t,t} = (1 - s_t^2) * V^T e_t        delta_{t,k-1} = (1 - s_{k-1}^2) * (W^T delta_{t,k})

    and likewise for every cell and weight. Where the norms fade with t - k the gradient vanishes: what happened at k
    cannot be learned from the error at t. Jit it with `net`, `block` and `return_values` static, or call it as it is.

    It takes T times the arithmetic of the gradient. Memory is that of T x T norms and of one block of rows; meant for T
    up to 2,000. For training, `value_and_grad(net, return_flow=True)` gives the sums over t for next to nothing.

    Args:
        net, params, inputs, targets, weights, state, mask, reset: as for `jaxrnn.value_and_grad`; nothing is dropped
            out. Past a reset there is no blame, and none on masked steps.
        block: how many rows t are taken back at a time; by default what fits 32 MB.
        return_values: whether to return every delta_{t,k} as well, T x T x B x H numbers.

    Returns:
        `Terms`.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers.

    Source: Werbos (1990); in this form Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent
    neural networks", equations 3 to 5.

    >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.flow
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (13, 2), 0, 5)
    >>> found = jaxrnn.flow.terms(net, net.init(jax.random.key(0)), tokens[:-1], tokens[1:])
    >>> found.weights[0].W.shape, bool(found.deltas[0][3, 4] == 0)
    ((12, 12), True)
    """
    if block is not None:
        check_positive("block", block)
    observed = observe(net, params, Batch(inputs, targets, weights, mask, reset), state)
    setup, T = observed.setup, observed.setup.steps.shape[0]
    R = min(T, block or _block(observed))
    # Rows of number T fill the last block up: no loss stands there, so they are all zero.
    rows = jnp.pad(jnp.arange(T), (0, -T % R), constant_values=T).reshape(-1, R)
    rows, count = (jnp.array([[T - 1]]), 1) if net.last_step else (rows, T)

    def add_block(total: ArrayTree, rows: Array) -> tuple[ArrayTree, tuple]:
        sums, norms, values = _take_rows_back(observed, rows)
        return jax.tree.map(jnp.add, total, sums), (norms, values if return_values else None)

    def in_rows(leaf: Array) -> Array:
        """Reshapes [blocks, T, R, ...], k before t, to [T, T, ...]."""
        leaf = jnp.moveaxis(leaf, 1, 2)
        return leaf.reshape(-1, *leaf.shape[2:])[:count]

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: _take_rows_back(observed, rows[0])[0]))
    (sums, starts), found = lax.scan(add_block, zeros, rows)
    (deltas, adjoints, sizes), values = jax.tree.map(in_rows, found)
    layers = weight_grads(setup.stack, setup.steps, observed.residuals, sums)
    grads = observed.sums.grads._replace(layers=layers, state=setup.learned_grads(starts))
    return Terms(deltas, adjoints, sizes, grads, values)


def _block(observed: Observed) -> int:
    """Counts the rows that fit BLOCK_BYTES: of each the adjoints, deltas, and products of examples of one step."""
    examples = math.prod(hidden_of(observed.setup.state[0]).shape[:-1])
    return max(1, BLOCK_BYTES // (4 * nbytes(observed.sums.adjoints) + 16 * examples * examples))


def _take_rows_back(observed: Observed, rows: Array) -> tuple[tuple, tuple, tuple]:
    """Takes the errors of some rows t [R] back to the first step, side by side.

    Returns:
        The sums over t of delta_{t,k} per layer, [T, *batch, ...], and of the adjoints before the first step;
        norms [T, R] of delta, dE_t/ds_k and the terms; and delta_{t,k} [T, R, *batch, ...].
    """
    stack, steps = observed.setup.stack, observed.setup.steps
    T = steps.shape[0]

    def step(adjoints: tuple[Adjoint, ...], x: tuple) -> tuple[tuple[Adjoint, ...], tuple]:
        k, g, steps, residuals, seen = x

        def one(t: Array, adjoints: tuple[Adjoint, ...]) -> tuple[tuple, tuple, tuple]:
            found, _ = backward(stack, adjoints, steps, residuals, None if g is None else jnp.where(t == k, g, 0))
            deltas = tuple(each.deltas for each in found)
            norms = (
                tuple(map(norm, deltas)),
                tuple(norm(each.step_adjoints.after) for each in found),
                tuple(weight_norms(*each) for each in zip(stack.layers, *seen, deltas, strict=True)),
            )
            return tuple(each.adjoint for each in found), norms, jax.tree.map(lambda leaf: leaf[0], deltas)

        adjoints, norms, deltas = jax.vmap(one)(rows, adjoints)
        return adjoints, (jax.tree.map(lambda leaf: leaf.sum(0), deltas), norms, deltas)

    def at_the_end(t: Array) -> tuple[Adjoint, ...]:
        return jax.tree.map(lambda leaf: jnp.where(t == T - 1, leaf, 0), observed.sums.adjoints)

    one_each, residuals = every_step(steps, observed.residuals)
    fed = [each.fed for each in observed.layers]
    previous = [
        layer.cell.recurrent_inputs(each.previous, each.local)
        for layer, each in zip(stack.layers, observed.layers, strict=True)
    ]
    g, seen = jax.tree.map(lambda leaf: leaf[:, None], (observed.g, (fed, previous)))
    xs = jnp.arange(T), g, one_each, residuals, seen
    adjoints, (sums, norms, deltas) = lax.scan(step, jax.vmap(at_the_end)(rows), xs, reverse=True)
    return (sums, jax.tree.map(lambda leaf: leaf.sum(0), adjoints)), norms, deltas


def horizon(norms: Array, fraction: float = 0.01, history: int | None = None) -> Horizon:
    """Counts the steps back until the gradient of a loss has fallen under a fraction of what it was at the loss.

        horizon_t = min {i : |dE_t/ds_{t-j}| < fraction |dE_t/ds_t| for all j >= i}

    averaged over the losses that have enough steps before them to tell. What happened further back is drowned by what
    is near: a network whose task has longer dependencies will hardly learn them from here.

    Args:
        norms: |dE_t/ds_k|, [T, T], as `terms` gives them in `adjoints`; one row, [1, T], for a single loss at the end.
        fraction: of the norm at the loss itself, between 0 and 1.
        history: how many steps a loss must have before it to be counted: T/2 by default.

    Returns:
        `Horizon`. Losses that are zero, as on masked steps, are not counted.

    Raises:
        ValueError: norms of another shape, a fraction outside (0, 1), no loss left to be counted; under `jax.jit`,
            where that is not known, it gives NaN.

    >>> import jax.numpy as jnp, jaxrnn.flow
    >>> steps = jnp.arange(40)
    >>> norms = jnp.where(steps <= steps[:, None], 0.5 ** (steps[:, None] - steps), 0.0)  # halved with every step back
    >>> float(jaxrnn.flow.horizon(norms, fraction=0.01).mean)
    7.0
    """
    norms = as_array("norms", norms)
    if norms.ndim != 2 or norms.shape[0] not in (1, norms.shape[1]):
        raise ValueError(f"norms must be [T, T], or [1, T] for one loss at the end, got {norms.shape}")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    rows, T = norms.shape
    history = T // 2 if history is None else history
    if not 0 <= history < T:
        raise ValueError(f"history must lie in 0 .. T - 1 = {T - 1}, got {history}")
    t = jnp.arange(T - rows, T)
    at_the_loss = jnp.diagonal(norms, T - rows)  # [rows]
    reached = (norms >= fraction * at_the_loss[:, None]) & (at_the_loss > 0)[:, None]
    first = jnp.argmax(reached, axis=1)  # the earliest step that is still reached
    steps = jnp.where(reached.any(1), t - first + 1, 0)
    counted = (t >= history) & (at_the_loss > 0)
    if is_concrete(counted) and not counted.any():
        raise ValueError(
            f"norms must have a loss at step {history} or later, counted from 0, that is not zero or NaN; "
            f"is all of that masked, or are its weights zero?"
        )
    beyond = jnp.mean(first == 0, where=counted)
    return Horizon(jnp.mean(steps, where=counted), jnp.std(steps, where=counted), beyond, steps)
