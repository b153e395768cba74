"""The forward scan: a cell unrolled over time. Pure, and knows nothing of gradients."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxrnn.arguments import Array, batch_shape, cast, check_inputs, check_like, check_range, float_dtype, is_integer
from jaxrnn.breaks import Breaks, blank, check_breaks, enter, leave
from jaxrnn.cell import Cell, Params, State, hidden_of


class Trace(NamedTuple):
    """What the forward pass leaves to the reverse pass, of one segment of one layer."""

    start: State  # the state before the segment
    states: State  # the states after each of its steps, [K, *batch, ...]
    kept: Any  # what else the cell's `advance` found worth keeping


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


def unroll(
    cell: Cell,
    params: Params,
    inputs: Array,
    state: State | None = None,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, State]:
    """The hidden states of one layer over time, by a plain `lax.scan`: see `jaxrnn.unroll`, of which it is the twin."""
    params, inputs, state, breaks, initial = check_unroll(cell, params, inputs, state, mask, reset)
    return scan_cell(cell, cell.prepare(params), inputs, state, breaks, initial, reverse)


def check_unroll(
    cell: Cell, params: Params, inputs: Any, state: State | None, mask: Any, reset: Any
) -> tuple[Params, Array, State, Breaks, State | None]:
    """The arguments of `unroll`, checked, in one dtype, with a state where none was given."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be a jaxrnn.Cell, got {cell if isinstance(cell, type) else type(cell).__name__}")
    check_params(cell, params)
    inputs, breaks = check_sequence(inputs, cell.inputs, mask, reset)
    dtype, batch = float_dtype(params, inputs), batch_shape(inputs)
    state = check_state(cell, state, batch, dtype)
    return cast(params, dtype), cast(inputs, dtype), state, breaks, initial_of(cell, breaks, batch, dtype)


def check_sequence(inputs: Any, size: int, mask: Any, reset: Any) -> tuple[Array, Breaks]:
    """Inputs with zeros where masked, and only then held to be in range; and the breaks of the sequence."""
    inputs = check_inputs(inputs, size)
    breaks = check_breaks(mask, reset, inputs.shape[:1] + batch_shape(inputs))
    inputs = blank(breaks.mask, inputs)
    if is_integer(inputs):
        check_range("inputs", inputs, size)
    return inputs, breaks


def initial_of(cell: Cell, breaks: Breaks, batch: tuple[int, ...], dtype: Any) -> State | None:
    """The state that resets begin from, if there are any."""
    return None if breaks.reset is None else cell.initial_state(batch, dtype)


def check_params(cell: Cell, params: Params, name: str = "params") -> None:
    """Raise unless the parameters are such as the cell makes."""
    check_like(name, params, _shapes(cell), f"they must come from the init of {cell}")


def check_state(cell: Cell, state: State | None, batch: tuple[int, ...], dtype: Any, name: str = "state") -> State:
    """The state in a dtype, the initial one where none is given; raise unless it is such as the cell makes."""
    if state is None:
        return cell.initial_state(batch, dtype)
    expected = jax.eval_shape(functools.partial(cell.initial_state, batch, dtype))
    check_like(name, state, expected, f"there must be one for each of the batch {batch} of the inputs")
    return cast(state, dtype)


@functools.lru_cache(maxsize=256)
def _shapes(cell: Cell) -> Params:
    return jax.eval_shape(cell.init, jax.random.key(0))
