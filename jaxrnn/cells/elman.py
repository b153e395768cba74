"""The Elman network: the plain recurrent layer, and its adjoint by hand."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import check_choice
from jaxrnn.cells.blocks import BlockCell, BlockOperands
from jaxrnn.cells.dropout import scale
from jaxrnn.cells.initializers import RECURRENT
from jaxrnn.printing import as_text


class ElmanParams(NamedTuple):
    """Holds the parameters of an Elman layer."""

    U: Array  # [H, D]
    W: Array  # [H, H]
    b: Array | None  # [H]

    def __repr__(self) -> str:
        return as_text(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Elman(BlockCell):
    """Defines the Elman cell, with the gradients that BPTT carries through it.

        z_t = W s_{t-1} + U x_t + b          s_t = tanh(z_t)     or     s_t = max(z_t, 0)

        delta_t = (1 - s_t^2) * (g_t + W^T delta_{t+1})          delta_t := dE/dz_t    (relu: s_t > 0 for 1 - s_t^2)
        dE/dW = sum_t delta_t s_{t-1}^T      dE/dU = sum_t delta_t x_t^T      dE/db = sum_t delta_t
        dE/dx_t = U^T delta_t                dE/ds_0 = W^T delta_1

    The ds_t/dW = delta_t s_{t-1}^T in these sums is the immediate derivative, s_{t-1} held constant; to differentiate
    through s_{t-1} there as well would count the recursion twice.

    W starts as `recurrent_initializer` says, b at zero, the entries of U with a standard deviation of
    `input_scale` / sqrt(D). Tokens want an `input_scale` of sqrt(D) to 2 sqrt(D): one term is all that is left of the
    sum U x_t, and small columns learn slowly (1.59 nats instead of 1.87 on tiny Shakespeare, H = 512, 1,500 steps).

    Not the cell for dependencies over hundreds of steps: the product of the diag(1 - s_t^2) W vanishes or explodes, and
    gated cells are the remedy.

    Args:
        inputs: D.
        hidden: H.
        activation: "tanh" or "relu".
        bias: whether there is a b.
        input_scale: standard deviation of the fresh U x_t, for inputs of variance one.
        recurrent_scale: modulus of the largest eigenvalue of the fresh W.
        recurrent_initializer: "orthogonal"; "identity", which with "relu" is the IRNN of Le et al. 2015; "normal" or
            "sparse", rescaled to their spectral radius. See `jaxrnn.cells.initializers.recurrent`.

    Raises:
        ValueError: a size below 1, an unknown activation or initializer, a scale that is negative or not finite.
        TypeError: a size that is not an int.

    Source: Elman (1990), "Finding structure in time"; the gradients are those of Werbos (1990), "Backpropagation
    through time: what it does and how to do it", equations 17 to 20.

    >>> import jax, jaxrnn
    >>> cell = jaxrnn.Elman(inputs=3, hidden=5)
    >>> jax.tree.map(lambda array: array.shape, cell.init(jax.random.key(0)))
    ElmanParams(U=(5, 3), W=(5, 5), b=(5,))
    """

    activation: str = "tanh"
    bias: bool = True
    input_scale: float = 1.0
    recurrent_scale: float = 1.0
    recurrent_initializer: str = "orthogonal"
    blocks = 1
    params_type = ElmanParams

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recurrent_initializer", self.recurrent_initializer, RECURRENT)
        check_choice("activation", self.activation, ("tanh", "relu"))

    def step_with_residuals(self, operands: BlockOperands, state: Array, projected: Array) -> tuple[Array, tuple]:
        """Computes s_t = tanh(W s_{t-1} + (U x_t + b)), from which alone `linearize` takes what it needs."""
        state = scale(state, operands.dropout_mask)
        z = state @ operands.W_T + projected  # [*batch, H]
        return (jnp.tanh(z) if self.activation == "tanh" else jax.nn.relu(z)), ()

    def linearize(
        self, operands: BlockOperands, inputs: Array, previous: Array, states: Array, residuals: tuple
    ) -> Array:
        """Computes ds_t/dz_t from the states themselves: 1 - s_t^2, [K, *batch, H]."""
        return 1 - states * states if self.activation == "tanh" else (states > 0).astype(states.dtype)

    def step_adjoint(self, operands: BlockOperands, adjoint: Array, local: Array) -> tuple[Array, Array]:
        """Computes delta_t = (1 - s_t^2) * dE/ds_t, and dE/ds_{t-1} = W^T delta_t."""
        delta = local * adjoint  # [*batch, H]
        return scale(delta @ operands.W, operands.dropout_mask), delta

    def with_penalty(self, operands: BlockOperands, previous: Array, deltas: Array, coefficients: Array) -> Array:
        """Returns s_{t-1} + c_t u_t, as dE/dW = sum_t delta_t s_{t-1}^T and dOmega/dW = sum_t delta_t (c_t u_t)^T."""
        u = scale(deltas @ operands.W, operands.dropout_mask)
        return previous + coefficients[..., None] * u
