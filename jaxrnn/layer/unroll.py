"""One layer over time: `unroll`, differentiable, with the reverse scan written by hand as its derivative rule."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.arguments import batch_shape, cast, cast_like, check_choice, check_positive, dtype_to_compute_in, entries
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.layer import scan
from jaxrnn.layer.batch_major import batch_first, time_first
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.bptt import reverse_segment, zero_grads
from jaxrnn.layer.forward_mode import reverse_mode_only
from jaxrnn.layer.machine import limits
from jaxrnn.layer.mapped import batch_where_mapped
from jaxrnn.layer.masking import Adjoint, Flags, backward_flags, blank
from jaxrnn.layer.memory import layer_bytes
from jaxrnn.layer.prepared import (
    FORWARD_IN_TIME,
    Backward,
    PreparedCell,
    ScanOptions,
    as_recompute,
    check_backward,
    current_precision,
    prepare_cell,
)
from jaxrnn.layer.scan import Residuals, forward_segment
from jaxrnn.layer.segments import (
    Segments,
    balanced_lengths,
    each,
    join,
    scan_segments,
    segment_length,
    split,
)
from jaxrnn.layer.sharding import layer_spec, vary_alike, with_automatic_axes


class LayerCall(NamedTuple):
    """Holds the arguments of one layer over time besides its parameters."""

    inputs: Array  # floats [T, *batch, D] or tokens [T, *batch]
    state: State  # the state before the first step; its dtype is what is computed in
    flags: Flags
    initial: State | None = None  # the state that resets begin from; None where there are none
    dropout_mask: ArrayTree | None = None  # [*batch, H], 0 or 1/(1 - rate), times s_{t-1}


# Where a further batch axis goes: in the arguments of a call; in the hidden states and the last state.
BATCH_AXES = LayerCall(inputs=1, state=0, flags=Flags(1, 1), initial=0, dropout_mask=0), (1, 0)


def unroll(
    cell: Layer,
    params: Params,
    inputs: Array,
    state: State | None = None,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: State | None = None,
    dropout_mask: ArrayTree | None = None,
    reverse: bool = False,
    time_major: bool = True,
    compute_dtype: DTypeLike | None = None,
    recompute: bool | str = False,
    backward: Backward = "sequential",
    unroll: int = 1,
    gradient: Literal["bptt", "autodiff"] = "bptt",
) -> tuple[Array, State]:
    """Computes the hidden states of one layer over time; its derivative is the reverse scan written by hand.

        before_t = s_0 where reset_t, else s_{t-1}
        s_t      = step(before_t, x_t) where mask_t, else before_t        t = 1 .. T

    For a whole network prefer `jaxrnn.value_and_grad`, which also keeps the logits and the weight products within a
    segment. Under `jax.vmap` over sequences, with parameters that are not mapped, the call becomes one larger batch:
    the gradient of a sum over them takes about as long as that of a batch given as an axis of the inputs
    (`scripts/bench.py`).
    Only reverse mode is defined by the rule: for `jax.jvp`, `jax.hessian` or `jax.linearize`, choose
    gradient="autodiff".

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
        dropout_mask: variational dropout: 0 or 1/(1 - rate) for each unit of s_{t-1}, [*batch, H], which only the
            recurrent products see; for a bidirectional layer a pair of them. No gradient reaches it.
        reverse: whether time runs backwards, from the last step to the first; the hidden states keep their places, and
            "before" means the step after (so the reset of a packed sequence stands at its last step).
        time_major: whether time is the first axis of inputs, mask, reset and hidden states, or the last one before the
            features: then inputs are [*batch, T, D] or tokens [*batch, T], mask and reset [*batch, T], hidden states
            [*batch, T, H]. They are copied into the other order and back: see `jaxrnn.layer.batch_major`.
        compute_dtype: what states and products are held in, say `jnp.bfloat16`; by default what parameters and inputs
            promote to. Parameters keep their dtype, and so do their gradients, which are summed in float32 at least.
        recompute: what the reverse scan computes again instead of keeping it: "none" (or False), nothing; "gates", what
            a gated cell keeps besides its states, by one product per segment; "states" (or True), the states too, from
            those at the edges of about sqrt(T) segments, by one more forward scan. The hidden states that are returned
            are yours to keep or not.
        backward: "sequential", or "associative": the reverse recurrence is linear in the adjoint, and an associative
            scan over its Jacobians ds_t/ds_{t-1} takes log2(T) rounds instead of T steps. It forms all of them, T B H^2
            numbers, and does H times the arithmetic: for accelerators and small H, never for a CPU.
        unroll: how many steps one turn of a compiled loop takes, as for `lax.scan`: less overhead for a longer
            compilation.
        gradient: "bptt", the reverse scan by hand, or "autodiff", the plain scan.

    Returns:
        The hidden states [T, *batch, H], and the state after the last step taken.

    Raises:
        ValueError: shapes that do not fit, tokens out of range, T = 0, an unknown gradient, recompute or backward,
            the last two with gradient="autodiff", a bidirectional layer in reverse.
        TypeError: inputs that are neither float nor integer, params or a state of another cell, a mask or reset that is
            not boolean, a compute_dtype that is not floating, a dropout_mask for a cell that takes none; under
            gradient="bptt", differentiation in forward mode.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> cell = jaxrnn.Elman(inputs=3, hidden=4)
    >>> params = cell.init(jax.random.key(0))
    >>> dE = jax.grad(lambda params: jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[0].sum())(params)
    >>> dE.W.shape
    (4, 4)
    """
    check_choice("gradient", gradient, ("bptt", "autodiff"))
    check_backward(backward)
    check_positive("unroll", unroll)
    options = ScanOptions(reverse, as_recompute(recompute), backward, unroll=unroll)
    if gradient == "autodiff" and (options.recompute != "none" or backward != "sequential"):
        raise ValueError(
            f'recompute and backward are of the reverse scan by hand, gradient="bptt": with gradient="autodiff" they '
            f'must be "none" and "sequential", got {recompute!r} and {backward!r}; jax.checkpoint around the call '
            f"recomputes there"
        )
    if not isinstance(cell, Layer):
        came = cell if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell must be a jaxrnn.Cell or a jaxrnn.Bidirectional, got {came}")
    if reverse and isinstance(cell, Bidirectional):
        raise ValueError("reverse must be False for a bidirectional layer: it reads both ways already")

    flags = Flags(mask, reset)
    inputs, flags = (inputs, flags) if time_major else time_first(inputs, cell.inputs, flags)

    def run(params: Params, call: LayerCall) -> tuple[Array, State]:
        return unroll_layer(cell, params, check_call(cell, params, call, compute_dtype), options, gradient)

    call = LayerCall(inputs, state, flags, initial, dropout_mask)
    hidden, final = with_automatic_axes(run, lambda _, call: layer_spec(call.inputs))(params, call)
    return hidden if time_major else batch_first(hidden), final


def check_call(layer: Layer, params: Params, call: LayerCall, compute_dtype: DTypeLike | None) -> LayerCall:
    """Returns checked arguments with their defaults filled in; raises an error that names what is wrong with them."""
    scan.check_params(layer, params)
    inputs, flags = scan.check_steps(call.inputs, layer.inputs, *call.flags)
    dtype = dtype_to_compute_in(compute_dtype, params, inputs)
    batch = batch_shape(inputs)
    initial = scan.check_state(layer, call.initial, batch, dtype, "initial")
    initial = layer.initial_state(batch, dtype) if initial is None else initial
    state = scan.check_state(layer, call.state, batch, dtype)
    mask = lax.stop_gradient(scan.check_dropout_mask(layer, call.dropout_mask, batch, dtype))
    inputs = cast(blank(flags.mask, inputs), dtype)
    return LayerCall(inputs, initial if state is None else state, flags, None if flags.reset is None else initial, mask)


def unroll_layer(
    layer: Layer,
    params: Params,
    call: LayerCall,
    options: ScanOptions = FORWARD_IN_TIME,
    gradient: Literal["bptt", "autodiff"] = "bptt",
) -> tuple[Array, State]:
    """Runs `unroll` on arguments that are checked already."""
    if isinstance(layer, Bidirectional):
        directions = zip((layer.forward, layer.backward), params, split_directions(call), (False, True), strict=True)
        (forward, last), (backward, first) = (
            unroll_layer(cell, own, half, options._replace(reverse=reverse), gradient)
            for cell, own, half, reverse in directions
        )
        return layer.join(forward, backward), (last, first)
    params, call = vary_alike((params, call))
    if gradient == "autodiff":
        return scan_forward(layer, options, params, call)
    params, inputs, state, initial = reverse_mode_only((params, call.inputs, call.state, call.initial))
    call = call._replace(inputs=inputs, state=state, initial=initial)
    options = options._replace(precision=current_precision())
    return batch_where_mapped(functools.partial(_unroll, layer, options), params, call, BATCH_AXES, _like_outputs)


def _like_outputs(call: LayerCall) -> tuple[Array, State]:
    """Makes arrays like the hidden states and the last state."""
    hidden = hidden_of(call.state)
    return jnp.broadcast_to(hidden, (call.inputs.shape[0], *hidden.shape)), call.state


def split_directions(call: LayerCall) -> tuple[LayerCall, LayerCall]:
    """Returns the arguments of both directions of a bidirectional layer."""
    inputs, (first, last), flags, initial, mask = call
    initials, masks = initial or (None, None), mask or (None, None)
    forward = LayerCall(inputs, first, flags, initials[0], masks[0])
    return forward, LayerCall(inputs, last, backward_flags(flags), initials[1], masks[1])


def scan_forward(cell: Cell, options: ScanOptions, params: Params, call: LayerCall) -> tuple[Array, State]:
    """Runs a plain `lax.scan`: the twin of the rule below, for autodiff to go through."""
    hidden, _, final = forward_segment(prepare_call(cell, options, params, call), call.state, call.inputs, call.flags)
    return hidden, final


def prepare_call(cell: Cell, options: ScanOptions, params: Params, call: LayerCall) -> PreparedCell:
    """Makes a cell ready for the loops over its arguments."""
    return prepare_cell(cell, params, hidden_of(call.state).dtype, call.dropout_mask, call.initial, options)


_unroll = jax.custom_vjp(scan_forward, nondiff_argnums=(0, 1))


def _unroll_forward(cell: Cell, options: ScanOptions, params: Params, call: LayerCall) -> tuple[tuple, tuple]:
    hidden, residuals, final = forward_layer(prepare_call(cell, options, params, call), call)
    return (hidden, final), (params, call, residuals)


def _unroll_backward(
    cell: Cell, options: ScanOptions, kept: tuple, cotangents: tuple[Array, State]
) -> tuple[Params, LayerCall]:
    params, call, residuals = kept
    g, last = cotangents
    adjoint = Adjoint(last, jax.tree.map(jnp.zeros_like, call.initial))
    with options.same_precision():
        layer = prepare_call(cell, options, params, call)
        (grads, adjoint), dx = backward_layer(layer, call, g, residuals, (zero_grads(params), adjoint))
    constant: Any = None  # no gradient reaches the flags and the dropout mask
    return cast_like(grads, params), LayerCall(dx, adjoint.state, constant, adjoint.initial, constant)


_unroll.defvjp(_unroll_forward, _unroll_backward)


def forward_layer(layer: PreparedCell, call: LayerCall) -> tuple[Array, Segments, State]:
    """Takes one layer through all of its steps, a segment at a time.

    Returns:
        The hidden states [T, *batch, H], the residuals of every segment, and the last state.
    """

    def segment(start: State, x: tuple[Array, Flags]) -> tuple[State, tuple[Array | None, Residuals]]:
        hidden, residuals, final = forward_segment(layer, start, *x, layer.options.recompute)
        # Two outputs of a loop that are alike take room twice: states that are kept stand for the hidden ones.
        return final, (hidden if residuals.states is None else None, residuals)

    xs = split((call.inputs, call.flags), call.inputs.shape[0], _segment_length(layer, call))
    final, ys = scan_segments(segment, call.state, xs, layer.options.reverse)
    hidden = join(each(lambda y: y[1].hidden if y[0] is None else y[0], ys))
    return hidden, each(lambda y: y[1], ys), final


def backward_layer(
    layer: PreparedCell, call: LayerCall, g: Array | None, residuals: Segments, carry: tuple[Params, Adjoint]
) -> tuple[tuple[Params, Adjoint], Array | None]:
    """Takes one layer back through all of its steps, a segment at a time.

    Args:
        layer, call: as for `forward_layer`.
        g: what is asked of each hidden state, [T, *batch, H]; None where nothing is.
        residuals: as `forward_layer` returned them.
        carry: the weight gradients to add to, and the adjoint of the last state.

    Returns:
        The carry before the first step, and dE/dx_t [T, *batch, D] (None for tokens).
    """

    def segment(carry: tuple[Params, Adjoint], x: tuple) -> tuple[tuple[Params, Adjoint], Array | None]:
        grads, adjoint = carry
        (inputs, flags, g), residuals = x
        if residuals.states is None:
            _, residuals, _ = forward_segment(layer, residuals.start, inputs, flags, "none")
        found = reverse_segment(layer, inputs, flags, g, residuals, adjoint)
        return (jax.tree.map(jnp.add, grads, found.grads), found.adjoint), found.inputs

    cut = split((call.inputs, call.flags, g), call.inputs.shape[0], _segment_length(layer, call))
    xs = each(lambda *x: x, cut, residuals)
    carry, dx = scan_segments(segment, carry, xs, reverse=not layer.options.reverse)
    return carry, join(dx)


def _segment_length(layer: PreparedCell, call: LayerCall) -> int:
    steps, recompute = call.inputs.shape[0], layer.options.recompute
    if layer.options.backward == "associative":
        return steps
    sizes = layer_bytes(layer.cell, layer.params, call.inputs, call.state)
    if recompute == "states":
        return balanced_lengths(steps, sizes.state, sizes.total)[0]
    rows = entries(hidden_of(call.state).shape[:-1])
    return segment_length("auto", steps, rows, sizes.total, limits().of_a_layer)
