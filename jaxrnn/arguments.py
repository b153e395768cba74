"""Checks of what a caller hands in: messages name the argument, what came, what was expected, the likely cause."""

from __future__ import annotations

import functools
import math
import numbers
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.printing import brief, in_bytes

SYMBOLIC_BATCH = 32  # a batch of ordinary size


def is_integer(array: Array) -> bool:
    """Tells whether the array holds tokens or labels (integers) rather than numbers."""
    return bool(jnp.issubdtype(array.dtype, jnp.integer))


def widened(integers: Array) -> Array:
    """Returns integers with 32 bits at least: numbers up to a size that 8 or 16 bits do not hold would wrap around."""
    return integers if integers.dtype.itemsize >= 4 else integers.astype(jnp.int32)


def is_concrete(array: Array) -> bool:
    """Tells whether all values can be read now: outside every transformation, and in this process."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def may_be_spread() -> bool:
    """Tells whether XLA may spread a batch over devices: there are several, and no `jax.shard_map` around has."""
    return jax.device_count() > 1 and not jax.sharding.get_abstract_mesh().manual_axes


def check_positive(name: str, value: int) -> None:
    """Raises unless `value` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {brief(value)} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_scale(name: str, value: float) -> None:
    """Raises unless `value` is a finite number, zero or greater."""
    _check_number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def check_above_zero(name: str, value: float) -> None:
    """Raises unless `value` is a finite number above zero."""
    _check_number(name, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive, got {value}")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


def check_rate(name: str, value: float) -> None:
    """Raises unless `value` is a share below one."""
    check_scale(name, value)
    if value >= 1:
        raise ValueError(f"{name} must be in [0, 1), a share of all, got {value}")


def check_float(name: str, value: DTypeLike) -> jnp.dtype:
    """Returns the dtype; raises unless it is one of floating numbers, of 16 bits at least."""
    try:
        dtype = None if isinstance(value, (jax.Array, np.ndarray)) else jnp.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None:
        raise TypeError(f"{name} must be a dtype such as jnp.bfloat16, got {value!r}")
    if not _is_float(dtype):
        raise TypeError(f"{name} must be floating, of 16 bits at least, got {dtype}")
    if dtype.itemsize > 4 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(f"{name} of {dtype} needs jax.config.update('jax_enable_x64', True): JAX would take float32")
    return dtype


def _is_float(dtype: jnp.dtype) -> bool:
    """Tells whether a dtype is one to compute in: smaller floats are for storage, and JAX promotes them to nothing."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize > 1


def check_key(key: PRNGKey) -> None:
    """Raises unless the key is one of `jax.random`."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == jnp.uint32 and len(shape or ()) == 1):
        raise TypeError(f"key must be one key, such as jax.random.key(0), got {brief(key)}")


def check_memory(name: str, size: int) -> None:
    """Raises where so many bytes are more than the machine's memory; where that is not known it takes all."""
    memory = _memory()
    if memory is not None and size > memory:
        raise ValueError(
            f"{name} would take {in_bytes(size)} at least, and this machine has {in_bytes(memory)} of memory"
        )


@functools.cache
def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not everywhere can one ask
        return None


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


OTHER_VOCABULARY = "was the vocabulary built from other data, or counted from 1?"


def check_range(name: str, tokens: Array, size: int, cause: str = OTHER_VOCABULARY) -> None:
    """Raises where an integer lies outside [0, size). Traced values cannot be read: under jit they give NaN instead."""
    if not is_concrete(tokens) or tokens.size == 0:
        return
    values = np.asarray(tokens)  # not jnp, whose operations on a constant are staged too while something is traced
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in 0 .. {size - 1}, got values from {low} to {high}; {cause}")


def as_array(name: str, value: ArrayTree) -> Array:
    """Returns the value as an array of numbers; raises where it is none."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last of a torch tensor with a gradient
        cause = str(error).partition("\n")[0]
        if isinstance(value, (list, tuple)) or getattr(value, "dtype", None) == np.dtype(object):
            cause = "are the sequences of several lengths? pad them, and give mask=jaxrnn.lengths_to_mask(lengths, T)"
        raise TypeError(f"{name} must be an array, got {kind(value)} that cannot be made one; {cause}") from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(f"{name} must be floats or integers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.floating) and not _is_float(array.dtype):
        raise TypeError(f"{name} must be floats of 16 bits at least, or integers, got dtype {array.dtype}: cast it")
    return array


def check_inputs(inputs: Array, size: int) -> Array:
    """Returns inputs as an array: float [T, *batch, D] or integer tokens [T, *batch], with T >= 1 and D = `size`.

    Tokens of less than 32 bits are widened, once for all that is done with them.
    """
    inputs = as_array("inputs", inputs)
    if is_integer(inputs):
        if inputs.ndim < 1:
            raise ValueError("inputs of tokens must be [T, *batch], got a single token: add the axis of time")
        inputs = widened(inputs)
    elif jnp.issubdtype(inputs.dtype, jnp.floating):
        if inputs.ndim < 2 or inputs.shape[-1] != size:
            raise ValueError(
                f"inputs must be [T, *batch, D] with D = {size}, got shape {inputs.shape}; time comes first and "
                f"features last, and tokens [T, *batch] must be integers, inputs.astype(jnp.int32)"
            )
    else:
        raise TypeError(
            f"inputs must be floats [T, *batch, D] or integer tokens [T, *batch], got dtype {inputs.dtype}; "
            f"features are cast by inputs.astype(jnp.float32)"
        )
    if inputs.shape[0] == 0:
        raise ValueError(f"inputs must have at least one step, got T = 0 (shape {inputs.shape})")
    if inputs.size == 0:
        raise ValueError(f"inputs must have at least one sequence, got shape {inputs.shape}")
    return inputs


def batch_shape(inputs: Array) -> tuple[int, ...]:
    """Returns the batch axes of checked inputs: all but time, and but the features where there are any."""
    return inputs.shape[1:] if is_integer(inputs) else inputs.shape[1:-1]


def entries(shape: tuple[int, ...]) -> int:
    """Counts the entries of a shape, to decide by; a symbolic batch (`jax.export`) counts as one of SYMBOLIC_BATCH."""
    return math.prod(size if isinstance(size, int) else SYMBOLIC_BATCH for size in shape)


def check_like(name: str, value: ArrayTree, expected: ArrayTree, cause: str) -> None:
    """Raises unless the pytree `value` has the structure and the shapes of `expected`, and floating leaves."""
    came: Any = jax.tree.structure(value)
    if came != jax.tree.structure(expected):
        if isinstance(value, dict) and set(value) == set(getattr(expected, "_fields", ())):
            cause = f"{type(expected).__name__}(**{name}) makes it one"
        raise TypeError(f"{name} must have the structure {brief(expected)}, got {brief(value)}; {cause}")
    leaves = zip(jax.tree.leaves_with_path(value), jax.tree.leaves(expected), strict=True)
    for (path, leaf), want in leaves:
        place = name + jax.tree_util.keystr(path)
        if not hasattr(leaf, "shape") or not isinstance(getattr(leaf, "dtype", None), np.dtype):
            raise TypeError(f"{place} must be an array of JAX or NumPy, got {kind(leaf)}; {cause}")
        if tuple(leaf.shape) != tuple(want.shape):
            raise ValueError(f"{place} must have shape {tuple(want.shape)}, got {tuple(leaf.shape)}; {cause}")
        if not _is_float(leaf.dtype):
            raise TypeError(f"{place} must be floating, got dtype {leaf.dtype}; {cause}")


def kind(value: object) -> str:
    """Names the type of a value, and where it is not one of Python's or JAX's own, the library that it comes from."""
    home, name = type(value).__module__.partition(".")[0], type(value).__name__
    return name if home in ("builtins", "jaxlib", "jax", "jaxrnn") else f"{home}.{name}"


def cause_of_shape(came: tuple[int, ...], steps: tuple[int, ...]) -> str:
    """Says what is likely wrong with a shape that is not [T, *batch] = `steps`, or does not begin so."""
    if came == (*steps, 1):
        return "the last axis is one too many, array[..., 0]"
    if came[: len(steps)] == (*steps[1:2], *steps[:1], *steps[2:]):
        return (
            "its first two axes, or those of inputs, are the other way round: "
            "time comes first, [T, B, ...], see jnp.swapaxes(array, 0, 1)"
        )
    return "time comes first, and nothing is broadcast"


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype that sums over time are taken in: float32 at least."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def float_dtype(*trees: ArrayTree) -> jnp.dtype:
    """Returns the dtype that all floating leaves promote to."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*leaves)


def dtype_to_compute_in(compute_dtype: DTypeLike | None, *trees: ArrayTree) -> jnp.dtype:
    """Returns the dtype asked for, or where none is, the one that all floating leaves promote to."""
    return float_dtype(*trees) if compute_dtype is None else check_float("compute_dtype", compute_dtype)


def cast(tree: ArrayTree, dtype: DTypeLike) -> ArrayTree:
    """Casts the floating leaves of a pytree; integers and booleans stay."""

    def to(leaf: Array) -> Array:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(to, tree)


def cast_like(tree: ArrayTree, reference: ArrayTree) -> ArrayTree:
    """Casts every leaf of a pytree to the dtype of the same leaf of `reference`."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, reference)
