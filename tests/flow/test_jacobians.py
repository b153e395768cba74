"""Products of Jacobians: their singular values by autodiff, and their norms by probes."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import CELLS, Problem

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "LSTM", "user"])
def test_jacobians_are_those_of_autodiff(Cell):
    problem = Problem(CELLS[Cell], stateful=True)
    (cell, params, inputs, start), T = problem.layer(), problem.T
    inputs, start = inputs[:, 0], jax.tree.map(lambda leaf: leaf[0], start)
    _, unravel = ravel_pytree(start)

    def final(numbers, first):
        return ravel_pytree(jaxrnn.unroll(cell, params, inputs[first:], unravel(numbers), gradient="autodiff")[1])[0]

    values = flow.jacobians(problem.net, problem.params(), inputs, (start,))
    for lag in (1, 4, T):
        state = jaxrnn.unroll(cell, params, inputs[: T - lag], start)[1] if lag < T else start
        J = jax.jit(jax.jacobian(final), static_argnums=1)(ravel_pytree(state)[0], T - lag)
        assert np.allclose(values[lag], np.linalg.svd(J, compute_uv=False), atol=1e-12)
    norms = flow.jacobian_norms(problem.net, problem.params(), inputs, (start,), key=jax.random.key(3), probes=500)
    exact = 0.5 * np.log(np.mean(np.asarray(values) ** 2, -1))
    assert np.all(np.abs(norms.log - exact) <= 5 * norms.error)
    assert np.all(norms.error < 0.1)
