"""Readout and objective together: the loss of some steps, and what it asks of their hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
from chex import Array

from jaxrnn.layer.masking import blank
from jaxrnn.network.batch import LossSteps, read
from jaxrnn.network.losses import value_and_gradient
from jaxrnn.network.readout import Readout, ReadoutParams


class Loss(NamedTuple):
    """Holds the readout, its parameters in the dtype that is computed in, and the objective."""

    readout: Readout
    objective: Callable[[Array, Array], Array]
    params: ReadoutParams

    def backward(self, hidden: Array, steps: LossSteps) -> tuple[Array, Array, ReadoutParams]:
        """Computes sum_t w_t E_t, g_t and the readout's gradients: the only place where logits exist.

            O_t = V s_t + c        e_t = w_t dE_t/dO_t        g_t = V^T e_t

        Args:
            hidden: what the readout sees, [K, *batch, H].
            steps: targets and weights of these steps.
        """
        chex.assert_tree_shape_prefix((hidden, steps), steps.weights.shape)
        outputs = self.readout.apply(self.params, hidden)  # [K, *batch, V]
        targets = read(steps.targets, steps.there, outputs.dtype)
        errors, e = blank(steps.there, value_and_gradient(self.objective, outputs, targets))
        weights = steps.weights
        g, grads = self.readout.adjoint(self.params, hidden, weights[..., None] * e)
        return jnp.sum(weights * errors, dtype=weights.dtype), g, grads
