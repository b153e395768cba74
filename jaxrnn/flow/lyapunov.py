"""Lyapunov exponents: how fast nearby states of the driven network part, or come together, step by step."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax

from jaxrnn.arguments import check_positive
from jaxrnn.cells.base import State
from jaxrnn.flow.sequence import Observed, layer_index, observe
from jaxrnn.layer.associative import flatten, unflatten
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


class Lyapunov(NamedTuple):
    """Holds exponents in nats per step, largest first, and what is known of their error."""

    exponents: Array  # [m]
    error: Array  # standard error of the mean over segments and batch, [m]


def lyapunov_exponents(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    state: tuple[State, ...] | None = None,
    *,
    layer: int = -1,
    count: int | None = None,
    skip: int | None = None,
    every: int = 1,
    segments: int = 10,
) -> Lyapunov:
    """Computes the Lyapunov exponents of a network driven by its inputs, by the QR method.

        Q_t R_t = J_t Q_{t-1}        J_t = ds_t/ds_{t-1}        lambda_i = mean_t log |R_t[i, i]|

    The largest tells what becomes of a small change over many steps: below zero it is forgotten, at a rate of e-folds
    per step, and so is the gradient on its way back; above zero the network is chaotic, and gradients explode.

    Args:
        net, params, inputs, state: as for `jaxrnn.value_and_grad`; without masks and resets, which have no long run.
            A long sequence of the inputs that the network will see: exponents belong to both of them.
        layer: which one; its inputs are held as they are.
        count: m, how many exponents; by default all n numbers of a state.
        skip: steps before counting begins, while states and directions settle: a tenth of T by default.
        every: steps between factorizations; more is faster, and loses the small exponents to rounding.
        segments: into how many parts of the sequence the figures are split to see how much they vary.

    Returns:
        `Lyapunov`. The error takes the parts for independent, which holds where they are long.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers; a count beyond n;
            too few steps for one factorization in every segment; fewer than two segments.

    Source: Benettin et al. (1980), "Lyapunov characteristic exponents for smooth dynamical systems"; for recurrent
    networks Vogt et al. (2020), "On Lyapunov exponents for RNNs", and Engelken, Wolf & Abbott (2020), "Lyapunov spectra
    of chaotic recurrent neural networks".

    >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.flow
    >>> cell = jaxrnn.Elman(3, 4, recurrent_scale=0.5)  # W is 0.5 times an orthogonal matrix
    >>> net = jaxrnn.Network((cell,), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    >>> found = jaxrnn.flow.lyapunov_exponents(net, net.init(jax.random.key(0)), jnp.zeros((100, 3)))
    >>> bool(jnp.allclose(found.exponents, jnp.log(0.5)))
    True
    """
    for name, value in (("every", every), ("segments", segments)):
        check_positive(name, value)
    if segments < 2:
        raise ValueError(f"segments must be two at least, to have an error, got {segments}")
    return _exponents(net, (layer, count, skip, every, segments), params, Batch(inputs), state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _exponents(
    net: Network,
    choices: tuple[int, int | None, int | None, int, int],
    params: NetworkParams,
    batch: Batch,
    state: tuple[State, ...] | None,
) -> Lyapunov:
    layer, count, skip, every, segments = choices
    observed, layer = observe(net, params, batch, state), layer_index(net, layer)
    n, T = flatten(observed.setup.state[layer]).shape[-1], observed.setup.steps.shape[0]
    m = n if count is None else count
    if not 1 <= m <= n:
        raise ValueError(f"count must lie in 1 .. {n}, the numbers of a state, got {count}")
    skip = T // 10 if skip is None else skip
    parts = (T - skip) // (segments * every)
    if parts < 1:
        raise ValueError(
            f"inputs must have {segments * every + skip} steps at least, got {T}: {skip} to settle, and {every} in "
            f"each of {segments} segments"
        )
    steps = segments * parts * every
    logs = _logs(observed, layer, m, every, T - steps)[-segments * parts :]  # [segments * parts, *batch, m]
    means = logs.reshape(segments, parts, -1, m).mean(1).reshape(-1, m) / every
    order = jnp.argsort(-means.mean(0))
    means = means[:, order]
    return Lyapunov(means.mean(0), means.std(0, ddof=1) / math.sqrt(means.shape[0]))


def _logs(observed: Observed, layer: int, m: int, every: int, settling: int) -> Array:
    """Computes log |R[i, i]| of every factorization, [count, *batch, m], the first `settling` steps left out."""
    prepared, seen = observed.setup.stack.layers[layer], observed.layers[layer]
    like = observed.setup.state[layer]
    numbers = flatten(like)
    batch, n = numbers.shape[:-1], numbers.shape[-1]
    projected = prepared.cell.project(prepared.operands, seen.fed)

    def ahead(columns: Array, x: tuple[State, ArrayTree]) -> tuple[Array, None]:
        """Multiplies J_t with each of the columns [m, *batch, n]."""
        previous, projected = x

        def step(state: Array) -> Array:
            return flatten(prepared.cell.step(prepared.operands, unflatten(state, like), projected))

        push = jax.linearize(step, flatten(previous))[1]
        return jax.vmap(push)(columns), None

    def factorize(columns: Array) -> tuple[Array, Array]:
        Q, R = jnp.linalg.qr(jnp.moveaxis(columns, 0, -1))  # [*batch, n, m], [*batch, m, m]
        return jnp.moveaxis(Q, -1, 0), jnp.log(jnp.abs(jnp.diagonal(R, axis1=-2, axis2=-1)))

    def several(columns: Array, x: tuple[State, ArrayTree]) -> tuple[Array, Array]:
        return factorize(lax.scan(ahead, columns, x)[0])

    start = jax.random.normal(jax.random.key(0), (m, *batch, n), numbers.dtype)
    xs = seen.previous, projected
    early, late = (jax.tree.map(cut, xs) for cut in (lambda leaf: leaf[:settling], lambda leaf: leaf[settling:]))
    columns, _ = lax.scan(lambda c, x: factorize(ahead(c, x)[0]), factorize(start)[0], early)
    late = jax.tree.map(lambda leaf: leaf.reshape(-1, every, *leaf.shape[1:]), late)
    return lax.scan(several, columns, late)[1]
