"""The two passes over a segment of a whole network: layers from the bottom, then readout, loss, layers from the top."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.arguments import Array, cast
from jaxrnn.cells.base import State, add_to_hidden, hidden_of
from jaxrnn.cells.dropout import drop
from jaxrnn.layer import scan
from jaxrnn.layer.bptt import (
    ONWARD,
    StepNorms,
    Unrolled,
    Way,
    linearize_segment,
    reverse_segment,
    stored,
    trace_segment,
    zero_grads,
)
from jaxrnn.layer.masking import Adjoint, Breaks, blank, enter
from jaxrnn.layer.scan import Trace, previous_states
from jaxrnn.network.losses import value_and_gradient
from jaxrnn.network.network import Network, NetworkParams, Run, as_read, check_targets
from jaxrnn.network.readout import ReadoutParams


class Loss:
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
        targets = as_read(targets, there, outputs.dtype)
        errors, e = blank(there, value_and_gradient(self.net.objective, outputs, targets))
        g, grads = self.net.readout.adjoint(self.params, hidden, weights[..., None] * e)
        return jnp.sum(weights * errors, dtype=weights.dtype), g, grads

    def zeros(self) -> tuple[Array, ReadoutParams]:
        """The loss and the readout's gradients, before the first segment."""
        return jnp.zeros((), self.weights.dtype), zero_grads(self.params)


class Steps(NamedTuple):
    """What goes into the steps of a segment, or of the whole sequence: [K, ...] all of it."""

    inputs: Array  # [K, *batch, D] or [K, *batch]
    breaks: Breaks
    between: tuple[Array | None, ...]  # what dropout leaves of what each layer hands up
    loss: Any = None  # targets, weights, where there is a loss; None where these steps have none
    cut: Array | None = None  # True where the gradient does not reach back past the step; read at a segment's first


class Linearized(NamedTuple):
    """What the reverse pass sees of the steps of one layer."""

    fed: Array  # [K, *batch, D]
    previous: State  # s_{t-1}, [K, *batch, H]
    local: Any


class Carry(NamedTuple):
    """What the reverse pass carries from segment to segment."""

    E: Array
    grads: NetworkParams
    adjoints: tuple[Adjoint, ...]  # per layer


class Stack:
    """A network of layers none of which is bidirectional, in the midst of its two passes."""

    def __init__(
        self,
        net: Network,
        params: NetworkParams,
        run: Run,
        initial: tuple[State | None, ...],
        loss: Any,
        way: Way = ONWARD,
        vanishing: Array | None = None,
    ) -> None:
        self.net, self.loss, self.dtype, self.vanishing = net, loss, run.dtype, vanishing
        cells: Any = net.layers
        parts = zip(cells, cast(params.layers, run.dtype), run.kept.recurrent, initial, strict=True)
        self.layers = tuple(
            Unrolled(cell, layer, scan.operands_of(cell, layer, keep), s_0, way) for cell, layer, keep, s_0 in parts
        )

    def advance(self, state: tuple[State, ...], steps: Steps) -> tuple[tuple[State, ...], Array]:
        """Layers from the bottom, where no reverse pass follows: the final state, and what the readout sees."""
        top, fed, final = None, self.read(steps), []
        for (cell, _, operands, initial, _), start, kept in zip(self.layers, state, steps.between, strict=True):
            hidden, last = scan.scan_cell(cell, operands, fed, start, steps.breaks, initial)
            top, fed = self.net.hand_up(top, hidden, kept)
            final.append(last)
        assert top is not None
        return tuple(final), top

    def forward(self, state: tuple[State, ...], steps: Steps) -> tuple[tuple[State, ...], tuple[Trace, ...]]:
        """Layers from the bottom: the final state, and the trace of every layer."""
        top, fed, final, traces = None, self.read(steps), [], []
        for layer, start, kept in zip(self.layers, state, steps.between, strict=True):
            trace, last = trace_segment(layer, start, fed, steps.breaks)
            top, fed = self.net.hand_up(top, hidden_of(trace.states), kept)
            final.append(last)
            traces.append(trace)
        return tuple(final), tuple(traces)

    def keep(self, state: tuple[State, ...], steps: Steps, recompute: bool | str) -> tuple[tuple[State, ...], Any]:
        """The final state, and what of the segment is kept until the reverse pass."""
        final, traces = self.forward(state, steps)
        return final, tuple(stored(trace, recompute) for trace in traces)

    def backward(
        self, carry: Carry, steps: Steps, traces: tuple[Trace, ...]
    ) -> tuple[Carry, tuple[StepNorms | None, ...]]:
        """Readout, objective, and layers from the top: adds the segment's loss and gradients to the carry."""
        E, grads, adjoints = carry
        *fed, top = self.fed(steps, traces)
        g, readout = None, grads.readout
        if steps.loss is not None:
            segment_E, g, dreadout = self.loss.backward(top, *steps.loss)
            E, readout = E + segment_E, jax.tree.map(jnp.add, readout, dreadout)
        layers, back = list(grads.layers), list(adjoints)
        norms: list[StepNorms | None] = [None] * len(layers)
        for i in reversed(range(len(layers))):
            back[i], dparams, dx, norms[i] = reverse_segment(
                self.layers[i], fed[i], steps.breaks, g, traces[i], back[i], self.vanishing
            )
            layers[i] = jax.tree.map(jnp.add, layers[i], dparams)
            g = self.hand_down(i, g, dx, steps)
        grads = NetworkParams(tuple(layers), readout, grads.state)
        return Carry(E, grads, tuple(back if steps.cut is None else map(_cut(steps.cut[0]), back))), tuple(norms)

    def linearize(self, steps: Steps, traces: tuple[Trace, ...]) -> tuple[Linearized, ...]:
        """What the reverse pass sees of every layer, where it does not take the layers one after the other."""
        layers = []
        for layer, fed, trace in zip(self.layers, self.fed(steps, traces), traces, strict=False):
            previous = enter(steps.breaks, layer.initial, previous_states(trace))
            layers.append(Linearized(fed, previous, linearize_segment(layer, fed, previous, trace)))
        return tuple(layers)

    def hand_down(self, i: int, g: Array | None, dx: Array | None, steps: Steps) -> Array | None:
        """What layer i asks of the one below, from what is asked of it and of its inputs."""
        if i == 0 or dx is None:
            return None
        dx = drop(dx, steps.between[i - 1], self.net.dropout)
        return dx + g if self.net.residual and g is not None else dx

    def ask_last(self, adjoints: tuple[Adjoint, ...], g: Array) -> tuple[Adjoint, ...]:
        """The adjoints with g for what the readout sees at the end: all layers on residual paths, or the top one."""
        seen = len(adjoints) if self.net.residual else 1
        asked = tuple(adjoint._replace(state=add_to_hidden(adjoint.state, g)) for adjoint in adjoints[-seen:])
        return adjoints[:-seen] + asked

    def read(self, steps: Steps) -> Array:
        """What the lowest layer is fed."""
        return as_read(steps.inputs, steps.breaks.mask, self.dtype)

    def fed(self, steps: Steps, traces: tuple[Trace, ...]) -> list[Array]:
        """What each layer was fed, and above them what the readout sees: made anew, nothing of it was kept."""
        top, fed = None, [self.read(steps)]
        for trace, kept in zip(traces, steps.between, strict=True):
            top, above = self.net.hand_up(top, hidden_of(trace.states), kept)
            fed.append(above)
        return fed


def _cut(here: Array) -> Any:
    """The adjoint, or zero where the gradient does not reach back past here."""

    def cut(adjoint: Adjoint) -> Adjoint:
        return adjoint._replace(state=jax.tree.map(lambda leaf: jnp.where(here, 0, leaf), adjoint.state))

    return cut
