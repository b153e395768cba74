"""An LSTM that hands up its memory beside its hidden state, for libraries that return the whole state of every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from chex import Array
from jax.typing import DTypeLike

from jaxrnn.cells.base import Cell, Deltas, Local, Params, State, StepResiduals
from jaxrnn.cells.blocks import BlockOperands
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.layer.unroll import unroll


@dataclasses.dataclass(frozen=True)
class WholeStateLSTM(LSTM):
    """Defines the `jaxrnn.LSTM` whose hidden state is (s_t, m_t) side by side, [*batch, 2H].

    The memory of every step is thereby an output like s_t, and the gradient that reaches it is carried as any other.
    """

    @property
    def outputs(self) -> int:
        """Counts what the layer above sees: 2H."""
        return 2 * self.hidden

    def initial_state(self, batch: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> Array:
        """Makes s_0 and m_0: zeros [*batch, 2H]."""
        return jnp.zeros((*batch, 2 * self.hidden), dtype)

    def step_with_residuals(self, operands: BlockOperands, state: Array, projected: Array) -> tuple[Array, Array]:
        """Computes s_t and m_t, as the LSTM does."""
        after, residuals = super().step_with_residuals(operands, parts(state), projected)
        return side_by_side(after), residuals

    def linearize(
        self, operands: BlockOperands, inputs: Array, previous: Array, states: Array, residuals: StepResiduals
    ) -> Local:
        """Computes the factors of the adjoint, as the LSTM does."""
        return super().linearize(operands, inputs, parts(previous), parts(states), residuals)

    def step_adjoint(self, operands: BlockOperands, adjoint: Array, local: Local) -> tuple[Array, Deltas]:
        """Takes dE/ds_t and dE/dm_t back through the step, as the LSTM does."""
        before, delta = super().step_adjoint(operands, parts(adjoint), local)
        return side_by_side(before), delta

    def weight_grads(
        self, params: LSTMParams, operands: BlockOperands, inputs: Array, previous: Array, deltas: Deltas
    ) -> LSTMParams:
        """Sums dE/dparams over the segment, as the LSTM does."""
        return super().weight_grads(params, operands, inputs, parts(previous), deltas)


def unroll_whole_states(
    cell: Cell, params: Params, inputs: Array, state: State, initial: State | None = None, **options: Any
) -> tuple[State, State]:
    """Runs `jaxrnn.unroll`, and returns the whole state of every step [T, *batch, ...], and the last one."""
    if not isinstance(cell, LSTM):
        return unroll(cell, params, inputs, state, initial=initial, **options)
    whole = WholeStateLSTM(cell.inputs, cell.hidden, cell.bias)
    state, initial = (None if given is None else side_by_side(given) for given in (state, initial))
    states, final = unroll(whole, params, inputs, state, initial=initial, **options)
    return parts(states), parts(final)


def side_by_side(state: LSTMState) -> Array:
    """Joins s and m into one array [..., 2H]."""
    return jnp.concatenate(state, -1)


def parts(state: Array) -> LSTMState:
    """Returns the s and m of an array [..., 2H]."""
    return LSTMState(*jnp.split(state, 2, -1))
