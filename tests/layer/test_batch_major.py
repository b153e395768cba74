"""Sequences with the batch first: what is wrong with them is said in their own layout, and vmap keeps it."""

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import CELLS, Problem

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

LAYER = jaxrnn.Elman(3, 4)
PARAMS = LAYER.init(jax.random.key(0))
B, T = 2, 5
WRONG = {
    "no time": ((jnp.ones(3), {}), r"floats \[\*batch, T, D\] with D = 3"),
    "a single token": ((jnp.array(1), {}), r"tokens \[\*batch, T\]"),
    "other features": (
        (jnp.ones((B, T, 4)), {}),
        r"time_major=False .* with D = 3,.* got float\d\d of shape \(2, 5, 4\); features come last",
    ),
    "a mask with time first": (
        (jnp.ones((B, T, 3)), {"mask": jnp.ones((T, B), bool)}),
        r"T\] = \(2, 5\), got \(5, 2\)",
    ),
    "a reset of one": ((jnp.ones((B, T, 3)), {"reset": jnp.ones(T, bool)}), r"reset must be one per step"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_told_in_the_layout_of_the_caller(given, message):
    inputs, flags = given
    with pytest.raises(ValueError, match=message):
        jaxrnn.unroll(LAYER, PARAMS, inputs, time_major=False, **flags)


def test_vmap_of_sequences_that_have_a_batch_themselves():
    """[N, B, T, D], mapped over either axis."""
    cell, params, inputs, _ = Problem(CELLS["GRU"], T=T, batch=(3, B)).layer()  # [T, N, B, D]
    expected, final = jaxrnn.unroll(cell, params, inputs)
    given = jnp.moveaxis(inputs, 0, 2)
    for axis in (0, 1):
        mapped = jax.vmap(lambda x: jaxrnn.unroll(cell, params, x, time_major=False), axis, axis)
        hidden, last = mapped(given)
        assert relative_error((jnp.moveaxis(hidden, 2, 0), last), (expected, final)) <= 1e-12
