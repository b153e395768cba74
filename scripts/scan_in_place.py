"""A scan whose outputs are written over inputs that it has read: one of the trials of `gated_step.py`.

`lax.scan` fills an array for every output with zeros before the loop, and each step then writes to memory that it has
not touched. An input is of no more use once its step has read it, and lies in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax
from jax.lax import scan


def scan_in_place(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: ArrayTree, xs: ArrayTree, reverse: bool = False, unroll: int = 1
) -> tuple[Any, Any]:
    """Computes `lax.scan(step, carry, xs)`, with outputs in the place of inputs of the same shape and dtype.

    Those alone that are larger than every array of the carry, as the gates of a step and their deltas are: of a smaller
    one XLA may read the input a second time after it was written, and copies it whole at every step to be able to.
    """
    inputs, structure = jax.tree.flatten(xs)

    def outputs_of_step(carry: ArrayTree, inputs: list[Array]) -> Any:
        return step(carry, jax.tree.unflatten(structure, [x[0] for x in inputs]))[1]

    outputs, structure_of_outputs = jax.tree.flatten(jax.eval_shape(outputs_of_step, carry, inputs))
    largest = max((leaf.size for leaf in jax.tree.leaves(carry)), default=0)
    places = _places(inputs, outputs, largest)

    def turn(carried: tuple[Any, Array, dict[int, Array]], x: dict[int, Array]) -> tuple[tuple, dict[int, Array]]:
        carry, k, buffers = carried
        x = x | {i: lax.dynamic_index_in_dim(buffers[i], k, 0, False, allow_negative_indices=False) for i in buffers}
        carry, y = step(carry, jax.tree.unflatten(structure, [x[i] for i in range(len(inputs))]))
        y = dict(enumerate(jax.tree.leaves(y)))
        buffers = {
            i: lax.dynamic_update_index_in_dim(buffers[i], y.pop(j), k, 0, allow_negative_indices=False)
            for j, i in places.items()
        }
        return (carry, k - 1 if reverse else k + 1, buffers), y

    length = inputs[0].shape[0]
    rest = {i: x for i, x in enumerate(inputs) if i not in places.values()}
    start = carry, jnp.int32(length - 1 if reverse else 0), {i: inputs[i] for i in places.values()}
    (carry, _, buffers), ys = scan(turn, start, rest, length, reverse, unroll)
    ys |= {j: buffers[i] for j, i in places.items()}
    return carry, jax.tree.unflatten(structure_of_outputs, [ys[j] for j in range(len(outputs))])


def _places(inputs: list[Array], outputs: list[Any], largest: int) -> dict[int, int]:
    """Finds for outputs [...] with more entries than `largest` an input [K, ...] each, number by number."""
    places: dict[int, int] = {}
    for j, output in enumerate(outputs):
        for i, x in enumerate(inputs):
            fits = (x.shape[1:], x.dtype) == (output.shape, output.dtype)
            if fits and output.size > largest and i not in places.values():
                places[j] = i
                break
    return places
