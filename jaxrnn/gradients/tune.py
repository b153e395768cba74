"""Chooses the options of a gradient by trying them, for one network and one shape, on the machine at hand."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from chex import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrnn.arguments import as_array, batch_shape, check_scale
from jaxrnn.gradients.parallel import data_parallel
from jaxrnn.gradients.value_and_grad import plan, value_and_grad
from jaxrnn.network.network import Network, NetworkParams

# A choice must gain so much, or the noise of the clock would make it: what is left out is what a user need not read.
GAIN = 0.97
# On two cores of an AMD EPYC with AVX-512 (jax 0.10.2) these gain nothing. What `tune` found for the problems of
# scripts/bench.py, ms of 1, 2 and 4 steps a turn: LSTM 128,64,128,256,128 (T,B,D,H,V) 109, 108, 108; GRU
# 100,32,64,128,65 8.0, 8.1, 8.6; Elman 512,1,64,64,65 0.43, 0.60, 0.53; 128,64,128,512,128 51.5, 50.7, 51.0. They are
# tried for the machines where a turn of a loop costs more, a GPU's before all.
UNROLLS = (2, 4)


class Trial(NamedTuple):
    """Says what one choice of options took."""

    options: Mapping[str, Any]  # of `jaxrnn.value_and_grad`, besides those that were given
    devices: int
    seconds: float  # of one call, the median
    bytes: int  # of temporary memory, on each device
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Holds the fastest options that were found. Printed, it is the table of all that were tried.

    `jaxrnn.value_and_grad(net, **tuned.options)` is the function; `jaxrnn.data_parallel` of it where `devices` is more
    than one.
    """

    options: Mapping[str, Any]
    devices: int
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        rows = [("options", "devices", "ms", "MB", "compiled in")]
        for trial in self.trials:
            chosen = " <-" if (trial.options, trial.devices) == (self.options, self.devices) else ""
            figures = f"{trial.seconds * 1e3:.2f}", f"{trial.bytes / 1e6:.2f}", f"{trial.compile_seconds:.1f} s{chosen}"
            rows.append((_in_words(trial.options), str(trial.devices), *figures))
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        widths = [f"<{first}", *(f">{width}" for width in others[:-1]), "<"]
        return "\n".join(
            "  ".join(format(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def tune(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    targets: Array,
    *arguments: Any,
    seconds: float = 10.0,
    options: Mapping[str, Any] = MappingProxyType({}),
    **named: Any,
) -> Tuned:
    """Finds the fastest options of `jaxrnn.value_and_grad` for one network and one shape, by trying them.

    In turn: the lengths of segments around what "auto" chooses; two and four steps to a turn of the loops; for gated
    cells, gates that are computed again; all devices, where the batch divides by their number. Each trial takes turns
    with the best so far, and wins if it is 3 % faster at the median. No option that is tried changes a result, but for
    rounding.

    Tune on a machine that does nothing else, and again where shapes, machine or jax change: the answer is no more than
    what a clock said. It does not make a gradient smaller, see `memory_budget` of `jaxrnn.value_and_grad` for that.

    Args:
        net, params, inputs, targets, arguments, named: as for the function of `jaxrnn.value_and_grad`.
        seconds: how long the trials may run together, not counting their compilation, which takes longer.
        options: of `jaxrnn.value_and_grad`, that all trials share, such as {"compute_dtype": jnp.bfloat16}; what is
            given here is not tried.

    Returns:
        `Tuned`: print it.

    Raises:
        ValueError, TypeError: as `jaxrnn.value_and_grad` and its function.

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> params, tokens = net.init(jax.random.key(0)), jax.random.randint(jax.random.key(1), (13, 4), 0, 5)
    >>> tuned = jaxrnn.tune(net, params, tokens[:-1], tokens[1:], seconds=0.1)
    >>> step = jax.jit(jaxrnn.value_and_grad(net, **tuned.options))
    """
    check_scale("seconds", seconds)
    inputs = as_array("inputs", inputs)
    call = (params, inputs, targets, *arguments)
    rounds = _Rounds(net, call, named, dict(options), seconds)
    best = rounds.first({})
    segments, gates = _segments_and_gates(net, inputs, options)
    for choices in (segments, [{"unroll": count} for count in UNROLLS], gates):
        start = best
        for choice in choices:
            if not choice.keys() & options.keys():
                best = rounds.better(best, {**start.options, **choice}, 1)
    devices = jax.device_count()
    if devices > 1 and len(batch_shape(inputs)) and batch_shape(inputs)[0] % devices == 0:
        best = rounds.better(best, dict(best.options), devices)
    return Tuned(best.options, best.devices, tuple(rounds.trials))


def _segments_and_gates(net: Network, inputs: Array, options: Mapping[str, Any]) -> tuple[list[dict], list[dict]]:
    """Returns lengths of segments around that of "auto", and gates made anew where there are any.

    A truncation and a budget decide on both, and layers that read both ways cut their steps themselves.
    """
    if net.bidirectional or options.keys() & {"truncate", "memory_budget"}:
        return [], []
    known = {name: options[name] for name in ("recompute", "compute_dtype") if name in options}
    auto, T = plan(net, inputs, **known), inputs.shape[0]
    K = auto.lengths[-1]
    segments = [{"segment": length} for length in sorted({T, K * 4, K * 2, K // 2, K // 4} - {K}, reverse=True)]
    anew = plan(net, inputs, **{**known, "recompute": "gates"})
    gates = [{"recompute": "gates"}] if anew.state_bytes < auto.state_bytes else []
    return [choice for choice in segments if 0 < choice["segment"] <= T], gates


class _Rounds:
    """Runs the trials, and keeps what they took."""

    def __init__(self, net: Network, call: tuple, named: dict, options: dict, seconds: float) -> None:
        self.net, self.call, self.options = net, (call, named), options
        self.seconds = seconds / 9  # about as many comparisons as there are
        self.trials: list[Trial] = []
        self.functions: list[Callable[[], Any]] = []  # of the trials

    def first(self, options: dict[str, Any]) -> Trial:
        """Tries what all others are compared with."""
        (times,) = self._turns([self._compile(options, 1)])
        self.trials[0] = self.trials[0]._replace(seconds=times)
        return self.trials[0]

    def better(self, best: Trial, options: dict[str, Any], devices: int) -> Trial:
        """Tries other options in turns with the best so far, and returns the better of them."""
        number = self._compile(options, devices)
        before, after = self._turns([self.trials.index(best), number])
        # Both as of the first trial's hour: a machine that slows down would else make the later ones look worse.
        self.trials[number] = self.trials[number]._replace(seconds=best.seconds * after / before)
        return self.trials[number] if after < GAIN * before else best

    def _compile(self, options: dict[str, Any], devices: int) -> int:
        function: Any = value_and_grad(self.net, **self.options, **options)
        call, named = self.call
        if devices > 1:  # as in a training loop, where nothing is moved at a step
            mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
            function = data_parallel(function, mesh)
            call, named = jax.device_put(self.call, NamedSharding(mesh, PartitionSpec()))
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*call, **named).compile()
        seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        self.functions.append(lambda: compiled(*call, **named))
        self.trials.append(Trial(options, devices, 0.0, memory.temp_size_in_bytes if memory else 0, seconds))
        return len(self.trials) - 1

    def _turns(self, numbers: list[int]) -> list[float]:
        """Runs trials in turn, the first time untimed; returns their median times."""
        times: dict[int, list[float]] = {number: [] for number in numbers}
        for number in numbers:
            jax.block_until_ready(self.functions[number]())
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end or len(times[numbers[0]]) < 3:
            for number in numbers:
                start = time.perf_counter()
                jax.block_until_ready(self.functions[number]())
                times[number].append(time.perf_counter() - start)
        return [statistics.median(times[number]) for number in numbers]


def _in_words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none: the defaults"
