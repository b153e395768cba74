"""What a truncation of the gradient is, and the three of them: over the last steps only, in chunks, and by lags.

Truncations are different estimates of a gradient, and "truncated BPTT" has meant each of them. Of the double sum
dE/dW = sum_t sum_{j<=t} delta_{t,j} s_{j-1}^T over the step t that errs and the step j that is blamed, each keeps a
part. All leave the loss, the states and the readout's gradient as they are.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.arguments import check_positive, check_scale, entries
from jaxrnn.cells.base import Deltas, State
from jaxrnn.gradients.plan import Group, Plan, decide
from jaxrnn.gradients.whole import Lags, Outcome, back, whole
from jaxrnn.layer.machine import limits
from jaxrnn.layer.masking import Adjoint, blank
from jaxrnn.layer.scan import Residuals
from jaxrnn.layer.segments import each, join, scan_segments, segment_length, split
from jaxrnn.layer.sharding import vary_alike
from jaxrnn.network.batch import Steps
from jaxrnn.network.passes import backward, every_step, forward, inputs_of, weight_grads
from jaxrnn.network.setup import Setup, Sums


@dataclasses.dataclass(frozen=True)
class Truncation(abc.ABC):
    """Defines a truncation, of k steps: all of them compute a gradient by one signature."""

    k: int

    def __post_init__(self) -> None:
        check_positive("k", self.k)

    def kept_steps(self, steps: int) -> int:
        """Counts the steps that the reverse pass holds at a time, of T."""
        return min(self.k, steps)

    @abc.abstractmethod
    def gradient(self, setup: Setup, plan: Plan, state: tuple[State, ...], sums: Sums, steps: Steps) -> Outcome:
        """Computes the loss and its truncated gradient.

        Args:
            setup: the network and the arguments of the call.
            plan: the segments, for `kept_steps(T)` steps.
            state: of every layer, before the steps.
            sums: what comes from later steps.
            steps: what goes into the steps.
        """


@dataclasses.dataclass(frozen=True)
class Tail(Truncation):
    """Differentiates the last k steps only; the losses of the others reach nothing but the readout.

        T - k < j <= t

    For a sequence with one loss at its end this is a window; with a loss at every step it is not, and most of the
    losses train nothing below the readout. With padding at the end, the last k steps of the array are meant.

    Args:
        k: steps; k >= T is full BPTT.

    Raises:
        ValueError, TypeError: as for `jaxrnn.Carried`.

    Source: Theano's `scan(..., truncate_gradient=k)`.

    >>> import jaxrnn
    >>> jaxrnn.Tail(10)
    Tail(k=10)
    """

    def gradient(self, setup: Setup, plan: Plan, state: tuple[State, ...], sums: Sums, steps: Steps) -> Outcome:
        """Computes the loss, and the whole gradient of the last k steps."""
        before = max(0, steps.shape[0] - self.k)
        if not before:
            return whole(setup, plan, state, sums, steps)
        head, tail = (jax.tree.map(part, steps) for part in (lambda leaf: leaf[:before], lambda leaf: leaf[before:]))
        state, (E, readout) = _losses(setup, state, sums, head)
        sums = sums._replace(E=E, grads=sums.grads._replace(readout=readout))
        found = whole(setup, plan, state, sums, tail)
        norms = jax.tree.map(lambda leaf: jnp.pad(leaf, (before, 0)), found.norms)
        return found._replace(sums=_cut(found.sums), norms=norms)  # no gradient reaches the s_{t-1} of the first


def _losses(setup: Setup, state: tuple[State, ...], sums: Sums, steps: Steps) -> tuple[tuple[State, ...], tuple]:
    """Returns the last states of steps that are not differentiated, and the sums with their losses."""

    def segment(carry: tuple, steps: Steps) -> tuple[tuple, None]:
        state, totals = carry
        last, residuals = forward(setup.stack, "states" if steps.loss is None else "gates", state, steps)
        if steps.loss is not None:
            E, _, readout = setup.loss.backward(inputs_of(setup.stack, steps, residuals)[-1], steps.loss)
            totals = jax.tree.map(jnp.add, totals, (E, readout))
        return (last, totals), None

    K = decide(setup.net, steps.inputs, setup.call.dtype).lengths[-1]
    carry = state, (sums.E, sums.grads.readout)
    return scan_segments(segment, carry, split(steps, steps.shape[0], K))[0]


def _cut(sums: Sums) -> Sums:
    """Drops what would reach further back; what has reached initial states through resets stays."""
    return _with_states(sums, [jax.tree.map(jnp.zeros_like, adjoint.state) for adjoint in sums.adjoints])


def _with_states(sums: Sums, states: Iterable[State]) -> Sums:
    adjoints = zip(sums.adjoints, states, strict=True)
    return sums._replace(adjoints=tuple(adjoint._replace(state=state) for adjoint, state in adjoints))


@dataclasses.dataclass(frozen=True)
class Carried(Truncation):
    """Cuts the gradient every k steps; the state is carried on from chunk to chunk.

        j and t in the same chunk:      floor((j-1) / k) = floor((t-1) / k)

    What most training loops over a long text do, with one update per chunk; here the chunks' gradients are summed. The
    last step of a chunk reaches back k - 1 steps, its first reaches nothing: on average (k - 1)/2.

    Args:
        k: steps of a chunk; k >= T is full BPTT.

    Raises:
        ValueError: k below 1.
        TypeError: a k that is not an int.

    Source: the "truncated BPTT" of Mikolov et al. (2010) as training loops have it, and of Keras' stateful layers;
    Williams & Peng (1990), BPTT(h; h') with h' = h = k.

    >>> import jaxrnn
    >>> jaxrnn.Carried(35)
    Carried(k=35)
    """

    def gradient(self, setup: Setup, plan: Plan, state: tuple[State, ...], sums: Sums, steps: Steps) -> Outcome:
        """Computes the loss, and the sum of the whole gradients of all chunks."""
        T = steps.shape[0]
        k = self.kept_steps(T)
        if setup.call.last is not None:  # the last chunk alone has a loss
            return Tail((T - 1) % k + 1).gradient(setup, plan, state, sums, steps)

        def chunk(carry: tuple[tuple[State, ...], Sums], steps: Steps) -> tuple[tuple, tuple]:
            state, sums = carry
            found = whole(setup, plan, state, sums, steps)
            before = tuple(adjoint.state for adjoint in found.sums.adjoints)
            return (found.final, _cut(found.sums)), (before, found.norms)

        (final, sums), found = scan_segments(chunk, (state, sums), split(steps, T, k))
        before = each(lambda y: y[0], found)
        first = before.rest if before.whole is None else jax.tree.map(lambda leaf: leaf[0], before.whole)
        return Outcome(final, _with_states(sums, first), join(each(lambda y: y[1], found)))


@dataclasses.dataclass(frozen=True)
class Window(Truncation):
    """Lets every step's loss reach back exactly k steps.

        t - k <= j <= t

    Computed by lags, for all t at once: D_0[t] = delta_{t,t} and D_{i+1}[t-1] = (D_i[t] W) * (1 - s_{t-1}^2) are k
    dense products and no loop over T. It costs k times a reverse scan's arithmetic and holds all of T at once: meant
    for accelerators, not measured there yet, and slower on every CPU tried. With a `tolerance` it stops by itself where
    gradients die early, see `jaxrnn.value_and_grad`.

    Args:
        k: steps back; k >= T - 1 is full BPTT.
        tolerance: stop before lag k where the largest term is at most this share of the largest of lag 0; a term is
            sum_{t, batch} |D_i[t]| of one unit.

    Raises:
        ValueError, TypeError: as for `jaxrnn.Carried`; a tolerance that is negative or not finite.

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
        T = steps.shape[0]
        final, residuals = forward(setup.stack, "none", state, steps)
        sums, g = _readout(setup, setup.ask_last(final, sums), steps, residuals)
        # Of a batch spread over devices, the sizes of all parts: lag by lag where all must stop at one, or else once.
        total = setup.total if self.tolerance is not None else None
        take = functools.partial(_take, setup, total, *every_step(steps, residuals))

        def at_the_end(leaf: Array) -> Array:
            return jnp.zeros((T, *leaf.shape), leaf.dtype).at[-1].set(leaf)

        def more(totals: _Totals) -> Array:
            going_on = totals.lag <= min(self.k, T - 1)
            if self.tolerance is None:
                return going_on
            return going_on & (totals.sizes[-1].max() > self.tolerance * totals.sizes[0].max())

        after = jax.tree.map(at_the_end, tuple(adjoint.state for adjoint in sums.adjoints))
        starts = jax.tree.map(jnp.zeros_like, sums.adjoints)
        nothing = _Totals(after, (), starts, vary_alike(jnp.int32(0), sums.E), (sums.E,) * 4)
        totals = lax.while_loop(more, take, take(nothing, g))  # first lag 0, in which every step's own loss asks g
        grads = sums.grads._replace(layers=weight_grads(setup.stack, steps, residuals, totals.deltas))
        sizes = totals.sizes if total else setup.total(totals.sizes)
        return Outcome(final, Sums(sums.E, grads, totals.starts), None, _reached(sizes, totals.lag - 1, T))


class _Totals(NamedTuple):
    """Holds what the loop over lags carries."""

    after: tuple[State, ...]  # per layer dE_{t+i}/ds_t of the next lag i, [T, *batch, H]
    deltas: tuple[Deltas, ...]  # per layer, summed over the lags so far, [T, *batch, ...]
    starts: tuple[Adjoint, ...]  # per layer, what has reached s_0, through the first step and through resets
    lag: Array
    sizes: tuple[Array, ...]  # of every unit's terms, or of what masked steps hold back: of lag 0, of the last three


def _take(
    setup: Setup,
    total: Callable[[Array], Array] | None,
    steps: Steps,
    residuals: tuple[Residuals, ...],
    totals: _Totals,
    g: Array | None = None,
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
    size = _sizes((deltas, still_held), setup.zeros.E.dtype)
    size = total(size) if total else size
    sizes = (totals.sizes[0], *totals.sizes[2:], size) if totals.deltas else (size,) * 4
    starts = tuple(map(_reach_start, totals.starts, before))
    # The adjoint before every step is that after the one before it.
    after = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf[1:], jnp.zeros_like(leaf[:1])]), tuple(each.state for each in before)
    )
    deltas = jax.tree.map(jnp.add, totals.deltas, deltas) if totals.deltas else deltas
    return _Totals(after, deltas, starts, totals.lag + 1, sizes)


def _readout(setup: Setup, sums: Sums, steps: Steps, residuals: tuple[Residuals, ...]) -> tuple[Sums, Array | None]:
    """Takes readout and loss back over all steps, in segments: a group without layers."""
    top, T, rows = inputs_of(setup.stack, steps, residuals)[-1], steps.shape[0], entries(steps.shape[1:])
    K = segment_length("auto", T, rows, 2 * rows * setup.net.readout.outputs * top.dtype.itemsize, limits())
    alone = Group(len(setup.net.layers), len(setup.net.layers), (K,), "none")
    sums, (_, g) = back(setup, alone, split((), T, K), sums, steps._replace(below=top))
    return sums, g


def _reach_start(start: Adjoint, before: Adjoint) -> Adjoint:
    """Adds what a lag brings to s_0, through the first step, and through resets."""
    state = jax.tree.map(lambda s, leaf: s + leaf[0], start.state, before.state)
    return Adjoint(state, jax.tree.map(lambda s, leaf: s + leaf.sum(0), start.initial, before.initial))


def _sizes(terms: ArrayTree, dtype: DTypeLike) -> Array:
    """Computes sum_{t, batch} |D_i[t]| of every unit: as |s| <= 1, no entry of a lag's dE/db or dE/dW is larger."""
    return jnp.concatenate([jnp.abs(x).sum(range(x.ndim - 1), dtype=dtype) for x in jax.tree.leaves(terms)])


def _reached(sizes: tuple[Array, ...], used: Array, T: int) -> Lags:
    """Bounds the lags left out, sum_{i > used} size_i <= size r / (1 - r) if they go on shrinking by r.

    r is the worse of the last two ratios between lags. A bound under that condition, which nothing proves: a gradient
    that grows again further back would escape it. Zero where no lag is left, infinite where they do not shrink.
    """
    first, a, b, c = (size.max() for size in sizes)
    ratio = jnp.maximum(jnp.where(b > 0, c / b, 0), jnp.where((a > 0) & (used > 1), b / a, 0))
    tail = jnp.where(ratio < 1, c * ratio / (1 - ratio), jnp.inf)
    nothing_left = (used >= T - 1) | (c == 0)
    bound = jnp.where(nothing_left, 0, jnp.where(used > 0, tail, jnp.inf))
    return Lags(used, jnp.where(first > 0, c / first, 0), bound)
