"""The forward scan of one layer over one segment, and the checks of a layer's arguments."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from chex import Array, ArrayTree
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.arguments import (
    OTHER_VOCABULARY,
    batch_shape,
    cast,
    check_inputs,
    check_like,
    check_range,
    is_integer,
)
from jaxrnn.cells.base import Cell, Params, State, StepResiduals, hidden_of
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.masking import Flags, blank, check_flags, enter, leave
from jaxrnn.layer.prepared import PreparedCell, Recompute


class Residuals(NamedTuple):
    """Holds what the forward pass leaves to the reverse pass, of one segment of one layer."""

    start: State  # the state before the segment
    states: State  # the states after each of its steps, [K, *batch, ...]; None where they are to be recomputed
    of_steps: StepResiduals  # of each step, [K, *batch, ...]; None where they are to be recomputed

    @property
    def hidden(self) -> Array:
        """Returns the hidden states [K, *batch, H] that the layer handed up."""
        return hidden_of(self.states)


def forward_segment(
    layer: PreparedCell, start: State, inputs: Array, flags: Flags, recompute: Recompute = "gates"
) -> tuple[Array, Residuals, State]:
    """Takes one layer through one segment.

        before_t = s_0 where reset_t, else s_{t-1}
        s_t      = step(before_t, x_t) where mask_t, else before_t

    Args:
        layer: the cell.
        start: the state before the segment.
        inputs: [K, *batch, D], or tokens [K, *batch].
        flags: mask and reset of the segment's steps.
        recompute: what is left out of the residuals, because the reverse pass will compute it again.

    Returns:
        The hidden states [K, *batch, H], the residuals, and the last state.
    """
    cell, _, operands, initial, options = layer

    def step(state: State, x: tuple[ArrayTree, Flags]) -> tuple[State, tuple[State, StepResiduals]]:
        projected, flags = x
        before = enter(flags, initial, state)
        after, of_step = cell.step_with_residuals(operands, before, projected)
        state = leave(flags, before, after)
        return state, (state, of_step if recompute == "none" else None)

    xs = cell.project(operands, inputs), flags
    final, (states, of_steps) = lax.scan(step, start, xs, reverse=options.reverse, unroll=options.unroll)
    return hidden_of(states), Residuals(start, None if recompute == "states" else states, of_steps), final


def previous_states(residuals: Residuals, reverse: bool = False) -> State:
    """Returns s_{t-1} for every step t of the segment, [K, *batch, ...]."""

    def shift(first: Array, states: Array) -> Array:
        return lax.concatenate([states[1:], first[None]] if reverse else [first[None], states[:-1]], 0)

    return jax.tree.map(shift, residuals.start, residuals.states)


def check_steps(inputs: Array, size: int, mask: Array | None, reset: Array | None) -> tuple[Array, Flags]:
    """Returns checked inputs, in range where they are not masked, and the flags of the sequence."""
    inputs = check_inputs(inputs, size)
    flags = check_flags(mask, reset, inputs.shape[:1] + batch_shape(inputs))
    if is_integer(inputs):
        features = inputs.ndim > 1 and inputs.shape[-1] == size
        cause = "integers are tokens; features must be floats, inputs.astype(jnp.float32)"
        check_range("inputs", blank(flags.mask, inputs), size, cause if features else OTHER_VOCABULARY)
    return inputs, flags


def check_params(layer: Layer, params: Params, name: str = "params") -> None:
    """Raises unless the parameters have the structure and shapes that the layer makes."""
    refuse_variables(name, params)
    check_like(name, params, _shapes(layer), f"they must come from the init of {layer}")


def refuse_variables(name: str, params: ArrayTree) -> None:
    """Raises where parameters hold variables of flax, which print as the arrays in them do."""
    if any(map(_is_variable, jax.tree.leaves(params, is_leaf=_is_variable))):
        raise TypeError(
            f"{name} must hold arrays, got variables of flax: pass nnx.as_pure({name}), which is nnx.pure before flax "
            "0.12.7; see jaxrnn.interop"
        )


def check_state(
    layer: Layer, state: State | None, batch: tuple[int, ...], dtype: DTypeLike, name: str = "state"
) -> State | None:
    """Casts a given state to a dtype; raises unless it has the structure and shapes that the layer makes."""
    if state is None:
        return None
    expected = jax.eval_shape(functools.partial(layer.initial_state, batch, dtype))
    cause = f"it must be one of {layer}, for a batch {batch} as inputs [T, *batch, ...] have it"
    check_like(name, state, expected, cause)
    return cast(state, dtype)


def check_dropout_mask(layer: Layer, mask: ArrayTree, batch: tuple[int, ...], dtype: DTypeLike) -> ArrayTree:
    """Casts a given dropout mask to a dtype; it is a pair of them for a bidirectional layer."""
    if mask is None:
        return None
    one = jax.ShapeDtypeStruct((*batch, layer.hidden), dtype)
    expected = one if isinstance(layer, Cell) else (one, one)
    check_like("dropout_mask", mask, expected, "there must be one per unit for each of the batch, alike at every step")
    return cast(mask, dtype)


def _is_variable(node: object) -> bool:
    return any(kind.__name__ == "Variable" and kind.__module__.startswith("flax.") for kind in type(node).__mro__)


@functools.lru_cache(maxsize=256)
def _shapes(layer: Layer) -> Params:
    return jax.eval_shape(layer.init, jax.random.key(0))
