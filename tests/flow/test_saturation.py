"""Saturated units and shut gates: their shares."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import CELLS, Problem

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
PLAIN = {"D": 3, "H": 6, "V": 4, "fresh": True}


def test_saturation_counts():
    """Shares of hand-made gates: an LSTM whose biases shut the input gate and open the forget gate."""
    problem = Problem(jaxrnn.LSTM, T=20, batch=(2,), **PLAIN | {"H": 4})
    net, (params, inputs, *_) = problem.net, problem.arguments()
    layer = params.layers[0]
    b = jnp.repeat(jnp.array([-30.0, 30.0, 0.0, 0.0]), 4)
    params = params._replace(layers=(layer._replace(b=b),))
    mask = jnp.ones((20, 2), bool).at[3:].set(False)
    for options in ({}, {"mask": mask}):
        (found,) = flow.saturation(net, params, inputs, **options)
        assert found.gates["input"] == (1, 0)
        assert found.gates["forget"] == (0, 1)
        assert found.gates["output"][0] < 0.5
        assert found.units == 0
    problem = Problem(CELLS["relu"], T=20, batch=(2,), **PLAIN)
    states, _ = jaxrnn.unroll(*problem.layer()[:3])
    assert np.isclose(flow.saturation(problem.net, *problem.arguments()[:2])[0].units, np.mean(np.asarray(states) == 0))
