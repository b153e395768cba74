"""The training step: optax on the gradient by hand, and all that its options change."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn.tasks.base import Sequences
from jaxrnn.training.step import TrainState, adam, average_params, averaged_params, initial_train_state, make_step

NET = jaxrnn.Network((jaxrnn.Elman(7, 12),), jaxrnn.Readout(12, 7), jaxrnn.softmax_cross_entropy)
SGD = optax.sgd(0.1)


def batches(step):
    tokens = np.random.default_rng(step).integers(0, 7, (12, 3))
    return Sequences(tokens[:-1], tokens[1:], fresh=step % 4 == 0)


def start(optimizer=SGD, net=NET, size=3):
    return initial_train_state(net, optimizer, size, jax.random.key(1))


@pytest.fixture(scope="module")
def step():
    return make_step(NET, SGD)


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(jax.grad(NET.loss))


def losses_of(step, optimizer, net=NET, steps=30):
    state, losses = start(optimizer, net), []
    for i in range(steps):
        state, metrics = step(state, batches(i))
        losses.append(float(metrics["loss"]))
    return losses


def test_by_hand_and_by_autodiff_give_the_same_curve_and_a_step_compiles_once():
    optimizer, curves = adam(1e-2, 30, warmup=5), []
    for gradient in ("bptt", "autodiff"):
        chex.clear_trace_counter()
        traced = chex.assert_max_traces(make_step(NET, optimizer, gradient=gradient).__wrapped__, n=1)
        curves.append(losses_of(jax.jit(traced, donate_argnums=0), optimizer))
    assert curves[0][-1] != curves[0][0]
    np.testing.assert_allclose(*curves, rtol=2e-5)


def test_the_step_is_optax_on_the_gradient_of_the_carried_state(step, gradient):
    state = start()
    expected, carried, apply = state.params, NET.initial_state((3,)), jax.jit(NET.apply)
    for i in range(2):
        grads = gradient(expected, batches(i).inputs, batches(i).targets, None, carried)
        carried = apply(expected, batches(i).inputs, carried)[1]
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
    expected, carried = jax.device_get((expected, carried))
    for i in range(2):
        state, _ = step(state, batches(i)._replace(fresh=False))
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state.network_state, carried, rtol=1e-4, atol=1e-5)


def test_a_fresh_batch_drops_the_carried_state(step):
    losses = []
    for fresh in (True, False):
        state = start()
        state = state._replace(network_state=(state.network_state[0] + 0.9,))
        losses.append(float(step(state, batches(0)._replace(fresh=fresh))[1]["loss"]))
    assert losses[0] == pytest.approx(float(NET.loss(start().params, *batches(0)[:2])), rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_clipping_bounds_the_update_and_the_norm_is_reported():
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state = start(optimizer)
    before = jax.device_get(state.params)
    state, metrics = make_step(NET, optimizer)(state, batches(0))
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, state.params, before))
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)
    assert float(metrics["gradient_norm"]) > 1e-2


def test_a_step_on_masked_and_packed_sequences(step, gradient):
    """Two sequences in one row, the second cut short, have the gradients that they have on their own."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 7, (2, 8, 1))
    mask, reset = np.ones((8, 1), bool), np.zeros((8, 1), bool)
    mask[6:], reset[3] = False, True
    state = start(size=1)
    before = jax.device_get(state.params)
    grads = [gradient(before, x[steps], y[steps]) for steps in (slice(0, 3), slice(3, 6))]
    state, _ = step(state, Sequences(x, y, mask, reset))
    moved = jax.tree.map(lambda a, b: (a - b) / 0.1, before, state.params)
    chex.assert_trees_all_close(moved, jax.tree.map(lambda a, b: (a + b) / 2, *grads), rtol=1e-4, atol=1e-6)


def test_weight_noise_is_new_at_every_step_and_leaves_no_trace(step):
    noisy = make_step(NET, optax.sgd(0.0), noise=0.1)
    state = start(optax.sgd(0.0))
    before = jax.device_get(state.params)
    losses = []
    for _ in range(3):
        state, metrics = noisy(state, batches(0))
        losses.append(float(metrics["loss"]))
    chex.assert_trees_all_equal(jax.device_get(state.params), before)
    assert len(set(losses)) == 3
    _, metrics = step(start(), batches(0))
    assert abs(np.mean(losses) - float(metrics["loss"])) < 0.3


def test_the_regulariser_and_clipping_of_the_step_are_those_of_the_gradient():
    state = start(optax.sgd(1.0))
    before, batch = jax.device_get(state.params), batches(0)
    step = make_step(NET, optax.sgd(1.0), clip=1e-3, vanishing=lambda step: 2.0 / (1 + step))
    state, _ = step(state, batch)
    gradient = jax.jit(jaxrnn.value_and_grad(NET, clip=1e-3))
    _, grads = gradient(before, batch.inputs, batch.targets, vanishing=2.0)
    chex.assert_trees_all_close(jax.tree.map(lambda a, b: a - b, before, state.params), grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"flow": True}, {"clip": 1.0}, {"vanishing": float}])
def test_what_autodiff_cannot_do(options):
    with pytest.raises(ValueError, match="need gradient="):
        make_step(NET, SGD, gradient="autodiff", **options)


@pytest.mark.parametrize("Cell", [jaxrnn.GRU, jaxrnn.LSTM])
def test_gated_networks_are_trained_and_state_is_donated(Cell):
    net = jaxrnn.Network((Cell(7, 6),), jaxrnn.Readout(6, 7), jaxrnn.softmax_cross_entropy)
    optimizer = average_params(adam(2e-2, 20, warmup=2), 0.9)
    step, state, losses = make_step(net, optimizer), start(optimizer, net), []
    for _ in range(20):
        state, metrics = step(state, batches(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1


PARAMS = {"W": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "b": jnp.array([0.5, -0.5])}
GRADS = {"W": jnp.array([[0.1, 0.2], [-0.1, 0.05]]), "b": jnp.array([0.02, 0.3])}


def updated(optimizer, count=1):
    """Returns the parameters before and after every one of some updates, and the optimizer's last state."""
    params, state, history = PARAMS, optimizer.init(PARAMS), [PARAMS]
    for _ in range(count):
        updates, state = optimizer.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def test_the_average_of_parameters_follows_them():
    (_, *history), optimizer_state = updated(average_params(SGD, 0.9), 3)
    average = PARAMS
    for params in history:
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, params)
    state = TrainState(history[-1], optimizer_state, (), 3, None)
    chex.assert_trees_all_close(averaged_params(state), average, rtol=1e-5)
    assert not np.allclose(averaged_params(state)["W"], state.params["W"], rtol=1e-3)
    plain = state._replace(optimizer_state=updated(SGD)[1])
    assert averaged_params(plain) is plain.params


def test_accumulated_gradients_make_one_step():
    one, two = (adam(1e-2, 10, warmup=0, accumulate=count) for count in (1, 2))
    history, _ = updated(two, 2)
    chex.assert_trees_all_equal(history[0], history[1])
    chex.assert_trees_all_close(history[2], updated(one)[0][1], rtol=1e-5)


@pytest.mark.parametrize(("warmup", "sizes"), [(0, (0.01, 0.005, 0.0)), (10, (0.0, 0.00587, 0.0))])
def test_the_rate_rises_and_falls(warmup, sizes):
    """Adam's steps are as long as the rate where the gradient is always the same."""
    optimizer = adam(0.01, 100, warmup=warmup)
    state, found = optimizer.init(jnp.ones(())), []
    for step in range(101):
        updates, state = optimizer.update(jnp.ones(()), state, jnp.ones(()))
        if step in (0, 50, 100):
            found.append(-float(updates))
    np.testing.assert_allclose(found, sizes, atol=2e-4)


def test_weight_decay_shrinks():
    states = [updated(adam(1e-2, 10, warmup=0, decay=decay))[0][1] for decay in (0.0, 0.5)]
    difference = jax.tree.map(lambda a, b: a - b, *states)
    rate = 1e-2 * 0.5 * (1 + np.cos(0))  # the cosine begins at the top
    chex.assert_trees_all_close(difference, jax.tree.map(lambda p: rate * 0.5 * p, PARAMS), rtol=2e-2, atol=1e-6)
