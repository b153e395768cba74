"""A whole sequence forward, with all that its reverse pass would see: what every view of the gradient begins with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.arguments import Array
from jaxrnn.cells.base import State
from jaxrnn.layer.bptt import Through, reverse_steps
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.scan import Trace
from jaxrnn.network.network import Network, NetworkParams, check_run, last_hidden, starts
from jaxrnn.network.passes import Linearized, Loss, Stack, Steps
from jaxrnn.network.readout import ReadoutParams


class Sequence(NamedTuple):
    """A network's forward pass over all T steps, linearized."""

    stack: Stack
    steps: Steps
    traces: tuple[Trace, ...]
    layers: tuple[Linearized, ...]
    final: tuple[State, ...]
    adjoints: tuple[Adjoint, ...]  # zero, one per layer
    to_learned: Callable[..., Any]  # from dE/ds_0 of every layer to the gradient of a learned initial state

    def weight_grads(self, deltas: tuple[Any, ...]) -> tuple[Any, ...]:
        """Per layer the sums of delta_t x_t^T."""
        parts = zip(self.stack.layers, self.layers, deltas, strict=True)
        return tuple(
            layer.cell.weight_grads(layer.params, layer.operands, seen.fed, seen.previous, delta)
            for layer, seen, delta in parts
        )


class Asked(NamedTuple):
    """What the loss asks of the hidden states."""

    E: Array
    readout: ReadoutParams  # gradients
    g: Array | None  # [T, *batch, H]; None where only the last step has a loss
    adjoints: tuple[Adjoint, ...]  # what is asked of the final states


def forward(
    net: Network, params: NetworkParams, inputs: Any, state: Any = None, mask: Any = None, reset: Any = None
) -> Sequence:
    """The forward pass of checked arguments; dropout leaves nothing out.

    Raises:
        TypeError: net is not a Network; arguments of the wrong kind.
        ValueError: a network with bidirectional layers, whose states depend on both ends; shapes that do not fit.
    """
    return prepare(net, params, inputs, None, None, state, mask, reset)[0]


def check_layer(net: Network, layer: int) -> int:
    """The layer counted from 0; raise unless it is there."""
    count = len(net.layers)
    if not -count <= layer < count:
        raise ValueError(f"layer must be one of the {count} layers, got {layer}")
    return layer % count


def prepare(
    net: Network,
    params: NetworkParams,
    inputs: Any,
    targets: Any,
    weights: Any = None,
    state: Any = None,
    mask: Any = None,
    reset: Any = None,
) -> tuple[Sequence, Asked]:
    """The forward pass and what its loss asks; without targets nothing is asked."""
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    if net.bidirectional:
        raise ValueError("net must not have bidirectional layers: there, blame runs from both ends of a sequence")
    run = check_run(net, params, inputs, state, mask, reset, None, None)
    loss = None if targets is None else Loss(net, params, run, targets, weights)
    (before, initial), to_learned = jax.vjp(functools.partial(starts, net, run), params.state)
    stack = Stack(net, params, run, initial, loss)
    steps = Steps(run.inputs, run.breaks, run.kept.between)
    final, traces = stack.forward(before, steps)
    adjoints = tuple(Adjoint(*jax.tree.map(jnp.zeros_like, both)) for both in zip(before, initial, strict=True))
    sequence = Sequence(stack, steps, traces, stack.linearize(steps, traces), final, adjoints, to_learned)
    return sequence, _ask(sequence, loss)


def backward(sequence: Sequence, asked: Asked) -> tuple[tuple[Any, ...], tuple[Through, ...]]:
    """delta_t of every layer, [T, *batch, ...], and what was carried, by one reverse scan of each from the top."""
    stack, steps, g = sequence.stack, sequence.steps, asked.g
    deltas: list[Any] = [None] * len(stack.layers)
    carried = list(deltas)
    for i in reversed(range(len(stack.layers))):
        layer, (fed, previous, local) = stack.layers[i], sequence.layers[i]
        _, deltas[i], carried[i] = reverse_steps(layer, steps.breaks, g, local, asked.adjoints[i], carried=True)
        dx = layer.cell.input_grads(layer.params, fed, previous, deltas[i]) if i > 0 else None
        g = stack.hand_down(i, g, dx, steps)
    return tuple(deltas), tuple(carried)


def _ask(sequence: Sequence, loss: Loss | None) -> Any:
    if loss is None:
        return None
    stack, adjoints = sequence.stack, sequence.adjoints
    if stack.net.last_step:
        E, g, readout = loss.backward(last_hidden(stack.net, sequence.final), *loss.steps)
        return Asked(E, readout, None, stack.ask_last(adjoints, g))
    E, g, readout = loss.backward(stack.fed(sequence.steps, sequence.traces)[-1], *loss.steps)
    return Asked(E, readout, g, adjoints)
