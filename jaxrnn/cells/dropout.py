"""Dropout: what is kept is drawn outside every loop, from an explicit key, and what is kept is scaled up.

Between layers every unit of every step is drawn anew; on the recurrent path a sequence draws its units once, for all
steps (Gal & Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural networks"): drawn
anew at every step there, noise would pile up in the state.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from chex import Array


def draw(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """True for the units that are kept. A byte each, a quarter of what the units themselves take."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def drop(x: Array, kept: Array | None, rate: float) -> Array:
    """x / (1 - rate) where kept, zero elsewhere: self-adjoint, so it is its own way back."""
    return x if kept is None else jnp.where(kept, x / (1 - rate), 0)


def scale(state: Array, keep: Array | None) -> Array:
    """keep * s for states [..., *batch, H] and one keep [*batch, H] for each sequence: self-adjoint as well."""
    return state if keep is None else state * keep
