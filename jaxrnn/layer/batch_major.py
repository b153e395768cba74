"""Sequences with the batch first, [*batch, T, D]: checked, and laid out with time first, as the loops take them.

Inputs and hidden states, and the gradients of both, are each copied once into the other order, outside the loops; XLA
leaves these copies in the program. Measured beside time first (loss and gradient with a readout, float32, 2 busy cores
with AVX-512, T,B,D,H,V = 100,32,64,128,65 and 128,64,128,256,128): 1.00 to 1.03 times as long by the least of many
turns, and about T B (D + H) numbers of memory. Where that lifts the temporary memory over 32 MB, glibc maps it anew at
every call, which costs more than the copies: an Elman network of the second shape takes 42 and 56 ms, and where glibc
is told to keep its memory 42.3 and 43.4.

Loops over the middle axis need no copy, and gained nothing: in a prototype with the batch first in every array, time in
one segment, they took 1.0 to 1.13 times as long as time first, the copies 0.9 to 1.1.
"""

from __future__ import annotations

import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import as_array, is_integer
from jaxrnn.layer.masking import Flags


def time_first(inputs: Array, flags: Flags) -> tuple[Array, Flags]:
    """Returns inputs [T, *batch, D] or tokens [T, *batch], and flags [T, *batch], of those with the batch first.

    Raises:
        ValueError: no axis of time, or flags that are not one per step.
    """
    inputs = as_array("inputs", inputs)
    features = 0 if is_integer(inputs) else 1
    axis = inputs.ndim - 1 - features
    if axis < 0:
        raise ValueError(
            f"inputs with time_major=False must be floats [*batch, T, D] or integer tokens [*batch, T], got shape "
            f"{inputs.shape}"
        )
    steps = inputs.shape[: axis + 1]
    for name, value in flags._asdict().items():
        if value is not None and jnp.shape(value) != steps:
            raise ValueError(
                f"{name} must be one per step, with time_major=False [*batch, T] = {steps}, got {jnp.shape(value)}; "
                f"the batch comes first, and nothing is broadcast"
            )
    flags = Flags(*(None if value is None else jnp.moveaxis(jnp.asarray(value), axis, 0) for value in flags))
    return jnp.moveaxis(inputs, axis, 0), flags


def batch_first(hidden: Array) -> Array:
    """Returns hidden states [*batch, T, H] of those with time first."""
    return jnp.moveaxis(hidden, 0, -2)
