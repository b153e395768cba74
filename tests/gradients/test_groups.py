"""Stacks in which layers that read one way stand among layers that read both: groups that go through time in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

T, B, H = 11, 3, 5


def problem(order, last_step):
    """Returns a network, and arguments of its loss; "c" is a cell, "b" a layer that reads both ways."""
    random, layers, D = np.random.default_rng(0), [], 4
    for kind in order:
        layer = jaxrnn.GRU(D, H) if kind == "c" else jaxrnn.Bidirectional(jaxrnn.LSTM(D, H), jaxrnn.LSTM(D, H))
        layers.append(layer)
        D = layer.outputs
    readout, objective = jaxrnn.Readout(D, 6), jaxrnn.softmax_cross_entropy
    net = jaxrnn.Network(tuple(layers), readout, objective, last_step=last_step, learn_state=True)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / 2), shapes)
    inputs = jnp.asarray(random.normal(size=(T, B, 4)))
    targets = jnp.asarray(random.integers(0, 6, (B,) if last_step else (T, B)))
    flags = {"mask": jnp.asarray(random.random((T, B)) < 0.7), "reset": jnp.asarray(random.random((T, B)) < 0.3)}
    return net, (params, inputs, targets), flags


@pytest.mark.parametrize(
    ("order", "last_step", "options"),
    [
        ("cbc", False, {"segment": 4}),
        ("ccb", False, {"recompute": "states"}),
        ("bcc", False, {"recompute": "states", "segment": 4}),
        ("ccb", True, {"recompute": "gates", "segment": 3}),
        ("cbc", True, {"recompute": "states"}),
    ],
)
def test_the_gradient_equals_autodiff(order, last_step, options):
    net, arguments, flags = problem(order, last_step)
    truth = jax.jit(lambda *a: jax.value_and_grad(net.loss)(*a, **flags))(*arguments)
    by_hand = jax.jit(lambda *a: jaxrnn.value_and_grad(net, **options)(*a, **flags))(*arguments)
    assert relative_error(by_hand, truth) <= 1e-12
