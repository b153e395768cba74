"""The value of the vanishing-gradient regulariser: how far each step is from keeping the norm of the gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.arguments import Array
from jaxrnn.flow.sequence import backward, prepare
from jaxrnn.layer.penalty import omega
from jaxrnn.network.network import Network, NetworkParams


def vanishing_penalty(
    net: Network,
    params: NetworkParams,
    inputs: Any,
    targets: Any,
    weights: Any = None,
    state: Any = None,
    mask: Any = None,
    reset: Any = None,
) -> tuple[Array, ...]:
    """Omega of every layer: zero where the gradient's norm stays as it is from step to step.

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
    return _penalty(net, params, inputs, targets, weights, state, mask, reset)


@functools.partial(jax.jit, static_argnums=0)
def _penalty(net: Network, params: NetworkParams, *arguments: Any) -> tuple[Array, ...]:
    sequence, asked = prepare(net, params, *arguments)
    mask = sequence.steps.breaks.mask
    count = None if mask is None else jnp.maximum(jnp.sum(mask), 1)
    _, through = backward(sequence, asked)
    sums = [omega(layer.after, layer.before, mask)[0] for layer in through]
    return tuple(jnp.sum(each) / (each.size if count is None else count) for each in sums)
