"""A bidirectional layer in the two passes: each direction is one layer, taken through all of its steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax.typing import DTypeLike

from jaxrnn.cells.base import Params, State
from jaxrnn.layer.bidirectional import Bidirectional, BidirectionalParams, Layer
from jaxrnn.layer.bptt import Reversed, zero_grads
from jaxrnn.layer.masking import Adjoint, Flags, StepAdjoints
from jaxrnn.layer.prepared import FORWARD_IN_TIME, PreparedCell, Recompute, ScanOptions, prepare_cell
from jaxrnn.layer.segments import Segments
from jaxrnn.layer.unroll import LayerCall, backward_layer, forward_layer, split_directions


class PreparedPair(NamedTuple):
    """Holds both directions of a bidirectional layer, made ready for the loops."""

    layer: Bidirectional
    forward: PreparedCell
    backward: PreparedCell


class PairResiduals(NamedTuple):
    """Holds what the forward pass leaves to the reverse pass, of both directions."""

    state: tuple[State, State]  # the states that the directions set out from
    hidden: Array  # [T, *batch, 2H] or [T, *batch, H], merged
    forward: Segments
    backward: Segments


def prepare_layer(
    layer: Layer,
    params: Params,
    dtype: DTypeLike,
    dropout_mask: ArrayTree | None = None,
    initial: ArrayTree | None = None,
    options: ScanOptions = FORWARD_IN_TIME,
) -> PreparedCell | PreparedPair:
    """Makes a layer ready for the loops, see `jaxrnn.layer.prepared.prepare_cell`; all but `options` come in pairs."""
    if not isinstance(layer, Bidirectional):
        return prepare_cell(layer, params, dtype, dropout_mask, initial, options)
    masks, initials = dropout_mask or (None, None), initial or (None, None)
    forward = prepare_cell(layer.forward, params.forward, dtype, masks[0], initials[0], options)
    options = options._replace(reverse=True)
    backward = prepare_cell(layer.backward, params.backward, dtype, masks[1], initials[1], options)
    return PreparedPair(layer, forward, backward)


def forward_pair(
    pair: PreparedPair, start: tuple[State, State], inputs: Array, flags: Flags, _: Recompute = "gates"
) -> tuple[Array, PairResiduals, tuple[State, State]]:
    """Takes both directions through all steps: the twin of `jaxrnn.layer.scan.forward_segment`.

    What is kept is what the options of the two cells say, a segment of each at a time.
    """
    ahead, back = split_directions(LayerCall(inputs, start, flags))
    forward, residuals, last = forward_layer(pair.forward, ahead)
    backward, residuals_backward, first = forward_layer(pair.backward, back)
    hidden = pair.layer.join(forward, backward)
    return hidden, PairResiduals(start, hidden, residuals, residuals_backward), (last, first)


def reverse_pair(
    pair: PreparedPair, inputs: Array, flags: Flags, g: Array | None, residuals: PairResiduals, adjoint: Adjoint
) -> Reversed:
    """Takes both directions back through all steps: the twin of `jaxrnn.layer.bptt.reverse_segment`."""
    calls = split_directions(LayerCall(inputs, residuals.state, flags))
    asked = (None, None) if g is None else pair.layer.split(g)
    after = map(Adjoint, adjoint.state, adjoint.initial or (None, None))
    found = [
        backward_layer(layer, call, g, kept, (zero_grads(layer.params, residuals.hidden.dtype), own))
        for layer, call, g, kept, own in zip(pair[1:], calls, asked, residuals[2:], after, strict=True)
    ]
    carries, dx = zip(*found, strict=True)
    grads, before = zip(*carries, strict=True)
    state, initial = zip(*before, strict=True)
    adjoint = Adjoint(state, None if adjoint.initial is None else initial)
    dx = jax.tree.map(jnp.add, *dx)
    return Reversed(
        adjoint, BidirectionalParams(*grads), dx, deltas=None, step_adjoints=StepAdjoints(None, None), norms=None
    )
