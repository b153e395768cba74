"""The gradient of a network's loss by BPTT: readout, objective and layers backwards, a segment of time at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import Array, cast_like, check_float, check_scale
from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import Plan, check_options, decide
from jaxrnn.gradients.truncation import Carried, Tail, Truncation, Window
from jaxrnn.gradients.window import Lags, window
from jaxrnn.layer.bptt import Way, zero_grads
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.segments import each, join, scan_segments, segment_length, split
from jaxrnn.network.network import (
    Network,
    NetworkParams,
    Run,
    check_run,
    last_hidden,
    starts,
    unroll_layers,
)
from jaxrnn.network.passes import Carry, Loss, Stack, Steps
from jaxrnn.network.readout import ReadoutParams


def value_and_grad(
    net: Network,
    segment: int | str = "auto",
    recompute: bool | str = False,
    truncate: Truncation | None = None,
    *,
    memory_budget: int | None = None,
    clip: float | None = None,
    compute_dtype: Any = None,
    return_state: bool = False,
    return_lags: bool = False,
    return_flow: bool = False,
) -> Callable[..., tuple[Any, NetworkParams]]:
    """The loss of a network and its gradient by BPTT, written by hand: the twin of `jax.value_and_grad(net.loss)`.

        forward:  keep the states s_1 .. s_T of every layer
        reverse, a segment of K steps at a time, the last one first:
            O_t = V s_t + c       e_t = w_t dE_t/dO_t       g_t = V^T e_t
            layers from the top:  delta_t = (1 - s_t^2) * (g_t + W^T delta_{t+1});   the layer below: g_t = U^T delta_t
            gradients += one product per weight over the segment

    Logits exist for one segment at a time, so memory is the states' and little more. (A network with bidirectional
    layers goes backwards layer by layer instead, each of them in segments: g_t then exists for the whole sequence.) The
    function returned is pure and not jitted: jit it, or the training step around it. Batches belong in the inputs' own
    axes, not in `jax.vmap`, which would give (correctly, and more slowly) one gradient per example.

    Args:
        net: the network.
        segment: K >= 1, or "auto" for the length that fits the cache; no result depends on it but for rounding.
        recompute: what the reverse pass makes anew instead of keeping it. "gates": what gated cells keep besides their
            states, by one product per segment. True: the states too, by one more forward pass, from those at the edges
            of segments; "auto" segments then have about sqrt(T) steps, and memory grows like it.
        truncate: None for the whole gradient, or one of three estimates of it: `jaxrnn.Carried(k)`, `jaxrnn.Window(k)`,
            `jaxrnn.Tail(k)`.
        memory_budget: bytes of temporary memory: segment and recompute are then chosen to fit it, the fastest first.
            `jaxrnn.plan` says what is chosen.
        clip: the largest norm that dE/ds_t of one sequence and layer may have: at every step on the way back a longer
            one is shortened to it. What is returned is then no longer the gradient of E, but cannot explode. In units
            of E: with the default weights the share of one step of one sequence is of the order of 1/(T B).
        compute_dtype: what states and products are held in, say `jnp.bfloat16`; by default what parameters and inputs
            promote to. Parameters keep their dtype and so do their gradients, which are summed, like the loss, in
            float32 at least.
        return_state: whether to return the final state as well.
        return_lags: for a `Window`, whether to return how many lags were used, the size of the last against lag 0, and
            a bound for what was left out of any entry of dE/dW and dE/db, under the condition that further lags shrink
            no slower than the last ones did.
        return_flow: whether to return what the reverse scan carries: for every layer the norms |delta_t| and |dE/ds_t|,
            [T] each, over units and batch together. Where they shrink from the end to the beginning the gradient
            vanishes. See `jaxrnn.flow` for more of it.

    Returns:
        A function `(params, inputs, targets, weights=None, state=None, mask=None, reset=None, key=None, *,
        vanishing=None) -> (E, grads)`, or, with `return_state`, `-> ((E, final), grads)`, with `return_lags`
        `-> ((E, lags), grads)`, with `return_flow` `-> ((E, flow), grads)`, with several of them in this order:

        params: as `net.init` gives them; grads have the same structure, shapes and dtypes.
        inputs: floats [T, *batch, D] or integer tokens [T, *batch]; any number of batch axes.
        targets: what the objective takes: integer labels [T, *batch] or floats [T, *batch, V]; for a network with
            `last_step` without the T.
        weights: w_t, [T, *batch] (with `last_step` [*batch]), used as they are; by default every unmasked step counts
            alike and they sum to one.
        state: one state per layer to go on from, the initial ones by default. It is a constant: no gradient reaches
            back past it.
        mask: booleans [T, *batch]; where False every layer's state is held, the step has no loss, and what stands in
            inputs, targets and weights is of no consequence. See `jaxrnn.lengths_to_mask`.
        reset: booleans [T, *batch]; where True every layer's state before the step is its initial one.
        key: for dropout, which a network that has it must be given.
        vanishing: the weight of the vanishing-gradient regulariser Omega of `jaxrnn.vanishing`, whose gradient is then
            added to that of E (and E is returned without it); a number, or an array for a schedule. Elman layers only.

    Raises:
        TypeError: net is not a Network; a truncate that is a number; arguments of the wrong kind.
        ValueError: a segment below 1, an unknown recompute, options that exclude each other, a truncation or a budget
            for a network that reads both ways; from the function returned, shapes that do not fit, tokens or labels
            out of range (outside jit; inside it they give NaN), T = 0, dropout without a key, a budget that cannot be
            met.

    Source: Werbos (1990), "Backpropagation through time: what it does and how to do it"; Chen et al. (2016), "Training
    deep nets with sublinear memory cost", for recompute; the truncations name theirs.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 128),), jaxrnn.Readout(128, 65), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> tokens = jax.random.randint(jax.random.key(1), (101, 32), 0, 65)
    >>> loss, grads = jax.jit(jaxrnn.value_and_grad(net))(params, tokens[:-1], tokens[1:])
    >>> grads.layers[0].W.shape
    (128, 128)
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    check_options(segment, recompute, truncate, memory_budget)
    if net.bidirectional and (truncate is not None or memory_budget is not None):
        raise ValueError("truncate and memory_budget need a network without bidirectional layers, which see all of T")
    if return_lags and not isinstance(truncate, Window):
        raise ValueError("return_lags needs truncate=jaxrnn.Window(k)")
    if return_flow and (isinstance(truncate, Window) or net.bidirectional):
        raise ValueError("return_flow needs a reverse scan over all layers: no jaxrnn.Window, no bidirectional layers")
    if compute_dtype is not None:
        check_float("compute_dtype", compute_dtype)
    if clip is not None:
        check_scale("clip", clip)
        if clip == 0:
            raise ValueError("clip must be greater than 0: nothing would be carried back")
        if isinstance(truncate, Window) or net.bidirectional:
            raise ValueError("clip needs a reverse scan over all layers: no jaxrnn.Window, no bidirectional layers")

    def loss_and_gradient(
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Array | None = None,
        *,
        vanishing: Any = None,
    ) -> tuple[Any, NetworkParams]:
        _check_key(net, key)
        if vanishing is not None and (isinstance(truncate, Window) or net.bidirectional):
            raise ValueError(
                "vanishing needs a reverse scan over all layers: no jaxrnn.Window, no bidirectional layers"
            )
        run = check_run(net, params, inputs, state, mask, reset, key, compute_dtype)
        loss = Loss(net, params, run, targets, weights)
        if net.bidirectional:
            E, final, grads = _layer_by_layer(net, params, run, loss, segment, recompute)
            lags = norms = None
        else:
            chosen = decide(net, run.inputs, run.dtype, segment, recompute, truncate, memory_budget)
            way = Way(norms=return_flow, clip=clip)
            share = None if vanishing is None else vanishing / jnp.maximum(run.count, 1)
            E, final, grads, lags, norms = _segment_by_segment(net, params, run, loss, chosen, truncate, way, share)
        extras = (final,) * return_state + (lags,) * return_lags + (norms,) * return_flow
        return ((E, *extras) if extras else E), cast_like(grads, params)

    return loss_and_gradient


def _check_key(net: Network, key: Array | None) -> None:
    if key is None and (net.dropout or net.recurrent_dropout):
        raise ValueError(
            "key must be a jax.random.key, got None, and the network has dropout; to differentiate it with nothing "
            "left out, dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)"
        )


def _segment_by_segment(
    net: Network,
    params: NetworkParams,
    run: Run,
    loss: Loss,
    plan: Plan,
    truncate: Truncation | None,
    way: Way,
    vanishing: Array | None,
) -> tuple[Array, tuple[State, ...], NetworkParams, Lags | None, Any]:
    """Loss, final state, gradients, lags and norms: every segment is taken through all layers before the next."""
    (state, initial), to_learned = jax.vjp(functools.partial(starts, net, run), params.state)
    stack = Stack(net, params, run, initial, loss, way, vanishing)
    E, readout = loss.zeros()
    grads = zero_grads(params)._replace(readout=readout)
    steps = Steps(run.inputs, run.breaks, run.kept.between, None if net.last_step else loss.steps, _cuts(run, truncate))
    adjoints = tuple(Adjoint(*jax.tree.map(jnp.zeros_like, both)) for both in zip(state, initial, strict=True))
    carry = Carry(E, grads, adjoints)
    if isinstance(truncate, Tail) and truncate.k < run.steps[0]:
        head, steps = (jax.tree.map(part, steps) for part in _parted(run.steps[0] - truncate.k))
        state, carry = _forward_only(stack, state, carry, head)
    lags = norms = None
    if isinstance(truncate, Window):
        final, carry, lags = _by_lags(stack, state, carry, steps, plan, truncate)
    else:
        final, carry, norms = both_passes(stack, plan, state, carry, steps)
    E, grads, adjoints = carry
    if isinstance(truncate, Tail) and truncate.k < run.steps[0]:
        adjoints = tuple(a._replace(state=jax.tree.map(jnp.zeros_like, a.state)) for a in adjoints)
        norms = jax.tree.map(lambda leaf: jnp.pad(leaf, (run.steps[0] - truncate.k, 0)), norms)
    (learned,) = to_learned(tuple(zip(*adjoints, strict=True)))
    return E, final, grads._replace(state=learned), lags, norms


def both_passes(
    stack: Stack, plan: Plan, state: tuple[State, ...], carry: Carry, steps: Steps
) -> tuple[tuple[State, ...], Carry, Any]:
    """Forward through all segments, and back: the final state, the carry before the first of them, and norms [T]."""
    K, *inner = plan.lengths
    cut = split(steps, steps.inputs.shape[0], K)

    def ahead(state: tuple[State, ...], steps: Steps) -> tuple[tuple[State, ...], Any]:
        if plan.recompute is True:
            return _advance(stack, plan.lengths[-1], state, steps), state
        return stack.keep(state, steps, plan.recompute)

    final, kept = scan_segments(ahead, state, cut)
    if stack.net.last_step:
        carry = _ask_last(stack, final, carry)

    def back(carry: Carry, x: tuple[Steps, Any]) -> tuple[Carry, Any]:
        steps, kept = x
        if plan.recompute is True:
            return _back_from(stack, tuple(inner), kept, carry, steps)
        return stack.backward(carry, steps, kept)

    carry, norms = scan_segments(back, carry, each(lambda *x: x, cut, kept), reverse=True)
    return final, carry, join(norms)


def _advance(stack: Stack, K: int, state: tuple[State, ...], steps: Steps) -> tuple[State, ...]:
    """The final state, by segments of K: what goes before the loop over steps, U x_t, is for one of them at a time."""
    cut = split(steps, steps.inputs.shape[0], K)
    return scan_segments(lambda state, x: (stack.advance(state, x)[0], None), state, cut)[0]


def _back_from(
    stack: Stack, lengths: tuple[int, ...], start: tuple[State, ...], carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """A segment backwards of which only the state before it was kept: all of it at once, or in segments of its own."""
    if not lengths:
        return stack.backward(carry, steps, stack.forward(start, steps)[1])
    cut = split(steps, steps.inputs.shape[0], lengths[0])
    _, starts = scan_segments(lambda state, x: (_advance(stack, lengths[-1], state, x), state), start, cut)

    def back(carry: Carry, x: tuple[Steps, tuple[State, ...]]) -> tuple[Carry, Any]:
        steps, start = x
        return _back_from(stack, lengths[1:], start, carry, steps)

    carry, norms = scan_segments(back, carry, each(lambda *x: x, cut, starts), reverse=True)
    return carry, join(norms)


def _ask_last(stack: Stack, final: tuple[State, ...], carry: Carry) -> Carry:
    """The carry of a network whose only loss is at the end."""
    E, g, readout = stack.loss.backward(last_hidden(stack.net, final), *stack.loss.steps)
    return Carry(carry.E + E, carry.grads._replace(readout=readout), stack.ask_last(carry.adjoints, g))


def _by_lags(
    stack: Stack, state: tuple[State, ...], carry: Carry, steps: Steps, plan: Plan, truncate: Window
) -> tuple[tuple[State, ...], Carry, Lags]:
    """The same where every step's loss reaches back k steps."""
    final, traces = stack.forward(state, steps)
    g = None
    if stack.net.last_step:
        carry = _ask_last(stack, final, carry)
    else:
        (E, readout), g = _readout(stack.loss, stack.fed(steps, traces)[-1], "auto")
        carry = carry._replace(E=E, grads=carry.grads._replace(readout=readout))
    layers, adjoints, lags = window(stack, steps, traces, g, carry.adjoints, truncate)
    return final, Carry(carry.E, carry.grads._replace(layers=layers), adjoints), lags


def _readout(loss: Loss, top: Array, segment: int | str) -> tuple[tuple[Array, ReadoutParams], Array]:
    """Readout and loss of the whole sequence, in segments: E and the readout's gradients, and g_t."""

    def body(carry: tuple[Array, ReadoutParams], x: tuple) -> tuple[tuple[Array, ReadoutParams], Array]:
        E, g, grads = loss.backward(*x)
        return jax.tree.map(jnp.add, carry, (E, grads)), g

    rows = loss.weights.size // top.shape[0]
    K = segment_length(segment, top.shape[0], rows, 2 * rows * loss.net.readout.outputs * top.dtype.itemsize)
    carry, g = scan_segments(body, loss.zeros(), split((top, *loss.steps), top.shape[0], K))
    return carry, join(g)


def _forward_only(
    stack: Stack, state: tuple[State, ...], carry: Carry, steps: Steps
) -> tuple[tuple[State, ...], Carry]:
    """Steps that are not differentiated: their losses, and what these say of the readout."""

    def segment(carry: tuple[tuple[State, ...], Any], steps: Steps) -> tuple[tuple[tuple[State, ...], Any], None]:
        state, sums = carry
        state, top = stack.advance(state, steps)
        if steps.loss is not None:
            E, _, readout = stack.loss.backward(top, *steps.loss)
            sums = jax.tree.map(jnp.add, sums, (E, readout))
        return (state, sums), None

    T = steps.inputs.shape[0]
    K = decide(stack.net, steps.inputs, stack.dtype).lengths[-1]
    (state, (E, readout)), _ = scan_segments(segment, (state, (carry.E, carry.grads.readout)), split(steps, T, K))
    return state, carry._replace(E=E, grads=carry.grads._replace(readout=readout))


def _cuts(run: Run, truncate: Truncation | None) -> Any:
    """Where a chunk begins, [T], but for the first: the gradient does not reach back past it."""
    if not isinstance(truncate, Carried):
        return None
    steps = np.arange(run.steps[0])
    return (steps > 0) & (steps % truncate.k == 0)


def _parted(step: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return lambda array: array[:step], lambda array: array[step:]


def _layer_by_layer(
    net: Network, params: NetworkParams, run: Run, loss: Loss, segment: int | str, recompute: bool | str
) -> tuple[Array, tuple[State, ...], NetworkParams]:
    """The same where layers read both ways: the backward direction needs all segments of the layer below."""
    way = Way(recompute=recompute)
    unrolled = functools.partial(unroll_layers, net, run=run, gradient="bptt", way=way)
    top, pullback, final = jax.vjp(lambda params: unrolled(params=params), params, has_aux=True)
    if net.last_step:
        E, g, readout = loss.backward(top, *loss.steps)
    else:
        (E, readout), g = _readout(loss, top, segment)
    (grads,) = pullback(g)
    return E, final, grads._replace(readout=readout)
