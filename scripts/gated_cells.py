"""Steps of an LSTM and a GRU that compute what the library's do, in other ways: what `gated_step.py` tries.

Each is the library's cell with one method changed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxrnn
from jaxrnn.cells.affine import affine, affine_input_grads, columns, like_rows, sum_of, sum_of_outer_products
from jaxrnn.cells.lstm import LSTMParams, LSTMState


class FourProducts(jaxrnn.LSTM):
    """Multiplies by the W of each gate apart."""

    def step_with_residuals(self, operands: Any, state: LSTMState, projected: jax.Array) -> tuple[LSTMState, Any]:
        z = jnp.concatenate([state.s @ W_T for W_T in jnp.split(operands.W_T, 4, -1)], -1) + projected
        return after(self, z, state.m)


class Sigmoids(jaxrnn.LSTM):
    """Takes three sigmoids and a tanh, and keeps the gates in four arrays."""

    def step_with_residuals(self, operands: Any, state: LSTMState, projected: jax.Array) -> tuple[LSTMState, Any]:
        i, f, g, o = jnp.split(state.s @ operands.W_T + projected, 4, -1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        m = f * state.m + i * g
        return LSTMState(o * jnp.tanh(m), m), (i, f, g, o)

    def linearize(self, operands: Any, inputs: jax.Array, previous: Any, states: Any, residuals: Any) -> Any:
        return factors(residuals, previous.m, jnp.tanh(states.m))


class HalvedWeights(jaxrnn.LSTM):
    """Multiplies U, W, b of the sigmoids by the half that their tanh takes, in the place of z."""

    def prepare(self, params: LSTMParams) -> Any:
        halves = self._halves(params.b)
        halved = LSTMParams(params.U * halves[:, None], params.W * halves[:, None], params.b * halves)
        return super().prepare(halved)._replace(W=params.W)

    def step_with_residuals(self, operands: Any, state: LSTMState, projected: jax.Array) -> tuple[LSTMState, Any]:
        t = jnp.tanh(state.s @ operands.W_T + projected)
        i, f, g, o = self._gates(t)
        m = f * state.m + i * g
        return LSTMState(o * jnp.tanh(m), m), t


class BiasInLoop(jaxrnn.LSTM):
    """Adds b at every step, and not to U x_t before the loop."""

    def project(self, operands: Any, inputs: jax.Array) -> jax.Array:
        return affine(operands.U_T, None, inputs)

    def step_with_residuals(self, operands: Any, state: LSTMState, projected: jax.Array) -> tuple[LSTMState, Any]:
        return super().step_with_residuals(operands, state, projected + like_rows(operands.b, projected))


class Bfloat16(jaxrnn.LSTM):
    """Keeps the gates in bfloat16: half the memory, and not exact."""

    def step_with_residuals(self, operands: Any, state: LSTMState, projected: jax.Array) -> tuple[LSTMState, Any]:
        after, t = super().step_with_residuals(operands, state, projected)
        return after, t.astype(jnp.bfloat16)

    def linearize(self, operands: Any, inputs: jax.Array, previous: Any, states: Any, residuals: Any) -> Any:
        return super().linearize(operands, inputs, previous, states, residuals.astype(states.m.dtype))


class TanhKept(jaxrnn.LSTM):
    """Keeps tanh(m_t) from the forward pass."""

    def step_with_residuals(self, operands: Any, state: LSTMState, projected: jax.Array) -> tuple[LSTMState, Any]:
        t = jnp.tanh(self._halves(projected) * (state.s @ operands.W_T + projected))
        i, f, g, o = self._gates(t)
        m = f * state.m + i * g
        tanh_m = jnp.tanh(m)
        return LSTMState(o * tanh_m, m), (t, tanh_m)

    def linearize(self, operands: Any, inputs: jax.Array, previous: Any, states: Any, residuals: Any) -> Any:
        return factors(self._gates(residuals[0]), previous.m, residuals[1])


class FactorsByPieces(jaxrnn.LSTM):
    """Makes the factors of each gate apart, then joins them."""

    def linearize(self, operands: Any, inputs: jax.Array, previous: Any, states: Any, residuals: Any) -> Any:
        return factors(self._gates(residuals), previous.m, jnp.tanh(states.m))


class FactorsInLoop(jaxrnn.LSTM):
    """Makes the factors of a step within the reverse loop."""

    def linearize(self, operands: Any, inputs: jax.Array, previous: Any, states: Any, residuals: Any) -> Any:
        return previous.m, states.m, residuals

    def step_adjoint(self, operands: Any, adjoint: Any, local: Any) -> Any:
        previous_m, m, t = local
        return super().step_adjoint(operands, adjoint, factors(self._gates(t), previous_m, jnp.tanh(m)))


class Select(jaxrnn.LSTM):
    """Chooses dE/dm_t or a_t for each gate by its number, in the place of joining four arrays."""

    def step_adjoint(self, operands: Any, adjoint: Any, local: Any) -> Any:
        f, to_memory, factors = local
        dm = adjoint.m + adjoint.s * to_memory
        is_o = jnp.array([False, False, False, True])[:, None]
        chosen = jnp.where(is_o, adjoint.s[..., None, :], dm[..., None, :])  # [*batch, 4, H]
        delta = chosen.reshape(factors.shape) * factors
        return LSTMState(delta @ operands.W, dm * f), delta


class DeltasAfterLoop(jaxrnn.LSTM):
    """Hands dE/dm_t and a_t out of the reverse loop, and makes the deltas again after it."""

    def step_adjoint(self, operands: Any, adjoint: Any, local: Any) -> Any:
        before, _ = super().step_adjoint(operands, adjoint, local)
        return before, (adjoint.m + adjoint.s * local[1], adjoint.s)

    def recurrent_inputs(self, previous: Any, local: Any) -> Any:
        return previous, local[2]

    def weight_grads(self, params: Any, operands: Any, inputs: jax.Array, previous: Any, deltas: Any) -> Any:
        (previous, factors), (dm, a) = previous, deltas
        delta = jnp.concatenate([dm, dm, dm, a], -1) * factors
        return super().weight_grads(params, operands, inputs, previous, delta)

    def input_grads(self, params: Any, inputs: jax.Array, previous: Any, deltas: Any) -> jax.Array:
        dm, a = deltas
        return affine_input_grads(params.U, jnp.concatenate([dm, dm, dm, a], -1) * previous[1])


class InputsAsColumns(jaxrnn.LSTM):
    """Lays x_t and s_{t-1} out as columns in the place of the deltas, and the gradients back."""

    def weight_grads(self, params: Any, operands: Any, inputs: jax.Array, previous: Any, deltas: Any) -> Any:
        U_T, W_T = (sum_of_outer_products(columns(each), deltas, 4 * self.hidden) for each in (inputs, previous.s))
        return LSTMParams(lax.optimization_barrier(U_T).T, lax.optimization_barrier(W_T).T, sum_of(deltas))


class OneWeightProduct(jaxrnn.LSTM):
    """Takes dE/dU, dE/dW and dE/db by one product with (x_t, s_{t-1}, 1)."""

    def weight_grads(self, params: Any, operands: Any, inputs: jax.Array, previous: Any, deltas: Any) -> Any:
        seen = jnp.concatenate([inputs, previous.s, jnp.ones_like(inputs[..., :1])], -1)
        found = sum_of_outer_products(columns(deltas), seen, seen.shape[-1])
        return LSTMParams(found[:, : self.inputs], found[:, self.inputs : -1], found[:, -1])


class ColumnsThenCut(jaxrnn.GRU):
    """Lays the deltas out as columns whole, and takes parts of these."""

    def weight_grads(self, params: Any, operands: Any, inputs: jax.Array, previous: Any, deltas: Any) -> Any:
        delta_T, delta_n_T = map(columns, deltas)
        parts = delta_T[: 2 * self.hidden], delta_n_T
        return params._replace(
            U=jnp.concatenate([sum_of_outer_products(part, inputs, self.inputs) for part in parts]),
            W=sum_of_outer_products(delta_T, previous, self.hidden),
            b=sum_of(self._of_inputs(deltas)),
            d=sum_of(deltas[0][..., 2 * self.hidden :]),
        )


def after(cell: jaxrnn.LSTM, z: jax.Array, m: jax.Array) -> tuple[LSTMState, jax.Array]:
    """Computes the state after a step, and what it keeps, from z_t and m_{t-1}."""
    t = jnp.tanh(cell._halves(z) * z)
    i, f, g, o = cell._gates(t)
    m = f * m + i * g
    return LSTMState(o * jnp.tanh(m), m), t


def factors(gates: tuple, previous_m: jax.Array, tanh_m: jax.Array) -> tuple[jax.Array, ...]:
    """Computes f_t and the factors of dE/dm_t and of a_t."""
    i, f, g, o = gates
    pieces = [g * i * (1 - i), previous_m * f * (1 - f), i * (1 - g * g), tanh_m * o * (1 - o)]
    return f, o * (1 - tanh_m * tanh_m), jnp.concatenate(pieces, -1)
