"""BPTT by hand against `jax.grad` of the plain scan: over every pair of what can be chosen, and beyond."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, CHOICES, OBJECTIVES, Problem, autodiff

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12  # float64 against float64: nothing but rounding

# What a problem is made of. Of the shapes each meets every other choice: T, batch.
PROBLEM = {
    "Cell": tuple(CELLS),
    "objective": tuple(OBJECTIVES),
    "shape": ((7, (2,)), (9, (2, 3)), (1, (3,)), (5, ())),
    "depth": (2, 1),
    **CHOICES,
    "residual": (False, True),
    "last_step": (False, True),
    "learn_state": (False, True),
    "bias": (True, False),
}
# How its gradient is asked for. Truncations reach everything here, the clip is never reached, and the regulariser has
# no weight: all of them must then change nothing. What they do otherwise is tested in files of their own.
WAY = {
    "segment": ("auto", 1, 4, 20),
    "recompute": (False, "gates", True),
    "truncate": (None, jaxrnn.Carried(9), jaxrnn.Window(9), jaxrnn.Window(8, 0.0), jaxrnn.Tail(30)),
    "memory_budget": (None, 10**7),
    "clip": (None, 1e9),
    "compute_dtype": (None, "float64"),
    "return_state": (False, True),
    "return_lags": (False, True),
    "return_flow": (False, True),
    "vanishing": (None, 0.0),
}


def allowed(row):
    """Says whether the options go together, for rows of which some options are still open."""
    window, lags = isinstance(row.get("truncate"), jaxrnn.Window), row.get("return_lags")
    steered = any(row.get(name) for name in ("clip", "return_flow")) or row.get("vanishing") is not None
    chosen = row.get("segment", "auto") != "auto" or row.get("recompute", False) is not False
    excluded = (
        row.get("depth") == 1 and (row.get("dropout") or row.get("residual")),
        row.get("both_ways") and (row.get("truncate") or row.get("memory_budget") or steered or lags),
        window and (chosen or row.get("memory_budget") or steered),
        lags and "truncate" in row and not window,
        lags and (chosen or row.get("memory_budget") or steered),
        row.get("memory_budget") and chosen,
        row.get("vanishing") is not None and row.get("Cell", "Elman") not in ("Elman", "relu"),
        row.get("Cell") == "user" and (row.get("recurrent_dropout") or not row.get("bias", True)),
    )
    return not any(excluded)


ROWS = pairwise(PROBLEM | WAY, allowed)


def test_the_rows_are_few():
    assert len(ROWS) < 60


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_the_gradient_is_that_of_autodiff(row):
    choice = {name: row[name] for name in PROBLEM}
    Cell, (T, batch) = CELLS[choice.pop("Cell")], choice.pop("shape")
    problem = Problem(Cell, T=T, batch=batch, V=3, **choice)
    options = {name: row[name] for name in WAY}
    vanishing = options.pop("vanishing")
    run = jax.jit(functools.partial(jaxrnn.value_and_grad(problem.net, **options), vanishing=vanishing))
    result, grads = run(*problem.arguments())
    (E, final), expected = autodiff(problem)
    found = jax.tree.leaves(result, is_leaf=lambda leaf: leaf is not result)  # E, and what was asked for besides it
    assert relative_error((found[0], grads), (E, expected)) <= EXACT
    assert len(found) == 1 + row["return_state"] + row["return_lags"] + row["return_flow"]
    if row["return_state"]:
        assert relative_error(found[1], final) <= EXACT
    if row["return_lags"]:
        assert float(result[-1].bound) == 0


LARGE = {
    "three layers of three sizes": (Problem(T=7, batch=(2, 3), hidden=(4, 5, 3), tokens=True, stateful=True), 3),
    # Beyond 512 tokens dE/dU is added row by row; of 50 sequences some share a token.
    "many tokens that recur": (Problem(T=13, batch=(50,), D=513, tokens=True), 12),
    "one unit, one input, one output": (Problem(T=4, batch=(1,), D=1, H=1, V=1, objective="squared"), 3),
    "cells of two kinds": (Problem(lambda D, H: (jaxrnn.GRU if D == H else CELLS["user"])(D, H), 2, weighted=True), 4),
}


@pytest.mark.parametrize("name", LARGE)
def test_sizes_of_other_kinds(name):
    """`value_and_grad`, and `jax.grad` through the custom rule of `unroll`, in one program."""
    problem, segment = LARGE[name]
    through_rule = jax.value_and_grad(lambda *a: problem.net.loss(*a, gradient="bptt"))
    both = jax.jit(lambda *a: (jaxrnn.value_and_grad(problem.net, segment)(*a), through_rule(*a)))
    (E, _), grads = autodiff(problem)
    assert relative_error(both(*problem.arguments()), ((E, grads), (E, grads))) <= EXACT


@pytest.mark.parametrize("recompute", [False, "gates", True])
def test_a_long_sequence_is_cut_by_itself_and_nothing_changes(recompute):
    """The automatic segments of `unroll` and `value_and_grad`, at a size where they are shorter than the sequence."""
    problem = Problem(T=101, batch=(128,), D=2, H=100, V=3, stateful=True, weighted=True)
    net, given = problem.net, problem.arguments()
    (K,) = jaxrnn.plan(net, given.inputs, recompute=recompute).lengths
    assert 1 < K < problem.T
    assert problem.T % K != 0
    by_rule = lambda *a: jnp.sum(jnp.sin(jaxrnn.unroll(net.layers[0], *a, recompute=recompute)[0]))
    layer = given.params.layers[0], given.inputs, given.state[0]
    found = jax.jit(jaxrnn.value_and_grad(net, recompute=recompute))(*given), jax.jit(jax.grad(by_rule))(*layer)
    (E, _), grads = autodiff(problem)
    assert relative_error(found, ((E, grads), rule_truth(problem))) <= EXACT


@functools.cache
def rule_truth(problem):
    net, given = problem.net, problem.arguments()
    error = lambda *a: jnp.sum(jnp.sin(jaxrnn.unroll(net.layers[0], *a, gradient="autodiff")[0]))
    return jax.jit(jax.grad(error))(given.params.layers[0], given.inputs, given.state[0])


def test_equal_networks_and_new_content_compile_once():
    """Cells, readouts and networks are hashable and equal by value; different ones are traced anew."""
    chex.clear_trace_counter()

    def gradient(net, *arguments):
        return jaxrnn.value_and_grad(net, 3)(*arguments)

    counted = jax.jit(chex.assert_max_traces(gradient, n=1), static_argnums=0)
    for seed in range(3):  # masks and resets of other content included
        problem = Problem(depth=2, masked=True, reset=True, seed=seed)
        counted(problem.net, *problem.arguments())
    with pytest.raises(AssertionError, match="traced"):
        counted(Problem(CELLS["relu"], depth=2).net, *problem.arguments())
