"""What must come out the same however it is asked for: segments, batches, halves, weights, second derivatives."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from problems import Problem, autodiff

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12

FULL = Problem(T=7, hidden=(4, 5), weighted=True, stateful=True)


@functools.cache
def by_hand(problem, segment="auto", **options):
    return jax.jit(jaxrnn.value_and_grad(problem.net, segment, **options))


@pytest.mark.parametrize("segment", [2, 6, 7, 1000, np.int64(3)])
def test_any_segment_gives_the_same(segment):
    cut = by_hand(FULL, segment, return_state=True)(*FULL.arguments())
    assert relative_error(cut, autodiff(FULL)) <= EXACT


def test_vmap_is_the_batch():
    """The sum over examples under vmap, with the weights of the batch."""
    given = FULL.arguments()[:5]
    mapped = jax.jit(jax.vmap(by_hand(FULL, 3), in_axes=(None, 1, 1, 1, 0)))(*given)
    summed = jax.tree.map(lambda leaf: leaf.sum(0), mapped)
    assert relative_error(summed, by_hand(FULL, 3)(*given)) <= EXACT


@pytest.mark.parametrize("batch", [(), (2, 3), (3, 1, 2)])
def test_batch_axes_may_be_folded(batch):
    """Any number of batch axes is one axis of as many rows."""
    problem = Problem(T=5, batch=batch, stateful=True, weighted=True)
    given, rows = problem.arguments(), int(np.prod(batch))
    fold = lambda x: x.reshape(problem.T, rows, *x.shape[1 + len(batch) :])
    inputs, targets, weights = map(fold, given[1:4])
    folded = given._replace(
        inputs=inputs, targets=targets, weights=weights, state=(given.state[0].reshape(rows, problem.H),)
    )
    function = by_hand(problem, 2)
    assert relative_error(function(*given), function(*folded)) <= EXACT


@pytest.mark.parametrize("cut", [1, 5])
def test_two_halves_with_the_state_handed_on_are_the_whole(cut):
    """Outputs, loss, and final states."""
    net, (params, inputs, targets, weights, state, *_) = FULL.net, FULL.arguments()
    outputs, final = net.apply(params, inputs, state)
    first, between = net.apply(params, inputs[:cut], state)
    second, last = net.apply(params, inputs[cut:], between)
    assert relative_error((jnp.concatenate([first, second]), last), (outputs, final)) <= EXACT

    function = by_hand(FULL, 2, return_state=True)
    (E, _), _ = function(params, inputs, targets, weights, state)
    (E_first, between), _ = function(params, inputs[:cut], targets[:cut], weights[:cut], state)
    (E_second, last), _ = function(params, inputs[cut:], targets[cut:], weights[cut:], between)
    assert relative_error((E_first + E_second, last), (E, final)) <= EXACT


def test_return_state_adds_the_state_and_changes_nothing_else():
    net, given = FULL.net, FULL.arguments()
    E, grads = by_hand(FULL, 2)(*given)
    (again, final), grads_again = by_hand(FULL, 2, return_state=True)(*given)
    _, expected = net.apply(given.params, given.inputs, given.state)
    assert relative_error((again, grads_again, final), (E, grads, expected)) <= EXACT
    assert relative_error(net.loss(*given, return_state=True), (E, expected)) <= EXACT
    assert relative_error(net.loss(*given), E) <= EXACT


def test_the_default_state_is_zeros():
    given, zeros = FULL.arguments()[:4], FULL.net.initial_state((3,), jnp.float64)
    assert [leaf.shape for leaf in zeros] == [(3, 4), (3, 5)]
    assert not any(leaf.any() for leaf in zeros)
    assert relative_error(by_hand(FULL, 3)(*given), by_hand(FULL, 3)(*given, zeros)) == 0


def test_loss_is_the_weighted_sum_of_the_steps():
    """Weights are used as they are; left out they are 1 / (T B)."""
    net, given = FULL.net, FULL.arguments()
    outputs, _ = net.apply(given.params, given.inputs, given.state)
    errors, plain = net.objective(outputs, given.targets), given._replace(weights=None)
    assert relative_error(by_hand(FULL, 3)(*given)[0], jnp.sum(given.weights * errors)) <= EXACT
    assert relative_error(by_hand(FULL, 3)(*plain)[0], jnp.mean(errors)) <= EXACT
    assert relative_error(net.loss(*plain), jnp.mean(errors)) <= EXACT


def test_gradient_is_linear_in_the_weights():
    """So the gradients of the steps, one at a time, add up to the gradient; a step of weight 0 has no influence."""
    given, function = FULL.arguments(), by_hand(FULL, 3)
    only = lambda there: given._replace(weights=given.weights * there[:, None])
    terms = [function(*only(jnp.arange(FULL.T) == t)) for t in range(FULL.T)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *terms)
    assert relative_error(total, function(*given)) <= EXACT
    early = only(jnp.arange(FULL.T) < 3)
    later = early._replace(targets=given.targets.at[3:].set(0))
    assert relative_error(function(*later), function(*early)) == 0


def test_second_derivatives_and_forward_mode_work_with_autodiff():
    """The Hessian is symmetric and, along a direction, the difference of two gradients by hand."""
    problem = Problem(T=4, H=3, V=2)
    net, (params, *rest) = problem.net, problem.arguments()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    loss = lambda flat, gradient: net.loss(unravel(flat), *rest, gradient=gradient)
    gradient = lambda flat: jax.flatten_util.ravel_pytree(by_hand(problem)(unravel(flat), *rest)[1])[0]
    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))

    hessian = jax.jit(jax.hessian(lambda flat: loss(flat, "autodiff")))(flat)
    difference = (gradient(flat + 1e-5 * direction) - gradient(flat - 1e-5 * direction)) / 2e-5
    assert relative_error(hessian, hessian.T) <= EXACT
    assert relative_error(hessian @ direction, difference) <= 1e-7

    _, slope = jax.jvp(lambda flat: loss(flat, "autodiff"), (flat,), (direction,))
    assert relative_error(slope, gradient(flat) @ direction) <= EXACT
    with pytest.raises(TypeError, match='gradient="autodiff"'):
        jax.jvp(lambda flat: loss(flat, "bptt"), (flat,), (direction,))
