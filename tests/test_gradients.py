"""BPTT by hand against `jax.grad` of the plain scan, over everything that can be chosen."""

from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from problems import OBJECTIVES, Problem

import jaxrnn
from jaxrnn.cells.affine import ONE_HOT_TOKENS
from jaxrnn.layer import unroll as layer
from jaxrnn.layer.memory import layer_bytes
from jaxrnn.layer.segments import segment_length

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12  # float64 against float64: nothing but rounding
SINGLE = 1e-5  # float32 against the float64 truth
# An entry of a gradient is a sum over T B rounded products: within two units in its last place either method is as
# exact as float32 allows, and which of them is nearer is luck. For the same reason errors are averaged over networks.
FLOOR = 2 * float(jnp.finfo(jnp.float32).eps)


@st.composite
def problems(draw):
    """A problem and a segment length, from one random number: choice by choice, examples would repeat each other."""
    random = draw(st.randoms(use_true_random=True))
    coin, size = lambda: random.random() < 0.5, lambda: random.randint(1, 6)
    problem = Problem(
        T=random.choice([1, 2, 3, 5, 7, 11, 13]),
        batch=random.choice([(), (1,), (2,), (3,), (2, 3)]),
        D=size(),
        H=tuple(size() for _ in range(random.randint(1, 3))),
        V=size(),
        activation=random.choice(["tanh", "relu"]),
        bias=coin(),
        tokens=coin(),
        objective=random.choice(list(OBJECTIVES)),
        weighted=coin(),
        stateful=coin(),
        seed=random.randint(0, 99),
    )
    return problem, random.choice([1, 2, 3, 4, problem.T, problem.T + 5, "auto"])


@hypothesis.given(problems())
@hypothesis.settings(max_examples=26)
@hypothesis.example((Problem(T=1, weighted=True), 1))
@hypothesis.example((Problem(T=7, batch=(2, 3), H=(4, 5, 3), tokens=True, stateful=True), 3))
@hypothesis.example((Problem(T=13, batch=(), H=(5, 2), objective="user", weighted=True, stateful=True), 5))
@hypothesis.example((Problem(T=13, batch=(50,), D=ONE_HOT_TOKENS + 1, tokens=True), 12))  # tokens that recur
def test_loss_gradient_equals_autodiff(example):
    """`value_and_grad`, and `jax.grad` through the custom rule of `unroll`, against `jax.grad` of the plain scan."""
    problem, segment = example
    net = problem.network()

    @jax.jit
    def all_three(*arguments):
        through_rule = jax.value_and_grad(lambda *a: net.loss(*a, gradient="bptt"))
        functions = (jax.value_and_grad(net.loss), jaxrnn.value_and_grad(net, segment), through_rule)
        return [function(*arguments) for function in functions]

    truth, by_hand, by_rule = all_three(problem.params(), *problem.data())
    assert relative_error(by_hand, truth) <= EXACT
    assert relative_error(by_rule, truth) <= EXACT


@hypothesis.given(problems(), st.booleans())
@hypothesis.settings(max_examples=16)
@hypothesis.example((Problem(T=7, batch=(2,), H=(4,), stateful=True), 3), True)
@hypothesis.example((Problem(T=11, batch=(), H=(5,), tokens=True), 2), True)
def test_unroll_gradient_equals_autodiff(example, reverse):
    """The gradient to parameters, inputs and state, of a function of both the hidden states and the final one."""
    problem, segment = example
    segment = problem.T if segment == "auto" else min(segment, problem.T)
    cell, params = problem.network().layers[0], problem.params().layers[0]
    inputs, _, _, state = problem.data()
    state = cell.initial_state(problem.batch, jnp.float64) if state is None else state[0]
    g = np.random.default_rng(problem.seed).normal(size=(problem.T + 1, *problem.batch, cell.hidden))

    def error(params, state, inputs, gradient):
        hidden, final = jaxrnn.unroll(cell, params, inputs, state, reverse=reverse, gradient=gradient)
        return jnp.sum(g[1:] * jnp.sin(hidden)) + jnp.sum(g[0] * final**2)

    arguments = (0, 1) if problem.tokens else (0, 1, 2)
    compiled = jax.jit(jax.value_and_grad(error, arguments), static_argnums=3)
    truth = compiled(params, state, inputs, "autodiff")
    # By itself, a sequence of this size would be one segment.
    with mock.patch.object(layer, "_layer_segment", return_value=segment) as chosen:
        by_rule = compiled(params, state, inputs, "bptt")
    assert chosen.called
    assert relative_error(by_rule, truth) <= EXACT


@pytest.mark.parametrize(
    "sizes",
    [
        {"T": 50, "batch": (8,), "D": 8, "H": (32, 16), "V": 10},
        {"T": 101, "batch": (), "D": 20, "H": (24,), "V": 20, "tokens": True},
        {"T": 40, "batch": (4,), "D": 5, "H": (30,), "V": 6, "objective": "sigmoid", "activation": "relu"},
        {"T": 40, "batch": (2, 2), "H": (20, 10, 10), "objective": "squared", "weighted": True, "stateful": True},
    ],
    ids=["layers", "tokens", "relu", "deep"],
)
def test_float32_is_as_good_as_autodiff(sizes):
    """Against the float64 truth: always within 1e-5, and over eight networks no worse than twice jax.grad."""
    net = Problem(**sizes).network()
    autodiff = jax.jit(jax.grad(net.loss))
    by_hand = jax.jit(lambda *a: jaxrnn.value_and_grad(net, 7)(*a)[1])
    by_rule = jax.jit(jax.grad(lambda *a: net.loss(*a, gradient="bptt")))
    errors = []
    for seed in range(8):
        problem = Problem(**sizes, seed=seed)
        truth = autodiff(problem.params(), *problem.data())
        arguments = problem.params(jnp.float32), *problem.data(jnp.float32)
        errors.append([leaf_errors(gradient(*arguments), truth) for gradient in (autodiff, by_hand, by_rule)])
    own, *ours = np.sqrt(np.mean(np.square(errors), 0))  # [leaf]
    assert np.max(errors) <= SINGLE
    for error in ours:
        assert np.all(error <= 2 * np.maximum(own, FLOOR))


def leaf_errors(grads, truth):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    return [relative_error(a, b) for a, b in zip(*map(jax.tree.leaves, (grads, truth)), strict=True)]


def test_the_random_W_does_not_commute_with_its_transpose():
    """Otherwise W in the place of W^T would pass all of the above."""
    W = np.asarray(Problem().params().layers[0].W)
    assert relative_error(W.T @ W, W @ W.T) > 0.1


def test_a_long_sequence_is_cut_by_itself_and_nothing_changes():
    """The automatic segments of `unroll` and `value_and_grad`, at a size where they are shorter than the sequence."""
    problem = Problem(T=101, batch=(128,), D=2, H=(100,), V=3, stateful=True, weighted=True)
    net, params, data = problem.network(), problem.params(), problem.data()
    step_bytes = layer_bytes(net.layers[0], params.layers[0], data[0], data[3][0]).total
    K = segment_length("auto", problem.T, 128, step_bytes)
    assert 1 < K < problem.T
    assert problem.T % K != 0
    truth = jax.jit(jax.value_and_grad(net.loss))(params, *data)
    by_hand = jax.jit(jaxrnn.value_and_grad(net))(params, *data)
    by_rule = jax.jit(jax.value_and_grad(lambda *a: net.loss(*a, gradient="bptt")))(params, *data)
    assert relative_error(by_hand, truth) <= EXACT
    assert relative_error(by_rule, truth) <= EXACT
