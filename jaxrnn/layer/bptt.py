"""Back-propagation through time by hand: the reverse scan over one segment of one layer."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.arguments import accumulation_dtype, is_integer
from jaxrnn.cells.base import Deltas, Local, Params, State
from jaxrnn.layer import associative
from jaxrnn.layer.masking import Adjoint, Flags, StepAdjoints, adjoint_step, blank, enter
from jaxrnn.layer.penalty import omega
from jaxrnn.layer.prepared import PreparedCell
from jaxrnn.layer.scan import Residuals, previous_states


class StepNorms(NamedTuple):
    """Says how large the gradient is at every step of one layer, over units and batch together."""

    delta: Array  # |delta_t|, [K]
    adjoint: Array  # |dE/ds_t|, [K]


class Reversed(NamedTuple):
    """Holds what the reverse pass finds of one segment of one layer."""

    adjoint: Adjoint  # before the segment
    grads: Params  # dE/dparams, summed over the segment
    inputs: Array | None  # dE/dx_t, [K, *batch, D]; None for tokens
    deltas: Deltas  # delta_t, [K, *batch, ...]
    step_adjoints: StepAdjoints  # [K, *batch, ...], as far as they were asked for
    norms: StepNorms | None  # where the options ask for them


def reverse_segment(
    layer: PreparedCell,
    inputs: Array,
    flags: Flags,
    g: Array | None,
    residuals: Residuals,
    adjoint: Adjoint,
    vanishing: Array | None = None,
) -> Reversed:
    """Takes one layer back through one segment: the heart of BPTT.

    Only the adjoint is carried through the loop, see `jaxrnn.layer.masking.adjoint_step`. The weight gradients are sums
    over t of products of what the loop leaves behind, and are taken after it, all steps at once; autodiff of a scan
    carries and updates them at every step.

    Args:
        layer: the cell, and what all segments share.
        inputs: [K, *batch, D], or tokens [K, *batch].
        flags: mask and reset of the segment's steps, [K, *batch] each, or None.
        g: what the layers above ask of each hidden state, [K, *batch, H]; None where they ask nothing.
        residuals: what the forward pass left of this segment, states at least.
        adjoint: dE/ds_K through the steps after the segment.
        vanishing: the weight of a step's share of the vanishing-gradient regulariser; None for none.
    """
    cell, params, operands, _, options = layer
    previous, local = linearize_segment(layer, inputs, flags, residuals)
    adjoint, deltas, step_adjoints = scan_adjoints(
        layer, flags, g, local, adjoint, options.return_adjoints or vanishing is not None
    )
    previous, norms = cell.recurrent_inputs(previous, local), None
    if options.return_norms:
        norms = StepNorms(_norms(deltas), _norms(step_adjoints.after))
    if vanishing is not None:
        _, c = omega(step_adjoints.after, step_adjoints.before, flags.mask)
        previous = cell.with_penalty(operands, previous, deltas, vanishing * c)
    grads = cell.weight_grads(params, operands, inputs, previous, deltas)
    dx = None if is_integer(inputs) else cell.input_grads(params, inputs, previous, deltas)
    chex.assert_trees_all_equal_shapes(grads, params)
    return Reversed(adjoint, grads, dx, deltas, step_adjoints, norms)


def linearize_segment(layer: PreparedCell, inputs: Array, flags: Flags, residuals: Residuals) -> tuple[State, Local]:
    """Computes s_{t-1} and what the cell's `step_adjoint` needs of every step, and again what was not kept."""
    cell, _, operands, initial, options = layer
    previous = enter(flags, initial, previous_states(residuals, options.reverse))
    of_steps = residuals.of_steps
    if of_steps is None:
        _, of_steps = cell.step_with_residuals(operands, previous, cell.project(operands, inputs))
        of_steps = lax.optimization_barrier(of_steps)
    return previous, cell.linearize(operands, inputs, previous, residuals.states, of_steps)


def scan_adjoints(
    layer: PreparedCell, flags: Flags, g: Array | None, local: Local, adjoint: Adjoint, return_adjoints: bool = False
) -> tuple[Adjoint, Deltas, StepAdjoints]:
    """Runs the loop over the steps of a segment backwards.

    Returns:
        The adjoint before the segment, delta_t [K, *batch, ...], and the adjoints on both sides of every step where
        they are asked for (where the options want norms, dE/ds_t alone).
    """
    options = layer.options
    if options.backward == "associative":
        adjoint, deltas = associative.scan_adjoints(layer, flags, g, local, adjoint)
        return adjoint, blank(flags.mask, deltas), StepAdjoints(None, None)

    def step(adjoint: Adjoint, x: tuple[Array | None, Local, Flags]) -> tuple[Adjoint, tuple]:
        g, local, flags = x
        adjoint, delta, (after, before) = adjoint_step(layer, adjoint, g, local, flags)
        after = after if return_adjoints or options.return_norms else None
        return adjoint, (delta, StepAdjoints(after, before if return_adjoints else None))

    adjoint, (deltas, step_adjoints) = lax.scan(
        step, adjoint, (g, local, flags), reverse=not options.reverse, unroll=options.unroll
    )
    return adjoint, blank(flags.mask, deltas), step_adjoints


def zero_grads(params: Params, dtype: DTypeLike) -> Params:
    """Makes zeros like the parameters, to sum gradients up in: in float32, and in what is computed in, at least."""

    def zeros(leaf: Array) -> Array:
        wider = max(map(accumulation_dtype, (leaf.dtype, dtype)), key=lambda dtype: dtype.itemsize)
        return jnp.zeros_like(leaf, wider)

    return jax.tree.map(zeros, params)


def _norms(tree: ArrayTree) -> Array:
    """Takes the norm of every step over all else: [K, ...] to [K]."""
    return jnp.sqrt(sum(jnp.sum(leaf * leaf, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(tree)))
