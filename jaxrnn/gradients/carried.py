"""Truncated BPTT in chunks: the state is carried from one to the next, the gradient is not."""

from __future__ import annotations

import dataclasses

import jax

from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import Plan
from jaxrnn.gradients.tail import Tail
from jaxrnn.gradients.truncation import Outcome, Truncation
from jaxrnn.gradients.whole import whole
from jaxrnn.layer.segments import each, join, scan_segments, split
from jaxrnn.network.batch import Steps
from jaxrnn.network.passes import zero_adjoints
from jaxrnn.network.setup import Setup, Sums


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
            # What reached initial states through resets is summed; to the chunk before, nothing is carried.
            before, initial = zip(*found.sums.adjoints, strict=True)
            cut = tuple(
                zero._replace(initial=s_0) for zero, s_0 in zip(zero_adjoints(state, initial), initial, strict=True)
            )
            return (found.final, found.sums._replace(adjoints=cut)), (before, found.norms)

        (final, sums), found = scan_segments(chunk, (state, sums), split(steps, T, k))
        before = each(lambda y: y[0], found)
        first = before.rest if before.whole is None else jax.tree.map(lambda leaf: leaf[0], before.whole)
        adjoints = tuple(a._replace(state=state) for a, state in zip(sums.adjoints, first, strict=True))
        return Outcome(final, sums._replace(adjoints=adjoints), join(each(lambda y: y[1], found)))
