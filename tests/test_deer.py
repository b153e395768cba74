"""Parallel in time: forward by Newton iterations and backward by halves, against the loops over steps."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from test_breaks import CELLS, Data

import jaxrnn
from jaxrnn.layer import associative

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12
RELU = lambda D, H: jaxrnn.Elman(D, H, "relu")


def problem(Cell, breaks="both", tokens=False, scale=0.5):
    data = Data(Cell, 1, tokens, breaks)
    params = jax.tree.map(lambda leaf: scale * leaf, data.params.layers[0])
    return data.net.layers[0], params, data.inputs, data.state[0], {"mask": data.mask, "reset": data.reset}


def loss_of(run, cell, arrays, options):
    """A scalar of hidden and final states, as a function of parameters, inputs, state and initial state."""
    probe = jax.random.normal(jax.random.key(1), (9, 3, 5), jnp.float64)

    def loss(params, inputs, state, initial):
        hidden, final, *_ = run(cell, params, inputs, state, initial=initial, **arrays, **options)
        return jnp.sum(probe * hidden) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(final))

    return loss


def grads_of(run, cell, params, inputs, state, arrays, **options):
    argnums = (0, 2, 3) if jnp.issubdtype(inputs.dtype, jnp.integer) else (0, 1, 2, 3)
    initial = jax.tree.map(lambda leaf: 0.3 * jnp.cos(leaf), state)
    return jax.jit(jax.value_and_grad(loss_of(run, cell, arrays, options), argnums))(params, inputs, state, initial)


@pytest.mark.parametrize("Cell", [*CELLS, RELU])
@pytest.mark.parametrize(("breaks", "tokens"), [("plain", False), ("both", True)])
def test_deer_is_the_scan_and_its_gradient(Cell, breaks, tokens):
    cell, params, inputs, state, arrays = problem(Cell, breaks, tokens)
    expected = grads_of(jaxrnn.unroll, cell, params, inputs, state, arrays, gradient="autodiff")
    for options in ({}, {"diagonal": True}, {"backward": "associative"}):
        assert relative_error(grads_of(jaxrnn.deer, cell, params, inputs, state, arrays, **options), expected) <= 1e-10
        hidden, final, how = jaxrnn.deer(cell, params, inputs, state, **arrays, **options)
        assert how.converged
        assert relative_error((hidden, final), jaxrnn.unroll(cell, params, inputs, state, **arrays)) <= 1e-11


@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("breaks", "tokens"), [("plain", True), ("both", False)])
def test_the_reverse_scan_by_halves_is_the_one_step_by_step(Cell, reverse, breaks, tokens):
    cell, params, inputs, state, arrays = problem(Cell, breaks, tokens, scale=1.0)
    plain = grads_of(jaxrnn.unroll, cell, params, inputs, state, arrays, reverse=reverse, gradient="autodiff")
    halves = grads_of(jaxrnn.unroll, cell, params, inputs, state, arrays, reverse=reverse, backward="associative")
    assert relative_error(halves, plain) <= EXACT


def test_linear_recurrences_by_halves():
    random = np.random.default_rng(0)
    J, v = random.normal(size=(7, 3, 3)), random.normal(size=(7, 3))
    for reverse in (False, True):
        A, b = associative.solve(jnp.asarray(J), jnp.asarray(v), reverse)
        c = start = random.normal(size=3)
        for t in reversed(range(7)) if reverse else range(7):
            c = c @ J[t] + v[t]
            assert np.allclose(start @ A[t] + b[t], c, rtol=1e-12)


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


def loops(jaxpr):
    """The lengths of all scans, wherever they stand but in the branches of a cond."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
        if equation.primitive.name != "cond":
            inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
            found += [length for each in inner if hasattr(each, "eqns") for length in loops(each)]
    return found


def test_no_loop_over_time_is_left():
    cell = jaxrnn.GRU(3, 4)
    params, inputs = long_problem(cell, T=64)

    def loss(params):
        return jnp.sum(jaxrnn.deer(cell, params, inputs, backward="associative")[0])

    assert 64 not in loops(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    sequential = jax.grad(lambda params: jnp.sum(jaxrnn.unroll(cell, params, inputs)[0]))
    assert 64 in loops(jax.make_jaxpr(sequential)(params).jaxpr)


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
