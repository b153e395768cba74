"""Strict modes of JAX, and programs exported for batches of any size."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import Problem

import jaxrnn

# What a strict user switches on, and what an exporter does: nothing may be promoted or decided by values silently.
STRICT = {
    "dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "leaks": jax.checking_leaks,
}
PROBLEMS = {
    "GRU": Problem(jaxrnn.GRU, depth=2, masked=True, reset=True, dropout=0.1, recurrent_dropout=0.2, fresh=True),
    "LSTM": Problem(jaxrnn.LSTM, tokens=True, masked=True, last_step=True, learn_state=True, weighted=True, fresh=True),
    "both ways": Problem(jaxrnn.Elman, both_ways=True, recurrent_dropout=0.2, objective="squared", fresh=True),
}


@pytest.mark.parametrize("strictness", STRICT)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("way", [{}, {"compute_dtype": jnp.bfloat16, "recompute": True, "segment": 2}], ids=str)
def test_strict_modes_find_nothing(strictness, name, way):
    problem = PROBLEMS[name]
    given = problem.arguments(jnp.float32)
    with STRICT[strictness]():
        (_, found) = jax.eval_shape(jax.jit(jaxrnn.value_and_grad(problem.net, **way)), *given)
        jax.eval_shape(jax.jit(problem.net.apply), *given[:2])
    assert jax.tree.structure(found) == jax.tree.structure(given.params)


WAYS = [(name, way) for name in PROBLEMS for way in ({}, {"recompute": True})]
WAYS += [(name, {"truncate": jaxrnn.Window(3)}) for name in ("GRU", "LSTM")]


@pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
def test_a_program_for_batches_of_any_size(name, way):
    problem = PROBLEMS[name]
    gradient = jaxrnn.value_and_grad(problem.net, **way)
    (B,) = jax.export.symbolic_shape("B")
    params, *given, key = problem.arguments(jnp.float32)
    axes = [1, *[0 if problem.last_step else 1] * 2, 0, 1, 1]  # of inputs, targets and weights, state, mask and reset

    def symbolic(leaf, axis):
        return jax.ShapeDtypeStruct((*leaf.shape[:axis], B, *leaf.shape[axis + 1 :]), leaf.dtype)

    data = [leaf if leaf is None else symbolic(leaf, axis) for leaf, axis in zip(given, axes, strict=True)]
    function = jax.jit(lambda params, *given: gradient(params, *given, key))
    exported = jax.export.export(function)(params, *data)
    assert relative_error(exported.call(params, *given), function(params, *given)) < 1e-6


@pytest.mark.parametrize("name", PROBLEMS)
def test_without_jit_compiled_ahead_and_watched_for_nan_it_is_the_same(name):
    problem = dataclasses.replace(PROBLEMS[name], T=3)
    given = problem.arguments(jnp.float32)
    if problem.masked and not problem.tokens:
        given = given._replace(inputs=jnp.where(given.mask[..., None], given.inputs, jnp.nan))
    gradient = jaxrnn.value_and_grad(problem.net, segment=2)
    expected = jax.jit(gradient)(*given)
    assert relative_error(jax.jit(gradient).lower(*given).compile()(*given), expected) == 0
    with jax.debug_nans(True):
        assert relative_error(jax.jit(gradient)(*given), expected) == 0
    with jax.disable_jit():
        assert relative_error(gradient(*given), expected) < 1e-5
