"""Parallel in time: forward by Newton iterations and backward by halves, against the loops over steps."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem
from programs import loops_of

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12

ROWS = pairwise(
    {
        "Cell": tuple(CELLS),
        "diagonal": (False, True),
        "backward": ("sequential", "associative"),
        "tokens": (False, True),
        "stateful": (False, True),
        "initial": (False, True),
        "masked": (False, True),
        "reset": (False, True),
    }
)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_it_is_the_scan_and_its_gradient(row):
    """Hidden states and final state, and the derivatives of both to parameters, inputs, state and initial state."""
    given = {name: row[name] for name in ("tokens", "stateful", "masked", "reset")}
    problem = Problem(CELLS[row["Cell"]], **given)
    cell, params, inputs, state = problem.layer()
    params = jax.tree.map(lambda leaf: leaf / 2, params)
    initial = jax.tree.map(lambda leaf: leaf + 0.3, cell.initial_state(problem.batch, jnp.float64))
    wanted = tuple(i for i, there in enumerate((True, row["stateful"], row["initial"], not row["tokens"])) if there)
    probe = np.random.default_rng(1).normal(size=(problem.T, *problem.batch, problem.H))

    def gradient(run, **options):
        def error(params, state, initial, inputs):
            hidden, final, *how = run(cell, params, inputs, state, initial=initial, **problem.flags(), **options)
            E = jnp.sum(probe * hidden) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(final))
            return E, (hidden, final, how)

        run_all = jax.jit(jax.value_and_grad(error, wanted, has_aux=True))
        return run_all(params, state, initial if row["initial"] else None, inputs)

    (E, (hidden, final, (how,))), grads = gradient(jaxrnn.deer, diagonal=row["diagonal"], backward=row["backward"])
    (E_scan, (states, last, _)), expected = gradient(jaxrnn.unroll, gradient="autodiff")
    assert how.converged
    assert relative_error((hidden, final), (states, last)) <= 1e-11
    assert relative_error((E, grads), (E_scan, expected)) <= 1e-10


def long_problem(cell, T=100, scale=1.0):
    params = jax.tree.map(lambda leaf: scale * leaf, cell.init(jax.random.key(0), jnp.float64))
    return params, jax.random.normal(jax.random.key(1), (T, 2, cell.inputs), jnp.float64)


@pytest.mark.parametrize("Cell", [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM])
def test_few_iterations_are_enough(Cell):
    cell = Cell(3, 8)
    params, inputs = long_problem(cell)
    _, _, full = jaxrnn.deer(cell, params, inputs)
    _, _, quasi = jaxrnn.deer(cell, params, inputs, diagonal=True)
    assert full.converged
    assert quasi.converged
    assert 2 <= full.iterations <= 12
    assert full.iterations <= quasi.iterations <= 60
    assert full.residual <= 1e-12


def test_a_linear_network_takes_one_iteration():
    cell = jaxrnn.Elman(3, 8, "relu", recurrent_initializer="identity", recurrent_scale=0.9)
    params, inputs = long_problem(cell)
    params = params._replace(U=jnp.abs(params.U))
    _, _, how = jaxrnn.deer(cell, params, jnp.abs(inputs))
    assert how.iterations == 1
    _, _, damped = jaxrnn.deer(cell, params, jnp.abs(inputs), damping=0.3)
    assert damped.converged
    assert damped.iterations > 5


def test_where_it_does_not_converge_the_scan_takes_over():
    cell = jaxrnn.Elman(3, 20, recurrent_initializer="normal", recurrent_scale=4.0)
    params, inputs = long_problem(cell)
    hidden, final, how = jaxrnn.deer(cell, params, inputs, iterations=2)
    assert not how.converged
    assert how.iterations == 2
    assert how.residual > 1e-3
    assert relative_error((hidden, final), jaxrnn.unroll(cell, params, inputs)) <= EXACT

    def loss(run, **options):
        return lambda params: jnp.sum(jnp.sin(run(cell, params, inputs, **options)[0]))

    expected = jax.grad(loss(jaxrnn.unroll))(params)
    assert relative_error(jax.grad(loss(jaxrnn.deer, iterations=2))(params), expected) <= EXACT


def test_an_iterate_that_overflows_begins_anew():
    """Newton's method from far off: infinities on the way are not the end of it."""
    cell = jaxrnn.Elman(3, 20, "relu", recurrent_initializer="normal", recurrent_scale=8.0)
    params, inputs = long_problem(cell, T=40)
    hidden, _, how = jaxrnn.deer(cell, params, inputs, iterations=60, tolerance=1e-3)
    assert np.all(np.isfinite(hidden))
    assert relative_error(hidden, jaxrnn.unroll(cell, params, inputs)[0]) <= 1e-3 or not how.converged


def test_the_tolerance_is_kept_and_costs_iterations():
    cell = jaxrnn.GRU(3, 8)
    params, inputs = long_problem(cell)
    loose, tight = (jaxrnn.deer(cell, params, inputs, tolerance=tolerance)[2] for tolerance in (1e-2, 1e-13))
    assert loose.iterations < tight.iterations
    assert 1e-13 < loose.residual <= 1e-2
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    hidden, _, how = jaxrnn.deer(cell, single, inputs.astype(jnp.float32))
    assert how.converged
    assert hidden.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("Cell", [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM])
def test_sixteen_bits_are_as_exact_as_those_of_the_scan(Cell, dtype):
    """And found by few iterations: within 16 bits a tolerance would be as large as the states, or out of reach."""
    cell = Cell(3, 8)
    params, inputs = long_problem(cell, T=60)
    truth = jaxrnn.unroll(cell, params, inputs)[0]

    def error(run):
        hidden, *rest = jax.jit(lambda *a: run(cell, *a, compute_dtype=dtype))(params, inputs)
        return np.max(np.abs(hidden.astype(jnp.float64) - truth)), rest

    (found, (_, how)), (scanned, _) = error(jaxrnn.deer), error(jaxrnn.unroll)
    assert how.converged
    assert how.iterations <= 10
    assert found <= 3 * scanned


def test_under_vmap_and_for_a_single_step():
    cell = jaxrnn.LSTM(3, 4)
    params, inputs = long_problem(cell, T=20)

    def loss(run, inputs):
        return lambda params: jnp.sum(jnp.sin(run(cell, params, inputs)[0]))

    each = jax.vmap(lambda x: jax.grad(loss(jaxrnn.deer, x))(params), 1)(inputs)
    whole = jax.grad(loss(jaxrnn.unroll, inputs))(params)
    assert relative_error(jax.tree.map(lambda leaf: leaf.sum(0), each), whole) <= 1e-10
    one = jaxrnn.deer(cell, params, inputs[:1, 0])
    assert relative_error(one[:2], jaxrnn.unroll(cell, params, inputs[:1, 0])) <= EXACT


def test_no_loop_over_time_is_left():
    cell = jaxrnn.GRU(3, 4)
    params, inputs = long_problem(cell, T=64)

    def loss(params):
        return jnp.sum(jaxrnn.deer(cell, params, inputs, backward="associative")[0])

    assert 64 not in loops_of(jax.grad(loss), params)
    sequential = jax.grad(lambda params: jnp.sum(jaxrnn.unroll(cell, params, inputs)[0]))
    assert 64 in loops_of(sequential, params)


def test_a_warning_says_what_the_jacobians_take():
    cell = jaxrnn.Elman(3, 512)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((2048, 1, 3), jnp.float32)

    def grads(params, inputs, **options):
        return jax.grad(lambda params: jnp.sum(jaxrnn.unroll(cell, params, inputs, **options)[0]))(params)

    with pytest.warns(UserWarning, match="512 x 512, take 2,147,483,648 bytes"):
        jax.eval_shape(lambda *a: grads(*a, backward="associative"), params, inputs)
    with pytest.warns(UserWarning, match="take 2,147,483,648 bytes"):
        jax.eval_shape(lambda *a: jaxrnn.deer(cell, *a), params, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda *a: jaxrnn.deer(cell, *a, diagonal=True), params, inputs)
        jax.eval_shape(lambda *a: grads(*a), params, inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 1.0}, "damping"),
        ({"damping": -0.1}, "damping"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"iterations": 0}, "iterations"),
        ({"backward": "parallel"}, "backward must be one of"),
        ({"mask": np.ones(4, bool)}, "mask"),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    cell = jaxrnn.Elman(3, 4)
    params, inputs = long_problem(cell, T=5)
    with pytest.raises(ValueError, match=message):
        jaxrnn.deer(cell, params, inputs, **options)


def test_wrong_cells_and_derivatives():
    cell = jaxrnn.Elman(3, 4)
    params, inputs = long_problem(cell, T=5)
    both = jaxrnn.Bidirectional(cell, cell)
    with pytest.raises(TypeError, match=r"cell must be a jaxrnn\.Cell, got Bidirectional"):
        jaxrnn.deer(both, params, inputs)
    with pytest.raises(TypeError, match='gradient="autodiff"'):
        jax.jvp(lambda params: jaxrnn.deer(cell, params, inputs)[0], (params,), (params,))
    with pytest.raises(ValueError, match="backward must be one of"):
        jaxrnn.unroll(cell, params, inputs, backward="fast")
