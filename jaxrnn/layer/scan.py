"""The forward scan: a cell unrolled over time. Pure, and knows nothing of gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxrnn.arguments import Array, batch_shape, cast, check_inputs, check_like, check_range, is_integer
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.layer.bidirectional import Layer, backward_reset
from jaxrnn.layer.masking import Breaks, blank, check_breaks, enter, leave


class Trace(NamedTuple):
    """What the forward pass leaves to the reverse pass, of one segment of one layer."""

    start: State  # the state before the segment
    states: State  # the states after each of its steps, [K, *batch, ...]
    kept: Any  # what else the cell's `advance` found worth keeping; None where the reverse pass is to make it anew


def scan_cell(
    cell: Cell,
    operands: Any,
    inputs: Array,
    state: State,
    breaks: Breaks,
    initial: State | None,
    reverse: bool = False,
) -> tuple[Array, State]:
    """One segment forward: the hidden states [K, *batch, H], and the last state. Nothing is checked here."""

    def step(state: State, x: tuple[Any, Breaks]) -> tuple[State, Array]:
        projected, breaks = x
        before = enter(breaks, initial, state)
        state = leave(breaks, before, cell.step(operands, before, projected))
        return state, hidden_of(state)

    final, hidden = lax.scan(step, state, (cell.project(operands, inputs), breaks), reverse=reverse)
    return hidden, final


def trace_cell(
    cell: Cell,
    operands: Any,
    inputs: Array,
    start: State,
    breaks: Breaks,
    initial: State | None,
    reverse: bool = False,
) -> tuple[Trace, State]:
    """The same where a reverse pass follows: its trace, and the last state."""

    def step(state: State, x: tuple[Any, Breaks]) -> tuple[State, tuple[State, Any]]:
        projected, breaks = x
        before = enter(breaks, initial, state)
        after, kept = cell.advance(operands, before, projected)
        state = leave(breaks, before, after)
        return state, (state, kept)

    final, (states, kept) = lax.scan(step, start, (cell.project(operands, inputs), breaks), reverse=reverse)
    return Trace(start, states, kept), final


def previous_states(trace: Trace, reverse: bool = False) -> State:
    """s_{t-1} for every step t of the segment, [K, *batch, ...]."""

    def shift(first: Array, states: Array) -> Array:
        return lax.concatenate([states[1:], first[None]] if reverse else [first[None], states[:-1]], 0)

    return jax.tree.map(shift, trace.start, trace.states)


class Sequence(NamedTuple):
    """Inputs of one layer and what goes with them: what `check_sequence` makes of a caller's arguments."""

    inputs: Array  # floats [T, *batch, D] or tokens [T, *batch]
    state: State  # the state before the first step; its dtype is what is computed in
    breaks: Breaks
    initial: State | None  # the state that resets begin from; None where there are none
    keep: Any  # [*batch, H], what recurrent dropout leaves of s_{t-1}, or None


def operands_of(cell: Cell, params: Params, keep: Array | None) -> Any:
    """What the loops multiply by, in the dtype of the parameters."""
    operands = cell.prepare(params)
    return operands if keep is None else cell.with_dropout(operands, keep)


def unroll(cell: Cell, params: Params, sequence: Sequence, reverse: bool = False) -> tuple[Array, State]:
    """The hidden states of one layer over time, by a plain `lax.scan`: the twin of the rule in `bptt.py`."""
    inputs, state, breaks, initial, keep = sequence
    operands = operands_of(cell, cast(params, hidden_of(state).dtype), keep)
    return scan_cell(cell, operands, inputs, state, breaks, initial, reverse)


def both_ways(
    run: Callable[..., tuple[Array, State]], layer: Layer, params: Params, sequence: Sequence, reverse: bool
) -> tuple[Array, State]:
    """`run(cell, params, sequence, reverse)` of the layer: once for a cell, once in each direction for two."""
    if isinstance(layer, Cell):
        return run(layer, params, sequence, reverse)
    inputs, state, breaks, initial, keep = sequence
    initial, keep = initial or (None, None), keep or (None, None)
    back = breaks._replace(reset=backward_reset(breaks.reset))
    forward, last = run(layer.forward, params.forward, Sequence(inputs, state[0], breaks, initial[0], keep[0]), False)
    backward, first = run(layer.backward, params.backward, Sequence(inputs, state[1], back, initial[1], keep[1]), True)
    return layer.join(forward, backward), (last, first)


def check_sequence(inputs: Any, size: int, mask: Any, reset: Any) -> tuple[Array, Breaks]:
    """Inputs, in range where they are not masked; and the breaks of the sequence."""
    inputs = check_inputs(inputs, size)
    breaks = check_breaks(mask, reset, inputs.shape[:1] + batch_shape(inputs))
    if is_integer(inputs):
        check_range("inputs", blank(breaks.mask, inputs), size)
    return inputs, breaks


def check_params(layer: Layer, params: Params, name: str = "params") -> None:
    """Raise unless the parameters are such as the layer makes."""
    check_like(name, params, _shapes(layer), f"they must come from the init of {layer}")


def check_state(
    layer: Layer, state: State | None, initial: State | None, batch: tuple[int, ...], dtype: Any, name: str = "state"
) -> State:
    """The state in a dtype, the initial one where none is given; raise unless it is such as the layer makes."""
    if state is None:
        return layer.initial_state(batch, dtype) if initial is None else initial
    expected = jax.eval_shape(functools.partial(layer.initial_state, batch, dtype))
    check_like(name, state, expected, f"there must be one for each of the batch {batch} of the inputs")
    return cast(state, dtype)


def check_keep(layer: Layer, keep: Any, batch: tuple[int, ...], dtype: Any) -> Any:
    """What recurrent dropout leaves of the hidden state, in a dtype; a pair of them for a bidirectional layer."""
    if keep is None:
        return None
    one = jax.ShapeDtypeStruct((*batch, layer.hidden), dtype)
    expected = one if isinstance(layer, Cell) else (one, one)
    check_like("keep", keep, expected, "there must be one per unit for each of the batch, the same at every step")
    return cast(keep, dtype)


@functools.lru_cache(maxsize=256)
def _shapes(layer: Layer) -> Params:
    return jax.eval_shape(layer.init, jax.random.key(0))
