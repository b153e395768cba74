"""Text from a network: drawn as its softmax says, or the likeliest."""

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn.tasks.text import UNKNOWN, encode, sample


@pytest.fixture(scope="module")
def network():
    net = jaxrnn.Network((jaxrnn.Elman(5, 16),), jaxrnn.Readout(16, 5), jaxrnn.softmax_cross_entropy)
    return net, net.init(jax.random.key(0)), "abcd" + UNKNOWN


def test_temperature_zero_follows_the_likeliest(network):
    net, params, vocabulary = network
    written = "ab" + "".join(sample(net, params, vocabulary, "ab", 6, temperature=0))
    outputs, _ = jax.jit(net.apply)(params, encode(vocabulary, written[:-1]))
    assert written[2:] == "".join(vocabulary[i] for i in np.argmax(outputs[1:, :-1], -1))


def test_frequencies_follow_the_softmax_and_never_the_unknown(network):
    net, params, vocabulary = network
    draws = ["".join(sample(net, params, vocabulary, "a", 1, seed=seed)) for seed in range(400)]
    outputs, _ = net.apply(params, encode(vocabulary, "a"))
    expected = jax.nn.softmax(outputs[0, :-1])
    assert set(draws) <= set("abcd")
    found = [draws.count(character) / 400 for character in "abcd"]
    np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "prompt must have"),
        ({"prompt": "axy"}, "prompt has characters .* 'x' 'y'"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"length": -1}, "length"),
    ],
)
def test_bad_arguments(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(*network, **{"prompt": "a", **arguments})


@pytest.mark.parametrize(("vocabulary", "first"), [("abcd" + UNKNOWN, "a"), ("ab\nd" + UNKNOWN, "\n")])
def test_without_a_prompt_it_begins_with_a_new_line_or_the_first_character_there_is(network, vocabulary, first):
    net, params, _ = network
    assert "".join(sample(net, params, vocabulary, seed=3)) == "".join(sample(net, params, vocabulary, first, seed=3))
