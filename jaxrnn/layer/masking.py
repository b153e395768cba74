"""Breaks in time: a mask holds the state over steps that are not there, a reset begins anew.

    before_t = s_0 where reset_t, else s_{t-1}
    s_t      = step(before_t, x_t) where mask_t, else before_t

and backwards, with the adjoint of s_t on the right:

    dE/dbefore_t = step_adjoint(dE/ds_t) where mask_t, else dE/ds_t          delta_t = 0 where not mask_t
    dE/ds_{t-1}  = 0 where reset_t, else dE/dbefore_t                        dE/ds_0 += dE/dbefore_t where reset_t

Cells know nothing of it: these few functions stand around the step, and around its adjoint, in the loops over time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import Array, as_array, check_positive, is_concrete, is_integer
from jaxrnn.cells.base import State


class Breaks(NamedTuple):
    """Mask and reset of some steps, or of one; None is neither masked nor reset, and costs nothing."""

    mask: Array | None  # [K, *batch], False where the step is not there
    reset: Array | None  # [K, *batch], True where the state before the step is the initial one


class Adjoint(NamedTuple):
    """What the reverse pass carries of a layer."""

    state: State  # dE/ds_t through the steps after t
    initial: State | None  # dE/ds_0 through the resets met so far; None where there are no resets


def enter(breaks: Breaks, initial: State | None, state: State) -> State:
    """The state before a step."""
    return state if breaks.reset is None else _select(breaks.reset, initial, state)


def leave(breaks: Breaks, before: State, after: State) -> State:
    """The state after a step; and, the other way through it, the adjoint before a step from that after it."""
    return after if breaks.mask is None else _select(breaks.mask, after, before)


def enter_adjoint(breaks: Breaks, before: State, initial: State | None) -> Adjoint:
    """The adjoint of what `enter` was given: past a reset nothing reaches the state, all of it the initial one."""
    if breaks.reset is None:
        return Adjoint(before, initial)
    zeros = jax.tree.map(jnp.zeros_like, before)
    cut = _select(breaks.reset, before, zeros)
    return Adjoint(_select(breaks.reset, zeros, before), jax.tree.map(jnp.add, initial, cut))


def blank(mask: Array | None, tree: Any) -> Any:
    """A pytree of [K, *batch, ...] with zeros at the steps that are not there, whatever stood there, NaN included."""
    if mask is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.where(_expand(mask, leaf), leaf, jnp.zeros((), leaf.dtype)), tree)


def check_breaks(mask: Any, reset: Any, steps: tuple[int, ...]) -> Breaks:
    """Mask and reset as booleans [T, *batch], or None."""
    return Breaks(*(_check_flags(name, value, steps) for name, value in (("mask", mask), ("reset", reset))))


def lengths_to_mask(lengths: Array, steps: int) -> Array:
    """The mask of sequences of several lengths, padded at their ends.

        mask[t, ...] = t < lengths[...]

    Args:
        lengths: integers [*batch], each in 0 .. T.
        steps: T, the steps of the padded batch.

    Returns:
        Booleans [T, *batch].

    Raises:
        ValueError: a length below 0 or beyond T (outside jit).
        TypeError: lengths that are not integers.

    >>> import jax.numpy as jnp, jaxrnn
    >>> jaxrnn.lengths_to_mask(jnp.array([1, 3]), 3).astype(int).T.tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    check_positive("steps", steps)
    lengths = as_array("lengths", lengths)
    if not is_integer(lengths):
        raise TypeError(f"lengths must be integers, got dtype {lengths.dtype}")
    if is_concrete(lengths) and lengths.size:
        low, high = np.asarray(lengths).min(), np.asarray(lengths).max()
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must lie in 0 .. T = {steps}, got values from {low} to {high}; "
                f"was the batch padded to its longest sequence?"
            )
    return jnp.arange(steps).reshape(steps, *(1,) * lengths.ndim) < lengths


def _check_flags(name: str, value: Any, steps: tuple[int, ...]) -> Array | None:
    if value is None:
        return None
    flags = as_array(name, value)
    if flags.dtype != bool:
        raise TypeError(f"{name} must be boolean, got dtype {flags.dtype}; for lengths see jaxrnn.lengths_to_mask")
    if flags.shape != steps:
        raise ValueError(
            f"{name} must be one per step, [T, *batch] = {steps}, got {flags.shape}; "
            f"time comes first, and nothing is broadcast"
        )
    return flags


def _select(flags: Array, chosen: Any, otherwise: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(_expand(flags, y), x, y), chosen, otherwise)


def _expand(flags: Array, leaf: Array) -> Array:
    """The flags [...] against the axes of a leaf [..., features]."""
    return flags.reshape(*flags.shape, *(1,) * (leaf.ndim - flags.ndim))
