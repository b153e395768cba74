"""The horizon: how many steps back the gradient of a loss reaches."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import as_array


class Horizon(NamedTuple):
    """Says how far back losses reach, in steps."""

    mean: Array  # over the losses counted
    spread: Array  # their standard deviation
    beyond: Array  # the share that had not fallen under the fraction by the first step: the mean is a lower bound then
    steps: Array  # of every loss t, [T]; t + 1 where it is beyond


def horizon(norms: Array, fraction: float = 0.01, history: int | None = None) -> Horizon:
    """Counts the steps back until the gradient of a loss has fallen under a fraction of what it was at the loss.

        horizon_t = min {i : |dE_t/ds_{t-j}| < fraction |dE_t/ds_t| for all j >= i}

    averaged over the losses that have enough steps before them to tell. What happened further back is drowned by what
    is near: a network whose task has longer dependencies will hardly learn them from here.

    Args:
        norms: |dE_t/ds_k|, [T, T], as `terms` gives them in `adjoints`; one row, [1, T], for a single loss at the end.
        fraction: of the norm at the loss itself, between 0 and 1.
        history: how many steps a loss must have before it to be counted: T/2 by default.

    Returns:
        `Horizon`. Losses that are zero, as on masked steps, are not counted.

    Raises:
        ValueError: norms of another shape, a fraction outside (0, 1), no loss left to be counted.

    >>> import jax.numpy as jnp, jaxrnn.flow
    >>> steps = jnp.arange(40)
    >>> norms = jnp.where(steps <= steps[:, None], 0.5 ** (steps[:, None] - steps), 0.0)  # halved with every step back
    >>> float(jaxrnn.flow.horizon(norms, fraction=0.01).mean)
    7.0
    """
    norms = as_array("norms", norms)
    if norms.ndim != 2 or norms.shape[0] not in (1, norms.shape[1]):
        raise ValueError(f"norms must be [T, T], or [1, T] for one loss at the end, got {norms.shape}")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    rows, T = norms.shape
    history = T // 2 if history is None else history
    t = jnp.arange(T) if rows == T else jnp.array([T - 1])
    if not 0 <= history < T:
        raise ValueError(f"history must lie in 0 .. T - 1 = {T - 1}, got {history}")
    at_the_loss = jnp.take_along_axis(norms, t[:, None], 1)  # [rows, 1]
    reached = (norms >= fraction * at_the_loss) & (at_the_loss > 0)
    first = jnp.argmax(reached, axis=1)  # the earliest step that is still reached
    steps = jnp.where(reached.any(1), t - first + 1, 0)
    counted = (t >= history) & (at_the_loss[:, 0] > 0)
    count = jnp.sum(counted)
    mean = jnp.sum(jnp.where(counted, steps, 0)) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(counted, (steps - mean) ** 2, 0)) / count)
    beyond = jnp.sum(counted & (first == 0)) / count
    return Horizon(mean, spread, beyond, steps)
