"""How far the same training by hand and by autodiff come apart: what `reproduce.py` holds every run to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.training import experiment
from jaxrnn.training.experiment import Experiment

STEPS = 200


def disagreement(now: Experiment, dtype: Any = jnp.float32, together: bool = False) -> float:
    """Computes the largest relative difference of the losses of the first 200 steps by hand and by autodiff.

    Of the same training without what autodiff cannot do (the regulariser), from the same start. A network that
    explodes amplifies what rounding leaves: in float64 (under `jax.enable_x64`) that is less, a wrong gradient is not.
    Where the training itself is chaotic, no precision is enough: there, take the two steps together.

    Args:
        now: the training.
        dtype: what it is computed in.
        together: whether autodiff takes every step from where the one by hand has come. The norms of the gradients are
            then compared as well: at the same parameters these show a wrong gradient at once, and the losses do not.
    """
    (state, by_hand), (other, by_autodiff) = (twin(now, gradient, dtype) for gradient in ("bptt", "autodiff"))
    names, differences = ("loss", "gradient_norm") if together else ("loss",), []
    for i in range(min(STEPS, now.settings.steps)):
        batch = now.task.batch(i)
        batch = batch._replace(inputs=cast(batch.inputs, dtype), targets=cast(batch.targets, dtype))
        other = jax.tree.map(jnp.copy, state) if together else other  # a step gives its state away
        state, found = by_hand(state, batch)
        other, expected = by_autodiff(other, batch)
        differences += [abs(float(found[name]) - float(expected[name])) / abs(float(expected[name])) for name in names]
    return max(differences)


def twin(now: Experiment, gradient: Any, dtype: Any) -> tuple[Any, Callable]:
    """Makes the state before the first step, and the step, of a training with one of the two gradients."""
    settings = dataclasses.replace(now.settings, gradient=gradient, vanishing=0.0, flow=0)
    now = now._replace(settings=settings, optimizer=experiment.make_optimizer(settings))
    state = now.initial_state()
    params = cast(state.params, dtype)
    return state._replace(
        params=params,
        optimizer_state=now.optimizer.init(params),
        network_state=cast(state.network_state, dtype),
    ), now.make_step()


def cast(tree: Any, dtype: Any) -> Any:
    """Casts the floats of a pytree."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, tree)
