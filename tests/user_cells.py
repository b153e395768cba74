"""Cells as a user writes them: given by `step` alone, and with an adjoint by hand; a plain state, and a NamedTuple."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn


class Params(NamedTuple):
    U: Any  # [H, D]
    W: Any  # [H, H]


@dataclasses.dataclass(frozen=True)
class Leaky(jaxrnn.Cell):
    """s_t = (1 - r) s_{t-1} + r tanh(W s_{t-1} + U x_t)."""

    rate: float = 0.3

    def init(self, key, dtype=jnp.float32):
        both = jax.random.normal(key, (self.hidden, self.inputs + self.hidden), dtype)
        return Params(both[:, : self.inputs], both[:, self.inputs :])

    def step(self, params, s, x):
        return (1 - self.rate) * s + self.rate * jnp.tanh(s @ params.W.T + column(params.U, x))


class LeakyByHand(Leaky):
    """The same with a_t = tanh(z_t): delta_t = r (1 - a_t^2) dE/ds_t, dE/ds_{t-1} = (1 - r) dE/ds_t + W^T delta_t."""

    def linearize(self, params, x, s, s_next, residuals):
        a = (s_next - (1 - self.rate) * s) / self.rate
        return self.rate * (1 - a**2)

    def step_adjoint(self, params, adjoint, slope):
        delta = slope * adjoint
        return (1 - self.rate) * adjoint + delta @ params.W, delta

    def weight_grads(self, params, operands, x, s, deltas):
        return Params(over_columns(deltas, x, self.inputs), outer(deltas, s))

    def input_grads(self, params, x, s, deltas):
        return deltas @ params.U


class Gliding(NamedTuple):
    h: Any  # [*batch, H], what is seen above
    c: Any  # [*batch, H], what is carried beside it


@dataclasses.dataclass(frozen=True)
class Glider(Leaky):
    """c_t = r c_{t-1} + tanh(W h_{t-1} + U x_t), h_t = sin(c_t)."""

    def initial_state(self, batch=(), dtype=jnp.float32):
        return Gliding(*jnp.zeros((2, *batch, self.hidden), dtype))

    def step(self, params, state, x):
        c = self.rate * state.c + jnp.tanh(state.h @ params.W.T + column(params.U, x))
        return Gliding(jnp.sin(c), c)


class GliderByHand(Glider):
    """The same with a_t = tanh(z_t), C_t = dE/dc_t + cos(c_t) dE/dh_t:

    delta_t = (1 - a_t^2) C_t        dE/dh_{t-1} = W^T delta_t        dE/dc_{t-1} = r C_t
    """

    def linearize(self, params, x, state, state_next, residuals):
        a = state_next.c - self.rate * state.c
        return jnp.cos(state_next.c), 1 - a**2

    def step_adjoint(self, params, adjoint, local):
        cosine, slope = local
        C = adjoint.c + cosine * adjoint.h
        delta = slope * C
        return Gliding(delta @ params.W, self.rate * C), delta

    def weight_grads(self, params, operands, x, state, deltas):
        return Params(over_columns(deltas, x, self.inputs), outer(deltas, state.h))

    def input_grads(self, params, x, state, deltas):
        return deltas @ params.U


@dataclasses.dataclass(frozen=True)
class Turned(jaxrnn.Cell):
    """A cell whose weight has its units along the second axis."""

    def init(self, key, dtype=jnp.float32):
        return {"U": jax.random.normal(key, (self.inputs, self.hidden), dtype)}

    def step(self, params, state, x):
        return 0.5 * state + jnp.tanh(x @ params["U"])

    def own_operands(self, operands, weight=1.0):
        return operands


@dataclasses.dataclass(frozen=True)
class Map(jaxrnn.Cell):
    """A map of its state alone, whose Lyapunov exponents are known."""

    kind: str = "logistic"

    def init(self, key, dtype=jnp.float32):
        return jnp.zeros(1, dtype)

    def step(self, params, state, x):
        if self.kind == "logistic":
            return 4 * state * (1 - state)
        a, b = state[..., 0], state[..., 1]
        if self.kind == "cat":
            return jnp.stack([2 * a + b, a + b], -1) % 1
        return jnp.stack([1 - 1.4 * a * a + b, 0.3 * a], -1)  # Henon's map


TRACES = []  # an entry for every time that JAX traces the step of a `Traced`


@dataclasses.dataclass(frozen=True)
class Traced(Leaky):
    """A cell that notes when it is traced: what is compiled once traces it no more."""

    def step(self, params, s, x):
        TRACES.append(1)
        return super().step(params, s, x)


def column(U, x):
    """Returns U x, where x may be a token."""
    return U.T[x] if jnp.issubdtype(x.dtype, jnp.integer) else x @ U.T


def outer(a, b):
    """Returns the sum over all steps and rows of a b^T."""
    return jnp.einsum("...i,...j->ij", a, b)


def over_columns(deltas, x, size):
    """Returns the sum over all steps and rows of delta x^T, where x may be tokens."""
    return outer(deltas, jax.nn.one_hot(x, size, dtype=deltas.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x)
