"""The gradient of a network's loss by BPTT: readout, objective and layers backwards, a segment of time at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import scan
from jaxrnn.arguments import Array, cast, cast_like, check_float
from jaxrnn.bptt import Unrolled, layer_bytes, reverse_segment, zero_grads
from jaxrnn.breaks import Adjoint, blank
from jaxrnn.cell import State, add_to_hidden, hidden_of
from jaxrnn.dropout import drop
from jaxrnn.losses import value_and_gradient
from jaxrnn.network import (
    Network,
    NetworkParams,
    Run,
    check_run,
    check_targets,
    last_hidden,
    starts,
    unroll_layers,
)
from jaxrnn.readout import ReadoutParams
from jaxrnn.segments import each, join, scan_segments, segment_length, split


def value_and_grad(
    net: Network, segment: int | str = "auto", *, compute_dtype: Any = None, return_state: bool = False
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
        compute_dtype: what states and products are held in, say `jnp.bfloat16`; by default what parameters and inputs
            promote to. Parameters keep their dtype and so do their gradients, which are summed, like the loss, in
            float32 at least.
        return_state: whether to return the final state as well.

    Returns:
        A function `(params, inputs, targets, weights=None, state=None, mask=None, reset=None, key=None) -> (E, grads)`,
        or, with `return_state`, `-> ((E, final), grads)`:

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

    Raises:
        TypeError: net is not a Network; arguments of the wrong kind.
        ValueError: a segment below 1; from the function returned, shapes that do not fit, tokens or labels out of
            range (outside jit; inside it they give NaN), T = 0, dropout without a key.

    Source: Werbos (1990), "Backpropagation through time: what it does and how to do it".

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
    segment_length(segment, 1, 1, 1)
    if compute_dtype is not None:
        check_float("compute_dtype", compute_dtype)

    def loss_and_gradient(
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Any, NetworkParams]:
        _check_key(net, key)
        run = check_run(net, params, inputs, state, mask, reset, key, compute_dtype)
        loss = _Loss(net, params, run, targets, weights)
        if net.bidirectional:
            E, final, grads = _layer_by_layer(net, params, run, loss, segment)
        else:
            E, final, grads = _segment_by_segment(net, params, run, loss, segment)
        return ((E, final) if return_state else E), cast_like(grads, params)

    return loss_and_gradient


class _Loss:
    """Readout and objective, with the gradient of both."""

    def __init__(self, net: Network, params: NetworkParams, run: Run, targets: Any, weights: Any) -> None:
        self.net, self.params = net, cast(params.readout, run.dtype)
        self.targets, self.weights, self.there = check_targets(net, run, targets, weights)

    @property
    def steps(self) -> tuple[Array, Array, Array | None]:
        """What goes with the hidden states: to be cut along with them."""
        return self.targets, self.weights, self.there

    def backward(
        self, hidden: Array, targets: Array, weights: Array, there: Array | None
    ) -> tuple[Array, Array, ReadoutParams]:
        """sum_t w_t E_t, g_t, and the readout's gradients. The only place where logits exist, [K, *batch, V]."""
        outputs = self.net.readout.apply(self.params, hidden)
        errors, e = blank(there, value_and_gradient(self.net.objective, outputs, targets))
        g, grads = self.net.readout.adjoint(self.params, hidden, weights[..., None] * e)
        return jnp.sum(weights * errors, dtype=weights.dtype), g, grads

    def zeros(self) -> tuple[Array, ReadoutParams]:
        """The loss and the readout's gradients, before the first segment."""
        return jnp.zeros((), self.weights.dtype), zero_grads(self.params)


def _check_key(net: Network, key: Array | None) -> None:
    if key is None and (net.dropout or net.recurrent_dropout):
        raise ValueError(
            "key must be a jax.random.key, got None, and the network has dropout; to differentiate it with nothing "
            "left out, dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)"
        )


def _segment_by_segment(
    net: Network, params: NetworkParams, run: Run, loss: _Loss, segment: int | str
) -> tuple[Array, tuple[State, ...], NetworkParams]:
    """The loss, the final state, and the gradients: every segment is taken through all layers before the next."""
    (state, initial), to_learned = jax.vjp(functools.partial(starts, net, run), params.state)
    stack = _Stack(net, params, run, initial, None if net.last_step else loss)
    steps, K = run.steps[0], _segment(net, segment, run, stack.layers, state)
    cut = split((run.inputs, run.breaks, run.kept.between), steps, K)
    final, traces = scan_segments(stack.forward, state, cut)
    E, readout = loss.zeros()
    adjoints = tuple(Adjoint(*jax.tree.map(jnp.zeros_like, both)) for both in zip(final, initial, strict=True))
    if net.last_step:
        E, g, readout = loss.backward(last_hidden(net, final), *loss.steps)
        adjoints = stack.ask_last(adjoints, g)
    of_steps = split(None if net.last_step else loss.steps, steps, K)
    xs = each(lambda *parts: parts, cut, of_steps, traces)
    carry = E, zero_grads(params)._replace(readout=readout), adjoints
    (E, grads, adjoints), _ = scan_segments(stack.backward, carry, xs, reverse=True)
    (learned,) = to_learned(tuple(zip(*adjoints, strict=True)))
    return E, final, grads._replace(state=learned)


class _Stack:
    """The two passes over one segment of all layers, none of them bidirectional."""

    def __init__(
        self, net: Network, params: NetworkParams, run: Run, initial: tuple[State | None, ...], loss: _Loss | None
    ) -> None:
        self.net, self.loss = net, loss
        cells: Any = net.layers
        parts = zip(cells, cast(params.layers, run.dtype), run.kept.recurrent, initial, strict=True)
        self.layers = tuple(
            Unrolled(cell, layer, scan.operands_of(cell, layer, keep), s_0) for cell, layer, keep, s_0 in parts
        )

    def ask_last(self, adjoints: tuple[Adjoint, ...], g: Array) -> tuple[Adjoint, ...]:
        """The adjoints with g for what the readout sees at the end: all layers on residual paths, or the top one."""
        seen = len(adjoints) if self.net.residual else 1
        asked = tuple(adjoint._replace(state=add_to_hidden(adjoint.state, g)) for adjoint in adjoints[-seen:])
        return adjoints[:-seen] + asked

    def forward(self, state: tuple[State, ...], x: tuple) -> tuple[tuple[State, ...], tuple]:
        """Layers from the bottom: the final state, and the trace of every layer."""
        fed, breaks, between = x
        top, final, traces = None, [], []
        for layer, start, kept in zip(self.layers, state, between, strict=True):
            trace, last = scan.trace_cell(layer.cell, layer.operands, fed, start, breaks, layer.initial)
            top, fed = self.net.hand_up(top, hidden_of(trace.states), kept)
            final.append(last)
            traces.append(trace)
        return tuple(final), tuple(traces)

    def backward(self, carry: tuple, x: tuple) -> tuple[tuple, None]:
        """Readout, objective, and layers from the top: adds the segment's loss and gradients to the carry."""
        E, grads, adjoints = carry
        (inputs, breaks, between), of_steps, traces = x
        *fed, top = self._fed(inputs, between, traces)
        g, readout = None, grads.readout
        if self.loss is not None:
            segment_E, g, dreadout = self.loss.backward(top, *of_steps)
            E, readout = E + segment_E, jax.tree.map(jnp.add, readout, dreadout)
        layers, adjoints = list(grads.layers), list(adjoints)
        for i in reversed(range(len(layers))):
            adjoints[i], dparams, dx = reverse_segment(self.layers[i], fed[i], breaks, g, traces[i], adjoints[i])
            layers[i] = jax.tree.map(jnp.add, layers[i], dparams)
            if dx is not None and i > 0:
                dx = drop(dx, between[i - 1], self.net.dropout)
                g = dx + g if self.net.residual and g is not None else dx
        return (E, NetworkParams(tuple(layers), readout, grads.state), tuple(adjoints)), None

    def _fed(self, inputs: Array, between: tuple, traces: tuple) -> list[Array]:
        """What each layer was fed, and above them what the readout sees: made anew, nothing of it was kept."""
        top, fed = None, [inputs]
        for trace, kept in zip(traces, between, strict=True):
            top, above = self.net.hand_up(top, hidden_of(trace.states), kept)
            fed.append(above)
        return fed


def _layer_by_layer(
    net: Network, params: NetworkParams, run: Run, loss: _Loss, segment: int | str
) -> tuple[Array, tuple[State, ...], NetworkParams]:
    """The same where layers read both ways: the backward direction needs all segments of the layer below."""

    def readout(carry: tuple[Array, ReadoutParams], x: tuple) -> tuple[tuple[Array, ReadoutParams], Array]:
        E, g, grads = loss.backward(*x)
        return jax.tree.map(jnp.add, carry, (E, grads)), g

    top, pullback, final = jax.vjp(lambda params: unroll_layers(net, params, run, "bptt"), params, has_aux=True)
    if net.last_step:
        (E, readout_grads), g = readout(loss.zeros(), (top, *loss.steps))
    else:
        steps, K = run.steps[0], _segment(net, segment, run, (), ())
        carry, cut = scan_segments(readout, loss.zeros(), split((top, *loss.steps), steps, K))
        (E, readout_grads), g = carry, join(cut)
    (grads,) = pullback(g)
    return E, final, grads._replace(readout=readout_grads)


def _segment(net: Network, segment: int | str, run: Run, layers: tuple[Unrolled, ...], state: tuple) -> int:
    """K from what one step of these layers, the logits and their gradient occupy."""
    batch, step_bytes = run.steps[1:], 0
    fed: Any = run.inputs
    for layer, start in zip(layers, state, strict=True):
        step_bytes += layer_bytes(layer.cell, layer.params, fed, start)
        fed = jax.ShapeDtypeStruct((1, *batch, layer.cell.outputs), run.dtype)
    logits = 0 if net.last_step else 2 * math.prod(batch) * net.readout.outputs * run.dtype.itemsize
    return segment_length(segment, run.steps[0], math.prod(batch), step_bytes + logits)
