"""What must come out the same however it is asked for: segments, batches, halves, directions, weights, compilations."""

from unittest import mock

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from problems import Problem

import jaxrnn
from jaxrnn.layer import unroll as layer

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12

FULL = Problem(T=7, batch=(3,), H=(4, 5), weighted=True, stateful=True)


def by_hand(problem, segment="auto", **options):
    return jax.jit(jaxrnn.value_and_grad(problem.network(), segment, **options))


@pytest.mark.parametrize("segment", [1, 2, 3, 4, 6, 7, 8, 1000, "auto", np.int64(3)])
@pytest.mark.parametrize("T", [1, 7])
def test_any_segment_gives_the_same(T, segment):
    problem = Problem(T=T, batch=(3,), H=(4, 5), weighted=True, stateful=True)
    arguments = problem.params(), *problem.data()
    whole = by_hand(problem, T, return_state=True)(*arguments)
    cut = by_hand(problem, segment, return_state=True)(*arguments)
    assert relative_error(cut, whole) <= EXACT


@pytest.mark.parametrize("gradient", ["bptt", "autodiff"])
@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "tokens"])
def test_vmap_of_unroll_is_the_batch(tokens, gradient):
    """Hidden states, final state, and the gradient through both, with the batch as an axis or under vmap."""
    problem = Problem(T=5, batch=(3,), tokens=tokens, stateful=True)
    cell, params = problem.network().layers[0], problem.params().layers[0]
    inputs, _, _, (state,) = problem.data()

    def unroll(params, inputs, state):
        return jaxrnn.unroll(cell, params, inputs, state, gradient=gradient)

    def mapped(params, inputs, state):
        return jax.vmap(unroll, in_axes=(None, 1, 0), out_axes=(1, 0))(params, inputs, state)

    def with_gradients(function):
        def error(params, state):
            hidden, final = function(params, inputs, state)
            return jnp.sum(jnp.sin(hidden)) + jnp.sum(final**2), (hidden, final)

        return jax.jit(jax.value_and_grad(error, (0, 1), has_aux=True))(params, state)

    assert relative_error(with_gradients(mapped), with_gradients(unroll)) <= EXACT


def test_vmap_of_value_and_grad_is_the_batch():
    """The sum over examples under vmap, with the weights of the batch."""
    arguments, function = (FULL.params(), *FULL.data()), by_hand(FULL, 3)
    mapped = jax.jit(jax.vmap(function, in_axes=(None, 1, 1, 1, 0)))(*arguments)
    summed = jax.tree.map(lambda leaf: leaf.sum(0), mapped)
    assert relative_error(summed, function(*arguments)) <= EXACT


@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (3, 1, 2)])
def test_batch_axes_may_be_folded(batch):
    """Any number of batch axes is one axis of as many rows."""
    problem = Problem(T=5, batch=batch, H=(4,), stateful=True, weighted=True)
    params, (inputs, targets, weights, state) = problem.params(), problem.data()
    rows = int(np.prod(batch))
    folded = [x.reshape(problem.T, rows, *x.shape[1 + len(batch) :]) for x in (inputs, targets, weights)]
    function = by_hand(problem, 2)
    one_axis = function(params, *folded, (state[0].reshape(rows, -1),))
    assert relative_error(function(params, inputs, targets, weights, state), one_axis) <= EXACT


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_two_halves_with_the_state_handed_on_are_the_whole(cut):
    """Outputs, loss, and final states."""
    net, params, (inputs, targets, weights, state) = FULL.network(), FULL.params(), FULL.data()
    apply = jax.jit(net.apply)
    outputs, final = apply(params, inputs, state)
    first, between = apply(params, inputs[:cut], state)
    second, last = apply(params, inputs[cut:], between)
    assert relative_error((jnp.concatenate([first, second]), last), (outputs, final)) <= EXACT

    function = by_hand(FULL, 2, return_state=True)
    (E, _), _ = function(params, inputs, targets, weights, state)
    (E_first, between), _ = function(params, inputs[:cut], targets[:cut], weights[:cut], state)
    (E_second, last), _ = function(params, inputs[cut:], targets[cut:], weights[cut:], between)
    assert relative_error((E_first + E_second, last), (E, final)) <= EXACT


def test_return_state_adds_the_state_and_changes_nothing_else():
    net, arguments = FULL.network(), (FULL.params(), *FULL.data())
    E, grads = by_hand(FULL)(*arguments)
    (again, final), grads_again = by_hand(FULL, return_state=True)(*arguments)
    _, expected = net.apply(FULL.params(), FULL.data()[0], FULL.data()[3])
    assert relative_error((again, grads_again, final), (E, grads, expected)) <= EXACT
    assert relative_error(net.loss(*arguments, return_state=True), (E, expected)) <= EXACT
    assert relative_error(net.loss(*arguments), E) <= EXACT


def test_the_default_state_is_zeros():
    arguments = FULL.params(), *FULL.data()[:3]
    zeros = FULL.network().initial_state((3,), jnp.float64)
    assert [leaf.shape for leaf in zeros] == [(3, 4), (3, 5)]
    assert not any(leaf.any() for leaf in zeros)
    assert relative_error(by_hand(FULL, 3)(*arguments), by_hand(FULL, 3)(*arguments, zeros)) == 0


@pytest.mark.parametrize("gradient", ["bptt", "autodiff"])
def test_reverse_is_flipping_the_inputs_and_the_hidden_states(gradient):
    cell, params = FULL.network().layers[0], FULL.params().layers[0]
    inputs, _, _, (state, _) = FULL.data()
    hidden, final = jaxrnn.unroll(cell, params, inputs, state, reverse=True, gradient=gradient)
    flipped, flipped_final = jaxrnn.unroll(cell, params, inputs[::-1], state, gradient=gradient)
    assert relative_error((hidden, final), (flipped[::-1], flipped_final)) <= EXACT
    assert relative_error(hidden[0], final) <= EXACT


def test_loss_is_the_weighted_sum_of_the_steps():
    """Weights are used as they are; left out they are 1 / (T B)."""
    net, params, (inputs, targets, weights, state) = FULL.network(), FULL.params(), FULL.data()
    outputs, _ = net.apply(params, inputs, state)
    errors = net.objective(outputs, targets)
    function = by_hand(FULL, 3)
    assert relative_error(function(params, inputs, targets, weights, state)[0], jnp.sum(weights * errors)) <= EXACT
    assert relative_error(function(params, inputs, targets, None, state)[0], jnp.mean(errors)) <= EXACT
    assert relative_error(net.loss(params, inputs, targets, None, state), jnp.mean(errors)) <= EXACT


def test_gradient_is_linear_in_the_weights():
    """So the gradients of the steps, one at a time, add up to the gradient; a step of weight 0 has no influence."""
    params, (inputs, targets, weights, state) = FULL.params(), FULL.data()
    function = by_hand(FULL, 3)
    alone = [weights * (jnp.arange(FULL.T) == t)[:, None] for t in range(FULL.T)]
    terms = [function(params, inputs, targets, weights, state) for weights in alone]
    total = jax.tree.map(lambda *leaves: sum(leaves), *terms)
    assert relative_error(total, function(params, inputs, targets, weights, state)) <= EXACT
    later = targets.at[3:].set(0)
    early = weights * (jnp.arange(FULL.T) < 3)[:, None]
    same = function(params, inputs, later, early, state), function(params, inputs, targets, early, state)
    assert relative_error(*same) == 0


def test_equal_networks_and_new_content_compile_once():
    """Cells, readouts and networks are hashable and equal by value; different ones are traced anew."""
    chex.clear_trace_counter()

    def gradient(net, *arguments):
        return jaxrnn.value_and_grad(net, 3)(*arguments)

    counted = jax.jit(chex.assert_max_traces(gradient, n=1), static_argnums=0)
    for seed in range(3):
        problem = Problem(T=7, H=(4, 4), seed=seed)
        counted(problem.network(), problem.params(), *problem.data())
    with pytest.raises(AssertionError, match="traced"):
        counted(Problem(H=(4, 4), activation="relu").network(), problem.params(), *problem.data())


def test_equal_cells_and_new_content_compile_once_in_unroll():
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(jaxrnn.unroll, n=1), static_argnums=0)
    for seed in range(3):
        problem = Problem(seed=seed)
        counted(jaxrnn.Elman(3, 4), problem.params().layers[0], problem.data()[0])
    with pytest.raises(AssertionError, match="traced"):
        counted(jaxrnn.Elman(3, 4, "relu"), problem.params().layers[0], problem.data()[0])


@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "tokens"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["all bfloat16", "data float32"])
def test_bfloat16_parameters_get_finite_gradients_of_their_dtype(dtype, tokens):
    problem = Problem(T=9, batch=(4,), D=5, H=(6, 6), tokens=tokens, stateful=True)
    E, grads = by_hand(problem, 4)(problem.params(jnp.bfloat16), *problem.data(dtype))
    truth = jax.jit(jax.value_and_grad(problem.network().loss))(problem.params(), *problem.data())
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((E, grads)))
    assert relative_error((E, grads), truth) < 0.1


def test_bfloat16_segments_are_added_in_float32():
    """A sum of a thousand small bfloat16 terms in bfloat16 would stop growing after some hundreds."""
    problem = Problem(T=1024, batch=())
    arguments = problem.params(jnp.bfloat16), *problem.data(jnp.bfloat16)
    assert relative_error(by_hand(problem, 1)(*arguments), by_hand(problem, 1024)(*arguments)) < 0.05
    rule = lambda *arguments: jax.jit(jax.grad(lambda *a: problem.network().loss(*a, gradient="bptt")))(*arguments)
    with mock.patch.object(layer, "_layer_segment", return_value=1):
        cut = rule(*arguments)
    assert relative_error(cut, rule(*arguments)) < 0.05


def test_second_derivatives_and_forward_mode_work_with_autodiff():
    """The Hessian is symmetric and, along a direction, the difference of two gradients by hand."""
    problem = Problem(T=4, H=(3,), V=2)
    net, params, data = problem.network(), problem.params(), problem.data()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    loss = lambda flat, gradient: net.loss(unravel(flat), *data, gradient=gradient)
    gradient = lambda flat: jax.flatten_util.ravel_pytree(by_hand(problem)(unravel(flat), *data)[1])[0]
    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))

    hessian = jax.jit(jax.hessian(lambda flat: loss(flat, "autodiff")))(flat)
    difference = (gradient(flat + 1e-5 * direction) - gradient(flat - 1e-5 * direction)) / 2e-5
    assert relative_error(hessian, hessian.T) <= EXACT
    assert relative_error(hessian @ direction, difference) <= 1e-7

    _, slope = jax.jvp(lambda flat: loss(flat, "autodiff"), (flat,), (direction,))
    assert relative_error(slope, gradient(flat) @ direction) <= EXACT
    with pytest.raises(TypeError, match='gradient="autodiff"'):
        jax.jvp(lambda flat: loss(flat, "bptt"), (flat,), (direction,))
