"""Jacobians of the state: what a change of s_k does to s_t, as singular values, and for long times as norms."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, PRNGKey
from jax import lax
from jax.scipy.special import logsumexp

from jaxrnn.arguments import check_positive
from jaxrnn.cells.base import Local, State
from jaxrnn.flow.sequence import Observed, layer_index, observe
from jaxrnn.layer.associative import flatten, unflatten
from jaxrnn.layer.masking import Adjoint, Flags, adjoint_step
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


class Norms(NamedTuple):
    """Holds estimated norms of ds_t/ds_{t-i} by lag i."""

    log: Array  # natural logarithm of the root mean square of the singular values, [L + 1]
    error: Array  # its standard error, over probes and batch, [L + 1]


def jacobians(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    *,
    layer: int = -1,
    lags: int | None = None,
) -> Array:
    """Computes the singular values of ds_T/ds_{T-i}, the products of i Jacobians, for the lags i = 0 .. L.

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
    return _jacobians(net, layer, lags, params, Batch(inputs, mask=mask, reset=reset), state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _jacobians(
    net: Network,
    layer: int,
    lags: int | None,
    params: NetworkParams,
    batch: Batch,
    state: tuple[State, ...] | None,
) -> Array:
    observed, layer = observe(net, params, batch, state), layer_index(net, layer)
    L = _lags(observed, lags)
    numbers = flatten(observed.setup.state[layer])  # [*batch, n]
    n = numbers.shape[-1]
    rows = jnp.broadcast_to(jnp.eye(n, dtype=numbers.dtype)[:, None], (n, numbers.size // n, n))
    rows = rows.reshape(n, *numbers.shape)

    def step(rows: Array, x: tuple[Local, Flags]) -> tuple[Array, Array]:
        rows = jax.vmap(lambda row: _back(observed, layer, row, x))(rows)
        return rows, jnp.linalg.svd(jnp.moveaxis(rows, 0, -2), compute_uv=False)

    _, values = lax.scan(step, rows, _last(observed, layer, L), reverse=True)
    return jnp.concatenate([jnp.ones_like(values[:1]), values[::-1]])


def jacobian_norms(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    *,
    key: PRNGKey,
    layer: int = -1,
    lags: int | None = None,
    probes: int = 32,
) -> Norms:
    """Estimates the root mean square singular value of ds_T/ds_{T-i} by lag, from random probes.

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
    return _jacobian_norms(net, (layer, lags, probes), key, params, Batch(inputs, mask=mask, reset=reset), state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jacobian_norms(
    net: Network,
    choices: tuple[int, int | None, int],
    key: PRNGKey,
    params: NetworkParams,
    batch: Batch,
    state: tuple[State, ...] | None,
) -> Norms:
    layer, lags, probes = choices
    observed, layer = observe(net, params, batch, state), layer_index(net, layer)
    L = _lags(observed, lags)
    numbers = flatten(observed.setup.state[layer])  # [*batch, n]
    v = jax.random.normal(key, (probes, *numbers.shape), numbers.dtype)

    def step(carry: tuple[Array, Array], x: tuple[Local, Flags]) -> tuple[tuple[Array, Array], Array]:
        v, logs = carry
        v = jax.vmap(lambda row: _back(observed, layer, row, x))(v)
        size = jnp.linalg.norm(v, axis=-1, keepdims=True)
        # A reset leaves zero for ever: its logarithm is -inf, and must not become NaN by being divided.
        v = v / jnp.where(size > 0, size, 1)
        logs = logs + jnp.log(size[..., 0])
        return (v, logs), logs

    size = jnp.linalg.norm(v, axis=-1, keepdims=True)
    first = jnp.log(size[..., 0])
    _, logs = lax.scan(step, (v / size, first), _last(observed, layer, L), reverse=True)
    logs = 2 * jnp.concatenate([first[None], logs[::-1]]).reshape(L + 1, -1)  # of |v P|^2, [L + 1, probes * batch]
    return _estimate(logs, numbers.shape[-1])


def _estimate(logs: Array, n: int) -> Norms:
    """Computes from logarithms of squares [L + 1, N] that of the root of their mean over n, and its error."""
    N = logs.shape[-1]
    mean = logsumexp(logs, axis=-1) - jnp.log(N)
    ratio = jnp.exp(logs - jnp.where(jnp.isfinite(mean), mean, 0)[:, None])  # of each square to their mean
    error = 0.5 * jnp.std(ratio, axis=-1, ddof=1) / jnp.sqrt(N)
    return Norms(0.5 * (mean - jnp.log(n)), error)


def _back(observed: Observed, layer: int, row: Array, x: tuple[Local, Flags]) -> Array:
    """Takes one adjoint [*batch, n] back through one step: v ds_t/ds_{t-1}."""
    local, flags = x
    adjoint = Adjoint(unflatten(row, observed.setup.state[layer]), None)
    return flatten(adjoint_step(observed.setup.stack.layers[layer], adjoint, None, local, flags)[0].state)


def _last(observed: Observed, layer: int, lags: int) -> tuple[Local, Flags]:
    return jax.tree.map(lambda leaf: leaf[-lags:], (observed.layers[layer].local, observed.setup.steps.flags))


def _lags(observed: Observed, lags: int | None) -> int:
    steps = observed.setup.steps.shape[0]
    if lags is None:
        return steps
    check_positive("lags", lags)
    if lags > steps:
        raise ValueError(f"lags must not be more than the T = {steps} steps there are, got {lags}")
    return lags
