"""How a gradient is to be computed: where time and layers are cut, what is kept, and what memory that takes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array
from jax.typing import DTypeLike

from jaxrnn.arguments import batch_shape, entries, is_integer
from jaxrnn.cells.base import Cell
from jaxrnn.layer.machine import Limits, limits, mapped_anew
from jaxrnn.layer.memory import StepBytes, layer_bytes, nbytes
from jaxrnn.layer.prepared import Recompute
from jaxrnn.layer.segments import balanced_lengths, nearby_divisor, segment_length
from jaxrnn.network.network import Network, NetworkParams, network_shapes
from jaxrnn.printing import in_bytes

# Measured over 90 networks: what XLA takes is 0.7 to 1.03 of a plan's total.
MARGIN = 1.05
# And 0.51 to 0.68 over 14 stacks of two to four layers in one piece, for the work of one layer at a time is there.
PIECE = 0.6
LEVELS = 6  # of segments within segments: enough for T = 10^12 to fit where a hundred states do


class Group(NamedTuple):
    """Layers that are taken together through one segment of time after the other, before the next group is."""

    first: int  # the number of the lowest layer
    last: int  # one more than that of the highest; of readout and loss alone it equals `first`
    lengths: tuple[int, ...]  # of the segments, outermost first: more than one where segments are cut in turn
    recompute: Recompute


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says what `jaxrnn.value_and_grad` does with a sequence. Printed, it is a table. Bytes are of temporary memory."""

    steps: int  # T, or for a truncation as many of its steps as are held at a time
    recompute: Recompute  # "none", "gates" or "states", see `jaxrnn.value_and_grad`
    groups: tuple[Group, ...]  # of layers, bottom first; the last of them takes readout and loss along
    state_bytes: int  # what is kept from the forward pass: states (and gates), or those at the edges of segments
    segment_bytes: int  # what the steps of one segment occupy on their way back, and the inputs of those around it
    weight_bytes: int  # gradients, and the weights as the loops multiply them
    sequence_bytes: int  # what goes with all steps besides: weights w_t or labels, and tokens
    loop_steps: int  # how many steps of the recurrence follow one another, forward and back
    extra_forward: int  # forward passes beyond the one that any gradient takes

    @property
    def lengths(self) -> tuple[int, ...]:
        """Returns the lengths of the segments of the top group, outermost first."""
        return self.groups[-1].lengths

    @property
    def total_bytes(self) -> int:
        """Adds all bytes up."""
        return self.state_bytes + self.segment_bytes + self.weight_bytes + self.sequence_bytes

    def __str__(self) -> str:
        mode = {"none": "all kept", "gates": "states kept", "states": "edges of segments kept"}
        rows = [
            ("mode", mode[self.recompute]),
            ("segments", " of ".join(f"{length:,}" for length in reversed(self.lengths)) + f" of {self.steps:,} steps"),
            *((name, in_bytes(getattr(self, f"{name}_bytes"))) for name in ("state", "segment", "weight", "sequence")),
            ("in all", in_bytes(self.total_bytes)),
            ("steps in the loops", f"{self.loop_steps:,}"),
            ("extra forward passes", str(self.extra_forward)),
        ]
        return "\n".join(f"{name:22}{value}" for name, value in rows)


def decide(
    net: Network,
    inputs: Array,
    dtype: DTypeLike,
    *,
    segment: int | str = "auto",
    recompute: Recompute = "none",
    memory_budget: int | None = None,
    steps: int | None = None,
) -> Plan:
    """Makes the plan for checked options; raises a ValueError for a budget that cannot be met.

    Args:
        net, segment, recompute, memory_budget: as for `jaxrnn.value_and_grad`.
        inputs: of the call, checked, or their shape.
        dtype: what is computed in.
        steps: how many steps the reverse pass holds at a time; T by default.
    """
    T = inputs.shape[0] if steps is None else steps
    if net.bidirectional:
        return _in_groups(net, inputs, dtype, segment, recompute)
    sizes = Sizes(net, inputs, dtype, T)
    if memory_budget is None:
        return sizes.plan(recompute, sizes.lengths(segment, recompute))
    plans = [sizes.plan(mode, lengths) for mode, lengths in sizes.choices()]
    fitting = next((plan for plan in plans if plan.total_bytes * MARGIN <= memory_budget), None)
    if fitting is None:
        least = min(plans, key=lambda plan: plan.total_bytes)
        raise ValueError(
            f"memory_budget of {memory_budget:,} bytes cannot be met; the least that can be had is\n{least}"
        )
    return fitting


class Sizes:
    """Counts what the steps of some layers, none of them bidirectional, occupy, from shapes alone."""

    def __init__(
        self, net: Network, inputs: Array, dtype: DTypeLike, steps: int, first: int = 0, last: int | None = None
    ) -> None:
        self.first, self.last = first, len(net.layers) if last is None else last
        self.steps, self.rows = steps, entries(batch_shape(inputs))
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), network_shapes(net))
        layers = _layer_sizes(net, params, inputs, dtype)[self.first : self.last]
        state, residuals, work = map(sum, zip((0, 0, 0), *layers, strict=True))
        has_logits = self.last == len(net.layers) and not net.last_step
        logits = 2 * self.rows * net.readout.outputs * jnp.dtype(dtype).itemsize * has_logits  # and their gradient
        self.step = StepBytes(state, residuals, work + logits)
        # One layer at a time is in the cache: a stack is cut as its widest layer would be. Three Elman layers, 2 cores
        # with AVX2 (scripts/bench.py --shapes 10, and --segment 25, where all three would be cut together): 25 ms and
        # 22 MB against 33 ms and 11 MB; jax.grad 35 ms and 25 MB.
        self.widest = max([size.total for size in layers] + [1]) + logits
        # Measured: a layer's gradients of one segment beside the sum of them, or its W laid out anew; a readout's once.
        self.weights = 2 * nbytes(params.layers) + nbytes(params.readout)
        self.read = nbytes(inputs) // inputs.shape[0] + 4 * self.rows  # inputs and labels of a step
        # Measured: the loop over segments works on a copy of arrays of integers.
        self.sequence = 4 * steps * self.rows * (2 if is_integer(inputs) else 1)

    def lengths(self, segment: int | str, recompute: Recompute, of_device: Limits | None = None) -> tuple[int, ...]:
        """Returns the segments as asked for, or as they come out best: of the default device, if no other is given."""
        if recompute == "states" and segment == "auto":
            return balanced_lengths(self.steps, self.step.state, self.step.total)
        of_device = limits() if of_device is None else of_device
        K = self._length(segment, of_device if recompute == "none" else of_device.always_cut)
        if segment == "auto" and self.steps == K:
            # Two LSTM layers at T,B,D,H,V = 70,24,48,160,90: in one piece, 35 MB, 24 to 26 ms, and cut to 28 or 19 MB
            # 17 to 18; with memory that glibc keeps, 15 in one piece (2 cores of AMD EPYC with AVX-512, jax 0.10.2).
            piece = PIECE * self.plan(recompute, (K,)).total_bytes
            K = K if piece < mapped_anew() else self._length(segment, of_device.always_cut)
        return (K,)

    def _length(self, segment: int | str, limits: Limits) -> int:
        return segment_length(segment, self.steps, self.rows, self.widest, limits)

    def choices(self) -> Iterator[tuple[Recompute, tuple[int, ...]]]:
        """Yields what a budget chooses from, fastest first."""
        kept: Sequence[Recompute] = ("none", "gates") if self.step.residuals else ("none",)
        for recompute in kept:
            (K,) = self.lengths("auto", recompute)
            for part in (1, 2, 4, 8):
                yield recompute, (nearby_divisor(self.steps, max(1, K // part)),)
        yield "states", (max(K, *self.lengths("auto", "states")),)
        for levels in range(1, LEVELS + 1):
            yield "states", balanced_lengths(self.steps, self.step.state, self.step.total, levels)

    def plan(self, recompute: Recompute, lengths: tuple[int, ...]) -> Plan:
        """Makes the plan for these segments of the layers together."""
        outer = (self.steps, *lengths[:-1])
        edges = sum(-(-above // length) for above, length in zip(outer, lengths, strict=True)) * self.step.state
        kept = {"none": self.step.state + self.step.residuals, "gates": self.step.state, "states": 0}[recompute]
        extra = len(lengths) if recompute == "states" else 0
        return Plan(
            steps=self.steps,
            recompute=recompute,
            groups=(Group(self.first, self.last, lengths, recompute),),
            state_bytes=self.steps * kept + edges,
            segment_bytes=lengths[-1] * self.step.total + sum(lengths[:-1]) * self.read,
            weight_bytes=self.weights,
            sequence_bytes=self.sequence,
            loop_steps=self.steps * (2 + extra),
            extra_forward=extra,
        )


def _in_groups(net: Network, inputs: Array, dtype: DTypeLike, segment: int | str, recompute: Recompute) -> Plan:
    """Makes the plan where layers read both ways: each is a group, for it needs all steps of the layer below.

    A layer that reads both ways cuts its steps itself. What is handed from group to group is kept in any case.
    """
    T, count, cells = inputs.shape[0], len(net.layers), [isinstance(layer, Cell) for layer in net.layers]
    edges = [0, *(i for i in range(1, count) if not (cells[i - 1] and cells[i])), count]
    groups = []
    for first, last in [*itertools.pairwise(edges), *[(count, count)] * (not cells[-1])]:  # readout and loss alone
        if not all(cells[first:last]):
            groups.append(Group(first, last, (T,), "none"))
            continue
        kept = "gates" if recompute == "states" and last < count else recompute if first < last else "none"
        groups.append(Group(first, last, Sizes(net, inputs, dtype, T, first, last).lengths(segment, kept), kept))
    return Plan(T, recompute, tuple(groups), 0, 0, 0, 0, 2 * T, 0)


def _layer_sizes(net: Network, params: NetworkParams, inputs: Array, dtype: DTypeLike) -> list[StepBytes]:
    """Counts what a step of every layer occupies; of one that reads both ways nothing, for it counts itself."""
    batch = batch_shape(inputs)
    states = jax.eval_shape(lambda: net.initial_state(batch, dtype))
    fed = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype if is_integer(inputs) else dtype)
    found = []
    for cell, weights, state in zip(net.layers, params.layers, states, strict=True):
        found.append(layer_bytes(cell, weights, fed, state) if isinstance(cell, Cell) else StepBytes(0, 0, 0))
        fed = jax.ShapeDtypeStruct((1, *batch, cell.outputs), dtype)
    return found
