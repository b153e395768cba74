"""Gradients forward in time: RTRL is BPTT, and its relatives are what their papers say, by loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import relative_error
from test_breaks import CELLS, Data

import jaxrnn
from jaxrnn import online
from jaxrnn.layer.associative import flatten, unflatten

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


def cut_jacobian(cell, layer, state, x, J, method):
    """What a method leaves of J_t: full for RTRL, each unit's own block for SnAp-1, the gates' way for RFLO."""
    if method == "rtrl":
        return J
    if method == "snap1":
        unit = np.arange(len(J)) % H
        return J * (unit[:, None] == unit)
    z, q, none = layer.U @ x + layer.b, layer.W @ state[:H], np.zeros((H, H))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    if isinstance(cell, jaxrnn.GRU):
        return np.diag(sigmoid((z + q)[H : 2 * H]))
    i, f, g, o = np.split(z + q, 4)
    f, o = sigmoid(f), sigmoid(o)
    m = f * state[H:] + sigmoid(i) * np.tanh(g)
    return np.block([[none, np.diag(o * (1 - np.tanh(m) ** 2) * f)], [none, np.diag(f)]])


def by_dense_influence(data, method):
    """The recurrence P_t = J_t P_{t-1} + d+ s_t/dtheta with all of P and a J_t cut as the method has it, in loops."""
    cell, layer = data.net.layers[0], data.params.layers[0]
    theta, unravel = ravel_pytree(layer)
    like = cell.initial_state((), jnp.float64)
    n, plain = flatten(like).size, jax.tree.map(np.asarray, layer)

    def step(theta, state, x):
        operands = cell.prepare(unravel(theta))
        return flatten(cell.step(operands, unflatten(state, like), cell.project(operands, x[None])[0]))

    def error(state, y):
        return jaxrnn.softmax_cross_entropy(data.params.readout.V @ state[:H] + data.params.readout.c, y)

    step, both, g = jax.jit(step), jax.jit(jax.jacfwd(step, (0, 1))), jax.jit(jax.grad(error))
    total = np.zeros(theta.size)
    for b in range(B):
        state, P = jnp.zeros(n), np.zeros((n, theta.size))
        for t in range(T):
            if data.reset[t, b]:
                state, P = jnp.zeros(n), np.zeros_like(P)
            if data.mask[t, b]:
                x = data.inputs[t, b]
                immediate, J = map(np.asarray, both(theta, state, x))
                P = cut_jacobian(cell, plain, np.asarray(state), np.asarray(x), J, method) @ P + immediate
                state = step(theta, state, x)
                total += data.weights[t, b] * np.asarray(g(state, data.targets[t, b])) @ P
    return unravel(jnp.asarray(total))


@pytest.mark.parametrize("method", online.METHODS)
@pytest.mark.parametrize("Cell", [jaxrnn.GRU, jaxrnn.LSTM])
def test_gated_cells_by_their_definitions(Cell, method):
    """With a W that is full, so that gates and Jacobians of the wrong W do not pass."""
    data = Data(Cell, 1, False, "both")
    positional, named = arguments(data)
    _, grads = jax.jit(online.value_and_grad(data.net, method))(*positional, **named)
    assert relative_error(grads.layers[0], by_dense_influence(data, method)) <= EXACT


def test_the_order_of_the_methods():
    """On a network that remembers, exact is exact, and the more is kept the nearer."""
    data = Data(jaxrnn.GRU, 1, False, "plain")
    found = online.compare(data.net, data.params, data.inputs, data.targets)
    assert found.methods["rtrl"].cosine > 1 - 1e-12
    assert abs(found.methods["rtrl"].ratio - 1) < 1e-12
    assert 0.5 < found.methods["rflo"].cosine < 1 - 1e-4
    assert 0.5 < found.methods["snap1"].cosine < 1 - 1e-4
    table = str(found).splitlines()
    assert table[0].split() == ["layer", "U", "W", "b", "d", "V", "c"]
    assert all(abs(found.methods[method].by_weight["V"][0] - 1) < 1e-12 for method in online.METHODS)
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


WRONG_CARRIES = {
    "not a carry": (lambda carry: tuple(carry), "rtrl", "carry must be the Carry"),
    "of another method": (lambda carry: carry, "snap1", "carry.influence must have the structure"),
    "no influence": (lambda carry: carry._replace(influence=None), "rtrl", "carry.influence must have the structure"),
    "state of another batch": (
        lambda carry: carry._replace(state=carry.state[:1]),
        "rtrl",
        r"carry.state must have shape \(3, 5\), got \(1, 5\)",
    ),
    "influence of another batch": (
        lambda carry: carry._replace(influence=carry.influence[:1]),
        "rtrl",
        "carry.influence must have shape",
    ),
}


@pytest.mark.parametrize("name", WRONG_CARRIES)
def test_wrong_carries(name):
    change, method, message = WRONG_CARRIES[name]
    data = Data(jaxrnn.GRU, 1, False, "plain")
    carry = online.Carry(jnp.zeros((B, H)), jnp.zeros((B, H, ravel_pytree(data.params.layers)[0].size)))
    with pytest.raises((ValueError, TypeError), match=message):
        online.value_and_grad(data.net, method)(*arguments(data)[0], change(carry))


def test_a_carry_of_another_dtype_is_cast():
    data = Data(jaxrnn.Elman, 1, False, "plain")
    (params, inputs, targets, weights), _ = arguments(data)
    run = online.value_and_grad(data.net)
    (_, carry), _ = run(params, inputs, targets, weights)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs))
    (_, after), grads = run(*single, targets, weights, carry)
    assert {leaf.dtype for leaf in jax.tree.leaves((after, grads))} == {jnp.dtype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Turned(jaxrnn.Cell):
    """A cell whose weight has its units along the second axis."""

    def init(self, key, dtype=jnp.float32):
        return {"U": jax.random.normal(key, (self.inputs, self.hidden), dtype)}

    def step(self, params, state, x):
        return 0.5 * state + jnp.tanh(x @ params["U"])

    def own_operands(self, operands, weight=1.0):
        return operands


def test_weights_that_do_not_begin_with_units():
    net = jaxrnn.Network((Turned(4, 5),), jaxrnn.Readout(5, 6), jaxrnn.softmax_cross_entropy)
    data = Data(jaxrnn.Elman, 1, False, "plain")
    params = net.init(jax.random.key(0), jnp.float64)
    with pytest.raises(ValueError, match=r"U'\] must have a first axis that is a multiple of H = 5"):
        online.value_and_grad(net, "snap1")(params, data.inputs, data.targets)
