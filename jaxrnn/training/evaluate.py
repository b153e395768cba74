"""How good a network is on some batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.base import Sequences


class Metrics(NamedTuple):
    """Says how good parameters are on some batches."""

    loss: float  # the mean error of a step, or of a sequence with one answer
    error_rate: float | None  # the share of wrong answers, of a task with classes


def evaluate(net: Network, params: NetworkParams, batches: Iterable[Sequences], classes: bool = False) -> Metrics:
    """Computes the mean over all real steps of all batches; the state is carried, except into fresh batches.

    Args:
        net, params: a network.
        batches: what to evaluate it on.
        classes: True computes the error rate too.

    Raises:
        ValueError: no batches, or none with a real step.
    """
    sums, state = np.zeros(3), None
    for batch in batches:
        found, state = _sum_errors(net, params, batch, None if batch.fresh else state, classes)
        sums += [float(each) for each in found]
    loss, wrong, count = sums
    if not count:
        raise ValueError("batches must hold at least one batch with a real step, got none")
    return Metrics(loss / count, wrong / count if classes else None)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sum_errors(
    net: Network, params: NetworkParams, batch: Sequences, state: Any, classes: bool
) -> tuple[tuple[chex.Array, chex.Array, chex.Array], Any]:
    """Returns the sum of errors, the number of wrong answers and of all, and the final state."""
    outputs, final = net.apply(params, batch.inputs, state, batch.mask, batch.reset)
    errors = net.objective(outputs, batch.targets)
    there = jnp.ones(errors.shape, bool)
    if batch.mask is not None:
        there = jnp.any(batch.mask, 0) if net.last_step else jnp.asarray(batch.mask)
    wrong = jnp.argmax(outputs, -1) != batch.targets if classes else jnp.zeros(errors.shape, bool)
    return (jnp.sum(errors, where=there), jnp.sum(wrong & there), jnp.sum(there)), final
