"""The two passes through the layers of a network: one traversal from the bottom, one from the top.

    forward:    top_0 = x      s^i = layer_i(dropout(top_{i-1}))      top_i = s^i               (residual: + top_{i-1})
    backward:   g_i is asked of top_i                                 g_{i-1} = dropout(dE/d(inputs of layer_i)) (+ g_i)

Every gradient is a caller of these two. They take some layers (a `Stack`) through some steps (a segment of time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree

from jaxrnn.cells.base import Deltas, Params, State, add_to_hidden, hidden_of
from jaxrnn.cells.dropout import drop
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.both_ways import PairResiduals, PreparedPair, reverse_pair
from jaxrnn.layer.bptt import Reversed, linearize_segment, reverse_segment
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.prepared import Recompute
from jaxrnn.layer.scan import Residuals, forward_segment, previous_states
from jaxrnn.network.batch import Steps, read


class Stack(NamedTuple):
    """Holds some layers that stand on one another, and what stands between them."""

    layers: tuple[Any, ...]  # whatever `take` of `forward` takes; for `backward` PreparedCell or PreparedPair
    dtype: jnp.dtype  # what is computed in
    dropout: float  # the rate between layers
    residual: bool  # whether a layer adds what it was fed to what it hands up
    first: int = 0  # the number of the lowest of them in the network

    @property
    def bidirectional(self) -> bool:
        """Tells whether any of the layers reads both ways."""
        return any(isinstance(layer, PreparedPair) for layer in self.layers)

    def part(self, first: int, last: int) -> Stack:
        """Returns the layers from number `first` to before number `last`."""
        return self._replace(layers=self.layers[first:last], first=first)

    def feed(self, i: int, top: Array | None, steps: Steps) -> Array:
        """Computes what the i-th of the layers is fed, from what stands below it."""
        if top is None:
            return read(steps.inputs, steps.flags.mask, self.dtype)
        return drop(top, steps.dropout[self.first + i - 1], self.dropout)

    def hand_up(self, top: Array | None, hidden: Array) -> Array:
        """Computes what a layer hands up, from what it was fed (before dropout) and its hidden states."""
        return top + hidden if self.residual and top is not None else hidden

    def hand_down(self, i: int, g: Array | None, dx: Array | None, steps: Steps) -> Array | None:
        """Computes what the i-th layer asks of the one below, from what is asked of it and of its inputs."""
        if self.first + i == 0 or dx is None:
            return None
        dx = drop(dx, steps.dropout[self.first + i - 1], self.dropout)
        return dx + g if self.residual and g is not None else dx


def forward(
    stack: Stack,
    recompute: Recompute,
    state: tuple[State, ...],
    steps: Steps,
    take: Callable[..., tuple[Array, Any, State]] = forward_segment,
) -> tuple[tuple[State, ...], tuple[Any, ...]]:
    """Takes the layers through some steps, from the bottom.

    Args:
        stack: the layers.
        recompute: what is left out of the residuals, because the reverse pass will compute it again.
        state: of every layer, before the steps.
        steps: what goes into them.
        take: takes one layer through the steps, `(layer, state, inputs, flags, recompute)` to hidden states, residuals
            and the last state.

    Returns:
        The last state of every layer, and the residuals of every layer.
    """
    top, final, kept = steps.below, [], []
    for i, (layer, start) in enumerate(zip(stack.layers, state, strict=True)):
        hidden, residuals, last = take(layer, start, stack.feed(i, top, steps), steps.flags, recompute)
        top = stack.hand_up(top, hidden)
        final.append(last)
        kept.append(residuals)
    return tuple(final), tuple(kept)


def inputs_of(stack: Stack, steps: Steps, residuals: tuple[Residuals | PairResiduals, ...]) -> list[Array]:
    """Computes what each layer was fed, and behind these what the top one hands up: nothing of it was kept."""
    top, found = steps.below, []
    for i, kept in enumerate(residuals):
        found.append(stack.feed(i, top, steps))
        top = stack.hand_up(top, kept.hidden)
    return [*found, top]


def backward(
    stack: Stack,
    adjoints: tuple[Adjoint, ...],
    steps: Steps,
    residuals: tuple[Any, ...],
    g: Array | None,
    vanishing: Array | None = None,
) -> tuple[tuple[Reversed, ...], Array | None]:
    """Takes the layers back through some steps, from the top.

    Args:
        stack, steps: as for `forward`.
        adjoints: dE/ds of every layer after the steps, through what comes later.
        residuals: of every layer, states at least.
        g: what is asked of what the top layer hands up, [K, *batch, H]; None where nothing is.
        vanishing: the weight of a step's share of the vanishing-gradient regulariser; None for none.

    Returns:
        What was found of every layer, bottom first; and what is asked of what the layers below hand up.
    """
    found: list[Any] = [None] * len(stack.layers)
    fed = inputs_of(stack, steps, residuals)
    for i in reversed(range(len(stack.layers))):
        layer = stack.layers[i]
        if isinstance(layer, PreparedPair):
            found[i] = reverse_pair(layer, fed[i], steps.flags, g, residuals[i], adjoints[i])
        else:
            found[i] = reverse_segment(layer, fed[i], steps.flags, g, residuals[i], adjoints[i], vanishing)
        g = stack.hand_down(i, g, found[i].inputs, steps)
    return tuple(found), g


def every_step(steps: Steps, residuals: tuple[Residuals, ...]) -> tuple[Steps, tuple[Residuals, ...]]:
    """Cuts T steps and their residuals into T segments of one step, [T, 1, ...]; none of them has a loss."""

    def cut(residuals: Residuals) -> Residuals:
        return Residuals(previous_states(residuals), *_one_each((residuals.states, residuals.of_steps)))

    return _one_each(steps._replace(loss=None)), tuple(map(cut, residuals))


def _one_each(tree: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda leaf: leaf[:, None], tree)


def weight_grads(
    stack: Stack, steps: Steps, residuals: tuple[Residuals, ...], deltas: tuple[Deltas, ...]
) -> tuple[Params, ...]:
    """Sums delta_t x_t^T and delta_t s_{t-1}^T over some steps, for every layer."""
    found, inputs = [], inputs_of(stack, steps, residuals)[:-1]
    for layer, fed, kept, delta in zip(stack.layers, inputs, residuals, deltas, strict=True):
        previous = layer.cell.recurrent_inputs(*linearize_segment(layer, fed, steps.flags, kept))
        found.append(layer.cell.weight_grads(layer.params, layer.operands, fed, previous, delta))
    return tuple(found)


def zero_adjoints(state: tuple[State, ...], initial: tuple[State | None, ...]) -> tuple[Adjoint, ...]:
    """Makes the adjoints after the last step, of which nothing is asked yet."""
    return tuple(Adjoint(*jax.tree.map(jnp.zeros_like, both)) for both in zip(state, initial, strict=True))


def last_hidden(layers: tuple[Layer, ...], residual: bool, final: tuple[State, ...]) -> Array:
    """Computes what the readout sees of a sequence as a whole, [*batch, outputs], from its last states."""
    top: Array | None = None
    for layer, last in zip(layers, final, strict=True):
        hidden = layer.join(*map(hidden_of, last)) if isinstance(layer, Bidirectional) else hidden_of(last)
        top = top + hidden if residual and top is not None else hidden
    return top


def ask_last(layers: tuple[Layer, ...], residual: bool, adjoints: tuple[Adjoint, ...], g: Array) -> tuple[Adjoint, ...]:
    """Adds what the readout asks of the last states, [*batch, outputs]: the adjoint of `last_hidden`."""
    asked = list(adjoints)
    for i in range(len(layers)) if residual else [len(layers) - 1]:
        layer, (state, initial) = layers[i], adjoints[i]
        if isinstance(layer, Bidirectional):
            asked[i] = Adjoint(tuple(map(add_to_hidden, state, layer.split(g))), initial)
        else:
            asked[i] = Adjoint(add_to_hidden(state, g), initial)
    return tuple(asked)
