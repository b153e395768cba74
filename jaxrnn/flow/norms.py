"""Norms of gradients from delta and x alone: neither a gradient nor a matrix of a weight's size is formed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax

from jaxrnn.arguments import is_integer
from jaxrnn.cells.base import Deltas, Params, State
from jaxrnn.flow.sequence import compiled, observe, take_back
from jaxrnn.layer.prepared import PreparedCell
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


class ExampleNorms(NamedTuple):
    """Holds the norms of the gradients of single examples."""

    layers: tuple[Params, ...]  # for every weight of every layer, [*batch]
    total: Array  # of all of them together, [*batch]


@compiled()
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
    observed = observe(net, params, Batch(inputs, targets, weights, mask, reset), state)
    T, *batch = observed.setup.steps.shape
    if not batch:
        raise ValueError("inputs must have a batch axis, [T, *batch, D] or [T, *batch], got those of one sequence")

    def examples_first(leaf: Array) -> Array:
        """Reshapes [T, *batch, ...] to [N, T, 1, ...]."""
        leaf = leaf.reshape(T, -1, *leaf.shape[1 + len(batch) :])
        return jnp.moveaxis(leaf, 1, 0)[:, :, None]

    layers = []
    for layer, seen, found in zip(observed.setup.stack.layers, observed.layers, take_back(observed), strict=True):
        previous = layer.cell.recurrent_inputs(seen.previous, seen.local)
        of_examples = jax.tree.map(examples_first, (seen.fed, previous, found.deltas))
        norms = lax.map(lambda x, layer=layer: weight_norms(layer, *x), of_examples)
        layers.append(jax.tree.map(lambda leaf: leaf.reshape(batch), norms))
    total = jnp.sqrt(sum(leaf * leaf for leaf in jax.tree.leaves(layers)))
    return ExampleNorms(tuple(layers), total)


def weight_norms(layer: PreparedCell, fed: Array, previous: State, deltas: Deltas) -> Params:
    """Computes |sum delta x^T| over all steps and examples given, for each weight: a pytree like the parameters.

        |sum_n delta_n x_n^T|^2 = sum_{n,m} (delta_n . delta_m) (x_n . x_m)

    Cells whose `weight_factors` are not known have the sum formed instead.

    Args:
        layer: the layer.
        fed, previous, deltas: of some steps, [K, *batch, ...]; `previous` as `Cell.recurrent_inputs` gives it.
    """
    factors = layer.cell.weight_factors(layer.operands, fed, previous, deltas)
    if factors is None:
        return jax.tree.map(norm, layer.cell.weight_grads(layer.params, layer.operands, fed, previous, deltas))
    return type(layer.params)(*(pair and _norm_of_sum(*pair) for pair in factors))


def norm(tree: ArrayTree) -> Array:
    """Computes the Euclidean norm of all numbers of a pytree."""
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def _norm_of_sum(delta: Array, x: Array | None) -> Array:
    rows = delta.reshape(-1, delta.shape[-1])  # [N, a]
    products = rows @ rows.T
    if x is not None and is_integer(x):
        tokens = x.reshape(-1)
        products = jnp.where(tokens[:, None] == tokens, products, 0)
    elif x is not None:
        seen = x.reshape(-1, x.shape[-1])  # [N, b]
        products = products * (seen @ seen.T)
    # Rounding may leave a sum that is zero a little below it.
    return jnp.sqrt(jnp.maximum(jnp.sum(products), 0))
