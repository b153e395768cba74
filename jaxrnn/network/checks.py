"""Checks of what goes into a network, and what is drawn or filled in for one call."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.arguments import accumulation_dtype, as_array, check_like
from jaxrnn.cells.base import Cell, State
from jaxrnn.cells.dropout import draw
from jaxrnn.layer import scan
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.masking import blank
from jaxrnn.network.batch import Batch, Call, LossSteps, read

Layers = tuple[Layer, ...]


def check_params(layers: Layers, params: ArrayTree, expected: ArrayTree) -> None:
    """Raises unless the parameters have the structure and shapes of `expected`, which the network made."""
    cause = "they must come from the init of this network"
    if not isinstance(params, type(expected)) or len(params.layers) != len(layers):
        came = type(params).__name__
        raise TypeError(f"params must be NetworkParams with {len(layers)} layers, got {came}; {cause}")
    for i, (layer, layer_params) in enumerate(zip(layers, params.layers, strict=True)):
        scan.check_params(layer, layer_params, f"params.layers[{i}]")
    check_like("params.readout", params.readout, expected.readout, cause)
    check_like("params.state", params.state, expected.state, cause)


def check_state(layers: Layers, state: ArrayTree, batch: tuple[int, ...], dtype: DTypeLike) -> tuple[State | None, ...]:
    """Returns one state per layer in a dtype, None where none is given."""
    if state is None:
        return (None,) * len(layers)
    if not isinstance(state, tuple) or len(state) != len(layers):
        raise TypeError(f"state must be a tuple of {len(layers)} states, one per layer, got {type(state).__name__}")
    return tuple(
        scan.check_state(layer, start, batch, dtype, f"state[{i}]")
        for i, (layer, start) in enumerate(zip(layers, state, strict=True))
    )


def check_loss(
    call: Call, batch: Batch, objective: Callable[[Array, Array], Array], outputs: int, last_step: bool
) -> LossSteps:
    """Returns checked targets and weights, which are alike for all steps that are not masked unless given.

    Args:
        call: the checked arguments.
        batch: the same call's arguments as they came.
        objective: of the network.
        outputs: V.
        last_step: whether only the last step of each sequence has a loss.
    """
    mask, steps = call.steps.flags.mask, call.steps.shape
    there = mask
    if last_step:
        steps, there = steps[1:], None if mask is None else mask.any(0)
    targets = as_array("targets", batch.targets)
    if there is not None and targets.shape[: len(steps)] != steps:
        raise ValueError(f"targets must begin with {steps}, as what is not masked does, got shape {targets.shape}")
    dtype = accumulation_dtype(call.dtype)
    _check_objective(objective, read(targets, there, dtype), jax.ShapeDtypeStruct((*steps, outputs), dtype))
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
    keys = jax.random.split(key, (len(layers), 2))
    for i, layer in enumerate(layers):
        if rates[0] and i < len(layers) - 1:
            between[i] = draw(keys[i, 0], rates[0], (*steps, layer.outputs))
        if rates[1]:
            shape = (*(() if isinstance(layer, Cell) else (2,)), *steps[1:], layer.hidden)
            mask = draw(keys[i, 1], rates[1], shape) / jnp.asarray(1 - rates[1], dtype)
            recurrent[i] = mask if isinstance(layer, Cell) else tuple(mask)
    return tuple(between), tuple(recurrent)


def _check_objective(objective: Callable[[Array, Array], Array], targets: Array, outputs: jax.ShapeDtypeStruct) -> None:
    # The targets stay outside the abstract evaluation, so that the objective can still read their values.
    errors = jax.eval_shape(lambda outputs: objective(outputs, targets), outputs)
    shape = getattr(errors, "shape", None)
    if shape != outputs.shape[:-1]:
        raise ValueError(
            f"objective must give one error per step, {outputs.shape[:-1]}, got {errors if shape is None else shape}; "
            f"sum over the outputs only, not over time or batch"
        )


def _loss_weights(weights: Array | None, steps: tuple[int, ...], there: Array | None, dtype: DTypeLike) -> Array:
    """Returns w_t [T, *batch]: as given, or alike for all steps that have a loss; zero for the others."""
    if weights is not None:
        weights = as_array("weights", weights)
        if weights.shape != steps:
            raise ValueError(f"weights must be one per step, {steps}, got {weights.shape}; nothing is broadcast")
        return blank(there, weights.astype(dtype))
    if there is None:
        return jnp.full(steps, 1 / math.prod(steps), dtype)
    count = jnp.sum(there, dtype=dtype)
    return jnp.where(there, 1 / jnp.maximum(count, 1), 0)
