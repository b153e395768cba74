"""Gradient flow on networks and systems whose flow is known: it is that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Problem
from user_cells import Map

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
PLAIN = {"D": 3, "H": 6, "V": 4, "fresh": True}


def linear(scale, T=30):
    """Returns a network of which every step is all but linear: an Elman cell near zero, W orthogonal times a scale."""
    Cell = functools.partial(jaxrnn.Elman, recurrent_scale=scale)
    problem = Problem(Cell, T=T, batch=(2,), **PLAIN | {"H": 8})
    params, inputs, targets, *_ = problem.arguments()
    return problem.net, params, 1e-9 * min(1, scale**-T) * inputs, targets


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_linear_network(scale):
    """Norms go like scale^lag, singular values are all alike, and the exponents are log scale."""
    net, params, inputs, targets = linear(scale)
    found = flow.terms(net, params, inputs, targets)
    rows = np.asarray(found.adjoints[0])
    lags = np.arange(29, -1, -1)
    assert np.allclose(rows[-1], rows[-1, -1] * scale**lags, rtol=1e-6)
    values = flow.jacobians(net, params, inputs, lags=20)
    assert values.shape == (21, 2, 8)
    assert np.allclose(values, scale ** np.arange(21)[:, None, None], rtol=1e-6)
    norms = flow.jacobian_norms(net, params, inputs, key=jax.random.key(0))
    assert np.allclose(np.diff(norms.log), np.log(scale), atol=1e-6)
    assert np.allclose(norms.log[0], 0, atol=4 * norms.error[0])
    exponents, error = flow.lyapunov_exponents(net, params, inputs)
    assert np.allclose(exponents, np.log(scale), atol=1e-6)
    assert float(error.max()) < 1e-6
    expected = {0.5: 7, 1.0: None, 2.0: None}[scale]  # 0.5^6 > 0.01 > 0.5^7
    reached = flow.horizon(found.adjoints[0])
    if expected:
        assert float(reached.mean) == expected
        assert float(reached.spread) == float(reached.beyond) == 0
    else:
        assert float(reached.beyond) == 1


def test_a_saturated_network_passes_nothing():
    problem = Problem(T=20, batch=(2,), **PLAIN)
    net, (params, inputs, targets, *_) = problem.net, problem.arguments()
    b = jnp.full_like(params.layers[0].b, 9.0)
    params = params._replace(layers=(params.layers[0]._replace(b=b, U=0 * params.layers[0].U),))
    assert float(flow.saturation(net, params, inputs)[0].units) == 1
    found = flow.terms(net, params, inputs, targets)
    assert float(flow.horizon(found.adjoints[0]).mean) == 1
    assert float(flow.lyapunov_exponents(net, params, inputs).exponents[0]) < np.log(1e-4)


@pytest.mark.parametrize(
    ("kind", "size", "steps", "expected"),
    [
        ("logistic", 1, 20_000, [np.log(2)]),  # r = 4
        ("cat", 2, 200, [np.log((3 + 5**0.5) / 2), -np.log((3 + 5**0.5) / 2)]),
        ("henon", 2, 20_000, [0.419, np.log(0.3) - 0.419]),  # Sprott 2003, appendix A: 0.41922
    ],
)
def test_exponents_of_systems_where_they_are_known(kind, size, steps, expected):
    net = Problem(functools.partial(Map, kind=kind), D=1, H=size, V=2).net
    params = net.init(jax.random.key(0), jnp.float64)
    start = (jnp.full((3, size), 0.1) + 0.01 * jnp.arange(3.0)[:, None],)
    found = flow.lyapunov_exponents(net, params, jnp.zeros((steps, 3, 1)), start)
    assert np.all(np.abs(found.exponents - np.array(expected)) <= 4 * found.error + 1e-3)
    assert np.all(found.error < 0.02)
    some = flow.lyapunov_exponents(net, params, jnp.zeros((steps, 3, 1)), start, count=1, every=2)
    assert np.isclose(some.exponents[0], found.exponents[0], atol=2e-2)


def test_norms_of_a_thousand_lags_neither_vanish_nor_overflow():
    problem = Problem(functools.partial(jaxrnn.Elman, recurrent_scale=0.1), T=2000, batch=(), **PLAIN)
    net, (params, inputs, *_) = problem.net, problem.arguments()
    norms = flow.jacobian_norms(net, params, 0 * inputs, key=jax.random.key(0))
    assert np.isclose(norms.log[-1], 2000 * np.log(0.1), rtol=1e-3)
