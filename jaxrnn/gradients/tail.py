"""Truncated BPTT over the last steps only."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import Plan, decide
from jaxrnn.gradients.truncation import Outcome, Truncation
from jaxrnn.gradients.whole import skim, whole
from jaxrnn.layer.segments import scan_segments, split
from jaxrnn.network.batch import Steps
from jaxrnn.network.passes import forward, inputs_of
from jaxrnn.network.setup import Setup, Sums


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
        # The first of the last k steps has an s_{t-1}, but no gradient reaches it.
        adjoints = tuple(a._replace(state=jax.tree.map(jnp.zeros_like, a.state)) for a in found.sums.adjoints)
        norms = jax.tree.map(lambda leaf: jnp.pad(leaf, (before, 0)), found.norms)
        return found._replace(sums=found.sums._replace(adjoints=adjoints), norms=norms)


def _losses(setup: Setup, state: tuple[State, ...], sums: Sums, steps: Steps) -> tuple[tuple[State, ...], tuple]:
    """Returns the last states of steps that are not differentiated, and the sums with their losses."""
    K = decide(setup.net, steps.inputs, setup.call.dtype).lengths[-1]
    if steps.loss is None:
        return skim(setup.stack, K, state, steps), (sums.E, sums.grads.readout)

    def segment(carry: tuple, steps: Steps) -> tuple[tuple, None]:
        state, totals = carry
        last, residuals = forward(setup.stack, "gates", state, steps)
        top = inputs_of(setup.stack, steps, residuals)[-1]
        assert steps.loss is not None
        E, _, readout = setup.loss.backward(top, steps.loss)
        return (last, jax.tree.map(jnp.add, totals, (E, readout))), None

    carry = state, (sums.E, sums.grads.readout)
    return scan_segments(segment, carry, split(steps, steps.shape[0], K))[0]
