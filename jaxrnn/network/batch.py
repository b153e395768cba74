"""The arguments of one call: as they come, checked, and what is drawn or filled in for them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.arguments import (
    accumulation_dtype,
    as_array,
    batch_shape,
    cause_of_shape,
    check_key,
    check_like,
    is_concrete,
    is_integer,
)
from jaxrnn.cells.base import Cell, State
from jaxrnn.cells.dropout import draw
from jaxrnn.layer import scan
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.masking import Flags, blank
from jaxrnn.printing import as_text, brief

Layers = tuple[Layer, ...]


class Batch(NamedTuple):
    """Holds sequences and what goes with their steps, as `jaxrnn.value_and_grad` takes them."""

    inputs: Array  # [T, *batch, D], or tokens [T, *batch]
    targets: Array | None = None  # [T, *batch, ...]; without T for a network with `last_step`
    weights: Array | None = None  # w_t, [T, *batch]
    mask: Array | None = None  # [T, *batch]
    reset: Array | None = None  # [T, *batch]

    def __repr__(self) -> str:
        return as_text(self)


class LossSteps(NamedTuple):
    """Holds what the loss needs of some steps, checked."""

    targets: Array  # as they come: `read` makes a copy of one segment at a time
    weights: Array  # w_t, zero where there is no loss
    there: Array | None  # False where there is no loss; None where every step has one


class Steps(NamedTuple):
    """Holds what goes into the steps of a segment, or of the whole sequence, checked: [K, ...] all of it."""

    inputs: Array  # [K, *batch, D] or [K, *batch], as they come
    flags: Flags
    dropout: tuple[Array | None, ...]  # per layer, True for the units of its outputs that dropout leaves
    loss: LossSteps | None = None  # None where these steps have no loss
    below: Array | None = None  # [K, *batch, H], what the layers below hand up, where those were taken before
    g: Array | None = None  # [K, *batch, H], what the layers above ask, where those were taken back before

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns [K, *batch]."""
        return self.inputs.shape[:1] + batch_shape(self.inputs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Call:
    """Holds the arguments of one call, checked and drawn for the batch as a whole: a part of it needs no more."""

    steps: Steps
    state: Any  # per layer, as given; [*batch, ...]
    dropout: tuple[ArrayTree | None, ...]  # per layer, 0 or 1/(1 - rate), times s_{t-1} in its recurrent products
    dtype: jnp.dtype = dataclasses.field(metadata={"static": True})  # what is computed in
    last: LossSteps | None = None  # of a network with `last_step`, [*batch, ...]
    vanishing: Array | None = None  # the weight of a step's share of the vanishing-gradient regulariser

    def real_steps(self) -> Array | int:
        """Counts the steps that are not masked, of all sequences together."""
        mask = self.steps.flags.mask
        return math.prod(self.steps.shape) if mask is None else jnp.sum(mask)


def read(array: Array, there: Array | None, dtype: jnp.dtype) -> Array:
    """Reads inputs or targets of some steps for the two passes: blank where masked, floats in a dtype."""
    array = blank(there, array)
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def check_params(layers: Layers, params: ArrayTree, expected: ArrayTree) -> None:
    """Raises unless the parameters have the structure and shapes of `expected`, which the network made."""
    cause = "they must come from the init of this network"
    scan.refuse_variables("params", params)
    if not isinstance(params, type(expected)):
        raise TypeError(f"params must be NetworkParams with {len(layers)} layers, got {brief(params)}; {cause}")
    if not isinstance(params.layers, tuple) or len(params.layers) != len(layers):
        came = f"{len(params.layers)}" if isinstance(params.layers, tuple) else brief(params.layers)
        raise TypeError(f"params must be NetworkParams with {len(layers)} layers in a tuple, got {came}; {cause}")
    for i, (layer, layer_params) in enumerate(zip(layers, params.layers, strict=True)):
        scan.check_params(layer, layer_params, f"params.layers[{i}]")
    check_like("params.readout", params.readout, expected.readout, cause)
    check_like("params.state", params.state, expected.state, cause)


def check_state(layers: Layers, state: ArrayTree, batch: tuple[int, ...], dtype: DTypeLike) -> tuple[State | None, ...]:
    """Returns one state per layer in a dtype, None where none is given."""
    if state is None:
        return (None,) * len(layers)
    if not isinstance(state, tuple) or len(state) != len(layers):
        raise TypeError(f"state must be a tuple of {len(layers)} states, one per layer, got {brief(state)}")
    return tuple(
        scan.check_state(layer, start, batch, dtype, f"state[{i}]")
        for i, (layer, start) in enumerate(zip(layers, state, strict=True))
    )


def check_loss(
    call: Call, batch: Batch, objective: Callable[[Array, Array], Array], outputs: int, last_step: bool
) -> LossSteps:
    """Returns checked targets and weights, which are alike for all steps that are not masked unless given.

    Args:
        call, batch: the arguments of a call, checked, and as they came.
        objective, outputs, last_step: of the network: V outputs, only the last of which has a loss where `last_step`.
    """
    mask, steps = call.steps.flags.mask, call.steps.shape
    there = mask
    if last_step:
        steps, there = steps[1:], None if mask is None else mask.any(0)
    targets, dtype = as_array("targets", batch.targets), accumulation_dtype(call.dtype)
    if targets.shape[: len(steps)] != steps:
        cause = _likely_cause(targets.shape, call.steps, last_step)
        raise ValueError(f"targets must have a shape that begins with {steps}, got {targets.shape}; {cause}")
    # The targets stay outside the abstract evaluation, so that the objective can still read their values.
    seen = read(targets, there, dtype)
    errors = jax.eval_shape(lambda outputs: objective(outputs, seen), jax.ShapeDtypeStruct((*steps, outputs), dtype))
    if getattr(errors, "shape", None) != steps:
        raise ValueError(
            f"objective must give one error per step, {steps}, got {getattr(errors, 'shape', errors)}; "
            f"sum over the outputs only, not over time or batch"
        )
    if hasattr(objective, "check_values") and not is_concrete(seen):
        objective.check_values(seen, outputs)  # what it stages is part of the call, not of the abstract evaluation
    return LossSteps(targets, _loss_weights(batch.weights, steps, there, dtype), there)


def draw_dropout(
    layers: Layers, rates: tuple[float, float], key: PRNGKey | None, steps: tuple[int, ...], dtype: DTypeLike
) -> tuple[tuple[Array | None, ...], tuple[ArrayTree | None, ...]]:
    """Draws what dropout leaves in one call: everything without a key.

    Args:
        layers: of the network.
        rates: between layers, and on the recurrent path.
        key: for the draw.
        steps: [T, *batch].
        dtype: of the recurrent masks.

    Returns:
        Per layer, True for the units of its outputs that are left, [T, *batch, outputs] (None for the top one), and
        0 or 1/(1 - rate), times s_{t-1}, [*batch, H] (a pair of them for a bidirectional layer).
    """
    between: list[Array | None] = [None] * len(layers)
    recurrent: list[ArrayTree | None] = [None] * len(layers)
    if key is None:
        return tuple(between), tuple(recurrent)
    check_key(key)
    keys = jax.random.split(key, (len(layers), 2))
    for i, layer in enumerate(layers):
        if rates[0] and i < len(layers) - 1:
            between[i] = draw(keys[i, 0], rates[0], (*steps, layer.outputs))
        if rates[1]:
            shape = (*(() if isinstance(layer, Cell) else (2,)), *steps[1:], layer.hidden)
            mask = draw(keys[i, 1], rates[1], shape).astype(dtype) / (1 - rates[1])
            recurrent[i] = mask if isinstance(layer, Cell) else tuple(mask)
    return tuple(between), tuple(recurrent)


def _likely_cause(came: tuple[int, ...], steps: Steps, last_step: bool) -> str:
    """Says what is likely wrong with targets of a shape that does not begin as they must."""
    T, *batch = steps.shape
    if last_step:
        of_steps = came[: len(steps.shape)] == steps.shape
        return "with last_step each sequence has one target, targets[-1]" if of_steps else "nothing is broadcast"
    features = len(came) < len(steps.shape) or len(steps.shape) > 2
    if is_integer(steps.inputs) and features and came[: len(steps.shape) - 1] == steps.shape[:-1]:
        return "integer inputs are tokens [T, *batch]; a one-hot array must be floats, inputs.astype(jnp.float32)"
    if came[:1] in ((T - 1,), (T + 1,)) and came[1 : len(steps.shape)] == tuple(batch):
        return "to tell what comes next, inputs are tokens[:-1] and targets tokens[1:]"
    return cause_of_shape(came, steps.shape)


def _loss_weights(weights: Array | None, steps: tuple[int, ...], there: Array | None, dtype: DTypeLike) -> Array:
    """Returns w_t [T, *batch]: as given, or alike for all steps that have a loss; zero for the others."""
    if weights is not None:
        weights = as_array("weights", weights)
        if weights.shape != steps:
            cause = cause_of_shape(weights.shape, steps)
            raise ValueError(f"weights must be one per step, {steps}, got {weights.shape}; {cause}")
        return blank(there, weights.astype(dtype))
    if there is None:
        return jnp.full(steps, 1 / math.prod(steps), dtype)
    return jnp.where(there, 1 / jnp.maximum(jnp.sum(there, dtype=dtype), 1), 0)
