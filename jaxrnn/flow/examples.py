"""The norm of every example's own gradient, without any of these gradients."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

from jaxrnn.cells.base import Params, State
from jaxrnn.flow.products import weight_norms
from jaxrnn.flow.sequence import observe, take_back
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


class ExampleNorms(NamedTuple):
    """Holds the norms of the gradients of single examples."""

    layers: tuple[Params, ...]  # for every weight of every layer, [*batch]
    total: Array  # of all of them together, [*batch]


def per_example_gradient_norms(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    targets: Array,
    weights: Array | None = None,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
) -> ExampleNorms:
    """Computes how much each sequence of a batch adds to the gradient of the layers' weights, as a norm.

        dE/dW = sum_n dE_n/dW        |dE_n/dW|^2 = sum_{t,k} (delta_t . delta_k) (s_{t-1} . s_{k-1})  of the example n

    From delta, s and x by T x T products for one example at a time; the gradients themselves are never formed, for
    cells that name their `weight_factors`. Worth it where H^2 is more than T; for long sequences of small networks
    `jax.vmap` of `jaxrnn.value_and_grad` is the better way. A learned initial state and the readout are not counted.

    Args:
        net, params, inputs, targets, weights, state, mask, reset: as for `jaxrnn.value_and_grad`, with at least one
            batch axis.

    Returns:
        `ExampleNorms`, [*batch] each.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers; no batch axis.

    Source: Goodfellow (2015), "Efficient per-example gradient computations", for layers without recurrence.

    >>> import jax, jaxrnn, jaxrnn.flow
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (13, 2), 0, 5)
    >>> norms = jaxrnn.flow.per_example_gradient_norms(net, net.init(jax.random.key(0)), tokens[:-1], tokens[1:])
    >>> norms.total.shape, norms.layers[0].W.shape
    ((2,), (2,))
    """
    return _norms(net, params, Batch(inputs, targets, weights, mask, reset), state)


@functools.partial(jax.jit, static_argnums=0)
def _norms(net: Network, params: NetworkParams, batch: Batch, state: tuple[State, ...] | None) -> ExampleNorms:
    observed = observe(net, params, batch, state)
    setup = observed.setup
    examples = setup.steps.shape[1:]
    if not examples:
        raise ValueError("inputs must have a batch axis, [T, *batch, D] or [T, *batch], got those of one sequence")
    layers = []
    for layer, seen, found in zip(setup.stack.layers, observed.layers, take_back(observed), strict=True):
        of_examples = jax.tree.map(
            functools.partial(_examples_first, axes=len(examples)), (seen.fed, seen.previous, found.deltas)
        )
        norms = lax.map(lambda x, layer=layer: weight_norms(layer, *x), of_examples)
        layers.append(jax.tree.map(lambda leaf: leaf.reshape(examples), norms))
    total = jnp.sqrt(sum(leaf * leaf for leaf in jax.tree.leaves(layers)))
    return ExampleNorms(tuple(layers), total)


def _examples_first(leaf: Array, axes: int) -> Array:
    """Reshapes [T, *batch, ...] to [N, T, 1, ...]."""
    leaf = leaf.reshape(leaf.shape[0], -1, *leaf.shape[1 + axes :])
    return jnp.moveaxis(leaf, 1, 0)[:, :, None]
