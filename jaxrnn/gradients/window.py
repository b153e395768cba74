"""The gradient by lags: what every step's loss says of the step i before it, for all steps at once. No loop over T."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import Array
from jaxrnn.cells.base import State, add_to_hidden
from jaxrnn.gradients.truncation import Window
from jaxrnn.layer.masking import Adjoint, Breaks, blank, enter_adjoint, leave
from jaxrnn.layer.scan import Trace
from jaxrnn.network.passes import Linearized, Stack, Steps


class Lags(NamedTuple):
    """How far a window reached, and what it left out."""

    used: Array  # lags taken, at most k; lag 0 is not counted
    last: Array  # the largest term of the last of them, against that of lag 0
    bound: Array  # of what lags left out add to any entry of dE/db and dE/dW: see `_reached`


class _Sums(NamedTuple):
    """What the loop over lags carries."""

    after: tuple[State, ...]  # per layer dE_{t+i}/ds_t of the next lag i, [T, *batch, H]
    deltas: tuple[Any, ...]  # per layer, summed over the lags so far
    starts: tuple[Adjoint, ...]  # per layer, what has reached s_0, through the first step and through resets
    lag: Array
    sizes: Array  # of the largest terms: of lag 0, and of the last three


def window(
    stack: Stack, steps: Steps, traces: tuple[Trace, ...], g: Array | None, last: tuple[Adjoint, ...], truncate: Window
) -> tuple[tuple[Any, ...], tuple[Adjoint, ...], Lags]:
    """The layers' weight gradients, the adjoints of s_0, and how far it reached.

        D_0[t] = delta_{t,t}        D_{i+1}[t-1] = (D_i[t] W) * (1 - s_{t-1}^2)        delta_t = sum_{i<=k} D_i[t]

    here for any cell and any number of layers: of every lag i, the layers from the top.

    Args:
        stack, steps, traces: the network and its whole sequence.
        g: what the readout asks of every hidden state, [T, *batch, H]; None where only the last one is asked.
        last: per layer, what is asked of the final state.
        truncate: k and the tolerance.
    """
    layers = stack.linearize(steps, traces)
    T = steps.inputs.shape[0]
    after = tuple(jax.tree.map(lambda leaf: _at_the_end(leaf, T), adjoint.state) for adjoint in last)
    sums = _Sums(after, _zero_deltas(stack, layers, after), last, jnp.int32(0), jnp.zeros(4, stack.loss.weights.dtype))
    starts = tuple(jax.tree.map(jnp.zeros_like, adjoint) for adjoint in last)
    sums = _lag(stack, layers, steps, sums._replace(starts=starts), g)

    def more(sums: _Sums) -> Array:
        going_on = sums.lag <= min(truncate.k, T - 1)
        if truncate.tolerance is None:
            return going_on
        return going_on & (sums.sizes[-1] > truncate.tolerance * sums.sizes[0])

    sums = lax.while_loop(more, lambda sums: _lag(stack, layers, steps, sums, None), sums)
    grads = tuple(
        cell.weight_grads(params, operands, layer.fed, layer.previous, delta)
        for (cell, params, operands, _, _), layer, delta in zip(stack.layers, layers, sums.deltas, strict=True)
    )
    return grads, sums.starts, _reached(sums, T)


def _lag(stack: Stack, layers: tuple[Linearized, ...], steps: Steps, sums: _Sums, g: Array | None) -> _Sums:
    """One lag: every step's adjoint through that step, all at once; layers from the top."""
    after, deltas, starts = list(sums.after), list(sums.deltas), list(sums.starts)
    sizes = []
    for i in reversed(range(len(layers))):
        (cell, params, operands, _, _), (fed, previous, local) = stack.layers[i], layers[i]
        asked = after[i] if g is None else add_to_hidden(after[i], g)
        before, delta = cell.step_adjoint(operands, asked, local)
        delta = blank(steps.breaks.mask, delta)
        deltas[i] = jax.tree.map(jnp.add, deltas[i], delta)
        sizes.append(_largest(delta))
        after[i], starts[i] = _back(steps.breaks, leave(steps.breaks, asked, before), starts[i])
        dx = cell.input_grads(params, fed, previous, delta) if i > 0 else None
        g = stack.hand_down(i, g, dx, steps)
    size = jnp.max(jnp.stack(sizes)).astype(sums.sizes.dtype)
    first = jnp.where(sums.lag == 0, size, sums.sizes[0])
    return _Sums(tuple(after), tuple(deltas), tuple(starts), sums.lag + 1, jnp.stack([first, *sums.sizes[2:], size]))


def _back(breaks: Breaks, before: State, start: Adjoint) -> tuple[State, Adjoint]:
    """The adjoint before every step becomes that after the one before it; the first step's has reached s_0."""
    zeros = jax.tree.map(jnp.zeros_like, before) if breaks.reset is not None else None
    state, initial = enter_adjoint(breaks, before, zeros)
    reached = jax.tree.map(lambda s, leaf: s + leaf[0], start.state, state)
    through_resets = jax.tree.map(lambda s, leaf: s + leaf.sum(0), start.initial, initial)
    after = jax.tree.map(lambda leaf: jnp.concatenate([leaf[1:], jnp.zeros_like(leaf[:1])]), state)
    return after, Adjoint(reached, through_resets)


def _at_the_end(leaf: Array, steps: int) -> Array:
    return jnp.zeros((steps, *leaf.shape), leaf.dtype).at[-1].set(leaf)


def _zero_deltas(stack: Stack, layers: tuple[Linearized, ...], after: tuple[State, ...]) -> tuple[Any, ...]:
    def deltas() -> tuple[Any, ...]:
        parts = zip(stack.layers, layers, after, strict=True)
        return tuple(layer.cell.step_adjoint(layer.operands, asked, seen.local)[1] for layer, seen, asked in parts)

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(deltas))


def _largest(delta: Any) -> Array:
    """max over units of sum_{t, batch} |D_i[t]|: as |s| <= 1, no entry of a lag's share of dE/db or dE/dW is larger."""
    sums = (jnp.abs(leaf).reshape(-1, leaf.shape[-1]).sum(0).max() for leaf in jax.tree.leaves(delta))
    return jnp.max(jnp.stack(list(sums)))


def _reached(sums: _Sums, T: int) -> Lags:
    """What the lags say of those left out, sum_{i > used} size_i <= size r / (1 - r) if they go on shrinking by r.

    r is the worse of the last two ratios between lags. A bound under that condition, which nothing proves: a gradient
    that grows again further back would escape it. Zero where no lag is left, infinite where they do not shrink.
    """
    first, a, b, c = sums.sizes
    used = sums.lag - 1
    ratio = jnp.maximum(jnp.where(b > 0, c / b, 0), jnp.where((a > 0) & (used > 1), b / a, 0))
    tail = jnp.where(ratio < 1, c * ratio / (1 - ratio), jnp.inf)
    nothing_left = (used >= T - 1) | (c == 0)
    bound = jnp.where(nothing_left, 0, jnp.where(used > 0, tail, jnp.inf))
    return Lags(used, jnp.where(first > 0, c / first, 0), bound)
