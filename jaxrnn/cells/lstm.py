"""Long short-term memory, and its adjoint by hand."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from chex import Array
from jax.typing import DTypeLike

from jaxrnn.cells.affine import like_rows
from jaxrnn.cells.blocks import BlockCell, BlockOperands
from jaxrnn.cells.dropout import scale
from jaxrnn.printing import as_text


class LSTMParams(NamedTuple):
    """Holds the parameters of an LSTM layer; the rows are those of i, f, g, o, in this order."""

    U: Array  # [4H, D]
    W: Array  # [4H, H]
    b: Array | None  # [4H]

    def __repr__(self) -> str:
        return as_text(self)


class LSTMState(NamedTuple):
    """Holds the state of an LSTM layer."""

    s: Array  # [*batch, H], the hidden state
    m: Array  # [*batch, H], the memory

    def __repr__(self) -> str:
        return as_text(self)


@dataclasses.dataclass(frozen=True, repr=False)
class LSTM(BlockCell):
    """Defines the LSTM cell with forget gate, without peepholes, as cuDNN, PyTorch and Keras have it.

        i_t = sigmoid(W_i s_{t-1} + U_i x_t + b_i)           g_t = tanh(W_g s_{t-1} + U_g x_t + b_g)
        f_t = sigmoid(W_f s_{t-1} + U_f x_t + b_f)           m_t = f_t * m_{t-1} + i_t * g_t
        o_t = sigmoid(W_o s_{t-1} + U_o x_t + b_o)           s_t = o_t * tanh(m_t)

    With a_t = dE/ds_t and, carried beside it, what step t + 1 asks of the memory:

        dE/dm_t     = (dE/dm_{t+1} * f_{t+1}) + a_t * o_t * (1 - tanh(m_t)^2)
        delta^i_t   = dE/dm_t * g_t * i_t * (1 - i_t)         delta^g_t = dE/dm_t * i_t * (1 - g_t^2)
        delta^f_t   = dE/dm_t * m_{t-1} * f_t * (1 - f_t)     delta^o_t = a_t * tanh(m_t) * o_t * (1 - o_t)
        dE/ds_{t-1} = W^T delta_t        dE/dW = sum_t delta_t s_{t-1}^T        dE/dU = sum_t delta_t x_t^T

    Args:
        inputs, hidden, bias, input_scale: as for `jaxrnn.Elman`.
        forget_bias: the fresh b_f; 1 lets a fresh memory last (Jozefowicz et al. 2015, section 2.2).
        recurrent_scale: modulus of the eigenvalues of the four fresh blocks of W, each orthogonal times it.

    Raises:
        ValueError, TypeError: as for `jaxrnn.Elman`.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; Gers, Schmidhuber & Cummins (2000), "Learning to
    forget", for f_t.

    >>> import jax, jaxrnn
    >>> cell = jaxrnn.LSTM(inputs=3, hidden=5)
    >>> jax.tree.map(lambda array: array.shape, cell.init(jax.random.key(0)))
    LSTMParams(U=(20, 3), W=(20, 5), b=(20,))
    """

    bias: bool = True
    forget_bias: float = 1.0
    input_scale: float = 1.0
    recurrent_scale: float = 1.0
    blocks = 4
    params_type = LSTMParams

    def fresh_biases(self, dtype: DTypeLike) -> tuple[Array]:
        """Makes b [4H]: `forget_bias` for the rows of f, zeros else."""
        return (jnp.zeros(4 * self.hidden, dtype).at[self.hidden : 2 * self.hidden].set(self.forget_bias),)

    def initial_state(self, batch: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> LSTMState:
        """Makes s_0 and m_0: zeros [*batch, H]."""
        # Two arrays, not one twice: a buffer that is donated to a training step can be given away only once.
        return LSTMState(jnp.zeros((*batch, self.hidden), dtype), jnp.zeros((*batch, self.hidden), dtype))

    def step_with_residuals(
        self, operands: BlockOperands, state: LSTMState, projected: Array
    ) -> tuple[LSTMState, Array]:
        """Computes s_t and m_t, and hands on the one tanh that all four gates come from, [*batch, 4H]."""
        z = scale(state.s, operands.dropout_mask) @ operands.W_T + projected  # [*batch, 4H]
        # sigmoid(z) = (1 + tanh(z/2)) / 2: one function for all gates, one array to keep (three calls of sigmoid, one
        # of tanh and four arrays: 1.2 to 2.2 times as long for this step's elementwise part). What else was tried:
        # `scripts/gated_step.py`.
        t = jnp.tanh(self._halves(z) * z)
        i, f, g, o = self._gates(t)
        m = f * state.m + i * g
        return LSTMState(o * jnp.tanh(m), m), t

    def linearize(
        self, operands: BlockOperands, inputs: Array, previous: LSTMState, states: LSTMState, residuals: Array
    ) -> tuple[Array, ...]:
        """Computes f_t and the factors of dE/dm_t and of a_t in the equations above, [K, *batch, H], H and 4H.

        Each gate's derivative is that of its tanh: (1 - t^2) for g, (1 - t^2)/4 = sigmoid' for the others.
        """
        t = residuals
        i, f, g, o = self._gates(t)
        tanh_m = jnp.tanh(states.m)
        slopes = (1 - t * t) * self._halves(t)
        halved = jnp.concatenate([g / 2, previous.m / 2, i, tanh_m / 2], -1)
        return f, o * (1 - tanh_m * tanh_m), slopes * halved

    def step_adjoint(
        self, operands: BlockOperands, adjoint: LSTMState, local: tuple[Array, ...]
    ) -> tuple[LSTMState, Array]:
        """Computes delta_t, and dE/ds_{t-1} = W^T delta_t beside dE/dm_t * f_t."""
        f, to_memory, factors = local
        dm = adjoint.m + adjoint.s * to_memory  # [*batch, H]
        delta = jnp.concatenate([dm, dm, dm, adjoint.s], -1) * factors  # [*batch, 4H]
        return LSTMState(scale(delta @ operands.W, operands.dropout_mask), dm * f), delta

    def gates(self, residuals: Array) -> dict[str, Array]:
        """Names i_t, f_t and o_t."""
        i, f, _, o = self._gates(residuals)
        return {"input": i, "forget": f, "output": o}

    def _gates(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Splits t into i, f, g, o [..., H]: t is tanh(z/2) for i, f, o and tanh(z) for g."""
        i, f, g, o = jnp.split(t, 4, -1)
        return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5

    def _halves(self, z: Array) -> Array:
        """Returns the factor of z [..., 4H] in each gate's tanh."""
        return like_rows(jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5]), self.hidden), z)
