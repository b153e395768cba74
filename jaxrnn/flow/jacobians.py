"""What a change of s_k does to s_t: Jacobians as singular values, for long times as norms, and Lyapunov exponents."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree, PRNGKey
from jax import lax
from jax.scipy.special import logsumexp

from jaxrnn.arguments import accumulation_dtype, check_positive
from jaxrnn.cells.base import Local, State
from jaxrnn.flow.sequence import Observed, compiled, layer_index, observe
from jaxrnn.layer.associative import flatten, times_jacobian, unflatten
from jaxrnn.layer.masking import Flags, leave
from jaxrnn.layer.prepared import PreparedCell
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


class Norms(NamedTuple):
    """Holds estimated norms of ds_t/ds_{t-i} by lag i."""

    log: Array  # natural logarithm of the root mean square of the singular values, [L + 1]
    error: Array  # its standard error, over probes and batch, [L + 1]


class Lyapunov(NamedTuple):
    """Holds exponents in nats per step, largest first, and what is known of their error."""

    exponents: Array  # [m]
    error: Array  # standard error of the mean over segments and batch, [m]


@compiled("layer", "lags")
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
    prepared, start, steps = _last_steps(net, params, Batch(inputs, mask=mask, reset=reset), state, layer, lags)
    *batch, n = flatten(start).shape

    def step(rows: Array, x: tuple[Local, Flags]) -> tuple[Array, Array]:
        rows = times_jacobian(prepared, rows, start, *x)  # [*batch, n, n]
        return rows, jnp.linalg.svd(rows.astype(accumulation_dtype(rows.dtype)), compute_uv=False)  # none in 16 bits

    unit_vectors = jnp.broadcast_to(jnp.eye(n, dtype=flatten(start).dtype), (*batch, n, n))
    _, values = lax.scan(step, unit_vectors, steps, reverse=True)
    return jnp.concatenate([jnp.ones_like(values[:1]), values[::-1]])


@compiled("layer", "lags", "probes")
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
    prepared, start, steps = _last_steps(net, params, Batch(inputs, mask=mask, reset=reset), state, layer, lags)
    numbers = flatten(start)  # [*batch, n]

    def normalize(v: Array, logs: Array | float) -> tuple[Array, Array]:
        size = jnp.linalg.norm(v, axis=-1, keepdims=True)
        # A reset leaves zero for ever: its logarithm is -inf, and must not become NaN by being divided.
        return v / jnp.where(size > 0, size, 1), logs + jnp.log(size[..., 0])

    def step(carry: tuple[Array, Array], x: tuple[Local, Flags]) -> tuple[tuple[Array, Array], Array]:
        v, logs = carry
        v, logs = normalize(times_jacobian(prepared, v, start, *x), logs)
        return (v, logs), logs

    v = jax.random.normal(key, (probes, *numbers.shape), numbers.dtype)
    v, first = normalize(jnp.moveaxis(v, 0, -2), 0.0)
    _, logs = lax.scan(step, (v, first), steps, reverse=True)
    logs = 2 * jnp.concatenate([first[None], logs[::-1]])  # of |v P|^2, [L + 1, *batch, probes]
    return _estimate(logs.reshape(logs.shape[0], -1), numbers.shape[-1])


def _estimate(logs: Array, n: int) -> Norms:
    """Computes from logarithms of squares [L + 1, N] that of the root of their mean over n, and its error."""
    N = logs.shape[-1]
    mean = logsumexp(logs, axis=-1) - jnp.log(N)
    ratio = jnp.exp(logs - jnp.where(jnp.isfinite(mean), mean, 0)[:, None])  # of each square to their mean
    error = 0.5 * jnp.std(ratio, axis=-1, ddof=1) / jnp.sqrt(N)
    return Norms(0.5 * (mean - jnp.log(n)), error)


def _last_steps(
    net: Network, params: NetworkParams, batch: Batch, state: tuple[State, ...] | None, layer: int, lags: int | None
) -> tuple[PreparedCell, State, tuple[Local, Flags]]:
    """Returns a layer, its s_0, and what takes an adjoint back through each of the last L steps."""
    observed, layer = observe(net, params, batch, state), layer_index(net, layer)
    T = observed.setup.steps.shape[0]
    lags = T if lags is None else lags
    check_positive("lags", lags)
    if lags > T:
        raise ValueError(f"lags must not be more than the T = {T} steps there are, got {lags}")
    steps = jax.tree.map(lambda leaf: leaf[-lags:], (observed.layers[layer].local, observed.setup.steps.flags))
    return observed.setup.stack.layers[layer], observed.setup.state[layer], steps


@compiled("layer", "count", "skip", "every", "segments")
def lyapunov_exponents(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
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
        net, params, inputs, state, mask: as for `jaxrnn.value_and_grad`; without resets, which have no long run. A
            long sequence of the inputs that the network will see: exponents belong to both of them. A step that is
            masked holds the state, and is not counted.
        layer: which one; its inputs are held as they are.
        count: m, how many exponents; by default all n numbers of a state.
        skip: steps before counting begins, while states and directions settle: a tenth of T by default.
        every: steps between factorizations; more is faster, and loses the small exponents to rounding.
        segments: into how many parts of the sequence the figures are split to see how much they vary.

    Returns:
        `Lyapunov`. The error takes the parts for independent, which holds where they are long; each weighs by its real
        steps. Where there are none, exponents are NaN.

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
    check_positive("every", every)
    check_positive("segments", segments)
    if segments < 2:
        raise ValueError(f"segments must be two at least, to have an error, got {segments}")
    observed, layer = observe(net, params, Batch(inputs, mask=mask), state), layer_index(net, layer)
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
    settling = T - segments * parts * every
    logs = _log_stretching(observed, layer, m, every, settling)
    real = jnp.ones(observed.setup.steps.shape, bool) if mask is None else jnp.asarray(mask)
    steps = real[settling:].reshape(segments, parts * every, -1).sum(1).reshape(-1)
    return _weighted(logs.reshape(segments, parts, -1, m).sum(1).reshape(-1, m), steps)


def _weighted(logs: Array, steps: Array) -> Lyapunov:
    """Computes exponents and their error from the sums of logarithms [N, m] of N parts, of so many real steps [N]."""
    N, steps = jnp.sum(steps > 0, dtype=logs.dtype), steps.astype(logs.dtype)
    share = (steps / steps.sum())[:, None]
    means = logs / jnp.maximum(steps, 1)[:, None]
    exponents = jnp.sum(share * means, 0)
    # Of parts alike this is their standard deviation over the root of N.
    error = jnp.sqrt(jnp.sum((share * (means - exponents)) ** 2, 0) * N / (N - 1))
    order = jnp.argsort(-exponents)
    return Lyapunov(exponents[order], error[order])


def _log_stretching(observed: Observed, layer: int, m: int, every: int, settling: int) -> Array:
    """Computes log |R[i, i]| of every factorization, [count, *batch, m], the first `settling` steps left out."""
    prepared, seen, like = observed.setup.stack.layers[layer], observed.layers[layer], observed.setup.state[layer]
    numbers = flatten(like)

    def ahead(columns: Array, x: tuple[State, ArrayTree, Flags]) -> tuple[Array, None]:
        """Multiplies J_t with each of the columns [m, *batch, n]."""
        previous, projected, flags = x

        def step(before: State) -> Array:
            return flatten(leave(flags, before, prepared.cell.step(prepared.operands, before, projected)))

        _, push = jax.linearize(step, previous)
        return jax.vmap(lambda column: push(unflatten(column, like)))(columns), None

    def factorize(columns: Array) -> tuple[Array, Array]:
        wide = columns.astype(accumulation_dtype(numbers.dtype))  # there is no factorization in 16 bits
        Q, R = jnp.linalg.qr(jnp.moveaxis(wide, 0, -1))  # [*batch, n, m], [*batch, m, m]
        return jnp.moveaxis(Q, -1, 0).astype(numbers.dtype), jnp.log(jnp.abs(jnp.diagonal(R, axis1=-2, axis2=-1)))

    def several(columns: Array, x: tuple[State, ArrayTree, Flags]) -> tuple[Array, Array]:
        return factorize(lax.scan(ahead, columns, x)[0])

    xs = seen.previous, prepared.cell.project(prepared.operands, seen.fed), observed.setup.steps.flags
    early = jax.tree.map(lambda leaf: leaf[:settling, None], xs)  # factorized at every step
    late = jax.tree.map(lambda leaf: leaf[settling:].reshape(-1, every, *leaf.shape[1:]), xs)
    columns, _ = factorize(jax.random.normal(jax.random.key(0), (m, *numbers.shape), numbers.dtype))
    columns, _ = lax.scan(several, columns, early)
    return lax.scan(several, columns, late)[1]
