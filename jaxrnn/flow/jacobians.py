"""Jacobians of the state: what a change of s_k does to s_t, as singular values, and for long times as norms."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp

from jaxrnn.arguments import Array, check_positive
from jaxrnn.cells.base import State
from jaxrnn.flow.sequence import Sequence, check_layer, forward
from jaxrnn.layer.associative import flatten, unflatten
from jaxrnn.layer.masking import Breaks, enter_adjoint, leave
from jaxrnn.network.network import Network, NetworkParams


class Norms(NamedTuple):
    """Norms of ds_t/ds_{t-i} by lag i, estimated."""

    log: Array  # natural logarithm of the root mean square of the singular values, [L + 1]
    error: Array  # its standard error, over probes and batch, [L + 1]


def jacobians(
    net: Network,
    params: NetworkParams,
    inputs: Any,
    state: Any = None,
    mask: Any = None,
    reset: Any = None,
    *,
    layer: int = -1,
    lags: int | None = None,
) -> Array:
    """Singular values of ds_T/ds_{T-i}, the products of i Jacobians, for the lags i = 0 .. L.

        ds_t/ds_k = prod_{j=k+1..t} ds_j/ds_{j-1}        Elman: diag(1 - s_j^2) W

    Below one they shrink a gradient, above one they blow it up, along the directions of their singular vectors. All
    numbers of a state count, an LSTM's memory too. In one layer: its inputs are held as they are.

    Singular values smaller than the largest one by the precision of the dtype (1e-7 in float32) are rounding. It takes
    T n^3 operations, for a few hundred units; for more of them, or to average over a long sequence, `jacobian_norms`.

    Args:
        net, params, inputs, state, mask, reset: as for `jaxrnn.value_and_grad`.
        layer: which one.
        lags: L, by default T.

    Returns:
        [L + 1, *batch, n], largest first; n is H, for an LSTM 2H.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers; a layer that is not
            there, lags below 1 or beyond T.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks", section 2.

    >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.flow
    >>> net = jaxrnn.Network((jaxrnn.Elman(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    >>> values = jaxrnn.flow.jacobians(net, net.init(jax.random.key(0)), jnp.zeros((10, 3)))  # W orthogonal, s_t = 0
    >>> bool(jnp.allclose(values, 1, atol=1e-5))
    True
    """
    return _jacobians(net, layer, lags, params, inputs, state, mask, reset)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _jacobians(net: Network, layer: int, lags: int | None, params: NetworkParams, *arguments: Any) -> Array:
    sequence = forward(net, params, *arguments)
    layer, L = check_layer(net, layer), _lags(sequence, lags)
    numbers = flatten(sequence.adjoints[layer].state)  # [*batch, n]
    n = numbers.shape[-1]
    rows = jnp.broadcast_to(jnp.eye(n, dtype=numbers.dtype)[:, None], (n, numbers.size // n, n))
    rows = rows.reshape(n, *numbers.shape)

    def step(rows: Array, x: Any) -> tuple[Array, Array]:
        rows = jax.vmap(lambda row: _back(sequence, layer, row, x))(rows)
        return rows, _singular_values(jnp.moveaxis(rows, 0, -2))

    _, values = lax.scan(step, rows, _last(sequence, layer, L), reverse=True)
    return jnp.concatenate([jnp.ones_like(values[:1]), values[::-1]])


def jacobian_norms(
    net: Network,
    params: NetworkParams,
    inputs: Any,
    state: Any = None,
    mask: Any = None,
    reset: Any = None,
    *,
    key: Array,
    layer: int = -1,
    lags: int | None = None,
    probes: int = 32,
) -> Norms:
    """The root mean square singular value of ds_T/ds_{T-i} by lag, from random probes.

        |P|_F^2 = E |v P|^2 for v with independent standard normal entries        sqrt(|P|_F^2 / n)

    Vectors only are carried, and their logarithms apart, so that a thousand lags neither overflow nor vanish.

    Args:
        net, params, inputs, state, mask, reset: as for `jaxrnn.value_and_grad`; sequences of a batch are averaged over.
        key: for the probes.
        layer, lags: as for `jacobians`.
        probes: how many, at least two; the error falls as one over their square root.

    Returns:
        `Norms`, with a standard error that the spread of the probes gives.

    Raises:
        TypeError, ValueError: as for `jacobians`; fewer than two probes.

    Source: Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix".

    >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.flow
    >>> cell = jaxrnn.Elman(3, 4, recurrent_scale=0.5)  # W is 0.5 times an orthogonal matrix
    >>> net = jaxrnn.Network((cell,), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> norms = jaxrnn.flow.jacobian_norms(net, params, jnp.zeros((10, 3)), key=jax.random.key(1))
    >>> bool(jnp.allclose(jnp.diff(norms.log), jnp.log(0.5)))  # for every step back
    True
    """
    check_positive("probes", probes)
    if probes < 2:
        raise ValueError(f"probes must be two at least, to have an error, got {probes}")
    return _jacobian_norms(net, layer, lags, probes, key, params, inputs, state, mask, reset)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _jacobian_norms(
    net: Network, layer: int, lags: int | None, probes: int, key: Array, params: NetworkParams, *arguments: Any
) -> Norms:
    sequence = forward(net, params, *arguments)
    layer, L = check_layer(net, layer), _lags(sequence, lags)
    numbers = flatten(sequence.adjoints[layer].state)  # [*batch, n]
    v = jax.random.normal(key, (probes, *numbers.shape), numbers.dtype)

    def step(carry: tuple[Array, Array], x: Any) -> tuple[tuple[Array, Array], Array]:
        v, logs = carry
        v = jax.vmap(lambda row: _back(sequence, layer, row, x))(v)
        size = jnp.linalg.norm(v, axis=-1, keepdims=True)
        # A reset leaves zero for ever: its logarithm is -inf, and must not become NaN by being divided.
        v = v / jnp.where(size > 0, size, 1)
        logs = logs + jnp.log(size[..., 0])
        return (v, logs), logs

    size = jnp.linalg.norm(v, axis=-1, keepdims=True)
    first = jnp.log(size[..., 0])
    _, logs = lax.scan(step, (v / size, first), _last(sequence, layer, L), reverse=True)
    logs = 2 * jnp.concatenate([first[None], logs[::-1]]).reshape(L + 1, -1)  # of |v P|^2, [L + 1, probes * batch]
    return _estimate(logs, numbers.shape[-1])


def _estimate(logs: Array, n: int) -> Norms:
    """From logarithms of squares [L + 1, N] that of the root of their mean over n, and its standard error."""
    N = logs.shape[-1]
    mean = logsumexp(logs, axis=-1) - jnp.log(N)
    ratio = jnp.exp(logs - jnp.where(jnp.isfinite(mean), mean, 0)[:, None])  # of each square to their mean
    error = 0.5 * jnp.std(ratio, axis=-1, ddof=1) / jnp.sqrt(N)
    return Norms(0.5 * (mean - jnp.log(n)), error)


def _back(sequence: Sequence, layer: int, row: Array, x: tuple[Any, Breaks]) -> Array:
    """One adjoint [*batch, n] through one step: v ds_t/ds_{t-1}."""
    local, breaks = x
    unrolled = sequence.stack.layers[layer]
    after: State = unflatten(row, sequence.adjoints[layer].state)
    before, _ = unrolled.cell.step_adjoint(unrolled.operands, after, local)
    return flatten(enter_adjoint(breaks, leave(breaks, after, before), sequence.adjoints[layer].initial).state)


def _singular_values(matrices: Array) -> Array:
    return jnp.linalg.svd(matrices, compute_uv=False)


def _last(sequence: Sequence, layer: int, lags: int) -> tuple[Any, Breaks]:
    return jax.tree.map(lambda leaf: leaf[-lags:], (sequence.layers[layer].local, sequence.steps.breaks))


def _lags(sequence: Sequence, lags: int | None) -> int:
    steps = sequence.steps.inputs.shape[0]
    if lags is None:
        return steps
    check_positive("lags", lags)
    if lags > steps:
        raise ValueError(f"lags must not be more than the T = {steps} steps there are, got {lags}")
    return lags
