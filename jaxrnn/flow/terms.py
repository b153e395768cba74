"""The double sum: every term (t, k) of the gradient, the step t that errs and the step k that is blamed."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import Array, check_positive
from jaxrnn.cells.base import add_to_hidden, hidden_of
from jaxrnn.flow.products import norm, weight_norms
from jaxrnn.flow.sequence import Asked, Sequence, prepare
from jaxrnn.layer.bptt import Unrolled
from jaxrnn.layer.masking import Adjoint, Breaks, blank, enter_adjoint, leave
from jaxrnn.layer.memory import nbytes
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.network.passes import Linearized, Stack, Steps

# What one block of rows t may occupy; measured at T = 200, B = 1, H = 128, where a block of all rows takes 40 ms.
BLOCK_BYTES = 2**25


class Terms(NamedTuple):
    """The terms of the double sum. Row t errs, column k is blamed; above the diagonal, k > t, all is zero.

    Norms are over the units and the batch together. A network with `last_step` has one row, the last step's.
    """

    deltas: tuple[Array, ...]  # per layer |delta_{t,k}|, [T, T]
    adjoints: tuple[Array, ...]  # per layer |dE_t/ds_k|, [T, T]
    weights: tuple[
        Any, ...
    ]  # per layer, for each weight the norm of its term, [T, T]: of dE/dW |delta_{t,k} s_{k-1}^T|
    grads: NetworkParams  # the sum of all terms: the gradient
    values: tuple[Any, ...] | None  # per layer delta_{t,k} itself, [T, T, *batch, ...], where asked for


def terms(
    net: Network,
    params: NetworkParams,
    inputs: Any,
    targets: Any,
    weights: Any = None,
    state: Any = None,
    mask: Any = None,
    reset: Any = None,
    *,
    block: int | None = None,
    return_values: bool = False,
) -> Terms:
    """The gradient as the double sum over (t, k), term by term, and their sum.

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
    return _terms(net, block, return_values, params, inputs, targets, weights, state, mask, reset)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _terms(net: Network, block: int | None, return_values: bool, params: NetworkParams, *arguments: Any) -> Terms:
    sequence, asked = prepare(net, params, *arguments)
    T = sequence.steps.inputs.shape[0]
    if net.last_step:
        rows = jnp.array([[T - 1]])
    else:
        R = min(T, block or _block(sequence))
        # Rows of number T fill the last block up: no loss stands there, so they are all zero.
        rows = jnp.pad(jnp.arange(T), (0, -T % R), constant_values=T).reshape(-1, R)

    def take_back(total: Any, rows: Array) -> tuple[Any, tuple]:
        sums, starts, found, values = _block_back(sequence, asked, rows)
        return jax.tree.map(jnp.add, total, (sums, starts)), (found, values if return_values else None)

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda: _block_back(sequence, asked, rows[0])[:2]),
    )
    (sums, starts), (found, values) = lax.scan(take_back, zeros, rows)
    count = 1 if net.last_step else T
    deltas, adjoints, norms = jax.tree.map(functools.partial(_in_rows, count=count), found)
    values = jax.tree.map(functools.partial(_in_rows, count=count), values)
    (learned,) = sequence.to_learned(tuple(zip(*starts, strict=True)))
    grads = NetworkParams(sequence.weight_grads(sums), asked.readout, learned)
    return Terms(deltas, adjoints, norms, grads, values)


def _in_rows(leaf: Array, count: int) -> Array:
    """[blocks, T, R, ...], k before t, as [T, T, ...]."""
    leaf = jnp.moveaxis(leaf, 1, 2)
    return leaf.reshape(-1, *leaf.shape[2:])[:count]


def _block(sequence: Sequence) -> int:
    """How many rows fit BLOCK_BYTES: of each the adjoints, deltas, and products of examples of one step."""
    examples = math.prod(hidden_of(sequence.adjoints[0].state).shape[:-1])
    return max(1, BLOCK_BYTES // (4 * nbytes(sequence.adjoints) + 16 * examples * examples))


def _block_back(sequence: Sequence, asked: Asked, rows: Array) -> tuple[Any, Any, Any, Any]:
    """The errors of some rows t [R] taken back to the first step, side by side.

    Returns:
        sum_t delta_{t,k} per layer [T, *batch, ...]; the adjoints of the states before the first step, summed over t;
        norms [T, R] of delta, dE_t/ds_k and the terms; and delta_{t,k} [T, R, *batch, ...].
    """
    stack, steps = sequence.stack, sequence.steps
    R, T = rows.shape[0], steps.inputs.shape[0]
    last = jnp.where(rows == T - 1, 1, 0)
    adjoints = jax.tree.map(lambda leaf: last.reshape(R, *(1,) * leaf.ndim).astype(leaf.dtype) * leaf, asked.adjoints)

    def step(adjoints: tuple[Adjoint, ...], x: tuple) -> tuple[tuple[Adjoint, ...], tuple]:
        k, g, seen, breaks = x

        def one(t: Array, adjoints: tuple[Adjoint, ...]) -> tuple[tuple[Adjoint, ...], tuple, tuple]:
            return _step_back(stack, seen, breaks, adjoints, None if g is None else jnp.where(t == k, g, 0))

        adjoints, after, deltas = jax.vmap(one)(rows, adjoints)
        norms = (
            tuple(map(jax.vmap(norm), deltas)),
            tuple(map(jax.vmap(norm), after)),
            tuple(map(_term_norms, stack.layers, seen, deltas)),
        )
        return adjoints, (jax.tree.map(lambda leaf: leaf.sum(0), deltas), norms, deltas)

    xs = jnp.arange(T), asked.g, sequence.layers, steps.breaks
    adjoints, (sums, norms, deltas) = lax.scan(step, adjoints, xs, reverse=True)
    return sums, jax.tree.map(lambda leaf: leaf.sum(0), adjoints), norms, deltas


def _step_back(
    stack: Stack, seen: tuple[Linearized, ...], breaks: Breaks, adjoints: tuple[Adjoint, ...], g: Array | None
) -> tuple[tuple[Adjoint, ...], tuple, tuple]:
    """One step of all layers, from the top: the adjoints before it, those after it, and the deltas."""
    before: list[Any] = list(adjoints)
    after, deltas = list(before), list(before)
    for i in reversed(range(len(seen))):
        (cell, params, operands, _, _), (fed, previous, local) = stack.layers[i], seen[i]
        asked = adjoints[i].state if g is None else add_to_hidden(adjoints[i].state, g)
        back, delta = cell.step_adjoint(operands, asked, local)
        delta = blank(breaks.mask, delta)
        before[i] = enter_adjoint(breaks, leave(breaks, asked, back), adjoints[i].initial)
        after[i], deltas[i] = asked, delta
        dx = None
        if i > 0:
            fed, previous, several = jax.tree.map(lambda leaf: leaf[None], (fed, previous, delta))
            dx = cell.input_grads(params, fed, previous, several)[0]
        g = stack.hand_down(i, g, dx, Steps(fed, breaks, (None,) * len(seen)))
    return tuple(before), tuple(after), tuple(deltas)


def _term_norms(layer: Unrolled, seen: Linearized, deltas: Any) -> Any:
    """The norms of a layer's terms at one step k, for deltas [R, *batch, ...]: a pytree like its parameters, of [R]."""
    fed, previous, _ = jax.tree.map(lambda leaf: leaf[None], seen._replace(local=None))
    return jax.vmap(lambda delta: weight_norms(layer, fed, previous, jax.tree.map(lambda leaf: leaf[None], delta)))(
        deltas
    )
