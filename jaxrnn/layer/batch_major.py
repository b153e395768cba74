"""Sequences with the batch first, [*batch, T, D]: checked, and laid out with time first, as the loops take them.

Inputs and hidden states, and the gradients of both, are each copied once into the other order, outside the loops; XLA
leaves these copies in the program. `python scripts/bench_flax.py` has both orders in its rows, "batch" and "time": on
two cores of an AMD EPYC with AVX-512, jax 0.10.2, these take, at T,B,D,H,V = 100,32,64,128,65 and 128,64,128,256,128,
SimpleCell 3.8 and 3.5 ms, 38 and 28; GRUCell 10.2 and 10.4, 88 and 85; LSTMCell 12.1 and 11.9, 95 and 90. The 38 are
glibc's, which maps blocks of 32 MB anew at every call: where it is told to keep its memory
(MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=67108864) they are 27.0 and 26.6 ms.

Loops over the middle axis need no copy. A prototype of them was no faster than the copies, and was left.
"""

from __future__ import annotations

import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import as_array, is_integer
from jaxrnn.layer.masking import Flags


def time_first(inputs: Array, size: int, flags: Flags) -> tuple[Array, Flags]:
    """Returns inputs [T, *batch, D] or tokens [T, *batch], and flags [T, *batch], of those with the batch first.

    Raises:
        ValueError: no axis of time, features of another size, or flags that are not one per step.
    """
    inputs = as_array("inputs", inputs)
    features = 0 if is_integer(inputs) else 1
    axis = inputs.ndim - 1 - features
    if axis < 0 or (features and inputs.shape[-1] != size):
        raise ValueError(
            f"inputs with time_major=False must be floats [*batch, T, D] with D = {size}, or integer tokens [*batch, "
            f"T], got {inputs.dtype} of shape {inputs.shape}; features come last, and time right before them"
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
