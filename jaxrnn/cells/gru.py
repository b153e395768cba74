"""The gated recurrent unit, and the adjoint by hand of its reset-after form; the other is in `reset_before.py`."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree
from jax.typing import DTypeLike

from jaxrnn.arguments import check_choice
from jaxrnn.cells import reset_before
from jaxrnn.cells.affine import affine_input_grads, columns, like_rows, sum_of, sum_of_outer_products
from jaxrnn.cells.base import Deltas, Local, Operands, StepResiduals
from jaxrnn.cells.blocks import BlockCell
from jaxrnn.cells.dropout import scale
from jaxrnn.printing import as_text


class GRUParams(NamedTuple):
    """Holds the parameters of a GRU layer; the rows are those of r, z, n, in this order."""

    U: Array  # [3H, D]
    W: Array  # [3H, H]
    b: Array | None  # [3H]
    d: Array | None  # [H], inside the reset: torch's b_hn; None where the reset stands before the product

    def __repr__(self) -> str:
        return as_text(self)


@dataclasses.dataclass(frozen=True, repr=False)
class GRU(BlockCell):
    """Defines the GRU cell, by default with the reset after the product, as cuDNN, PyTorch and Keras have it.

        r_t = sigmoid(W_r s_{t-1} + U_r x_t + b_r)           q_t = W_n s_{t-1} + d
        z_t = sigmoid(W_z s_{t-1} + U_z x_t + b_z)           n_t = tanh(U_n x_t + b_n + r_t * q_t)
        s_t = (1 - z_t) * n_t + z_t * s_{t-1}

    With a_t = dE/ds_t, deltas before each gate's function (n': of the recurrent product within n):

        delta^n_t  = a_t * (1 - z_t) * (1 - n_t^2)            delta^n'_t = delta^n_t * r_t
        delta^r_t  = delta^n_t * q_t * r_t * (1 - r_t)        delta^z_t  = a_t * (s_{t-1} - n_t) * z_t * (1 - z_t)
        dE/ds_{t-1} = a_t * z_t + W^T (delta^r_t, delta^z_t, delta^n'_t)
        dE/dW = sum_t (delta^r, delta^z, delta^n')_t s_{t-1}^T         dE/dU = sum_t (delta^r, delta^z, delta^n)_t x_t^T

    Each delta is a_t times a factor that the forward pass knows, so the reverse loop is two products and a sum.

    With `reset="before"` the product within n_t sees a state that is reset already, W_n (r_t * s_{t-1}), as in haiku,
    in ONNX by default, and in Keras with `reset_after=False`: `jaxrnn.cells.reset_before` has the equations. Each way
    then has two products, one after the other.

    Args:
        inputs, hidden, input_scale: as for `jaxrnn.Elman`.
        bias: whether there are b and, with the reset after the product, d.
        recurrent_scale: modulus of the eigenvalues of the fresh W_r, W_z, W_n, each orthogonal times it.
        reset: "after" the product, or "before" it; the parameters then have no d, and are else of the same shapes.

    Raises:
        ValueError: as for `jaxrnn.Elman`; an unknown reset.
        TypeError: as for `jaxrnn.Elman`.

    Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder", equations 5 to 8, which
    have the reset before the product; after it as in cuDNN.

    >>> import jax, jaxrnn
    >>> cell = jaxrnn.GRU(inputs=3, hidden=5)
    >>> jax.tree.map(lambda array: array.shape, cell.init(jax.random.key(0)))
    GRUParams(U=(15, 3), W=(15, 5), b=(15,), d=(5,))
    """

    bias: bool = True
    input_scale: float = 1.0
    recurrent_scale: float = 1.0
    reset: Literal["after", "before"] = "after"
    blocks = 3
    params_type = GRUParams

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reset", self.reset, ("after", "before"))

    def fresh_biases(self, dtype: DTypeLike) -> tuple[Array, Array | None]:
        """Makes b [3H], and with the reset after the product d [H]: zeros."""
        return jnp.zeros(3 * self.hidden, dtype), jnp.zeros(self.hidden, dtype) if self.reset == "after" else None

    def prepare(self, params: GRUParams) -> Operands:
        """Lays U^T and W^T out once."""
        return super().prepare(params) if self.reset == "after" else reset_before.prepare(*params[:3])

    def own_operands(self, operands: Operands, weight: float = 1.0) -> Operands:
        """Keeps the diagonal of each block of W only."""
        own = super().own_operands if self.reset == "after" else reset_before.own_operands
        return own(operands, weight)

    def step_with_residuals(
        self, operands: Operands, state: Array, projected: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        """Computes s_t, and hands on the gates (r_t, z_t), n_t and q_t."""
        # Measured and no faster (T,B,D,H,V = 100,32,64,128,65, 8.6 ms, and 128,64,128,256,128, 72 ms): to keep the
        # factors of `linearize` instead (8.5 and 74 ms), all in one array (8.6 and 72 ms), the gates in one array (9.0
        # and 74 ms); to hand out a_t alone and make the deltas after the loop (a tenth slower).
        if self.reset == "before":
            return reset_before.step(operands, state, projected)
        H = self.hidden
        product = scale(state, operands.dropout_mask) @ operands.W_T  # [*batch, 3H]
        # sigmoid(z) = (1 + tanh(z/2)) / 2: the faster of the two on a CPU
        gates = 0.5 * jnp.tanh(0.5 * (product[..., : 2 * H] + projected[..., : 2 * H])) + 0.5
        r, z = gates[..., :H], gates[..., H:]
        q = product[..., 2 * H :] if operands.d is None else product[..., 2 * H :] + like_rows(operands.d, product)
        n = jnp.tanh(projected[..., 2 * H :] + r * q)
        return n + z * (state - n), (gates, n, q)

    def linearize(
        self, operands: Operands, inputs: Array, previous: Array, states: Array, residuals: StepResiduals
    ) -> Local:
        """Computes the factors of a_t: z_t [K, *batch, H], and those of delta^r, delta^z, delta^n' [K, *batch, 3H]."""
        if self.reset == "before":
            return reset_before.linearize(operands, previous, residuals)
        gates, n, q = residuals
        r, z = jnp.split(gates, 2, -1)
        through_n = (1 - z) * (1 - n * n)
        factors = [through_n * q * r * (1 - r), (previous - n) * z * (1 - z), through_n * r]
        return z, jnp.concatenate(factors, -1), through_n

    def step_adjoint(self, operands: Operands, adjoint: Array, local: Local) -> tuple[Array, Deltas]:
        """Computes the deltas, and dE/ds_{t-1} = a_t * z_t + W^T (delta^r, delta^z, delta^n')."""
        if self.reset == "before":
            return reset_before.step_adjoint(operands, adjoint, local)
        z, factors, through_n = local
        delta = jnp.concatenate([adjoint, adjoint, adjoint], -1) * factors  # [*batch, 3H]
        return adjoint * z + scale(delta @ operands.W, operands.dropout_mask), (delta, adjoint * through_n)

    def recurrent_inputs(self, previous: Array, local: Local) -> ArrayTree:
        """Returns s_{t-1}; with the reset before the product beside it r_t * s_{t-1}, which W_n multiplies there."""
        return previous if self.reset == "after" else (previous, reset_before.reset_states(previous, local))

    def weight_grads(
        self, params: GRUParams, operands: Operands, inputs: Array, previous: ArrayTree, deltas: Deltas
    ) -> GRUParams:
        """Sums dE/dU, dE/dW, dE/db, dE/dd over the segment, by one matrix product for each kind of delta."""
        H, (delta, delta_n) = self.hidden, deltas
        previous = jax.tree.map(lambda states: scale(states, operands.dropout_mask), previous)
        # Cut first and then laid out: XLA lays a part of the columns out anew for every product that takes it.
        of_gates, delta_n_T = columns(delta[..., : 2 * H]), columns(delta_n)  # [2H, K, *batch], [H, K, *batch]
        if self.reset == "before":
            of_states = (of_gates, previous[0]), (delta_n_T, previous[1])
        else:
            of_states = (of_gates, previous), (columns(delta[..., 2 * H :]), previous)
        sums, sums_n = sum_of(delta), sum_of(delta_n)
        return GRUParams(
            U=jnp.concatenate([sum_of_outer_products(part, inputs, self.inputs) for part in (of_gates, delta_n_T)]),
            W=jnp.concatenate([sum_of_outer_products(part, states, H) for part, states in of_states]),
            b=jnp.concatenate([sums[: 2 * H], sums_n]) if self.bias else None,
            d=sums[2 * H :] if self._has_d else None,
        )

    def weight_factors(self, operands: Operands, inputs: Array, previous: ArrayTree, deltas: Deltas) -> GRUParams:
        """Pairs the factors of the sums in `weight_grads`."""
        of_inputs = self._of_inputs(deltas)
        previous = jax.tree.map(lambda states: scale(states, operands.dropout_mask), previous)
        return GRUParams(
            U=(of_inputs, inputs),
            W=reset_before.recurrent_factors(deltas, previous) if self.reset == "before" else (deltas[0], previous),
            b=(of_inputs, None) if self.bias else None,
            d=(deltas[0][..., 2 * self.hidden :], None) if self._has_d else None,
        )

    def gates(self, residuals: StepResiduals) -> dict[str, Array]:
        """Names r_t and z_t; z_t = 1 holds the state."""
        r, z = jnp.split(residuals[0], 2, -1)
        return {"reset": r, "update": z}

    def input_grads(self, params: GRUParams, inputs: Array, previous: Array, deltas: Deltas) -> Array:
        """Computes dE/dx_t = U^T (delta^r, delta^z, delta^n), [K, *batch, D]."""
        return affine_input_grads(params.U, self._of_inputs(deltas))

    @property
    def _has_d(self) -> bool:
        return self.bias and self.reset == "after"

    def _of_inputs(self, deltas: Deltas) -> Array:
        """Joins (delta^r, delta^z, delta^n), [..., 3H]."""
        delta, delta_n = deltas
        return jnp.concatenate([delta[..., : 2 * self.hidden], delta_n], -1)
