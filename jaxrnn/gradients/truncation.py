"""What a truncation of the gradient is, and two of them: in chunks, and over the last steps only.

Truncations are different estimates of a gradient, and "truncated BPTT" has meant each of them. Of the double sum
dE/dW = sum_t sum_{j<=t} delta_{t,j} s_{j-1}^T over the step t that errs and the step j that is blamed, each keeps a
part. All leave the loss, the states and the readout's gradient as they are.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from jaxrnn.arguments import check_positive
from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import Plan, decide
from jaxrnn.gradients.whole import Outcome, whole
from jaxrnn.layer.segments import each, join, scan_segments, split
from jaxrnn.network.batch import Steps
from jaxrnn.network.passes import forward, inputs_of
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
        ValueError: k below 1.
        TypeError: a k that is not an int.

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
        if setup.last is not None:  # the last chunk alone has a loss
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
