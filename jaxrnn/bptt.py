"""Back-propagation through time by hand: the reverse scan, and `unroll` with it as its derivative rule."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import scan
from jaxrnn.arguments import Array, accumulation_dtype, cast_like, check_choice, float_dtype, is_integer
from jaxrnn.breaks import Adjoint, Breaks, blank, enter, enter_adjoint, leave
from jaxrnn.cell import Cell, Params, State, add_to_hidden, hidden_of
from jaxrnn.scan import Trace
from jaxrnn.segments import each, join, scan_segments, segment_length, split


def unroll(
    cell: Cell,
    params: Params,
    inputs: Array,
    state: State | None = None,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    gradient: str = "bptt",
) -> tuple[Array, State]:
    """The hidden states of one layer over time; differentiating it runs the reverse scan written by hand.

        before_t = s_0 where reset_t, else s_{t-1}
        s_t      = step(before_t, x_t) where mask_t, else before_t        t = 1 .. T

    For a whole network prefer `jaxrnn.value_and_grad`, which also keeps the logits and the weight products within a
    segment. Under `jax.vmap` the rule computes the weight gradients of every example before they are summed: give the
    batch as an axis of the inputs instead. Only first-order reverse mode is defined by the rule: for `jax.jvp`,
    Hessians or `jax.linearize`, choose gradient="autodiff".

    Args:
        cell: the recurrence, say a `jaxrnn.Elman`.
        params: its parameters.
        inputs: floats [T, *batch, D] or integer tokens [T, *batch], with any number of batch axes, none included.
        state: s_0, as `cell.initial_state(batch)` gives it, which is the default.
        mask: booleans [T, *batch]; where False the state is held, and what the inputs are there is of no consequence,
            NaN and tokens out of range included. All True by default. See `jaxrnn.lengths_to_mask`.
        reset: booleans [T, *batch]; where True the state before the step is the cell's initial one, as at the first
            step of an episode, or of the next of several packed sequences. All False by default.
        reverse: whether time runs backwards, from the last step to the first; the hidden states keep their places, and
            "before" means the step after (so the reset of a packed sequence stands at its last step).
        gradient: "bptt", the reverse scan by hand, or "autodiff", the plain scan.

    Returns:
        The hidden states [T, *batch, H], and the state after the last step taken.

    Raises:
        ValueError: shapes that do not fit, tokens out of range, T = 0, an unknown gradient.
        TypeError: inputs that are neither float nor integer, params or a state of another cell, a mask or reset that is
            not boolean.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> cell = jaxrnn.Elman(inputs=3, hidden=4)
    >>> params = cell.init(jax.random.key(0))
    >>> dE = jax.grad(lambda params: jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[0].sum())(params)
    >>> dE.W.shape
    (4, 4)
    """
    check_choice("gradient", gradient, ("bptt", "autodiff"))
    if gradient == "autodiff":
        return scan.unroll(cell, params, inputs, state, mask=mask, reset=reset, reverse=reverse)
    return _unroll(cell, reverse, *scan.check_unroll(cell, params, inputs, state, mask, reset))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(
    cell: Cell, reverse: bool, params: Params, inputs: Array, state: State, breaks: Breaks, initial: State | None
) -> tuple[Array, State]:
    return scan.scan_cell(cell, cell.prepare(params), inputs, state, breaks, initial, reverse)


def _unroll_forward(
    cell: Cell, reverse: bool, params: Params, inputs: Array, state: State, breaks: Breaks, initial: State | None
) -> tuple:
    operands = cell.prepare(params)
    steps = inputs.shape[0]

    def segment(start: State, x: tuple[Array, Breaks]) -> tuple[State, Trace]:
        inputs, breaks = x
        trace, final = scan.trace_cell(cell, operands, inputs, start, breaks, initial, reverse)
        return final, trace

    xs = split((inputs, breaks), steps, _layer_segment(inputs, state))
    final, traces = scan_segments(segment, state, xs, reverse)
    hidden = join(each(lambda trace: hidden_of(trace.states), traces))
    return (hidden, final), (params, inputs, breaks, initial, traces)


def _unroll_backward(cell: Cell, reverse: bool, residuals: tuple, cotangents: tuple[Array, State]) -> tuple:
    params, inputs, breaks, initial, traces = residuals
    g, adjoint = cotangents
    operands = cell.prepare(params)
    steps, K = inputs.shape[0], _layer_segment(inputs, adjoint)

    def segment(carry: tuple[Params, Adjoint], x: tuple) -> tuple[tuple[Params, Adjoint], Array | None]:
        grads, adjoint = carry
        inputs, breaks, g, trace = x
        adjoint, dparams, dx = reverse_segment(
            cell, params, operands, inputs, trace, breaks, initial, g, adjoint, reverse
        )
        return (jax.tree.map(jnp.add, grads, dparams), adjoint), dx

    xs = each(lambda cut, trace: (*cut, trace), split((inputs, breaks, g), steps, K), traces)
    dtype = accumulation_dtype(float_dtype(params))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)
    start = Adjoint(adjoint, jax.tree.map(jnp.zeros_like, initial))
    (grads, adjoint), dx = scan_segments(segment, (zeros, start), xs, reverse=not reverse)
    return cast_like(grads, params), None if is_integer(inputs) else join(dx), adjoint.state, None, adjoint.initial


_unroll.defvjp(_unroll_forward, _unroll_backward)


def reverse_segment(
    cell: Cell,
    params: Params,
    operands: Any,
    inputs: Array,
    trace: Trace,
    breaks: Breaks,
    initial: State | None,
    g: Array,
    adjoint: Adjoint,
    reverse: bool = False,
) -> tuple[Adjoint, Params, Array | None]:
    """One segment of one layer backwards: the heart of BPTT.

        dE/ds_t = g_t + (carried adjoint)        dE/ds_{t-1}, delta_t = step_adjoint(dE/ds_t)

    Only the adjoint is carried. The weight gradients are sums over t of products of what the loop leaves behind, and
    are taken after it, all steps at once; autodiff of a scan carries and updates them at every step. What masks and
    resets do to the adjoint is in `breaks.py`.

    Args:
        cell, params, operands: the layer, its parameters, and `cell.prepare` of them.
        inputs: [K, *batch, D], or tokens [K, *batch].
        trace: what the forward pass left of this segment.
        breaks: mask and reset of its steps, [K, *batch] each, or None.
        initial: the state that resets begin from, or None where there are none.
        g: what the layers above ask of each hidden state, [K, *batch, H].
        adjoint: dE/ds_K through the steps after the segment.
        reverse: whether the forward scan ran from the last step to the first.

    Returns:
        The adjoint of `trace.start`, the weight gradients of this segment, and dE/dx_t (None for tokens).
    """
    shifted = jax.tree.map(lambda first, rest: _shift(first, rest, reverse), trace.start, trace.states)
    previous = enter(breaks, initial, shifted)
    local = cell.linearize(operands, inputs, previous, trace.states, trace.kept)

    def step(adjoint: Adjoint, x: tuple[Array, Any, Breaks]) -> tuple[Adjoint, Any]:
        g, local, breaks = x
        after = add_to_hidden(adjoint.state, g)
        before, delta = cell.step_adjoint(operands, after, local)
        return enter_adjoint(breaks, leave(breaks, after, before), adjoint.initial), delta

    adjoint, deltas = lax.scan(step, adjoint, (g, local, breaks), reverse=not reverse)
    deltas = blank(breaks.mask, deltas)
    dparams = cell.weight_grads(params, inputs, previous, deltas)
    dx = None if is_integer(inputs) else cell.input_grads(params, inputs, previous, deltas)
    return adjoint, dparams, dx


def _shift(start: Array, states: Array, reverse: bool) -> Array:
    """s_{t-1} for every t of a segment."""
    order = [states[1:], start[None]] if reverse else [start[None], states[:-1]]
    return lax.concatenate(order, 0)


def layer_bytes(inputs: int, state: State) -> int:
    """What a step of one layer occupies in the reverse pass: the inputs' size, states, local derivatives, deltas, g."""
    state_size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    return (inputs + 5 * state_size) * hidden_of(state).dtype.itemsize


def _layer_segment(inputs: Array, state: State) -> int:
    rows = math.prod(hidden_of(state).shape[:-1])
    return segment_length("auto", inputs.shape[0], rows, layer_bytes(math.prod(inputs.shape[1:]), state))
