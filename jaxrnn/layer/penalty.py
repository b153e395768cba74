"""The vanishing-gradient regulariser: a gradient should keep its norm from each step to the one before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree

from jaxrnn.layer.masking import blank


def omega(after: ArrayTree, before: ArrayTree, mask: Array | None) -> tuple[Array, Array]:
    """Computes the penalty of every step, and the coefficient that its gradient is made of.

        Omega_t = (|dE/ds_t ds_t/ds_{t-1}| / |dE/ds_t| - 1)^2        Omega = the mean over all unmasked steps

    By the immediate derivative, dE/ds_t and the states held constant, only the W in ds_t/ds_{t-1} counts: with
    u_t = W^T delta_t, which is dE/ds_t ds_t/ds_{t-1} for an Elman cell,

        dOmega_t/dW = delta_t (c_t u_t)^T        c_t = 2 (|u_t| / |dE/ds_t| - 1) / (|u_t| |dE/ds_t|)

    Args:
        after: dE/ds_t, [K, *batch, H].
        before: u_t, [K, *batch, H].
        mask: [K, *batch], or None.

    Returns:
        Omega_t and c_t, [K, *batch]; zero where masked, and where no gradient is left.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks", equations 9
    and 10.
    """
    size, carried = _norms(after), _norms(before)
    there = (size > 0) & (carried > 0)
    size, carried = jnp.where(there, size, 1), jnp.where(there, carried, 1)
    excess = jnp.where(there, carried / size - 1, 0)
    return blank(mask, (excess * excess, 2 * excess / (carried * size)))


def _norms(tree: ArrayTree) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf, axis=-1) for leaf in jax.tree.leaves(tree)))
