"""Measures gradients over the lengths of segments, and fits the limits by which "auto" chooses among them."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxrnn.cells.base import Cell
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.lstm import LSTM
from jaxrnn.gradients.plan import Sizes
from jaxrnn.gradients.value_and_grad import value_and_grad
from jaxrnn.layer.machine import Limits
from jaxrnn.layer.segments import nearby_divisor, segment_length
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.network.network import Network
from jaxrnn.network.readout import Readout


class Problem(NamedTuple):
    """Names a network of one layer and the shape of its batch."""

    cell: Callable[[int, int], Cell]
    T: int
    B: int
    D: int
    H: int
    V: int


class Timings(NamedTuple):
    """Holds what the gradient of a problem took, cut into segments of several lengths."""

    problem: str
    steps: int  # T
    rows: int  # B
    step_bytes: int  # what a step occupies in the reverse pass
    seconds: Mapping[int, float]  # of every K
    disturbed: float = 1.0  # how much longer a usual call took than one that nothing else disturbed


# From what any cache holds as a whole to what none does, 4 to 100 MB; of few rows and of many, of small weights and of
# those that fill a cache. The first of them speak for all where the time is enough for no more.
PROBLEMS = (
    Problem(Elman, 100, 32, 64, 128, 65),
    Problem(Elman, 512, 32, 64, 256, 128),
    Problem(LSTM, 100, 32, 64, 128, 65),
    Problem(Elman, 1000, 2, 32, 256, 64),
    Problem(Elman, 64, 32, 65, 512, 65),
    Problem(LSTM, 64, 64, 64, 256, 128),
    Problem(Elman, 64, 32, 64, 256, 2000),
    Problem(LSTM, 300, 4, 32, 128, 64),
    Problem(Elman, 200, 8, 32, 96, 64),
)
SHORTEST = 4  # steps of a segment
# Nothing is fitted more closely than this: lengths are measured by powers of two.
STEP = math.sqrt(2)
LEAST_TURNS = 4
NOISE = 0.01  # what the clock does not tell apart


def measure(problem: Problem, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Timings:
    """Measures a problem for T and the powers of two below it, in turns, for so many seconds with compilation."""
    end = clock() + seconds
    cell, T, B, D, H, V = problem
    net = Network((cell(D, H),), Readout(H, V), softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[1], (T, B, D))
    call = net.init(keys[0]), inputs, jax.random.randint(keys[2], (T, B), 0, V)
    programs = {K: jax.jit(value_and_grad(net, K)).lower(*call).compile() for K in lengths(T)}
    sizes = Sizes(net, inputs, inputs.dtype, T)
    name = f"{cell.__name__} {T},{B},{D},{H},{V}"
    return Timings(name, T, B, sizes.widest, *in_turns(programs, call, end, clock))


def lengths(steps: int) -> list[int]:
    """Returns the lengths that are tried: T, and powers of two below it, or the divisors near them."""
    powers = (2**power for power in range(steps.bit_length()))
    return sorted({nearby_divisor(steps, K) for K in powers if SHORTEST <= K < steps} | {steps}, reverse=True)


def in_turns(
    programs: Mapping[int, Callable[..., Any]], call: tuple, end: float, clock: Callable[[], float]
) -> tuple[dict[int, float], float]:
    """Times programs in turns until the clock says `end`; returns their times, and how disturbed they were.

    A turn is one untimed call, which finds the caches as another program left them, and two timed ones, which find them
    as a training loop does. What else runs on a machine makes a call longer, never shorter: a program's time is the
    first decile of its calls.
    """
    times: dict[int, list[float]] = {K: [] for K in programs}
    while clock() < end or len(times[min(times)]) < 2 * LEAST_TURNS:
        for K, program in programs.items():
            jax.block_until_ready(program(*call))
            for _ in range(2):
                start = clock()
                jax.block_until_ready(program(*call))
                times[K].append(clock() - start)
    found = {K: sorted(every)[len(every) // 10] for K, every in times.items()}
    return found, statistics.median(statistics.median(every) / found[K] for K, every in times.items())


def cost(timings: Timings, limits: Limits) -> float:
    """Computes how much longer the K that limits lead to takes than the best one: 1 where it is the best."""
    K = segment_length("auto", timings.steps, timings.rows, timings.step_bytes, limits)
    return time_of(timings.seconds, K) / min(timings.seconds.values())


def time_of(seconds: Mapping[int, float], K: int) -> float:
    """Returns what K takes, between the lengths that were measured a straight line in logarithms."""
    below = max((known for known in seconds if known <= K), default=min(seconds))
    above = min((known for known in seconds if known >= K), default=max(seconds))
    if below >= above:
        return seconds[above]
    part = math.log(K / below) / math.log(above / below)
    return seconds[below] ** (1 - part) * seconds[above] ** part


def fit(table: Sequence[Timings], start: Limits) -> Limits:
    """Finds the limits of least regret over a table, and of those that are as good the nearest to some others.

        regret^2 = mean over problems of log(time of the K chosen / time of the best K)^2

    so that one problem that is far from its best counts more than several that are near.

    Args:
        table: what was measured.
        start: the limits to stay with where nothing speaks for others.

    >>> seconds = {100: 9.0, 50: 4.0, 25: 2.0, 10: 1.0, 5: 3.0}
    >>> table = [Timings("made up", 100, 64, 2**20, seconds)]
    >>> found = fit(table, Limits(2**26, 2**26))
    >>> cost(table[0], Limits(2**26, 2**26)), cost(table[0], found)
    (4.0, 1.0)
    """
    regrets = {limits: regret(table, limits) for limits in candidates(start)}
    least = min(regrets.values())
    return min(
        (limits for limits, found in regrets.items() if found <= least + NOISE), key=lambda x: distance(x, start)
    )


def regret(table: Sequence[Timings], limits: Limits) -> float:
    """Computes how far limits are from the best K of every problem, as `fit` counts it."""
    return math.sqrt(statistics.fmean(math.log(cost(timings, limits)) ** 2 for timings in table))


def candidates(start: Limits) -> Iterator[Limits]:
    """Yields what is tried: every limit of `start`, times and over powers of `STEP`, the whole not below a segment."""
    powers = [STEP**power for power in range(-12, 13)]
    for segment, whole in itertools.product(powers, powers):
        for rows in (start.rows // 8, start.rows // 4, start.rows // 2, start.rows, start.rows * 2, start.rows * 4):
            if whole * start.whole_bytes >= segment * start.cache_bytes:
                yield Limits(round(whole * start.whole_bytes), round(segment * start.cache_bytes), rows)


def distance(one: Limits, other: Limits) -> float:
    """Computes how far limits lie from others, in factors."""
    pairs = (
        (one.whole_bytes, other.whole_bytes),
        (one.cache_bytes, other.cache_bytes),
        (one.rows, other.rows),
    )
    return sum(abs(math.log(a / b)) for a, b in pairs)
