"""What a truncation of the gradient is.

Truncations are different estimates of a gradient, and "truncated BPTT" has meant each of them. Of the double sum
dE/dW = sum_t sum_{j<=t} delta_{t,j} s_{j-1}^T over the step t that errs and the step j that is blamed, each keeps a
part. All leave the loss, the states and the readout's gradient as they are.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import NamedTuple

from chex import Array

from jaxrnn.arguments import check_positive
from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import Plan
from jaxrnn.layer.bptt import StepNorms
from jaxrnn.network.batch import Steps
from jaxrnn.network.setup import Setup, Sums


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


@dataclasses.dataclass(frozen=True)
class Truncation(abc.ABC):
    """Defines a truncation: all of them compute a gradient by one signature."""

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


def check_truncation(value: object) -> None:
    """Raises unless the value is a truncation or None."""
    if value is not None and not isinstance(value, Truncation):
        raise TypeError(
            f"truncate must be a jaxrnn.Carried, Window or Tail, got {value!r}; these are different gradients, and "
            f"a number does not say which"
        )
