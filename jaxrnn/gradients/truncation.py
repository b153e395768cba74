"""Three truncations of BPTT. They are different estimates of a gradient, and "truncated BPTT" has meant each of them.

Of the double sum dE/dW = sum_t sum_{j<=t} delta_{t,j} s_{j-1}^T over the step t that errs and the step j that is
blamed, each keeps a part. All leave the loss, the states and the readout's gradient as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrnn.arguments import check_positive, check_scale


@dataclasses.dataclass(frozen=True)
class Carried:
    """The sequence in chunks of k steps: the state is carried from one to the next, the gradient is cut between them.

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

    k: int

    def __post_init__(self) -> None:
        check_positive("k", self.k)


@dataclasses.dataclass(frozen=True)
class Window:
    """Every step's loss reaches back exactly k steps.

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

    k: int
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        if self.tolerance is not None:
            check_scale("tolerance", self.tolerance)


@dataclasses.dataclass(frozen=True)
class Tail:
    """Only the last k steps are differentiated at all; the losses of the others reach nothing but the readout.

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

    k: int

    def __post_init__(self) -> None:
        check_positive("k", self.k)


Truncation = Carried | Window | Tail


def check_truncation(value: Any) -> None:
    """Raise unless `value` is a truncation or None."""
    if value is not None and not isinstance(value, Truncation):
        raise TypeError(
            f"truncate must be a jaxrnn.Carried, Window or Tail, got {value!r}; these are different gradients, and "
            f"a number does not say which"
        )
