"""Back-propagation through time by hand: the reverse scan over one segment of one layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import Array, accumulation_dtype, check_choice, is_integer
from jaxrnn.cells.base import Cell, Params, State, add_to_hidden
from jaxrnn.layer import associative, scan
from jaxrnn.layer.masking import Adjoint, Breaks, blank, enter, enter_adjoint, leave
from jaxrnn.layer.penalty import omega
from jaxrnn.layer.scan import Trace, previous_states

RECOMPUTE = (False, "gates", True)


class Way(NamedTuple):
    """How a layer is taken through time and back."""

    reverse: bool = False  # whether the forward scan runs from the last step to the first
    recompute: bool | str = False  # what the reverse scan makes anew: nothing, "gates", or True, the states too
    backward: str = "sequential"  # or "associative"
    norms: bool = False  # whether the reverse scan gives the norms of what it carries
    clip: float | None = None  # the largest norm that dE/ds_t of one sequence may have


ONWARD = Way()


def check_way(way: Way) -> Way:
    """Raise unless its choices are known."""
    check_recompute(way.recompute)
    check_choice("backward", way.backward, ("sequential", "associative"))
    return way


def check_recompute(value: Any) -> None:
    """Raise unless it is one of False, "gates" and True."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in RECOMPUTE):
        raise ValueError(f'recompute must be False, True or "gates", got {value!r}')


class Unrolled(NamedTuple):
    """A layer in the midst of its two passes: what is the same for all its segments."""

    cell: Cell
    params: Params  # in the dtype that is computed in
    operands: Any  # `cell.prepare` of them
    initial: State | None  # the state that resets begin from
    way: Way = ONWARD


def trace_segment(layer: Unrolled, start: State, inputs: Array, breaks: Breaks) -> tuple[Trace, State]:
    """One segment of one layer forward."""
    cell, _, operands, initial, way = layer
    return scan.trace_cell(cell, operands, inputs, start, breaks, initial, way.reverse)


def stored(trace: Trace, recompute: bool | str) -> Any:
    """What of a trace is kept until the reverse pass: all of it, its states, or (True) the state before it only."""
    if recompute is True:
        return trace.start
    return trace._replace(kept=None) if recompute == "gates" else trace


def zero_grads(params: Any) -> Any:
    """Where gradients are summed up: zeros like the parameters, in float32 at least."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, accumulation_dtype(leaf.dtype)), params)


class StepNorms(NamedTuple):
    """How large the gradient is at every step of one layer, over units and batch together."""

    delta: Array  # |delta_t|, [K]
    adjoint: Array  # |dE/ds_t|, [K]


def reverse_segment(
    layer: Unrolled,
    inputs: Array,
    breaks: Breaks,
    g: Array | None,
    trace: Trace,
    adjoint: Adjoint,
    vanishing: Array | None = None,
) -> tuple[Adjoint, Params, Array | None, StepNorms | None]:
    """One segment of one layer backwards: the heart of BPTT.

        dE/ds_t = g_t + (carried adjoint)        dE/ds_{t-1}, delta_t = step_adjoint(dE/ds_t)

    Only the adjoint is carried. The weight gradients are sums over t of products of what the loop leaves behind, and
    are taken after it, all steps at once; autodiff of a scan carries and updates them at every step. What masks and
    resets do to the adjoint is in `breaks.py`.

    Args:
        layer: the cell, and what all segments share.
        inputs: [K, *batch, D], or tokens [K, *batch].
        breaks: mask and reset of the segment's steps, [K, *batch] each, or None.
        g: what the layers above ask of each hidden state, [K, *batch, H]; None where they ask nothing.
        trace: what the forward pass left of this segment.
        adjoint: dE/ds_K through the steps after the segment.
        vanishing: the weight of a step's share of the vanishing-gradient regulariser; None for none.

    Returns:
        The adjoint of `trace.start`, the weight gradients of this segment, dE/dx_t (None for tokens), and where the
        way asks for them the norms of its steps.
    """
    cell, params, operands, initial, way = layer
    previous = enter(breaks, initial, previous_states(trace, way.reverse))
    local = linearize_segment(layer, inputs, previous, trace)
    adjoint, deltas, through = reverse_steps(layer, breaks, g, local, adjoint, carried=vanishing is not None)
    norms = StepNorms(_norms(deltas), _norms(through.after)) if way.norms else None
    if vanishing is not None:
        _, c = omega(through.after, through.before, breaks.mask)
        previous = cell.with_penalty(operands, previous, deltas, vanishing * c)
    dparams = cell.weight_grads(params, operands, inputs, previous, deltas)
    dx = None if is_integer(inputs) else cell.input_grads(params, inputs, previous, deltas)
    return adjoint, dparams, dx, norms


class Through(NamedTuple):
    """What the loop backwards carried through every step, [K, *batch, ...]; None where it was not asked for."""

    after: Any  # dE/ds_t
    before: Any  # dE/ds_t ds_t/ds_{t-1}


def reverse_steps(
    layer: Unrolled, breaks: Breaks, g: Array | None, local: Any, adjoint: Adjoint, carried: bool = False
) -> tuple[Adjoint, Any, Through]:
    """The loop over the steps of a segment backwards.

    Returns:
        The adjoint before the segment, delta_t [K, *batch, ...], and what was carried, as far as asked for (where
        the way wants norms, dE/ds_t alone).
    """
    cell, _, operands, _, way = layer

    def step(adjoint: Adjoint, x: tuple[Array | None, Any, Breaks]) -> tuple[Adjoint, Any]:
        g, local, breaks = x
        after = adjoint.state if g is None else add_to_hidden(adjoint.state, g)
        after = after if way.clip is None else _clip(after, way.clip)
        before, delta = cell.step_adjoint(operands, after, local)
        adjoint = enter_adjoint(breaks, leave(breaks, after, before), adjoint.initial)
        return adjoint, (delta, Through(after if carried or way.norms else None, before if carried else None))

    if way.backward == "associative":
        adjoint, deltas = associative.reverse_scan(cell, operands, adjoint, (g, local, breaks), reverse=not way.reverse)
        through = Through(None, None)
    else:
        adjoint, (deltas, through) = lax.scan(step, adjoint, (g, local, breaks), reverse=not way.reverse)
    return adjoint, blank(breaks.mask, deltas), through


def _clip(adjoint: State, largest: float) -> State:
    """The adjoint of every sequence, shortened where its norm is larger."""
    size = jnp.sqrt(sum(jnp.sum(leaf * leaf, axis=-1, keepdims=True) for leaf in jax.tree.leaves(adjoint)))
    factor = jnp.where(size > largest, largest / size, 1)
    return jax.tree.map(lambda leaf: leaf * factor, adjoint)


def _norms(tree: Any) -> Array:
    """Of every step, over all else: [K, ...] to [K]."""
    return jnp.sqrt(sum(jnp.sum(leaf * leaf, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)))


def linearize_segment(layer: Unrolled, inputs: Array, previous: State, trace: Trace) -> Any:
    """What the cell's `step_adjoint` needs of every step, with what was not kept made anew from the states."""
    cell, operands, kept = layer.cell, layer.operands, trace.kept
    if kept is None:
        _, kept = cell.advance(operands, previous, cell.project(operands, inputs))
        kept = lax.optimization_barrier(kept)
    return cell.linearize(operands, inputs, previous, trace.states, kept)
