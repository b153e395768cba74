"""The arguments of one call: as they come, and checked."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from chex import Array, ArrayTree

from jaxrnn.arguments import batch_shape
from jaxrnn.cells.base import State
from jaxrnn.layer.masking import Flags, blank


class Batch(NamedTuple):
    """Holds sequences and what goes with their steps, as `jaxrnn.value_and_grad` takes them."""

    inputs: Array  # [T, *batch, D], or tokens [T, *batch]
    targets: Array | None = None  # [T, *batch, ...]; without T for a network with `last_step`
    weights: Array | None = None  # w_t, [T, *batch]
    mask: Array | None = None  # [T, *batch]
    reset: Array | None = None  # [T, *batch]


class LossSteps(NamedTuple):
    """Holds what the loss needs of some steps, checked."""

    targets: Array  # as they come: `read` makes a copy of one segment at a time
    weights: Array  # w_t, zero where there is no loss
    there: Array | None  # False where there is no loss; None where every step has one


class Steps(NamedTuple):
    """Holds what goes into the steps of a segment, or of the whole sequence, checked: [K, ...] all of it."""

    inputs: Array  # [K, *batch, D] or [K, *batch], as they come
    flags: Flags
    dropout: tuple[Array | None, ...]  # per layer, True for the units of its outputs that dropout leaves
    loss: LossSteps | None = None  # None where these steps have no loss
    below: Array | None = None  # [K, *batch, H], what the layers below hand up, where those were taken before
    g: Array | None = None  # [K, *batch, H], what the layers above ask, where those were taken back before

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns [K, *batch]."""
        return self.inputs.shape[:1] + batch_shape(self.inputs)


class Call(NamedTuple):
    """Holds the arguments of one call, checked."""

    steps: Steps
    state: tuple[State | None, ...]  # per layer, as given
    dropout: tuple[ArrayTree | None, ...]  # per layer, 0 or 1/(1 - rate), times s_{t-1} in its recurrent products
    dtype: jnp.dtype  # what is computed in

    def real_steps(self) -> Array | int:
        """Counts the steps that are not masked, of all sequences together."""
        mask = self.steps.flags.mask
        return math.prod(self.steps.shape) if mask is None else jnp.sum(mask)


def read(array: Array, there: Array | None, dtype: jnp.dtype) -> Array:
    """Reads inputs or targets of some steps for the two passes: blank where masked, floats in a dtype."""
    array = blank(there, array)
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array
