"""How a gradient is to be computed: what is kept, in segments of which lengths, and what memory that takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.arguments import batch_shape, check_inputs, check_positive, dtype_to_compute_in, is_integer
from jaxrnn.gradients.truncation import Carried, Tail, Truncation, Window, check_truncation
from jaxrnn.layer.bptt import check_recompute
from jaxrnn.layer.memory import StepBytes, layer_bytes, nbytes
from jaxrnn.layer.segments import WHOLE_BYTES, balanced_lengths, check_segment, nearby_divisor, segment_length
from jaxrnn.network.network import Network

# Measured over 90 networks: what XLA takes is 0.7 to 1.03 of a plan's total.
MARGIN = 1.05
LEVELS = 6  # of segments within segments: enough for T = 10^12 to fit where a hundred states do


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `jaxrnn.value_and_grad` does with a sequence. Printed, it is a table. Bytes are of temporary memory.

    Fields:
        steps: T.
        recompute: False, "gates" or True, see `jaxrnn.value_and_grad`.
        lengths: of the segments, outermost first: more than one where segments are cut in turn.
        state_bytes: what is kept from the forward pass: states (and gates), or those at the edges of segments.
        segment_bytes: what the steps of one segment occupy on their way back, and the inputs of those around it.
        weight_bytes: gradients, and the weights as the loops multiply them.
        sequence_bytes: what goes with all steps besides: weights w_t or labels, and tokens.
        loop_steps: how many steps of the recurrence follow one another, forward and back.
        extra_forward: forward passes beyond the one that any gradient takes.
    """

    steps: int
    recompute: bool | str
    lengths: tuple[int, ...]
    state_bytes: int
    segment_bytes: int
    weight_bytes: int
    sequence_bytes: int
    loop_steps: int
    extra_forward: int

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.state_bytes + self.segment_bytes + self.weight_bytes + self.sequence_bytes

    def __str__(self) -> str:
        mode = {False: "states and gates kept", "gates": "states kept", True: "edges of segments kept"}
        rows = [
            ("mode", mode[self.recompute]),
            ("segments", " of ".join(f"{length:,}" for length in reversed(self.lengths)) + f" of {self.steps:,} steps"),
            *((name, _readable(getattr(self, f"{name}_bytes"))) for name in ("state", "segment", "weight", "sequence")),
            ("in all", _readable(self.total_bytes)),
            ("steps in the loops", f"{self.loop_steps:,}"),
            ("extra forward passes", str(self.extra_forward)),
        ]
        return "\n".join(f"{name:22}{value}" for name, value in rows)


def plan(
    net: Network,
    inputs: Any,
    *,
    segment: int | str = "auto",
    recompute: bool | str = False,
    truncate: Truncation | None = None,
    memory_budget: int | None = None,
    compute_dtype: Any = None,
) -> Plan:
    """What `jaxrnn.value_and_grad` with these options would do; nothing is computed. Print it to read it.

    Args:
        net: the network.
        inputs: [T, *batch, D] or integers [T, *batch], or their `jax.ShapeDtypeStruct`.
        segment, recompute, truncate, memory_budget, compute_dtype: as in `jaxrnn.value_and_grad`.

    Raises:
        ValueError, TypeError: as `jaxrnn.value_and_grad`; a bidirectional layer.

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 64),), jaxrnn.Readout(64, 65), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.ShapeDtypeStruct((1_000_000, 1), "int32")
    >>> jaxrnn.plan(net, tokens, memory_budget=20_000_000).recompute
    True
    """
    check_options(segment, recompute, truncate, memory_budget)
    if net.bidirectional:
        raise ValueError("plan must have a network without bidirectional layers, which are taken one after the other")
    inputs = jax.eval_shape(functools.partial(check_inputs, size=net.layers[0].inputs), inputs)
    dtype = dtype_to_compute_in(compute_dtype, _shapes(net), inputs)
    return decide(net, inputs, dtype, segment, recompute, truncate, memory_budget)


def check_options(segment: Any, recompute: Any, truncate: Any, memory_budget: Any) -> None:
    """Raise unless the options are known, and go together."""
    check_segment(segment)
    check_recompute(recompute)
    check_truncation(truncate)
    if memory_budget is not None:
        check_positive("memory_budget", memory_budget)
        if segment != "auto" or recompute is not False:
            raise ValueError("memory_budget chooses segment and recompute by itself: leave them out, or leave it out")
    if isinstance(truncate, Window) and (segment != "auto" or recompute is not False or memory_budget is not None):
        raise ValueError(
            "truncate=Window takes all of T at once, by lags: it has no segments, and nothing to recompute"
        )


def decide(
    net: Network,
    inputs: Any,
    dtype: Any,
    segment: int | str = "auto",
    recompute: bool | str = False,
    truncate: Truncation | None = None,
    memory_budget: int | None = None,
) -> Plan:
    """The plan for checked options and inputs (or their shape)."""
    sizes = _Sizes(net, inputs, dtype)
    whole = inputs.shape[0]
    sizes.steps = min(truncate.k, whole) if isinstance(truncate, Tail) else whole
    within = truncate.k if isinstance(truncate, Carried) else None
    if isinstance(truncate, Window):
        return sizes.plan(False, (whole,), None, loop_steps=whole + min(truncate.k, whole - 1) + 1)
    if memory_budget is None:
        return sizes.plan(recompute, sizes.lengths(segment, recompute), within)
    plans = [sizes.plan(mode, lengths, within) for mode, lengths in sizes.choices()]
    fitting = next((plan for plan in plans if plan.total_bytes * MARGIN <= memory_budget), None)
    if fitting is None:
        least = min(plans, key=lambda plan: plan.total_bytes)
        raise ValueError(
            f"memory_budget of {memory_budget:,} bytes cannot be met; the least that can be had is\n{least}"
        )
    return fitting


class _Sizes:
    """What the steps of a network occupy, from shapes alone."""

    def __init__(self, net: Network, inputs: Any, dtype: Any) -> None:
        batch = batch_shape(inputs)
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), _shapes(net))
        states = jax.eval_shape(lambda: net.initial_state(batch, dtype))
        fed: Any = jax.ShapeDtypeStruct(
            inputs.shape, dtype if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs.dtype
        )
        layers = []
        for cell, weights, state in zip(net.layers, params.layers, states, strict=True):
            layers.append(layer_bytes(cell, weights, fed, state))  # type: ignore[arg-type]
            fed = jax.ShapeDtypeStruct((1, *batch, cell.outputs), dtype)
        self.steps, self.rows = inputs.shape[0], math.prod(batch)
        logits = 0 if net.last_step else 2 * self.rows * net.readout.outputs * dtype.itemsize
        state, kept, work = map(sum, zip(*layers, strict=True))
        self.step = StepBytes(state, kept, work + logits)
        # Measured: a layer's gradients of one segment beside the sum of them, or its W laid out anew; a readout's once.
        self.weights = 2 * nbytes(params.layers) + nbytes(params.readout)
        self.read = nbytes(inputs) // self.steps + 4 * self.rows  # inputs and labels of a step
        # Measured: the loop over segments works on a copy of arrays of integers.
        self.sequence = 4 * self.steps * self.rows * (2 if is_integer(inputs) else 1)

    def lengths(self, segment: int | str, recompute: bool | str) -> tuple[int, ...]:
        """The segments as asked for, or as they come out best."""
        if recompute is True and segment == "auto":
            return balanced_lengths(self.steps, self.step.state, self.step.total)
        whole_bytes = WHOLE_BYTES if recompute is False else 0
        return (segment_length(segment, self.steps, self.rows, self.step.total, whole_bytes),)

    def choices(self) -> Any:
        """What a budget chooses from, fastest first."""
        for recompute in (False, "gates") if self.step.kept else (False,):
            (K,) = self.lengths("auto", recompute)
            for part in (1, 2, 4, 8):
                yield recompute, (nearby_divisor(self.steps, max(1, K // part)),)
        yield True, (max(K, *self.lengths("auto", True)),)
        for levels in range(1, LEVELS + 1):
            yield True, balanced_lengths(self.steps, self.step.state, self.step.total, levels)

    def plan(
        self, recompute: bool | str, lengths: tuple[int, ...], within: int | None, loop_steps: int | None = None
    ) -> Plan:
        """The plan for these segments, cut to lie `within` chunks."""
        lengths = lengths if within is None else _within(lengths, within)
        outer = (self.steps, *lengths[:-1])
        edges = sum(-(-above // length) for above, length in zip(outer, lengths, strict=True)) * self.step.state
        kept = {False: self.step.state + self.step.kept, "gates": self.step.state, True: 0}[recompute]
        extra = len(lengths) if recompute is True else 0
        return Plan(
            steps=self.steps,
            recompute=recompute,
            lengths=lengths,
            state_bytes=self.steps * kept + edges,
            segment_bytes=lengths[-1] * self.step.total + sum(lengths[:-1]) * self.read,
            weight_bytes=self.weights,
            sequence_bytes=self.sequence,
            loop_steps=self.steps * (2 + extra) if loop_steps is None else loop_steps,
            extra_forward=extra,
        )


def _within(lengths: tuple[int, ...], k: int) -> tuple[int, ...]:
    """Segments of which the innermost divide k, so that one begins every k steps; the others are several of them."""
    K = lengths[-1]
    divisors = [d for d in range(1, min(K, k) + 1) if k % d == 0]
    # Far below the K wanted (k is prime, say) loops would grow too short: then the whole chunk is one segment.
    inner = divisors[-1] if 4 * divisors[-1] >= min(K, k) else k
    return (*(inner * max(1, length // inner) for length in lengths[:-1]), inner)


def _readable(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size >= 1e4 else f"{size:,} bytes"


@functools.lru_cache(maxsize=256)
def _shapes(net: Network) -> Any:
    return jax.eval_shape(net.init, jax.random.key(0))
