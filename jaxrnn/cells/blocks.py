"""What this library's cells share: weights in blocks of H rows, one for each gate, and the sums of their gradients.

    z_t = W s_{t-1} + (U x_t + b)        dE/dx_t = U^T delta_t                     delta_t := dE/dz_t
    dE/dW = sum_t delta_t s_{t-1}^T      dE/dU = sum_t delta_t x_t^T               dE/db = sum_t delta_t

Each cell's file has its own recurrence and the adjoint of it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.arguments import check_float, check_key, check_scale
from jaxrnn.cells.affine import affine, affine_input_grads, columns, diagonal_blocks, sum_of, sum_of_outer_products
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.cells.dropout import scale
from jaxrnn.cells.initializers import recurrent


class BlockOperands(NamedTuple):
    """Holds the parameters as the loops multiply by them: rows are examples, and there are m blocks of H columns."""

    U_T: Array  # [D, m H]
    W_T: Array  # [H, m H]
    W: Array  # [m H, H]
    b: Array | None  # [m H]
    d: Array | None = None  # [H], of a GRU
    dropout_mask: Array | None = None  # [*batch, H], 0 or 1/(1 - rate), times s_{t-1}


class BlockCell(Cell):
    """Defines what cells with one matrix of each kind have in common; the default sums are for one kind of delta."""

    blocks: ClassVar[int]  # m, of H rows each
    params_type: ClassVar[type[Any]]  # U [m H, D], W [m H, H], b [m H], and what other biases there are
    bias: bool
    input_scale: float
    recurrent_scale: float
    recurrent_initializer = "orthogonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("input_scale", self.input_scale)
        check_scale("recurrent_scale", self.recurrent_scale)

    def init(self, key: PRNGKey, dtype: DTypeLike = jnp.float32) -> Params:
        """Draws fresh parameters: U [m H, D], W [m H, H] block by block, and biases."""
        check_key(key)
        check_float("dtype", dtype)
        H, key_U, *keys = self.hidden, *jax.random.split(key, self.blocks + 1)
        normal = jax.nn.initializers.normal(self.input_scale / math.sqrt(self.inputs))
        W = [recurrent(self.recurrent_initializer, self.recurrent_scale, key, H, dtype) for key in keys]
        biases = [bias if self.bias else None for bias in self.fresh_biases(dtype)]
        return self.params_type(normal(key_U, (self.blocks * H, self.inputs), dtype), jnp.concatenate(W), *biases)

    def fresh_biases(self, dtype: DTypeLike) -> tuple[Array, ...]:
        """Makes b [m H], zeros, and what other biases there are."""
        return (jnp.zeros(self.blocks * self.hidden, dtype),)

    def prepare(self, params: Params) -> BlockOperands:
        """Lays U^T and W^T out once: `s @ W.T` within the loop costs 5 to 25 % more at H up to 256 (on a CPU)."""
        U, W, *biases = params
        return BlockOperands(U.T, W.T, W, *biases)

    def with_dropout(self, operands: BlockOperands, dropout_mask: Array) -> BlockOperands:
        """Makes the recurrent product W (dropout_mask * s_{t-1})."""
        return operands._replace(dropout_mask=dropout_mask)

    def own_operands(self, operands: BlockOperands, weight: float = 1.0) -> BlockOperands:
        """Keeps the diagonal of each block of W only."""
        W = weight * diagonal_blocks(operands.W)
        return operands._replace(W=W, W_T=W.T)

    def project(self, operands: BlockOperands, inputs: Array) -> Array:
        """Computes U x_t + b, [K, *batch, m H]."""
        return affine(operands.U_T, operands.b, inputs)

    def step(self, operands: BlockOperands, state: State, projected: Array) -> State:
        """Computes s_t."""
        return self.step_with_residuals(operands, state, projected)[0]

    def input_grads(self, params: Params, inputs: Array, previous: State, deltas: Any) -> Array:
        """Computes dE/dx_t = U^T delta_t, [K, *batch, D]."""
        return affine_input_grads(params.U, deltas)

    def weight_grads(
        self, params: Params, operands: BlockOperands, inputs: Array, previous: State, deltas: Any
    ) -> Params:
        """Sums dE/dU, dE/dW, dE/db over the segment, by one matrix product each."""
        previous = scale(hidden_of(previous), operands.dropout_mask)
        delta_T = columns(deltas)  # [m H, K, *batch]
        return self.params_type(
            U=sum_of_outer_products(delta_T, inputs, self.inputs),
            W=sum_of_outer_products(delta_T, previous, self.hidden),
            b=sum_of(deltas) if self.bias else None,
        )

    def weight_factors(self, operands: BlockOperands, inputs: Array, previous: State, deltas: Any) -> Params:
        """Pairs the factors of the sums in `weight_grads`."""
        previous = scale(hidden_of(previous), operands.dropout_mask)
        return self.params_type((deltas, inputs), (deltas, previous), (deltas, None) if self.bias else None)
