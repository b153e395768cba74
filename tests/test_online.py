"""Gradients forward in time: RTRL is BPTT, and its relatives are what their papers say, by loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from test_breaks import CELLS, Data

import jaxrnn
from jaxrnn import online

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-10
RELU = lambda D, H: jaxrnn.Elman(D, H, "relu")
T, B, D, H, V = 9, 3, 4, 5, 6


def arguments(data):
    params, inputs, targets, weights, _, mask, reset = data.arguments()
    return (params, inputs, targets, weights), {"mask": mask, "reset": reset}


@pytest.mark.parametrize("Cell", [*CELLS, RELU])
@pytest.mark.parametrize(("breaks", "tokens"), [("plain", True), ("both", False)])
def test_rtrl_is_bptt_and_both_are_autodiff(Cell, breaks, tokens):
    data = Data(Cell, 1, tokens, breaks)
    positional, named = arguments(data)
    (E, carry), grads = jax.jit(online.value_and_grad(data.net))(*positional, **named)
    expected = jax.jit(jax.value_and_grad(lambda *a: data.net.loss(*a, **named)))(*positional)
    assert relative_error((E, grads), expected) <= EXACT
    assert relative_error((E, grads), jax.jit(jaxrnn.value_and_grad(data.net))(*positional, **named)) <= EXACT
    final = data.net.apply(data.params, data.inputs, mask=data.mask, reset=data.reset)[1][0]
    assert relative_error(carry.state, final) <= EXACT


@pytest.mark.parametrize("method", online.METHODS)
@pytest.mark.parametrize("Cell", [jaxrnn.Elman, jaxrnn.LSTM])
def test_step_by_step_is_all_at_once(method, Cell):
    data = Data(Cell, 1, False, "both")
    (params, *arrays), named = arguments(data)
    run = jax.jit(online.value_and_grad(data.net, method))
    (E, carry), grads = run(params, *arrays, **named)
    total, now = None, None
    for t in range(T):
        of_step = [array[t : t + 1] for array in arrays]
        (loss, now), found = run(
            params, *of_step, carry=now, **{name: flags[t : t + 1] for name, flags in named.items()}
        )
        total = (loss, found) if total is None else jax.tree.map(jnp.add, total, (loss, found))
    assert relative_error((total, now), ((E, grads), carry)) <= 1e-12


def test_one_sequence_and_several_batch_axes():
    data = Data(jaxrnn.GRU, 1, False, "plain")
    for method in online.METHODS:
        run = jax.jit(online.value_and_grad(data.net, method))
        _, whole = run(data.params, data.inputs, data.targets, data.weights)
        _, nested = run(data.params, *(a[:, :, None] for a in (data.inputs, data.targets, data.weights)))
        each = [run(data.params, *(a[:, b] for a in (data.inputs, data.targets, data.weights)))[1] for b in range(B)]
        assert relative_error(nested, whole) <= 1e-12
        assert relative_error(jax.tree.map(lambda *leaves: sum(leaves), *each), whole) <= 1e-12


def eligibilities(data, itself):
    """SnAp-1 of an Elman cell, weight by weight: e_t = (1 - s_t^2) (itself W[i, i] e_{t-1} + what the weight sees)."""
    (U, W, b), (V_, c) = jax.tree.map(np.asarray, (data.params.layers[0], data.params.readout))
    x, y, w = (np.asarray(array) for array in (data.inputs, data.targets, data.weights))
    dU, dW, db = np.zeros_like(U), np.zeros_like(W), np.zeros_like(b)
    for n in range(B):
        s, eU, eW, eb = np.zeros(H), np.zeros_like(U), np.zeros_like(W), np.zeros_like(b)
        for t in range(T):
            before, s = s, np.tanh(W @ s + U @ x[t, n] + b)
            for i in range(H):
                slope, back = 1 - s[i] ** 2, itself * W[i, i]
                eU[i] = slope * (back * eU[i] + x[t, n])
                eW[i] = slope * (back * eW[i] + before)
                eb[i] = slope * (back * eb[i] + 1)
            scores = V_ @ s + c
            yhat = np.exp(scores) / np.exp(scores).sum()
            g = w[t, n] * V_.T @ (yhat - np.eye(V)[y[t, n]])
            dU, dW, db = dU + g[:, None] * eU, dW + g[:, None] * eW, db + g * eb
    return dU, dW, db


@pytest.mark.parametrize(("method", "itself"), [("snap1", 1.0), ("rflo", 0.0)])
def test_the_cheaper_ones_by_their_definitions(method, itself):
    data = Data(jaxrnn.Elman, 1, False, "plain")
    _, grads = online.value_and_grad(data.net, method)(data.params, data.inputs, data.targets, data.weights)
    assert relative_error(tuple(grads.layers[0]), eligibilities(data, itself)) <= EXACT


@pytest.mark.parametrize("Cell", [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM])
def test_snap1_is_exact_where_units_do_not_see_one_another(Cell):
    data = Data(Cell, 1, True, "both")
    layer = data.params.layers[0]
    W = jnp.where(jnp.tile(jnp.eye(H, dtype=bool), (layer.W.shape[0] // H, 1)), layer.W, 0)
    data.params = data.params._replace(layers=(layer._replace(W=W),))
    positional, named = arguments(data)
    exact = jax.grad(data.net.loss)(*positional, **named).layers[0]
    _, grads = online.value_and_grad(data.net, "snap1")(*positional, **named)
    assert relative_error(grads.layers[0], exact) <= EXACT  # of W the entries that are zero included
    data.params = data.params._replace(layers=(layer._replace(W=0 * W),))
    positional, named = arguments(data)
    _, direct = online.value_and_grad(data.net, "rflo")(*positional, **named)
    assert relative_error(direct.layers[0], jax.grad(data.net.loss)(*positional, **named).layers[0]) <= EXACT


def test_the_order_of_the_methods():
    """On a network that remembers, exact is exact, and the more is kept the nearer."""
    data = Data(jaxrnn.GRU, 1, False, "plain")
    found = online.compare(data.net, data.params, data.inputs, data.targets)
    assert found.methods["rtrl"].cosine > 1 - 1e-12
    assert abs(found.methods["rtrl"].ratio - 1) < 1e-12
    assert 0.5 < found.methods["rflo"].cosine < 1 - 1e-4
    assert 0.5 < found.methods["snap1"].cosine < 1 - 1e-4
    table = str(found).splitlines()
    assert table[0].split() == ["all", "U", "W", "b", "d"]
    assert table[1].startswith("rtrl")
    assert "1.0000, 1.000" in table[1]


@pytest.mark.parametrize("method", online.METHODS)
def test_learning_at_every_step(method):
    """A rhythm of three tokens, an update after each of them."""
    net = jaxrnn.Network((jaxrnn.GRU(3, 12),), jaxrnn.Readout(12, 3), jaxrnn.softmax_cross_entropy)
    params = net.init(jax.random.key(0), jnp.float64)
    tokens = jnp.tile(jnp.array([0, 0, 1, 2]), 200)[:, None]

    @jax.jit
    def step(params, carry, x, y):
        (loss, carry), grads = online.value_and_grad(net, method)(params, x, y, carry=carry)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), carry, loss

    losses, carry = [], None
    for t in range(600):
        params, carry, loss = step(params, carry, tokens[t : t + 1], tokens[t + 1 : t + 2])
        losses.append(float(loss))
    assert np.mean(losses[:20]) > 0.8
    assert np.mean(losses[-20:]) < 0.2


def test_a_warning_says_what_the_influence_takes():
    net = jaxrnn.Network((jaxrnn.Elman(4, 256),), jaxrnn.Readout(256, 3), jaxrnn.softmax_cross_entropy)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    x, y = jax.ShapeDtypeStruct((3, 32, 4), jnp.float32), jax.ShapeDtypeStruct((3, 32), jnp.int32)
    with pytest.warns(UserWarning, match="the influence of RTRL"):
        jax.eval_shape(online.value_and_grad(net), shapes, x, y)


@pytest.mark.parametrize(
    ("change", "method", "message"),
    [
        (None, "rtrl", "net must be a jaxrnn.Network"),
        ({}, "eprop", "method must be one of"),
        ({"last_step": True}, "rtrl", "must not have last_step"),
        ({"learn_state": True}, "rtrl", "must not have learn_state"),
        ({"recurrent_dropout": 0.5}, "rtrl", "must not have recurrent_dropout"),
        ({"layers": (jaxrnn.Elman(4, 5), jaxrnn.Elman(5, 5))}, "rtrl", "one layer"),
        ({"layers": (CELLS[-1](4, 5),)}, "snap1", "needs a cell with a method own_operands"),
    ],
    ids=str,
)
def test_wrong_networks(change, method, message):
    net = None if change is None else dataclasses.replace(Data(jaxrnn.Elman).net, **change)
    with pytest.raises((ValueError, TypeError), match=message):
        online.value_and_grad(net, method)
