"""Norms of sums of outer products, from products of their factors alone: no matrix of a weight's size is formed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree

from jaxrnn.arguments import is_integer
from jaxrnn.cells.base import Deltas, Params, State
from jaxrnn.layer.prepared import PreparedCell


def weight_norms(layer: PreparedCell, fed: Array, previous: State, deltas: Deltas) -> Params:
    """Computes |sum delta x^T| over all steps and examples given, for each weight: a pytree like the parameters.

        |sum_n delta_n x_n^T|^2 = sum_{n,m} (delta_n . delta_m) (x_n . x_m)

    Cells whose `weight_factors` are not known have the sum formed instead.

    Args:
        layer: the layer.
        fed, previous, deltas: of some steps, [K, *batch, ...].
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
