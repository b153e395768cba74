"""Arrays that are spread over several devices: what a layer does inside a user's own `shard_map` or explicit mesh.

Under `jax.jit` with automatic axes it does nothing: XLA spreads the work as the arrays are spread. In a `jax.shard_map`
every device has a part of the batch: what the engine makes itself (states of zeros, sums) must be marked as differing
from device to device, as the inputs do, and gradients of parameters that devices share are summed over these, as
`jax.grad` sums them. Under a mesh of explicit axes the engine runs with automatic ones, and says how its results are
spread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax
from jax.sharding import PartitionSpec

from jaxrnn.arguments import as_array, batch_shape, cast_like


def vary_alike(tree: ArrayTree, *others: ArrayTree) -> ArrayTree:
    """Marks every array of a pytree as varying over all axes of the mesh that any of them, or of `others`, varies over.

    Outside `jax.shard_map` nothing is changed. Source: JAX's notebook on shard_map, on `check_vma`.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    # What varies and what does not meet in an operation that XLA drops again: its result varies as both do, and its
    # transposition sums over the devices. It says the same to every version of JAX.
    unused = jnp.zeros((), bool)
    for leaf in jax.tree.leaves((tree, others)):
        unused |= lax.full_like(leaf, False, bool, shape=())
    return jax.tree.map(lambda leaf: jnp.where(unused, leaf, leaf), tree)


def sum_over_shards(grads: ArrayTree, params: ArrayTree) -> ArrayTree:
    """Sums gradients over the devices that share the parameters: the adjoint of `vary_alike`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return grads
    _, pull = jax.vjp(lambda params: vary_alike(params, grads), cast_like(params, grads))
    return pull(grads)[0]


def with_automatic_axes(function: Callable[..., Any], spread: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function as it runs under a mesh of explicit axes: within it, XLA spreads the work by itself.

    Args:
        function: takes pytrees of arrays.
        spread: takes the same, and says how the result is spread, as `PartitionSpec`s.
    """
    axes = jax.sharding.get_abstract_mesh().explicit_axes
    if not axes:
        return function
    return lambda *args: jax.sharding.auto_axes(function, axes=axes, out_sharding=spread(*args))(*args)


def batch_spec(inputs: Array) -> tuple[Any, ...]:
    """Returns how the batch axes of inputs [T, *batch, ...] are spread."""
    return tuple(jax.typeof(inputs).sharding.spec)[1 : 1 + len(batch_shape(inputs))]


def spec_of(tree: ArrayTree) -> Any:
    """Returns how the arrays of a pytree are spread."""
    return jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, tree)


def layer_spec(inputs: Array) -> tuple[PartitionSpec, PartitionSpec]:
    """Returns how hidden states [T, *batch, H] and a state [*batch, H] are spread, which is as the inputs are."""
    batch = batch_spec(as_array("inputs", inputs))
    return PartitionSpec(None, *batch, None), PartitionSpec(*batch, None)
