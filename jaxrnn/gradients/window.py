"""Truncated BPTT by lags: what every step's loss says of the step i before it, for all steps at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax

from jaxrnn.arguments import check_scale
from jaxrnn.cells.base import Deltas, State
from jaxrnn.gradients.plan import Plan
from jaxrnn.gradients.truncation import Truncation
from jaxrnn.gradients.whole import Lags, Outcome
from jaxrnn.layer.masking import Adjoint, blank
from jaxrnn.layer.scan import Residuals
from jaxrnn.layer.segments import join, scan_segments, segment_length, split
from jaxrnn.network.batch import Steps
from jaxrnn.network.passes import backward, every_step, forward, inputs_of, weight_grads
from jaxrnn.network.setup import Setup, Sums


@dataclasses.dataclass(frozen=True)
class Window(Truncation):
    """Lets every step's loss reach back exactly k steps.

        t - k <= j <= t

    Computed by lags, for all t at once: D_0[t] = delta_{t,t} and D_{i+1}[t-1] = (D_i[t] W) * (1 - s_{t-1}^2) are k
    dense products and no loop over T. It costs k times a reverse scan's arithmetic and holds all of T at once: for
    accelerators, and for gradients that die early. With a `tolerance` it stops by itself, see `jaxrnn.value_and_grad`.

    Args:
        k: steps back; k >= T - 1 is full BPTT.
        tolerance: stop before lag k where the largest term is at most this share of the largest of lag 0; a term is
            sum_{t, batch} |D_i[t]| of one unit.

    Raises:
        ValueError: k below 1, a tolerance that is negative or not finite.
        TypeError: a k that is not an int.

    Source: Williams & Peng (1990), BPTT(h) with h' = 1, whose h counts the step itself: h = k + 1; Britz (2015), the
    recurrent network tutorial's `bptt_truncate` = k.

    >>> import jaxrnn
    >>> jaxrnn.Window(20, tolerance=1e-3).k
    20
    """

    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            check_scale("tolerance", self.tolerance)

    def kept_steps(self, steps: int) -> int:
        """Counts the steps that are held at a time: all of them."""
        return steps

    def gradient(self, setup: Setup, plan: Plan, state: tuple[State, ...], sums: Sums, steps: Steps) -> Outcome:
        """Computes the loss and the sum of all lags up to k.

            D_0[t] = delta_{t,t}        D_{i+1}[t-1] = (D_i[t] W) * (1 - s_{t-1}^2)        delta_t = sum_{i<=k} D_i[t]

        here for any cell and any number of layers: every lag takes the layers back from the top, through one step each.
        """
        final, residuals = forward(setup.stack, "none", state, steps)
        sums, g = _readout(setup, setup.ask_last(final, sums), steps, residuals)
        take = functools.partial(_take, setup, *every_step(steps, residuals))
        totals = take(_no_lags(steps.shape[0], sums), g)  # lag 0, in which every step's own loss asks g

        def more(totals: _Totals) -> Array:
            going_on = totals.lag <= min(self.k, steps.shape[0] - 1)
            if self.tolerance is None:
                return going_on
            return going_on & (totals.sizes[-1] > self.tolerance * totals.sizes[0])

        totals = lax.while_loop(more, take, totals)
        grads = sums.grads._replace(layers=weight_grads(setup.stack, steps, residuals, totals.deltas))
        return Outcome(final, Sums(sums.E, grads, totals.starts), None, _reached(totals, steps.shape[0]))


class _Totals(NamedTuple):
    """Holds what the loop over lags carries."""

    after: tuple[State, ...]  # per layer dE_{t+i}/ds_t of the next lag i, [T, *batch, H]
    deltas: tuple[Deltas, ...]  # per layer, summed over the lags so far, [T, *batch, ...]
    starts: tuple[Adjoint, ...]  # per layer, what has reached s_0, through the first step and through resets
    lag: Array
    sizes: Array  # of the largest terms, or of what masked steps hold back: of lag 0, and of the last three


def _no_lags(T: int, sums: Sums) -> _Totals:
    """Makes the totals before lag 0, in which the last state is asked for what comes from later steps."""
    after = tuple(
        jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype).at[-1].set(leaf), adjoint.state)
        for adjoint in sums.adjoints
    )
    starts = jax.tree.map(jnp.zeros_like, sums.adjoints)
    return _Totals(after, (), starts, jnp.int32(0), jnp.zeros(4, sums.E.dtype))


def _take(
    setup: Setup, steps: Steps, residuals: tuple[Residuals, ...], totals: _Totals, g: Array | None = None
) -> _Totals:
    """Takes a lag: every step's adjoint back through that step, all at once, as segments [T, 1, *batch, ...]."""
    zeros = tuple(jax.tree.map(jnp.zeros_like, start.initial) for start in totals.starts)

    def one_step(after: tuple[State, ...], steps: Steps, residuals: tuple, g: Array | None) -> tuple:
        found, _ = backward(setup.stack, tuple(map(Adjoint, after, zeros)), steps, residuals, g)
        deltas = tuple(each.deltas for each in found)
        return tuple(each.adjoint for each in found), jax.tree.map(lambda leaf: leaf[0], deltas)

    g, mask = None if g is None else g[:, None], steps.flags.mask
    before, deltas = jax.vmap(one_step)(totals.after, steps, residuals, g)
    # Of a masked step the adjoint counts that it holds: zero deltas alone do not say that nothing is left.
    still_held = () if mask is None else blank(~mask[:, 0], tuple(adjoint.state for adjoint in before))
    size = _largest((deltas, still_held)).astype(totals.sizes.dtype)
    first = jnp.where(totals.lag == 0, size, totals.sizes[0])
    starts = tuple(map(_reach_start, totals.starts, before))
    # The adjoint before every step is that after the one before it.
    after = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf[1:], jnp.zeros_like(leaf[:1])]), tuple(each.state for each in before)
    )
    deltas = jax.tree.map(jnp.add, totals.deltas, deltas) if totals.deltas else deltas
    return _Totals(after, deltas, starts, totals.lag + 1, jnp.stack([first, *totals.sizes[2:], size]))


def _readout(setup: Setup, sums: Sums, steps: Steps, residuals: tuple[Residuals, ...]) -> tuple[Sums, Array | None]:
    """Takes readout and loss back over all steps, in segments; without a loss nothing is asked."""
    if steps.loss is None:
        return sums, None

    def segment(carry: tuple, x: tuple) -> tuple[tuple, Array]:
        E, g, readout = setup.loss.backward(*x)
        return jax.tree.map(jnp.add, carry, (E, readout)), g

    top = inputs_of(setup.stack, steps, residuals)[-1]
    T, rows = steps.shape[0], steps.loss.weights.size // steps.shape[0]
    K = segment_length("auto", T, rows, 2 * rows * setup.net.readout.outputs * top.dtype.itemsize)
    carry = sums.E, sums.grads.readout
    (E, readout), g = scan_segments(segment, carry, split((top, steps.loss), T, K))
    return sums._replace(E=E, grads=sums.grads._replace(readout=readout)), join(g)


def _reach_start(start: Adjoint, before: Adjoint) -> Adjoint:
    """Adds what a lag brings to s_0, through the first step, and through resets."""
    state = jax.tree.map(lambda s, leaf: s + leaf[0], start.state, before.state)
    return Adjoint(state, jax.tree.map(lambda s, leaf: s + leaf.sum(0), start.initial, before.initial))


def _largest(terms: ArrayTree) -> Array:
    """Computes max over units of sum_{t, batch} |D_i[t]|: as |s| <= 1, no entry of a lag's dE/db or dE/dW is larger."""
    sums = [jnp.abs(leaf).reshape(-1, leaf.shape[-1]).sum(0).max() for leaf in jax.tree.leaves(terms)]
    return jnp.max(jnp.stack(sums))


def _reached(totals: _Totals, T: int) -> Lags:
    """Bounds the lags left out, sum_{i > used} size_i <= size r / (1 - r) if they go on shrinking by r.

    r is the worse of the last two ratios between lags. A bound under that condition, which nothing proves: a gradient
    that grows again further back would escape it. Zero where no lag is left, infinite where they do not shrink.
    """
    first, a, b, c = totals.sizes
    used = totals.lag - 1
    ratio = jnp.maximum(jnp.where(b > 0, c / b, 0), jnp.where((a > 0) & (used > 1), b / a, 0))
    tail = jnp.where(ratio < 1, c * ratio / (1 - ratio), jnp.inf)
    nothing_left = (used >= T - 1) | (c == 0)
    bound = jnp.where(nothing_left, 0, jnp.where(used > 0, tail, jnp.inf))
    return Lags(used, jnp.where(first > 0, c / first, 0), bound)
