"""The value of the vanishing-gradient regulariser: how far each step is from keeping the norm of the gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.cells.base import State
from jaxrnn.flow.sequence import observe, take_back
from jaxrnn.layer.penalty import omega
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


def vanishing_penalty(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    targets: Array,
    weights: Array | None = None,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, ...]:
    """Computes Omega of every layer: zero where the gradient's norm stays as it is from step to step.

        Omega = mean_t (|dE/ds_t ds_t/ds_{t-1}| / |dE/ds_t| - 1)^2

    One where the gradient is lost within a step. Its gradient is added to that of E by
    `jaxrnn.value_and_grad(net)(..., vanishing=weight)`.

    Args:
        net, params, inputs, targets, weights, state, mask, reset: as for `jaxrnn.value_and_grad`.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks", equation 9.

    >>> import jax, jaxrnn, jaxrnn.flow
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (13, 2), 0, 5)
    >>> (found,) = jaxrnn.flow.vanishing_penalty(net, net.init(jax.random.key(0)), tokens[:-1], tokens[1:])
    >>> 0 < float(found) < 1
    True
    """
    return _penalty(net, params, Batch(inputs, targets, weights, mask, reset), state)


@functools.partial(jax.jit, static_argnums=0)
def _penalty(net: Network, params: NetworkParams, batch: Batch, state: tuple[State, ...] | None) -> tuple[Array, ...]:
    observed = observe(net, params, batch, state)
    mask = observed.setup.steps.flags.mask
    count = None if mask is None else jnp.maximum(jnp.sum(mask), 1)
    sums = [omega(found.step_adjoints.after, found.step_adjoints.before, mask)[0] for found in take_back(observed)]
    return tuple(jnp.sum(each) / (each.size if count is None else count) for each in sums)
