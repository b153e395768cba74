"""What stands between and around the cells: both directions, dropout, residual paths, learned starts, the last step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import central_difference, inner, relative_error
from test_breaks import Data
from test_user_cells import Leaky

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
T, B, H, V = 7, 3, 5, 4
CELLS = [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM]
OPTIONS = {"learn_state": True, "residual": True, "dropout": 0.3, "recurrent_dropout": 0.4}
KEY = jax.random.key(7)


def network(Cell, both_ways=False, layers=2, merge="sum", **options):
    cell = Cell(H, H)
    layer = jaxrnn.Bidirectional(cell, cell, merge) if both_ways else cell
    return jaxrnn.Network((layer,) * layers, jaxrnn.Readout(H, V), jaxrnn.softmax_cross_entropy, **options)


def arguments(net, mask=None, reset=None, seed=0):
    """params, inputs, targets, weights, state, mask, reset: no weights and no state."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, KEY)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / 2), shapes)
    inputs = jnp.asarray(random.normal(size=(T, B, H)))
    targets = jnp.asarray(random.integers(0, V, (B,) if net.last_step else (T, B)))
    return params, inputs, targets, None, None, mask, reset


def flags(seed=1):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.random((T, B)) < 0.6), jnp.asarray(random.random((T, B)) < 0.3)


@pytest.mark.parametrize("last_step", [False, True], ids=["every", "last"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("Cell", CELLS)
def test_value_and_grad_equals_autodiff_with_all_options(Cell, both_ways, last_step):
    net = network(Cell, both_ways, last_step=last_step, **OPTIONS)
    given = (*arguments(net, *flags()), KEY)
    truth = jax.jit(jax.value_and_grad(lambda *a: net.loss(*a, return_state=True), has_aux=True))
    by_hand = jax.jit(jaxrnn.value_and_grad(net, 3, return_state=True))
    assert relative_error(by_hand(*given), truth(*given)) <= EXACT


@pytest.mark.parametrize("last_step", [False, True], ids=["every", "last"])
@pytest.mark.parametrize("option", OPTIONS)
def test_value_and_grad_equals_autodiff_with_one_option(option, last_step):
    net = network(jaxrnn.LSTM, last_step=last_step, **{option: OPTIONS[option]})
    given = (*arguments(net), KEY)
    by_hand, truth = jax.jit(jaxrnn.value_and_grad(net, 3)), jax.jit(jax.value_and_grad(net.loss))
    assert relative_error(by_hand(*given), truth(*given)) <= EXACT


def test_the_loss_and_its_gradient_by_central_differences():
    net = network(jaxrnn.GRU, **OPTIONS)
    params, *rest = (*arguments(net, *flags()), KEY)
    loss = jax.jit(lambda params: net.loss(params, *rest))
    _, grads = jaxrnn.value_and_grad(net, 3)(params, *rest)
    direction = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(3).normal(size=leaf.shape)), params)
    assert abs(central_difference(loss, params, direction) / inner(grads, direction) - 1) <= 1e-8


@pytest.mark.parametrize("merge", ["concatenate", "sum"])
def test_both_directions_are_two_runs(merge):
    """Each sequence alone, cut to its own length, forward and reversed: what the padded batch must give."""
    layer = jaxrnn.Bidirectional(jaxrnn.GRU(H, H), jaxrnn.LSTM(H, H), merge)
    params = layer.init(KEY, jnp.float64)
    inputs = jax.random.normal(KEY, (T, B, H))
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
    data = Data(jaxrnn.GRU, 2, breaks="plain", both_ways=True)
    reset = jnp.zeros(data.targets.shape, bool).at[4].set(True)
    outputs, _ = data.net.apply(data.params, data.inputs, reset=reset)
    parts = [data.net.apply(data.params, part)[0] for part in (data.inputs[:4], data.inputs[4:])]
    assert relative_error(outputs, jnp.concatenate(parts)) <= EXACT


@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("Cell", CELLS)
def test_the_last_step_is_each_sequences_own(Cell, both_ways):
    net = network(Cell, both_ways, residual=True, last_step=True)
    lengths = [T, 2, 5]
    params, inputs, targets, *_ = arguments(net)
    mask = jaxrnn.lengths_to_mask(jnp.array(lengths), T)
    outputs, _ = net.apply(params, inputs, mask=mask)
    alone = [net.apply(params, inputs[:length, b])[0] for b, length in enumerate(lengths)]
    assert relative_error(outputs, jnp.stack(alone)) <= EXACT
    E = [net.loss(params, inputs[:length, b], targets[b]) for b, length in enumerate(lengths)]
    assert relative_error(net.loss(params, inputs, targets, mask=mask), sum(E) / B) <= EXACT


def test_the_last_step_of_a_plain_network_is_the_last_of_all_steps():
    net = network(jaxrnn.Elman)
    params, inputs, *_ = arguments(net)
    every, _ = net.apply(params, inputs)
    last, _ = dataclasses.replace(net, last_step=True).apply(params, inputs)
    assert relative_error(last, every[-1]) <= EXACT


def test_a_sequence_without_steps_has_no_last_one():
    net = network(jaxrnn.Elman, last_step=True)
    params, inputs, targets, *_ = arguments(net)
    mask = jaxrnn.lengths_to_mask(jnp.array([0, 3, T]), T)
    targets = targets.at[0].set(99)
    value_and_grad = jax.jit(jaxrnn.value_and_grad(net))
    everything = value_and_grad(params, inputs, targets, mask=mask)
    others = value_and_grad(params, inputs[:, 1:], targets[1:], mask=mask[:, 1:])
    assert relative_error(everything, others) <= EXACT
    E, grads = value_and_grad(params, inputs, targets, mask=mask & False)
    assert E == 0
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))


def test_residual_paths_add_what_was_fed():
    """Layers that say nothing hand up what they were fed."""
    net = network(jaxrnn.Elman, layers=3, residual=True)
    params, inputs, *_ = arguments(net)
    silent = jax.tree.map(jnp.zeros_like, params.layers[1])
    outputs, _ = net.apply(params._replace(layers=(params.layers[0], silent, silent)), inputs)
    hidden, _ = jaxrnn.unroll(net.layers[0], params.layers[0], inputs)
    assert relative_error(outputs, net.readout.apply(params.readout, hidden)) <= EXACT


def test_a_learned_state_is_where_every_sequence_and_every_reset_begins():
    net = network(jaxrnn.LSTM, learn_state=True)
    params, inputs, *_ = arguments(net)
    plain = dataclasses.replace(net, learn_state=False)
    batch = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, *leaf.shape)), params.state)
    expected, _ = plain.apply(params._replace(state=None), inputs, batch)
    assert relative_error(net.apply(params, inputs)[0], expected) <= EXACT
    reset = jnp.zeros((T, B), bool).at[3].set(True)
    again, _ = plain.apply(params._replace(state=None), inputs[3:], batch)
    assert relative_error(net.apply(params, inputs, reset=reset)[0][3:], again) <= EXACT


def test_nothing_is_left_out_without_a_key():
    net = network(jaxrnn.GRU, dropout=0.5, recurrent_dropout=0.5)
    params, inputs, *_ = arguments(net)
    plain = dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)
    assert relative_error(net.apply(params, inputs)[0], plain.apply(params, inputs)[0]) == 0
    assert relative_error(net.apply(params, inputs, key=KEY)[0], plain.apply(params, inputs)[0]) > 0.1


def test_dropout_between_layers_is_drawn_for_every_step_and_keeps_the_mean():
    net = network(jaxrnn.Elman, dropout=0.25)
    params, *_ = arguments(net)
    size = 40
    kept = jax.vmap(lambda key: _kept(net, params, key))(jax.random.split(KEY, size)).between[0]
    assert kept.shape == (size, T, B, H)
    assert abs(kept.mean() - 0.75) < 4 * (0.25 * 0.75 / kept.size) ** 0.5
    assert jnp.unique(kept.reshape(size * T * B, H), axis=0).shape[0] > 2 ** (H - 1)
    x = jnp.ones((size, T, B, H))
    assert abs(jaxrnn.cells.dropout.drop(x, kept, 0.25).mean() - 1) < 4 * (1 / 3 / kept.size) ** 0.5


def test_recurrent_dropout_is_one_draw_for_each_sequence_and_layer():
    net = network(jaxrnn.Elman, both_ways=True, recurrent_dropout=0.25)
    params, *_ = arguments(net)
    recurrent = _kept(net, params, KEY).recurrent
    draws = jnp.stack([keep for pair in recurrent for keep in pair])
    assert draws.shape == (4, B, H)
    assert set(np.unique(draws)) == {0.0, 4 / 3}
    assert jnp.unique(draws.reshape(-1, H), axis=0).shape[0] > 6


@pytest.mark.parametrize("Cell", CELLS)
def test_recurrent_dropout_is_what_the_products_see(Cell):
    """With W diag(keep) for W, one sequence at a time."""
    cell = Cell(H, H)
    params = cell.init(KEY, jnp.float64)
    inputs = jax.random.normal(KEY, (T, B, H))
    keep = jax.random.bernoulli(KEY, 0.5, (B, H)) / 0.5
    hidden, _ = jaxrnn.unroll(cell, params, inputs, keep=keep)
    for b in range(B):
        alone, _ = jaxrnn.unroll(cell, params._replace(W=params.W * keep[b]), inputs[:, b])
        assert relative_error(hidden[:, b], alone) <= EXACT


@pytest.mark.parametrize("Cell", [jaxrnn.GRU, jaxrnn.LSTM])
def test_stored_gates_and_gates_made_anew_are_the_same(Cell):
    net = network(Cell, recurrent_dropout=0.3)
    given = (*arguments(net, *flags()), KEY)
    anew = jaxrnn.value_and_grad(net, 3, recompute="gates")
    assert relative_error(anew(*given), jaxrnn.value_and_grad(net, 3)(*given)) <= EXACT


def _kept(net, params, key):
    return jaxrnn.network.network.check_run(net, params, jnp.zeros((T, B, H)), None, None, None, key, None).kept


GOOD = jaxrnn.Elman(H, H)
PAIR = jaxrnn.Bidirectional(GOOD, GOOD)
WRONG = {
    "dropout of one layer": (lambda: network(jaxrnn.Elman, layers=1, dropout=0.1), ValueError, "dropout needs two"),
    "residual of one layer": (lambda: network(jaxrnn.Elman, layers=1, residual=True), ValueError, "residual needs two"),
    "rate of one": (lambda: network(jaxrnn.Elman, recurrent_dropout=1.0), ValueError, "recurrent_dropout must be in"),
    "rate no number": (lambda: network(jaxrnn.Elman, dropout="0.1"), TypeError, "dropout must be a number"),
    "sizes of residual": (
        lambda: jaxrnn.Network(
            (jaxrnn.Elman(3, 4), jaxrnn.Elman(4, H)), jaxrnn.Readout(H, V), jaxrnn.squared_error, residual=True
        ),
        ValueError,
        "residual needs layers of one size",
    ),
    "directions of two sizes": (lambda: jaxrnn.Bidirectional(GOOD, jaxrnn.Elman(H, 4)), ValueError, "the same inputs"),
    "no cell": (lambda: jaxrnn.Bidirectional(GOOD, "gru"), TypeError, "backward must be a jaxrnn.Cell"),
    "merge": (lambda: jaxrnn.Bidirectional(GOOD, GOOD, "mean"), ValueError, "merge must be one of"),
    "width above": (
        lambda: jaxrnn.Network((PAIR,), jaxrnn.Readout(H, V), jaxrnn.squared_error),
        ValueError,
        "has 10 outputs",
    ),
    "reverse": (
        lambda: jaxrnn.unroll(PAIR, PAIR.init(KEY), jnp.zeros((T, B, H)), reverse=True),
        ValueError,
        "reverse must be False",
    ),
    "keep of another shape": (
        lambda: jaxrnn.unroll(GOOD, GOOD.init(KEY), jnp.zeros((T, B, H)), keep=jnp.ones((T, B, H))),
        ValueError,
        "keep must have shape",
    ),
    "dtype": (
        lambda: jaxrnn.unroll(GOOD, GOOD.init(KEY), jnp.zeros((T, B, H)), compute_dtype=int),
        TypeError,
        "compute_dtype must be floating",
    ),
    "no key": (
        lambda: jaxrnn.value_and_grad(network(jaxrnn.Elman, dropout=0.1))(
            *arguments(network(jaxrnn.Elman, dropout=0.1))
        ),
        ValueError,
        "key must be a jax.random.key",
    ),
    "initializer": (
        lambda: jaxrnn.Elman(3, 4, recurrent_initializer="eye"),
        ValueError,
        "recurrent_initializer must be one of",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_told(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()


def test_a_cell_without_it_says_that_it_has_no_recurrent_dropout():
    data = Data(Leaky, breaks="plain")
    net = dataclasses.replace(data.net, recurrent_dropout=0.5)
    with pytest.raises(TypeError, match="with_dropout"):
        net.loss(*data.arguments(), key=KEY)


@pytest.mark.parametrize(("kind", "scale"), [("orthogonal", 0.9), ("identity", 0.5), ("normal", 1.3)])
def test_fresh_recurrent_matrices_have_the_spectral_radius(kind, scale):
    cell = jaxrnn.Elman(3, 50, recurrent_initializer=kind, recurrent_scale=scale)
    W = cell.init(KEY, jnp.float64).W
    assert abs(np.abs(np.linalg.eigvals(W)).max() - scale) <= 1e-6
    assert (kind == "identity") == bool(jnp.all(scale * jnp.eye(50) == W))
