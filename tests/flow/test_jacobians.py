"""Products of Jacobians: their singular values by autodiff, and their norms by probes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import CELLS, Problem

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM", "user"])
def test_jacobians_are_those_of_autodiff(Cell):
    problem = Problem(CELLS[Cell], stateful=True)
    (cell, params, inputs, start), T = problem.layer(), problem.T
    inputs, start = inputs[:, 0], jax.tree.map(lambda leaf: leaf[0], start)
    _, unravel = ravel_pytree(start)

    def step(numbers, x):
        after = jaxrnn.unroll(cell, params, x[None], unravel(numbers), gradient="autodiff")[1]
        return (ravel_pytree(after)[0],) * 2

    both = jax.jit(jax.jacobian(step, has_aux=True))
    state, steps = ravel_pytree(start)[0], []
    for x in inputs:
        J, state = both(state, x)
        steps.append(np.asarray(J))
    values = flow.jacobians(problem.net, problem.params(), inputs, (start,))
    for lag in (1, 4, T):
        J = functools.reduce(lambda product, J: J @ product, steps[T - lag :])
        assert np.allclose(values[lag], np.linalg.svd(J, compute_uv=False), atol=1e-12)
    norms = flow.jacobian_norms(problem.net, problem.params(), inputs, (start,), key=jax.random.key(3), probes=500)
    exact = 0.5 * np.log(np.mean(np.asarray(values) ** 2, -1))
    assert np.all(np.abs(norms.log - exact) <= 5 * norms.error)
    assert np.all(norms.error < 0.1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("Cell", ["GRU", "LSTM"])
def test_sixteen_bits_are_factorized_in_float32(Cell, dtype):
    problem = Problem(CELLS[Cell], T=40)
    views = functools.partial(flow.jacobians, lags=4), flow.lyapunov_exponents
    for view in views:
        found, truth = (
            jax.tree.leaves(view(problem.net, problem.params(held_in), problem.arguments(held_in).inputs))[0]
            for held_in in (dtype, jnp.float64)
        )
        assert found.dtype == jnp.float32
        assert np.allclose(found[..., 0], truth[..., 0], atol=0.05)
