"""Masks and resets: a mask holds the state over steps that are padding, a reset makes it the initial one again.

    before_t = s_0 where reset_t, else s_{t-1}
    s_t      = step(before_t, x_t) where mask_t, else before_t

and backwards, with the adjoint of s_t on the right:

    dE/dbefore_t = step_adjoint(dE/ds_t) where mask_t, else dE/ds_t          delta_t = 0 where not mask_t
    dE/ds_{t-1}  = 0 where reset_t, else dE/dbefore_t                        dE/ds_0 += dE/dbefore_t where reset_t

Cells know nothing of masks and resets: these functions stand around the step, and around its adjoint.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree

from jaxrnn.arguments import as_array, cause_of_shape, check_positive, is_concrete, is_integer
from jaxrnn.cells.base import Deltas, Local, State, add_to_hidden
from jaxrnn.layer.prepared import PreparedCell


class Flags(NamedTuple):
    """Holds mask and reset of some steps, or of one; None is neither masked nor reset, and costs nothing."""

    mask: Array | None  # [K, *batch], False where the step is padding
    reset: Array | None  # [K, *batch], True where the state before the step is the initial one


class Adjoint(NamedTuple):
    """Holds what the reverse pass carries of a layer."""

    state: State  # dE/ds_t through the steps after t
    initial: State | None  # dE/ds_0 through the resets met so far; None where there are no resets


class StepAdjoints(NamedTuple):
    """Holds the adjoint on both sides of a step."""

    after: State  # dE/ds_t, what the loss at t and the steps after t ask
    before: State  # dE/ds_t ds_t/ds_{t-1}, before mask and reset


def enter(flags: Flags, initial: State | None, state: State) -> State:
    """Returns the state before a step."""
    return state if flags.reset is None else _select(flags.reset, initial, state)


def leave(flags: Flags, before: State, after: State) -> State:
    """Returns the state after a step; for adjoints, whose way is the other one, the adjoint before the step."""
    return after if flags.mask is None else _select(flags.mask, after, before)


def adjoint_step(
    layer: PreparedCell, adjoint: Adjoint, g: Array | None, local: Local, flags: Flags
) -> tuple[Adjoint, Deltas, StepAdjoints]:
    """Takes the adjoint of one layer back through a step, its mask and its reset: the one step of every reverse pass.

        dE/ds_t = g_t + (carried adjoint)        dE/ds_{t-1}, delta_t = step_adjoint(dE/ds_t)

    Args:
        layer: the cell.
        adjoint: dE/ds_t through the steps after t.
        g: what the layers above ask of the hidden state, [*batch, H]; None where they ask nothing.
        local: what the cell's `linearize` computed for the step.
        flags: mask and reset of the step.

    Returns:
        The adjoint before the step; delta_t, which `blank` must clear where the step is masked (once for all steps of
        a segment: within the loop it would cost an operation a step); and the adjoint on both sides.
    """
    after = adjoint.state if g is None else add_to_hidden(adjoint.state, g)
    after = after if layer.options.clip is None else _clip(after, layer.options.clip)
    before, delta = layer.cell.step_adjoint(layer.operands, after, local)
    held = leave(flags, after, before)
    return _leave_reset(flags, held, adjoint.initial), delta, StepAdjoints(after, before)


def _leave_reset(flags: Flags, before: State, initial: State | None) -> Adjoint:
    """Moves the adjoint of a state that a reset replaced from that state to the initial one."""
    if flags.reset is None:
        return Adjoint(before, initial)
    zeros = jax.tree.map(jnp.zeros_like, before)
    to_initial = _select(flags.reset, before, zeros)
    if initial is not None:
        to_initial = jax.tree.map(jnp.add, initial, to_initial)
    return Adjoint(_select(flags.reset, zeros, before), to_initial)


def _clip(adjoint: State, largest: float) -> State:
    """Shortens the adjoint of every sequence whose norm is larger."""
    size = jnp.sqrt(sum(jnp.sum(leaf * leaf, axis=-1, keepdims=True) for leaf in jax.tree.leaves(adjoint)))
    factor = jnp.where(size > largest, largest / size, 1)
    return jax.tree.map(lambda leaf: leaf * factor, adjoint)


def blank(mask: Array | None, tree: ArrayTree) -> ArrayTree:
    """Puts zeros into a pytree of [K, *batch, ...] where steps are masked, whatever stood there, NaN included."""
    if mask is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.where(_expand(mask, leaf), leaf, jnp.zeros((), leaf.dtype)), tree)


def backward_flags(flags: Flags) -> Flags:
    """Returns the flags of the backward direction: what parts step t from t - 1 comes, for it, before step t - 1."""
    reset = flags.reset
    return flags if reset is None else flags._replace(reset=jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])]))


def check_flags(mask: Array | None, reset: Array | None, steps: tuple[int, ...]) -> Flags:
    """Returns mask and reset as booleans [T, *batch], or None."""
    return Flags(*(_check_flags(name, value, steps) for name, value in (("mask", mask), ("reset", reset))))


def lengths_to_mask(lengths: Array, steps: int) -> Array:
    """Makes the mask of sequences of several lengths, padded at their ends.

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


def _check_flags(name: str, value: Array | None, steps: tuple[int, ...]) -> Array | None:
    if value is None:
        return None
    flags = as_array(name, value)
    if flags.dtype != bool:
        raise TypeError(
            f"{name} must be boolean, got dtype {flags.dtype}: {name}.astype(bool), "
            f"and of lengths jaxrnn.lengths_to_mask(lengths, T)"
        )
    if flags.shape != steps:
        cause = cause_of_shape(flags.shape, steps)
        raise ValueError(f"{name} must be one per step, [T, *batch] = {steps}, got {flags.shape}; {cause}")
    return flags


def _select(flags: Array, chosen: ArrayTree, otherwise: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x, y: jnp.where(_expand(flags, y), x, y), chosen, otherwise)


def _expand(flags: Array, leaf: Array) -> Array:
    """Reshapes flags [...] to go with a leaf [..., features]."""
    return flags.reshape(*flags.shape, *(1,) * (leaf.ndim - flags.ndim))
