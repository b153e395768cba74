"""Targets whose values are checked under jit: `Objective.checked`, within every transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

T, B, D, H, V = 5, 4, 2, 3, 2
PARAMS = jaxrnn.Network((jaxrnn.Elman(D, H),), jaxrnn.Readout(H, V), jaxrnn.squared_error).init(jax.random.key(0))
INPUTS, GOOD = jnp.ones((T, B, D)), jnp.full((T, B, V), 0.5)
BAD = GOOD.at[3, 1, 0].set(3.0)
SOFTMAX, SIGMOID = jaxrnn.softmax_cross_entropy, jaxrnn.sigmoid_cross_entropy


def network(objective):
    return jaxrnn.Network((jaxrnn.Elman(D, H),), jaxrnn.Readout(H, V), objective)


def steps(function):
    """Returns some steps of gradient descent in a scan."""

    def step(params, data):
        loss, grads = function(params, *data)
        return jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, params, grads), loss

    return lambda params, inputs, targets: jax.lax.scan(step, params, (inputs[None], targets[None]))


WAYS = {
    "loss": lambda net: net.loss,
    "autodiff, recomputed": lambda net: jax.grad(jax.checkpoint(net.loss)),
    "segments": lambda net: jaxrnn.value_and_grad(net, segment=2),
    "vmap": lambda net: jax.vmap(jaxrnn.value_and_grad(net), (None, 1, 1)),
    "scan": lambda net: steps(jaxrnn.value_and_grad(net)),
    "devices": lambda net: jaxrnn.data_parallel(jaxrnn.value_and_grad(net)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_wrong_is_an_error_under_jit(way):
    """And with what is right, all is as without the checks, bit for bit."""
    staged = chex.chexify(jax.jit(WAYS[way](network(SIGMOID.checked))), async_check=False)
    chex.assert_trees_all_equal(
        staged(PARAMS, INPUTS, GOOD), jax.jit(WAYS[way](network(SIGMOID)))(PARAMS, INPUTS, GOOD)
    )
    with pytest.raises(ValueError, match=r"targets must lie in 0 \.\. 1, got values from 0\.5 to 3\.0; other numbers"):
        staged(PARAMS, INPUTS, BAD)


def test_what_a_mask_hides_is_not_read():
    mask = jnp.ones((T, B), bool).at[3, 1].set(False)
    function = jaxrnn.value_and_grad(network(SIGMOID.checked))
    staged = chex.chexify(jax.jit(lambda *data: function(*data, mask=mask)[0]), async_check=False)
    assert np.isfinite(staged(PARAMS, INPUTS, BAD.at[3, 1, 1].set(jnp.nan)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (1.5 * GOOD, r"must sum to one over the outputs, got sums from 1\.5 to 1\.5; several answers"),
        (GOOD.at[0, 0].set(jnp.array([-0.5, 1.5])), r"labels or probabilities, got values from -0\.5 to 1\.5"),
        (GOOD.at[0, 0, 0].set(jnp.nan), "labels or probabilities, got values from nan to nan"),
        (jnp.full((T, B), 2), r"must lie in 0 \.\. 1, got values from 2 to 2; was the vocabulary"),
        (GOOD.at[2].set(0), None),
        (jnp.ones((T, B), int), None),
    ],
)
def test_labels_and_distributions(targets, message):
    staged = chex.chexify(jax.jit(SOFTMAX.checked), async_check=False)
    outputs = jnp.zeros((T, B, V))
    if message is None:
        assert jnp.array_equal(staged(outputs, targets), SOFTMAX(outputs, targets))
        return
    for function in (staged, SOFTMAX.checked, SOFTMAX):  # the last two outside jit
        with pytest.raises(ValueError, match=message):
            function(outputs, targets)


def test_the_checks_are_asked_for():
    """Left out, nothing is staged; asked for and not functionalized, JAX says what is missing."""
    arguments = PARAMS, INPUTS, GOOD
    assert "check" not in str(jax.make_jaxpr(jaxrnn.value_and_grad(network(SIGMOID)))(*arguments))
    with pytest.raises(ValueError, match="not functionalized"):
        jax.jit(jaxrnn.value_and_grad(network(SIGMOID.checked)))(*arguments)
    assert network(SIGMOID.checked) == network(SIGMOID.checked) != network(SIGMOID)
    assert "sigmoid_cross_entropy.checked" in repr(network(SIGMOID.checked))
