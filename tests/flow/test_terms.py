"""The gradient as a double sum: the terms sum to it, and each is that of a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem, autodiff

from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12
PLAIN = {"D": 3, "H": 6, "V": 4, "fresh": True}

ROWS = pairwise(
    {
        "Cell": tuple(CELLS),
        "block": (None, 1, 4),
        "depth": (1, 2),
        "objective": ("labels", "squared"),
        "tokens": (False, True),
        "weighted": (False, True),
        "stateful": (False, True),
        "masked": (False, True),
        "reset": (False, True),
        "last_step": (False, True),
        "residual": (False, True),
        "learn_state": (False, True),
    },
    lambda row: not (row.get("residual") and row.get("depth") == 1),
)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_the_sum_of_the_terms_is_the_gradient(row):
    choice = dict(row)
    block = choice.pop("block")
    problem = Problem(CELLS[choice.pop("Cell")], **choice)
    found = flow.terms(problem.net, *problem.arguments()[:7], block=block)
    assert relative_error(found.grads, autodiff(problem)[1]) <= EXACT
    assert found.deltas[0].shape == ((1, problem.T) if row["last_step"] else (problem.T, problem.T))


def test_every_term_is_that_of_the_double_sum():
    """delta_{t,k} and its norms against loops in NumPy, with the batch summed within a term."""
    problem = Problem(T=7, batch=(2,), **PLAIN | {"H": 5})
    net, (params, inputs, targets, *_) = problem.net, problem.arguments()
    found = flow.terms(net, params, inputs, targets, return_values=True)
    (U, W, b), (V, c) = jax.tree.map(np.asarray, (params.layers[0], params.readout))
    x, y = np.asarray(inputs), np.asarray(targets)
    steps, B = y.shape
    s = [np.zeros((B, 5))]
    for t in range(steps):
        s.append(np.tanh(s[-1] @ W.T + x[t] @ U.T + b))
    for t in range(steps):
        scores = s[t + 1] @ V.T + c
        yhat = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        adjoint = (yhat - np.eye(4)[y[t]]) / (steps * B) @ V
        for k in range(t, -1, -1):
            assert np.isclose(found.adjoints[0][t, k], np.linalg.norm(adjoint), rtol=1e-10, atol=0)
            delta = (1 - s[k + 1] ** 2) * adjoint
            assert np.allclose(found.values[0][t, k], delta, rtol=1e-9, atol=1e-16)
            assert np.isclose(found.deltas[0][t, k], np.linalg.norm(delta), rtol=1e-10, atol=0)
            for name, seen in (("W", s[k]), ("U", x[k]), ("b", np.ones((B, 1)))):
                expected = np.linalg.norm(delta.T @ seen)
                assert np.isclose(getattr(found.weights[0], name)[t, k], expected, rtol=1e-8, atol=1e-14)
            adjoint = delta @ W
    assert np.all(np.triu(found.deltas[0], 1) == 0)
    assert found.values[0].shape == (7, 7, 2, 5)


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM"])
def test_the_factors_of_a_weight_are_those_of_its_gradient(Cell):
    class Unfactored(type(CELLS[Cell](1, 1))):
        def weight_factors(self, *arguments):
            return None

    def unfactored(D, H):
        return Unfactored(**dataclasses.asdict(CELLS[Cell](D, H)))

    breaks = {"weighted": True, "stateful": True, "masked": True, "reset": True}
    factored, whole = Problem(CELLS[Cell], **breaks), Problem(unfactored, **breaks)
    one = flow.terms(factored.net, *factored.arguments()[:7], block=1)
    other = flow.terms(whole.net, *whole.arguments()[:7])
    assert relative_error(one.weights, other.weights) <= 1e-7  # square roots of differences of squares
    assert float(jax.tree.leaves(one.weights)[0].max()) > 1e-4


def test_no_flow_across_a_reset_and_none_on_masked_steps():
    problem = Problem(T=12, batch=(1,), **PLAIN)
    net, (params, inputs, targets, *_) = problem.net, problem.arguments()
    reset = jnp.zeros((12, 1), bool).at[5].set(True)
    mask = jnp.ones((12, 1), bool).at[8].set(False)
    found = flow.terms(net, params, inputs, targets, reset=reset, mask=mask)
    assert np.all(found.deltas[0][5:, :5] == 0)
    assert np.all(found.deltas[0][:5, :5][np.tril_indices(5)] > 0)
    assert np.all(found.deltas[0][8] == 0)
    assert np.all(found.deltas[0][:, 8] == 0)
    assert np.all(np.asarray(found.deltas[0][11])[[5, 6, 7, 9, 10, 11]] > 0)
    assert float(flow.horizon(found.adjoints[0], history=8).steps.max()) <= 7
