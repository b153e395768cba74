"""Layers that read a sequence both ways: two runs, joined, each sequence within its own length."""

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import KEY, Problem

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
T, B, H = 7, 3, 5


@pytest.mark.parametrize("merge", ["concatenate", "sum"])
def test_both_directions_are_two_runs(merge):
    """Each sequence alone, cut to its own length, forward and reversed: what the padded batch must give."""
    layer = jaxrnn.Bidirectional(jaxrnn.GRU(H, H), jaxrnn.LSTM(H, H), merge)
    params = layer.init(KEY, jnp.float64)
    inputs = Problem(T=T, batch=(B,), D=H).arguments().inputs
    lengths = [T, 4, 1]
    mask = jaxrnn.lengths_to_mask(jnp.array(lengths), T)
    hidden, (last, first) = jaxrnn.unroll(layer, params, inputs, mask=mask)
    assert hidden.shape[-1] == layer.outputs
    for b, length in enumerate(lengths):
        x = inputs[:length, b]
        forward, after = jaxrnn.unroll(layer.forward, params.forward, x)
        backward, before = jaxrnn.unroll(layer.backward, params.backward, x[::-1])
        assert relative_error(hidden[:length, b], layer.join(forward, backward[::-1])) <= EXACT
        ends = jax.tree.map(lambda leaf, b=b: leaf[b], (last, first))
        assert relative_error(ends, (after, before)) <= EXACT


def test_packed_sequences_do_not_see_each_other_either_way():
    problem = Problem(jaxrnn.GRU, depth=2, both_ways=True, T=8)
    params, inputs, *_ = problem.arguments()
    reset = jnp.zeros(inputs.shape[:2], bool).at[4].set(True)
    outputs, _ = problem.net.apply(params, inputs, reset=reset)
    parts = [problem.net.apply(params, part)[0] for part in (inputs[:4], inputs[4:])]
    assert relative_error(outputs, jnp.concatenate(parts)) <= EXACT


GOOD = jaxrnn.Elman(H, H)
PAIR = jaxrnn.Bidirectional(GOOD, GOOD)
WRONG = {
    "two sizes": (lambda: jaxrnn.Bidirectional(GOOD, jaxrnn.Elman(H, 4)), ValueError, "the same inputs"),
    "no cell": (lambda: jaxrnn.Bidirectional(GOOD, "gru"), TypeError, "backward must be a jaxrnn.Cell"),
    "merge": (lambda: jaxrnn.Bidirectional(GOOD, GOOD, "mean"), ValueError, "merge must be one of"),
    "reverse": (
        lambda: jaxrnn.unroll(PAIR, PAIR.init(KEY), jnp.zeros((T, B, H)), reverse=True),
        ValueError,
        "reverse must be False",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()
