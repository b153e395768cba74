"""A user's own cell: given by `step` alone, and with its adjoint by hand; a plain state, and a NamedTuple."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import Problem

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12


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

    def linearize(self, params, x, s, s_next, kept):
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

    def linearize(self, params, x, state, state_next, kept):
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


def column(U, x):
    """U x, where x may be a token."""
    return U.T[x] if jnp.issubdtype(x.dtype, jnp.integer) else x @ U.T


def outer(a, b):
    """The sum over all steps and rows of a b^T."""
    return jnp.einsum("...i,...j->ij", a, b)


def over_columns(deltas, x, size):
    return outer(deltas, jax.nn.one_hot(x, size, dtype=deltas.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x)


CELLS = [Leaky, LeakyByHand, Glider, GliderByHand]
TWINS = [(Leaky, LeakyByHand), (Glider, GliderByHand)]


def network(Cell):
    """The cell below, between and above layers of another kind."""
    layers = (Cell(3, 4), jaxrnn.Elman(4, 5), Cell(5, 4))
    return jaxrnn.Network(layers, jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)


def problem_for(Cell, tokens):
    problem = Problem(T=7, batch=(2,), tokens=tokens, weighted=True)
    params = jax.tree.map(lambda leaf: leaf / 2, network(Cell).init(jax.random.key(1), jnp.float64))
    return params, *problem.data()[:3]


@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "tokens"])
@pytest.mark.parametrize("Cell", CELLS)
def test_network_gradient_equals_autodiff(Cell, tokens):
    net, arguments = network(Cell), problem_for(Cell, tokens)
    truth = jax.jit(jax.value_and_grad(net.loss))(*arguments)
    by_hand = jax.jit(jaxrnn.value_and_grad(net, 3))(*arguments)
    assert relative_error(by_hand, truth) <= EXACT


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("Cell", CELLS)
def test_unroll_gradient_equals_autodiff(Cell, reverse):
    """To parameters, inputs, and every field of the state, through the hidden states and the final state."""
    cell = Cell(3, 4)
    params = cell.init(jax.random.key(2), jnp.float64)
    inputs = Problem().data()[0]
    state = jax.tree.map(lambda leaf: leaf + 0.3, cell.initial_state((2,), jnp.float64))

    def error(params, inputs, state, gradient):
        hidden, final = jaxrnn.unroll(cell, params, inputs, state, reverse=reverse, gradient=gradient)
        return jnp.sum(jnp.sin(hidden)) + sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(final))

    by_rule, truth = (
        jax.jit(jax.value_and_grad(error, (0, 1, 2)), static_argnums=3)(params, inputs, state, gradient)
        for gradient in ("bptt", "autodiff")
    )
    assert relative_error(by_rule, truth) <= EXACT


@pytest.mark.parametrize(("Cell", "ByHand"), TWINS)
def test_an_adjoint_by_hand_gives_what_the_step_alone_gives(Cell, ByHand):
    arguments = problem_for(Cell, False)
    by_step = jax.jit(jaxrnn.value_and_grad(network(Cell), 3, return_state=True))(*arguments)
    by_hand = jax.jit(jaxrnn.value_and_grad(network(ByHand), 3, return_state=True))(*arguments)
    assert relative_error(by_hand, by_step) <= EXACT


@pytest.mark.parametrize("Cell", CELLS)
def test_final_state_has_the_type_of_the_cells_own(Cell):
    cell = Cell(3, 4)
    hidden, final = jaxrnn.unroll(cell, cell.init(jax.random.key(0), jnp.float64), jnp.ones((6, 2, 3)))
    assert jax.tree.structure(final) == jax.tree.structure(cell.initial_state((2,)))
    assert relative_error(hidden[-1], jax.tree.leaves(final)[0]) == 0


def test_equal_cells_are_equal_and_hash_alike():
    assert Leaky(3, 4, 0.5) == Leaky(3, 4, 0.5)
    assert hash(Leaky(3, 4, 0.5)) == hash(Leaky(3, 4, 0.5))
    assert Leaky(3, 4, 0.5) != Leaky(3, 4, 0.25)
