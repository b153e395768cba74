"""A layer under `jax.vmap`: a call that is mapped over sequences, but not over parameters, becomes one larger batch.

JAX maps a derivative rule as it maps any function: the rule finds the weight gradient of every sequence, and they are
summed after it, which takes B times the memory of one and products of K rows instead of K B. Where parameters are not
mapped, nothing but their sum is wanted, and that is what the rule finds when the mapped axis is one more batch axis.

`jax.custom_batching` cannot say so: around the rule it takes no reverse mode, and within it sees no difference between
`grad` of `vmap`, which wants the sum, and `vmap` of `grad`, which wants every gradient. The primitive below stands
around the rule, and differentiation takes it away: it is there to be mapped in the first case, and gone in the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Axes = Any  # a pytree whose leaves are ints, one for each subtree of another


def batch_where_mapped(
    run: Callable[[ArrayTree, ArrayTree], ArrayTree],
    shared: ArrayTree,
    arrays: ArrayTree,
    axes: tuple[Axes, Axes],
    outputs: Callable[[ArrayTree], ArrayTree],
) -> ArrayTree:
    """Computes `run(shared, arrays)`; where `jax.vmap` maps arrays alone, with the mapped axis as one more batch axis.

    Args:
        run: takes any number of batch axes.
        shared: what has no batch axes, such as parameters.
        arrays: what has them.
        axes: where a further one goes, in arrays and in outputs.
        outputs: makes arrays of the shapes and dtypes of the outputs, at no cost.
    """
    leaves, structure = jax.tree.flatten((shared, arrays))
    jaxpr, shapes = jax.make_jaxpr(outputs, return_shape=True)(arrays)
    options = {"run": run, "structure": structure, "axes": axes, "outputs": outputs, "avals": tuple(jaxpr.out_avals)}
    return jax.tree.unflatten(jax.tree.structure(shapes), _call.bind(*leaves, **options))


def _flat(*leaves: Array, run: Callable[..., ArrayTree], structure: Any, **_: Any) -> list[Array]:
    return jax.tree.leaves(run(*jax.tree.unflatten(structure, leaves)))


def _batch(leaves: list[Array], mapped: list[int | None], **options: Any) -> tuple[list[Array], list[int]]:
    """Maps the call: as a batch where no leaf of `shared` is mapped, and as JAX does elsewhere."""
    structure, (axes, axes_of_outputs) = options["structure"], options["axes"]
    of_shared, of_arrays = jax.tree.unflatten(structure, [axis is not None for axis in mapped])
    if any(jax.tree.leaves(of_shared)):
        found = jax.vmap(lambda *leaves: _flat(*leaves, **options), mapped)(*leaves)
        return found, [0] * len(found)
    size = next(leaf.shape[axis] for leaf, axis in zip(leaves, mapped, strict=True) if axis is not None)
    to = [0] * len(jax.tree.leaves(of_shared)) + jax.tree.leaves(_each(axes, of_arrays))
    count = len(leaves) - len(jax.tree.leaves(of_arrays))
    grown = [*leaves[:count], *(_grow(*each, size) for each in list(zip(leaves, mapped, to, strict=True))[count:])]
    shared, arrays = jax.tree.unflatten(structure, grown)
    found = batch_where_mapped(options["run"], shared, arrays, options["axes"], options["outputs"])
    return jax.tree.leaves(found), jax.tree.leaves(_each(axes_of_outputs, found))


def _grow(leaf: Array, mapped: int | None, axis: int, size: int) -> Array:
    """Returns the leaf with its mapped axis, or a new one, as a batch axis."""
    if mapped is not None:
        return jnp.moveaxis(leaf, mapped, axis)
    return jnp.broadcast_to(jnp.expand_dims(leaf, axis), (*leaf.shape[:axis], size, *leaf.shape[axis:]))


def _each(axes: Axes, tree: ArrayTree) -> ArrayTree:
    """Returns the pytree with the axis of each leaf in its place."""
    return jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part), axes, tree)


def _differentiate(primals: list[Array], tangents: list[Any], **options: Any) -> tuple[list[Array], list[Array]]:
    """Differentiates the function that the primitive stands around, with respect to what has a tangent."""
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of_moving(*some: Array) -> list[Array]:
        leaves = list(primals)
        for i, leaf in zip(moving, some, strict=True):
            leaves[i] = leaf
        return _flat(*leaves, **options)

    return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])


_call = Primitive("batch_where_mapped")
_call.multiple_results = True
_call.def_impl(_flat)
_call.def_abstract_eval(lambda *_, avals, **__: avals)
mlir.register_lowering(_call, mlir.lower_fun(_flat, multiple_results=True))
batching.primitive_batchers[_call] = _batch
ad.primitive_jvps[_call] = _differentiate
