"""The whole gradient: forward through all steps, and back, in segments of time and groups of layers.

    forward, group by group from the bottom, segment by segment from the first:     keep residuals
    reverse, group by group from the top, segment by segment from the last:
        O_t = V s_t + c       e_t = w_t dE_t/dO_t       g_t = V^T e_t                (the top group)
        layers from the top:  delta_t = (1 - s_t^2) * (g_t + W^T delta_{t+1});       the layer below: g_t = U^T delta_t
        gradients += one product per weight over the segment

A plan says where time and layers are cut. What a group hands to the next exists for all steps, [T, *batch, H].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import Group, Plan
from jaxrnn.layer.both_ways import forward_pair
from jaxrnn.layer.bptt import StepNorms
from jaxrnn.layer.scan import forward_segment
from jaxrnn.layer.segments import Segments, each, join, scan_segments, split
from jaxrnn.network.batch import Steps
from jaxrnn.network.passes import Stack, backward, forward, inputs_of
from jaxrnn.network.setup import Setup, Sums

Found: TypeAlias = tuple[
    tuple[StepNorms | None, ...], Array | None
]  # norms of layers, and what is asked of those below


class Lags(NamedTuple):
    """Says how far a window reached, and what it left out."""

    used: Array  # lags taken, at most k; lag 0 is not counted
    last: Array  # the largest term of the last of them, against that of lag 0
    bound: Array  # of what lags left out add to any entry of dE/db and dE/dW, see `jaxrnn.Window`


class Outcome(NamedTuple):
    """Holds what a gradient strategy finds."""

    final: tuple[State, ...]  # the last states
    sums: Sums  # the loss, the gradients, and the adjoints before the first step
    norms: tuple[StepNorms | None, ...] | None = None  # [T], where they were asked for
    lags: Lags | None = None  # of a window


def whole(setup: Setup, plan: Plan, state: tuple[State, ...], sums: Sums, steps: Steps) -> Outcome:
    """Computes the loss of some steps and its whole gradient, see `jaxrnn.gradients.truncation.Truncation.gradient`."""
    kept: list[tuple[Group, Steps, Segments]] = []
    final: tuple[State, ...] = ()
    for group in plan.groups:
        if kept:
            below, steps, residuals = kept[-1]
            steps = steps._replace(below=inputs_of(_stack(setup, below), steps, join(residuals))[-1])  # [T, *batch, H]
        cut = split(steps, steps.shape[0], group.lengths[0])
        last, residuals = scan_segments(_ahead(setup, group), state[group.first : group.last], cut)
        kept.append((group, steps, residuals))
        final += last
    sums, g = setup.ask_last(final, sums), None
    norms: tuple[StepNorms | None, ...] = ()
    for group, steps, residuals in reversed(kept):
        steps = steps._replace(g=g, loss=steps.loss if group is plan.groups[-1] else None)
        sums, (found, g) = back(setup, group, residuals, sums, steps)
        norms = found + norms
    return Outcome(final, sums, norms)


def _stack(setup: Setup, group: Group) -> Stack:
    return setup.stack.part(group.first, group.last)


def _ahead(setup: Setup, group: Group) -> Callable:
    """Returns what takes a group through one segment forward: `(state, steps) -> (last state, residuals)`."""
    stack = _stack(setup, group)
    if group.recompute == "states":  # the states before the steps are all that is kept
        return lambda state, steps: (skim(stack, group.lengths[-1], state, steps), state)
    return functools.partial(
        forward, stack, group.recompute, take=forward_pair if stack.bidirectional else forward_segment
    )


def skim(stack: Stack, K: int, state: tuple[State, ...], steps: Steps) -> tuple[State, ...]:
    """Returns the last states after some steps, K of them at a time: U x_t exists for K steps only."""

    def segment(state: tuple[State, ...], steps: Steps) -> tuple[tuple[State, ...], None]:
        return forward(stack, "states", state, steps)[0], None

    return scan_segments(segment, state, split(steps, steps.shape[0], K))[0]


def back(setup: Setup, group: Group, residuals: Segments, sums: Sums, steps: Steps) -> tuple[Sums, Found]:
    """Takes a group of layers back through some steps, in segments of the first of the group's lengths.

    Returns the sums before the steps; the norms of every layer, and what is asked of the layers below, [K, *batch, H].
    """
    K, *inner = group.lengths
    finer = group._replace(lengths=tuple(inner))

    def segment(sums: Sums, x: tuple[Steps, Any]) -> tuple[Sums, Found]:
        steps, residuals = x
        if group.recompute == "states" and inner:
            _, residuals = scan_segments(_ahead(setup, finer), residuals, split(steps, steps.shape[0], inner[0]))
            return back(setup, finer, residuals, sums, steps)
        if group.recompute == "states":
            _, residuals = forward(_stack(setup, group), "none", residuals, steps)
        return _segment_back(setup, group, residuals, sums, steps)

    cut = split(steps, steps.shape[0], K)
    sums, found = scan_segments(segment, sums, each(lambda *x: x, cut, residuals), reverse=True)
    return sums, join(found)


def _segment_back(setup: Setup, group: Group, residuals: tuple, sums: Sums, steps: Steps) -> tuple[Sums, Found]:
    """Takes a group of layers back through one segment, behind readout and loss where these are due."""
    (E, grads, adjoints), stack, (first, last, *_) = sums, _stack(setup, group), group
    g, readout = steps.g, grads.readout
    if steps.loss is not None:
        segment_E, g, dreadout = setup.loss.backward(inputs_of(stack, steps, residuals)[-1], steps.loss)
        E, readout = E + segment_E, jax.tree.map(jnp.add, readout, dreadout)
    found, g = backward(stack, adjoints[first:last], steps, residuals, g, setup.call.vanishing)
    layers = jax.tree.map(jnp.add, grads.layers[first:last], tuple(each.grads for each in found))
    grads = grads._replace(layers=grads.layers[:first] + layers + grads.layers[last:], readout=readout)
    adjoints = adjoints[:first] + tuple(each.adjoint for each in found) + adjoints[last:]
    return Sums(E, grads, adjoints), (tuple(each.norms for each in found), g)
