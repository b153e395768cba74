"""What stands between and around the layers: dropout, residual paths, learned starts, the last step; what is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import central_difference, inner, relative_error
from problems import CELLS, KEY, Problem

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
T, B, H = 7, 3, 5
SIZES = {"T": T, "batch": (B,), "D": H, "H": H, "V": 4}


def problem(Cell="Elman", depth=2, **options):
    return Problem(CELLS[Cell], depth, **SIZES, merge="sum", **options)


def test_the_loss_and_its_gradient_by_central_differences():
    options = {"learn_state": True, "residual": True, "dropout": 0.3, "recurrent_dropout": 0.4}
    given = problem("GRU", masked=True, reset=True, **options)
    params, *rest = given.arguments()
    loss = jax.jit(lambda params: given.net.loss(params, *rest))
    _, grads = jax.jit(jaxrnn.value_and_grad(given.net, 3))(params, *rest)
    direction = dataclasses.replace(given, seed=3).params()
    assert abs(central_difference(loss, params, direction) / inner(grads, direction) - 1) <= 1e-8


@pytest.mark.parametrize(("Cell", "both_ways"), [("Elman", True), ("GRU", False), ("LSTM", True), ("LSTM", False)])
def test_the_last_step_is_each_sequences_own(Cell, both_ways):
    given = problem(Cell, both_ways=both_ways, residual=True, last_step=True)
    net, lengths = given.net, [T, 2, 5]
    params, inputs, targets, *_ = given.arguments()
    mask = jaxrnn.lengths_to_mask(jnp.array(lengths), T)
    outputs, _ = net.apply(params, inputs, mask=mask)
    alone = [net.apply(params, inputs[:length, b])[0] for b, length in enumerate(lengths)]
    assert relative_error(outputs, jnp.stack(alone)) <= EXACT
    E = [net.objective(output, targets[b]) for b, output in enumerate(alone)]
    assert relative_error(net.loss(params, inputs, targets, mask=mask), sum(E) / B) <= EXACT


def test_the_last_step_of_a_plain_network_is_the_last_of_all_steps():
    net, (params, inputs, *_) = problem().net, problem().arguments()
    every, _ = net.apply(params, inputs)
    last, _ = dataclasses.replace(net, last_step=True).apply(params, inputs)
    assert relative_error(last, every[-1]) <= EXACT


def test_a_sequence_without_steps_has_no_last_one():
    given = problem(last_step=True)
    params, inputs, targets, *_ = given.arguments()
    mask = jaxrnn.lengths_to_mask(jnp.array([0, 3, T]), T)
    targets = targets.at[0].set(99)
    value_and_grad = jax.jit(jaxrnn.value_and_grad(given.net))
    everything = value_and_grad(params, inputs, targets, mask=mask)
    others = value_and_grad(params, inputs[:, 1:], targets[1:], mask=mask[:, 1:])
    assert relative_error(everything, others) <= EXACT
    E, grads = value_and_grad(params, inputs, targets, mask=mask & False)
    assert E == 0
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))


def test_residual_paths_add_what_was_fed():
    """Layers that say nothing hand up what they were fed."""
    given = problem(depth=3, residual=True)
    net, (params, inputs, *_) = given.net, given.arguments()
    silent = jax.tree.map(jnp.zeros_like, params.layers[1])
    outputs, _ = net.apply(params._replace(layers=(params.layers[0], silent, silent)), inputs)
    hidden, _ = jaxrnn.unroll(net.layers[0], params.layers[0], inputs)
    assert relative_error(outputs, net.readout.apply(params.readout, hidden)) <= EXACT


def test_a_learned_state_is_where_every_sequence_and_every_reset_begins():
    given = problem("LSTM", learn_state=True)
    net, (params, inputs, *_) = given.net, given.arguments()
    plain = dataclasses.replace(net, learn_state=False)
    batch = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, *leaf.shape)), params.state)
    expected, _ = plain.apply(params._replace(state=None), inputs, batch)
    assert relative_error(net.apply(params, inputs)[0], expected) <= EXACT
    reset = jnp.zeros((T, B), bool).at[3].set(True)
    again, _ = plain.apply(params._replace(state=None), inputs[3:], batch)
    assert relative_error(net.apply(params, inputs, reset=reset)[0][3:], again) <= EXACT


def test_nothing_is_left_out_without_a_key():
    given = problem("GRU", dropout=0.5, recurrent_dropout=0.5)
    net, (params, inputs, *_) = given.net, given.arguments()
    plain = dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)
    assert relative_error(net.apply(params, inputs)[0], plain.apply(params, inputs)[0]) == 0
    assert relative_error(net.apply(params, inputs, key=KEY)[0], plain.apply(params, inputs)[0]) > 0.1


def relu_network(both_ways=False, **rates):
    """Returns two layers of relu units, whose weights can be set so that the outputs are what dropout left."""
    cells = jaxrnn.Elman(H, H, "relu"), jaxrnn.Elman(2 * H if both_ways else H, H, "relu")
    layers = tuple(jaxrnn.Bidirectional(cell, cell) for cell in cells) if both_ways else cells
    top = 2 * H if both_ways else H
    net = jaxrnn.Network(layers, jaxrnn.Readout(top, top), jaxrnn.squared_error, **rates)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(net.init, KEY))
    return net, zeros._replace(readout=zeros.readout._replace(V=jnp.eye(top)))


def test_dropout_between_layers_is_drawn_for_every_step_and_keeps_the_mean():
    """The lower layer says 1 always, the upper one hands on what it is fed: 0, or 1 / (1 - rate)."""
    net, params = relu_network(dropout=0.25)
    lower, upper = params.layers
    params = params._replace(layers=(lower._replace(b=lower.b + 1), upper._replace(U=jnp.eye(H))))
    inputs, size = jnp.zeros((T, B, H)), 40
    fed = jax.vmap(lambda key: net.apply(params, inputs, key=key)[0])(jax.random.split(KEY, size))
    assert fed.shape == (size, T, B, H)
    kept = np.asarray(fed) > 0
    assert np.allclose(fed[kept], 4 / 3, rtol=1e-12)
    assert abs(kept.mean() - 0.75) < 4 * (0.25 * 0.75 / kept.size) ** 0.5
    assert abs(fed.mean() - 1) < 4 * (1 / 3 / kept.size) ** 0.5
    assert len(np.unique(kept.reshape(-1, H), axis=0)) > 2 ** (H - 1)


def test_recurrent_dropout_is_one_draw_for_each_sequence_and_layer():
    """W is the identity of one layer, the other one's hands on: from ones, s_t is the t-th power of what is seen."""
    net, params = relu_network(both_ways=True, recurrent_dropout=0.25)
    eyes = jnp.split(jnp.eye(2 * H), 2)
    draws = []
    for i in range(2):
        layers = list(params.layers)
        layers[i] = type(layers[i])(*(part._replace(W=jnp.eye(H)) for part in layers[i]))
        if i == 0:
            layers[1] = type(layers[1])(*(part._replace(U=eye) for part, eye in zip(layers[1], eyes, strict=True)))
        ones = tuple((jnp.ones((B, H)),) * 2 for _ in layers)
        outputs, _ = net.apply(params._replace(layers=tuple(layers)), jnp.zeros((3, B, H)), ones, key=KEY)
        ahead, back = jnp.split(outputs, 2, -1)
        powers = jnp.arange(1, 4)[:, None, None]
        assert relative_error((ahead, back), (ahead[0] ** powers, back[-1] ** powers[::-1])) <= EXACT
        draws += [ahead[0], back[-1]]
    draws = jnp.stack(draws)
    assert draws.shape == (4, B, H)
    assert set(np.unique(draws)) == {0.0, 4 / 3}
    assert jnp.unique(draws.reshape(-1, H), axis=0).shape[0] > 6


PAIR = jaxrnn.Bidirectional(jaxrnn.Elman(H, H), jaxrnn.Elman(H, H))
WRONG = {
    "dropout of one layer": (lambda: problem(depth=1, dropout=0.1).net, ValueError, "dropout needs two"),
    "residual of one layer": (lambda: problem(depth=1, residual=True).net, ValueError, "residual needs two"),
    "rate of one": (lambda: problem(recurrent_dropout=1.0).net, ValueError, "recurrent_dropout must be in"),
    "rate no number": (lambda: problem(dropout="0.1").net, TypeError, "dropout must be a number"),
    "sizes of residual": (
        lambda: Problem(D=3, hidden=(4, H), residual=True).net,
        ValueError,
        "residual needs layers of one size",
    ),
    "width above": (
        lambda: jaxrnn.Network((PAIR,), jaxrnn.Readout(H, 4), jaxrnn.squared_error),
        ValueError,
        "has 10 outputs",
    ),
    "dtype": (
        lambda: problem().net.apply(*problem().arguments()[:2], compute_dtype=int),
        TypeError,
        "compute_dtype must be floating",
    ),
    "no key": (
        lambda: jaxrnn.value_and_grad(problem(dropout=0.1).net)(*problem(dropout=0.1).arguments()[:-1]),
        ValueError,
        "key must be a jax.random.key",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()
