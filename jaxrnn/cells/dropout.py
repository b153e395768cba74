"""Dropout: masks are drawn outside every loop, from an explicit key, and the units that remain are scaled up.

Between layers every step has a mask of its own; on the recurrent path a sequence has one mask for all steps (Gal &
Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural networks"): a new mask at every
step would accumulate noise in the state there.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from chex import Array


def draw(key: chex.PRNGKey, rate: float, shape: tuple[int, ...]) -> Array:
    """Draws a dropout mask, True where a unit remains: a byte each, a quarter of a float32 unit."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def drop(x: Array, mask: Array | None, rate: float) -> Array:
    """Returns x / (1 - rate) where the mask is True, zero elsewhere: self-adjoint, so the reverse pass uses it too."""
    return x if mask is None else jnp.where(mask, x / (1 - rate), 0)


def scale(state: Array, factors: Array | None) -> Array:
    """Multiplies states [..., *batch, H] by the dropout factors [*batch, H] of each sequence: self-adjoint as well."""
    return state if factors is None else state * jnp.expand_dims(factors, range(state.ndim - factors.ndim))
