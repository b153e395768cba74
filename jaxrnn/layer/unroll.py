"""One layer over time: `unroll`, differentiable, with the reverse scan written by hand as its derivative rule."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import Array, batch_shape, cast, cast_like, check_choice, dtype_to_compute_in, is_integer
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.layer import scan
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.bptt import ONWARD, Unrolled, Way, check_way, reverse_segment, stored, trace_segment, zero_grads
from jaxrnn.layer.forward_mode import reverse_mode_only
from jaxrnn.layer.masking import Adjoint, Breaks, blank
from jaxrnn.layer.memory import layer_bytes
from jaxrnn.layer.scan import Sequence, both_ways
from jaxrnn.layer.segments import WHOLE_BYTES, balanced_lengths, each, join, scan_segments, segment_length, split


def unroll(
    cell: Layer,
    params: Params,
    inputs: Array,
    state: State | None = None,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: State | None = None,
    keep: Array | None = None,
    reverse: bool = False,
    compute_dtype: Any = None,
    recompute: bool | str = False,
    backward: str = "sequential",
    gradient: str = "bptt",
) -> tuple[Array, State]:
    """The hidden states of one layer over time; differentiating it runs the reverse scan written by hand.

        before_t = s_0 where reset_t, else s_{t-1}
        s_t      = step(before_t, x_t) where mask_t, else before_t        t = 1 .. T

    For a whole network prefer `jaxrnn.value_and_grad`, which also keeps the logits and the weight products within a
    segment. Under `jax.vmap` the rule computes the weight gradients of every example before they are summed, which
    takes 0.9 to 2.8 times as long as a batch given as an axis of the inputs at the shapes of `scripts/bench.py`, and
    4.0 times at one of them: the more, the larger the weights beside T. Only reverse mode is defined by the rule: for
    `jax.jvp`, `jax.hessian` or `jax.linearize`, choose gradient="autodiff".

    Args:
        cell: the recurrence, say a `jaxrnn.Elman`, or a `jaxrnn.Bidirectional`.
        params: its parameters.
        inputs: floats [T, *batch, D] or integer tokens [T, *batch], with any number of batch axes, none included.
        state: the state before the first step, such as `cell.initial_state(batch)`; `initial` by default.
        mask: booleans [T, *batch]; where False the state is held, and what the inputs are there is of no consequence,
            NaN and tokens out of range included. All True by default. See `jaxrnn.lengths_to_mask`.
        reset: booleans [T, *batch]; where True the state before the step is the initial one, as at the first step of
            an episode, or of the next of several packed sequences. All False by default.
        initial: s_0, the state that resets begin from; `cell.initial_state(batch)` by default.
        keep: variational dropout: what the recurrent products see of each unit of s_{t-1}, [*batch, H], for a
            bidirectional layer a pair of them. It is a constant: no gradient reaches it.
        reverse: whether time runs backwards, from the last step to the first; the hidden states keep their places, and
            "before" means the step after (so the reset of a packed sequence stands at its last step).
        compute_dtype: what states and products are held in, say `jnp.bfloat16`; by default what parameters and inputs
            promote to. Parameters keep their dtype, and so do their gradients, which are summed in float32 at least.
        recompute: what the reverse scan makes anew instead of keeping it: "gates", what a gated cell keeps besides its
            states, by one product per segment; True, the states too, from those at the edges of about sqrt(T)
            segments, by one more forward scan. The hidden states handed out are yours to keep or not.
        backward: "sequential", or "associative": the reverse recurrence is linear in the adjoint, and a scan by
            halves over its Jacobians ds_t/ds_{t-1} takes log2(T) rounds instead of T steps. It forms them all, T B H^2
            numbers, and does H times the arithmetic: for accelerators and small H, never for a CPU.
        gradient: "bptt", the reverse scan by hand, or "autodiff", the plain scan.

    Returns:
        The hidden states [T, *batch, H], and the state after the last step taken.

    Raises:
        ValueError: shapes that do not fit, tokens out of range, T = 0, an unknown gradient, recompute or backward, a
            bidirectional layer in reverse.
        TypeError: inputs that are neither float nor integer, params or a state of another cell, a mask or reset that is
            not boolean, a compute_dtype that is not floating, a keep for a cell that takes none; under gradient="bptt",
            differentiation in forward mode.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> cell = jaxrnn.Elman(inputs=3, hidden=4)
    >>> params = cell.init(jax.random.key(0))
    >>> dE = jax.grad(lambda params: jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[0].sum())(params)
    >>> dE.W.shape
    (4, 4)
    """
    check_choice("gradient", gradient, ("bptt", "autodiff"))
    way = check_way(Way(reverse, recompute, backward))
    if not isinstance(cell, Layer):
        came = cell if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell must be a jaxrnn.Cell or a jaxrnn.Bidirectional, got {came}")
    if reverse and isinstance(cell, Bidirectional):
        raise ValueError("reverse must be False for a bidirectional layer: it reads both ways already")
    sequence = check_layer(cell, params, inputs, state, mask, reset, initial, keep, compute_dtype)
    return unroll_sequence(cell, params, sequence, way, gradient)


def check_layer(
    layer: Layer,
    params: Params,
    inputs: Any,
    state: Any,
    mask: Any,
    reset: Any,
    initial: Any,
    keep: Any,
    compute_dtype: Any,
) -> Sequence:
    """The arguments of one layer's forward pass, or an error that names what is wrong with them."""
    scan.check_params(layer, params)
    inputs, breaks = scan.check_sequence(inputs, layer.inputs, mask, reset)
    dtype = dtype_to_compute_in(compute_dtype, params, inputs)
    batch = batch_shape(inputs)
    initial = scan.check_state(layer, initial, None, batch, dtype, "initial")
    state = scan.check_state(layer, state, initial, batch, dtype)
    keep = lax.stop_gradient(scan.check_keep(layer, keep, batch, dtype))
    initial = None if breaks.reset is None else initial
    return Sequence(cast(blank(breaks.mask, inputs), dtype), state, breaks, initial, keep)


def unroll_sequence(
    layer: Layer, params: Params, sequence: Sequence, way: Way = ONWARD, gradient: str = "bptt"
) -> tuple[Array, State]:
    """`unroll` of arguments that are checked already."""
    if gradient == "autodiff":
        return both_ways(scan.unroll, layer, params, sequence, way.reverse)

    def guarded(cell: Cell, params: Params, sequence: Sequence, reverse: bool) -> tuple[Array, State]:
        params, inputs, state, initial = reverse_mode_only((params, sequence.inputs, sequence.state, sequence.initial))
        sequence = sequence._replace(inputs=inputs, state=state, initial=initial)
        return _unroll(cell, way._replace(reverse=reverse), params, sequence)

    return both_ways(guarded, layer, params, sequence, way.reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(cell: Cell, way: Way, params: Params, sequence: Sequence) -> tuple[Array, State]:
    return scan.unroll(cell, params, sequence, way.reverse)


def _unroll_forward(cell: Cell, way: Way, params: Params, sequence: Sequence) -> tuple:
    inputs, state, breaks, initial, keep = sequence
    computed = cast(params, hidden_of(state).dtype)
    layer = Unrolled(cell, computed, scan.operands_of(cell, computed, keep), initial, way)

    def segment(start: State, x: tuple[Array, Breaks]) -> tuple[State, tuple[Array, Any]]:
        trace, final = trace_segment(layer, start, *x)
        return final, (hidden_of(trace.states), stored(trace, way.recompute))

    xs = split((inputs, breaks), inputs.shape[0], _layer_segment(cell, computed, inputs, state, way))
    final, ys = scan_segments(segment, state, xs, way.reverse)
    hidden = join(each(lambda y: y[0], ys))
    return (hidden, final), (params, sequence, each(lambda y: y[1], ys))


def _unroll_backward(cell: Cell, way: Way, residuals: tuple, cotangents: tuple[Array, State]) -> tuple:
    params, (inputs, state, breaks, initial, keep), kept = residuals
    g, adjoint = cotangents
    computed = cast(params, g.dtype)
    layer = Unrolled(cell, computed, scan.operands_of(cell, computed, keep), initial, way)

    def segment(carry: tuple[Params, Adjoint], x: tuple) -> tuple[tuple[Params, Adjoint], Array | None]:
        grads, adjoint = carry
        inputs, breaks, g, kept = x
        trace = trace_segment(layer, kept, inputs, breaks)[0] if way.recompute is True else kept
        adjoint, dparams, dx, _ = reverse_segment(layer, inputs, breaks, g, trace, adjoint)
        return (jax.tree.map(jnp.add, grads, dparams), adjoint), dx

    cut = split((inputs, breaks, g), inputs.shape[0], _layer_segment(cell, computed, inputs, state, way))
    xs = each(lambda cut, kept: (*cut, kept), cut, kept)
    carry = zero_grads(params), Adjoint(adjoint, jax.tree.map(jnp.zeros_like, initial))
    (grads, adjoint), dx = scan_segments(segment, carry, xs, reverse=not way.reverse)
    dinputs: Any = None if is_integer(inputs) else join(dx)
    constant: Any = None  # no gradient reaches mask, reset and keep
    return cast_like(grads, params), Sequence(dinputs, adjoint.state, constant, adjoint.initial, constant)


_unroll.defvjp(_unroll_forward, _unroll_backward)


def _layer_segment(cell: Cell, params: Params, inputs: Array, state: State, way: Way) -> int:
    steps = inputs.shape[0]
    if way.backward == "associative":
        return steps
    sizes = layer_bytes(cell, params, inputs, state)
    if way.recompute is True:
        return balanced_lengths(steps, sizes.state, sizes.total)[0]
    rows = math.prod(hidden_of(state).shape[:-1])
    return segment_length("auto", steps, rows, sizes.total, WHOLE_BYTES if way.recompute is False else 0)
