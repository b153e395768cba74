"""The forward scan: a cell unrolled over time. Pure, and knows nothing of gradients."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxrnn.arguments import Array, batch_shape, cast, check_inputs, check_like, float_dtype
from jaxrnn.cell import Cell, Params, State, hidden_of


class Trace(NamedTuple):
    """What the forward pass leaves to the reverse pass, of one segment of one layer."""

    start: State  # the state before the segment
    states: State  # the states after each of its steps, [K, *batch, ...]
    kept: Any  # what else the cell's `advance` found worth keeping


def scan_cell(cell: Cell, operands: Any, inputs: Array, state: State, reverse: bool = False) -> tuple[State, State]:
    """One segment forward: every state s_1 .. s_K [K, *batch, ...] and the last one. Nothing is checked here."""

    def step(state: State, projected: Any) -> tuple[State, State]:
        state = cell.step(operands, state, projected)
        return state, state

    final, states = lax.scan(step, state, cell.project(operands, inputs), reverse=reverse)
    return states, final


def trace_cell(cell: Cell, operands: Any, inputs: Array, start: State, reverse: bool = False) -> tuple[Trace, State]:
    """The same where a reverse pass follows: its trace, and the last state."""

    def step(state: State, projected: Any) -> tuple[State, tuple[State, Any]]:
        state, kept = cell.advance(operands, state, projected)
        return state, (state, kept)

    final, (states, kept) = lax.scan(step, start, cell.project(operands, inputs), reverse=reverse)
    return Trace(start, states, kept), final


def unroll(
    cell: Cell, params: Params, inputs: Array, state: State | None = None, *, reverse: bool = False
) -> tuple[Array, State]:
    """The hidden states of one layer over time, by a plain `lax.scan`: see `jaxrnn.unroll`, of which it is the twin."""
    params, inputs, state = check_unroll(cell, params, inputs, state)
    states, final = scan_cell(cell, cell.prepare(params), inputs, state, reverse)
    return hidden_of(states), final


def check_unroll(cell: Cell, params: Params, inputs: Any, state: State | None) -> tuple[Params, Array, State]:
    """The arguments of `unroll`, checked, in one dtype, with a state where none was given."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be a jaxrnn.Cell, got {cell if isinstance(cell, type) else type(cell).__name__}")
    check_params(cell, params)
    inputs = check_inputs(inputs, cell.inputs)
    dtype = float_dtype(params, inputs)
    return cast(params, dtype), cast(inputs, dtype), check_state(cell, state, batch_shape(inputs), dtype)


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
