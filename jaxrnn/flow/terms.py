"""The double sum: every term (t, k) of the gradient, the step t that errs and the step k that is blamed."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax

from jaxrnn.arguments import check_positive
from jaxrnn.cells.base import Deltas, Params, State, hidden_of
from jaxrnn.flow.products import norm, weight_norms
from jaxrnn.flow.sequence import Linearized, Observed, observe
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.memory import nbytes
from jaxrnn.layer.prepared import PreparedCell
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
    return _terms(net, block, return_values, params, Batch(inputs, targets, weights, mask, reset), state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _terms(
    net: Network,
    block: int | None,
    return_values: bool,
    params: NetworkParams,
    batch: Batch,
    state: tuple[State, ...] | None,
) -> Terms:
    observed = observe(net, params, batch, state)
    T = observed.setup.steps.shape[0]
    if net.last_step:
        rows = jnp.array([[T - 1]])
    else:
        R = min(T, block or _block(observed))
        # Rows of number T fill the last block up: no loss stands there, so they are all zero.
        rows = jnp.pad(jnp.arange(T), (0, -T % R), constant_values=T).reshape(-1, R)

    def add_block(total: ArrayTree, rows: Array) -> tuple[ArrayTree, tuple]:
        sums, starts, norms, values = _take_rows_back(observed, rows)
        return jax.tree.map(jnp.add, total, (sums, starts)), (norms, values if return_values else None)

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda: _take_rows_back(observed, rows[0])[:2]),
    )
    (sums, starts), (norms, values) = lax.scan(add_block, zeros, rows)
    in_rows = functools.partial(_in_rows, count=1 if net.last_step else T)
    deltas, adjoints, weights = jax.tree.map(in_rows, norms)
    setup = observed.setup
    layers = weight_grads(setup.stack, setup.steps, observed.residuals, sums)
    grads = observed.sums.grads._replace(layers=layers, state=observed.setup.learned_grads(starts))
    return Terms(deltas, adjoints, weights, grads, jax.tree.map(in_rows, values))


def _in_rows(leaf: Array, count: int) -> Array:
    """Reshapes [blocks, T, R, ...], k before t, to [T, T, ...]."""
    leaf = jnp.moveaxis(leaf, 1, 2)
    return leaf.reshape(-1, *leaf.shape[2:])[:count]


def _block(observed: Observed) -> int:
    """Counts the rows that fit BLOCK_BYTES: of each the adjoints, deltas, and products of examples of one step."""
    examples = math.prod(hidden_of(observed.setup.state[0]).shape[:-1])
    return max(1, BLOCK_BYTES // (4 * nbytes(observed.sums.adjoints) + 16 * examples * examples))


def _take_rows_back(observed: Observed, rows: Array) -> tuple[tuple, tuple, tuple, tuple]:
    """Takes the errors of some rows t [R] back to the first step, side by side.

    Returns:
        sum_t delta_{t,k} per layer [T, *batch, ...]; the adjoints of the states before the first step, summed over t;
        norms [T, R] of delta, dE_t/ds_k and the terms; and delta_{t,k} [T, R, *batch, ...].
    """
    stack, steps = observed.setup.stack, observed.setup.steps
    R, T = rows.shape[0], steps.shape[0]
    last = jnp.where(rows == T - 1, 1, 0)
    adjoints = jax.tree.map(
        lambda leaf: last.reshape(R, *(1,) * leaf.ndim).astype(leaf.dtype) * leaf, observed.sums.adjoints
    )

    def step(adjoints: tuple[Adjoint, ...], x: tuple) -> tuple[tuple[Adjoint, ...], tuple]:
        k, g, steps, residuals, seen = x

        def one(t: Array, adjoints: tuple[Adjoint, ...]) -> tuple[tuple, tuple, tuple]:
            found, _ = backward(stack, adjoints, steps, residuals, None if g is None else jnp.where(t == k, g, 0))
            after, deltas = zip(*((each.step_adjoints.after, each.deltas) for each in found), strict=True)
            return tuple(each.adjoint for each in found), *jax.tree.map(lambda leaf: leaf[0], (after, deltas))

        adjoints, after, deltas = jax.vmap(one)(rows, adjoints)
        norms = (
            tuple(map(jax.vmap(norm), deltas)),
            tuple(map(jax.vmap(norm), after)),
            tuple(map(_term_norms, stack.layers, seen, deltas)),
        )
        return adjoints, (jax.tree.map(lambda leaf: leaf.sum(0), deltas), norms, deltas)

    one_each, residuals = every_step(steps, observed.residuals)
    g = None if observed.g is None else observed.g[:, None]
    seen = tuple(each._replace(local=None) for each in observed.layers)
    xs = jnp.arange(T), g, one_each, residuals, seen
    adjoints, (sums, norms, deltas) = lax.scan(step, adjoints, xs, reverse=True)
    return sums, jax.tree.map(lambda leaf: leaf.sum(0), adjoints), norms, deltas


def _term_norms(layer: PreparedCell, seen: Linearized, deltas: Deltas) -> Params:
    """Computes the norms of a layer's terms at one step k, for deltas [R, *batch, ...]: per weight, [R]."""
    fed, previous, _ = jax.tree.map(lambda leaf: leaf[None], seen)
    return jax.vmap(lambda delta: weight_norms(layer, fed, previous, jax.tree.map(lambda leaf: leaf[None], delta)))(
        deltas
    )
