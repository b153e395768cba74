"""What the views of the gradient's flow refuse, and how they say it."""

import jax
import jax.numpy as jnp
import pytest
from problems import Problem

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
PLAIN = {"D": 3, "H": 6, "V": 4, "fresh": True}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, p, x, y: flow.terms(net, p, x, y, block=0), "block"),
        (lambda net, p, x, y: flow.terms(None, p, x, y), "net must be a jaxrnn.Network"),
        (lambda net, p, x, y: flow.terms(net, p, x, y[:-1]), "targets"),
        (lambda net, p, x, y: flow.per_example_gradient_norms(net, p, x[:, 0], y[:, 0]), "batch axis"),
        (lambda net, p, x, y: flow.jacobians(net, p, x, lags=9), "lags must not be more than the T = 8"),
        (lambda net, p, x, y: flow.jacobians(net, p, x, layer=1), "layer must be one of the 1 layers"),
        (lambda net, p, x, y: flow.jacobian_norms(net, p, x, key=jax.random.key(0), probes=1), "probes"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x), "inputs must have 10 steps at least"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x, count=7), "count must lie in 1 .. 6"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x, segments=1), "segments"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x, layer=-2), "layer"),
        (lambda net, p, x, y: flow.saturation(net, p, x, threshold=0.4), "threshold"),
        (lambda net, p, x, y: flow.horizon(jnp.ones((3, 4))), r"norms must be \[T, T\]"),
        (lambda net, p, x, y: flow.horizon(jnp.ones((4, 4)), fraction=1.0), "fraction"),
        (lambda net, p, x, y: flow.horizon(jnp.ones((4, 4)), history=4), "history"),
        (lambda net, p, x, y: flow.horizon(jnp.eye(6).at[3:].set(0)), "norms must have a loss at step 3 or later"),
        (lambda net, p, x, y: jaxrnn.value_and_grad(net, truncate=jaxrnn.Window(2), return_flow=True), "return_flow"),
    ],
)
def test_wrong_input(call, message):
    problem = Problem(T=8, batch=(2,), **PLAIN)
    with pytest.raises((ValueError, TypeError), match=message):
        call(problem.net, *problem.arguments()[:3])


def test_networks_that_read_both_ways_have_no_flow():
    problem = Problem(both_ways=True)
    with pytest.raises(ValueError, match="bidirectional"):
        flow.terms(problem.net, *problem.arguments()[:3])
    with pytest.raises(ValueError, match="return_flow"):
        jaxrnn.value_and_grad(problem.net, return_flow=True)
