"""Gradients forward in time: RTRL is BPTT, and its relatives are what their papers say, by loops in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem, autodiff
from user_cells import Turned

import jaxrnn
from jaxrnn import online

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-10
T, B, D, H, V = 9, 3, 4, 5, 6


def problem(Cell, broken=False, tokens=False):
    return Problem(CELLS[Cell], tokens=tokens, weighted=True, masked=broken, reset=broken)


def run_of(given, method="rtrl"):
    """Returns the function of params, inputs, targets, weights, carry, mask, reset."""
    return jitted(given.net, method)


@functools.cache
def jitted(net, method):
    return jax.jit(online.value_and_grad(net, method))


def whole(given):
    """Returns what that function takes, with no carry."""
    params, inputs, targets, weights, _, mask, reset, _ = given.arguments()
    return params, inputs, targets, weights, None, mask, reset


ROWS = pairwise(
    {
        "Cell": tuple(CELLS),
        "tokens": (False, True),
        "weighted": (True, False),
        "masked": (False, True),
        "reset": (False, True),
        "objective": ("labels", "squared"),
    }
)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_rtrl_is_autodiff(row):
    given = Problem(**row | {"Cell": CELLS[row["Cell"]]})
    (E, carry), grads = run_of(given)(*whole(given))
    (expected, (final,)), truth = autodiff(given)
    assert relative_error((E, carry.state, grads), (expected, final, truth)) <= EXACT


@pytest.mark.parametrize(
    ("Cell", "method"), [("Elman", "rtrl"), ("LSTM", "rtrl"), ("Elman", "snap1"), ("LSTM", "snap1"), ("LSTM", "rflo")]
)
def test_step_by_step_is_all_at_once(Cell, method):
    given = problem(Cell, broken=True)
    params, *arrays = whole(given)
    (E, carry), grads = run_of(given, method)(params, *arrays)
    total, now = None, None
    for t in range(T):
        x, y, w, _, mask, reset = (None if array is None else array[t : t + 1] for array in arrays)
        (loss, now), found = run_of(given, method)(params, x, y, w, now, mask, reset)
        total = (loss, found) if total is None else jax.tree.map(jnp.add, total, (loss, found))
    assert relative_error((total, now), ((E, grads), carry)) <= 1e-12


def test_one_sequence_and_several_batch_axes():
    given = problem("GRU")
    params, *arrays = whole(given)[:4]
    for method in online.METHODS:
        run = run_of(given, method)
        _, batch = run(params, *arrays)
        _, nested = run(params, *(a[:, :, None] for a in arrays))
        each = [run(params, *(a[:, b] for a in arrays))[1] for b in range(B)]
        assert relative_error(nested, batch) <= 1e-12
        assert relative_error(jax.tree.map(lambda *leaves: sum(leaves), *each), batch) <= 1e-12


def eligibilities(data, itself):
    """SnAp-1 of an Elman cell, weight by weight: e_t = (1 - s_t^2) (itself W[i, i] e_{t-1} + what the weight sees)."""
    (U, W, b), (V_, c) = jax.tree.map(np.asarray, (data.params.layers[0], data.params.readout))
    x, y, w = map(np.asarray, data[1:4])
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
    given = problem("Elman")
    _, grads = run_of(given, method)(*whole(given))
    assert relative_error(tuple(grads.layers[0]), eligibilities(given.arguments(), itself)) <= EXACT


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM"])
def test_snap1_is_exact_where_units_do_not_see_one_another(Cell):
    """And RFLO where there is no recurrent weight at all."""
    given = problem(Cell, broken=True, tokens=True)
    net, arguments = given.net, given.arguments()
    layer = arguments.params.layers[0]
    blocks = np.tile(np.eye(H, dtype=bool), (layer.W.shape[0] // H, 1))
    truth = jax.jit(jax.grad(net.loss))
    for method, W in (("snap1", jnp.where(blocks, layer.W, 0)), ("rflo", 0 * layer.W)):
        params = arguments.params._replace(layers=(layer._replace(W=W),))
        _, grads = run_of(given, method)(params, *whole(given)[1:])
        exact = truth(*arguments._replace(params=params))
        assert relative_error(grads.layers[0], exact.layers[0]) <= EXACT  # of W the entries that are zero included


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


@functools.cache
def derivatives(Cell):
    """Returns compiled functions of (theta, state, x), both flat: s_t, ds_t/dtheta and J_t, and dE_t/ds_t."""
    cell, params = CELLS[Cell](D, H), problem(Cell).params()
    _, weights = ravel_pytree(params.layers[0])
    _, state_of = ravel_pytree(cell.initial_state((), jnp.float64))

    def step(theta, state, x):
        operands = cell.prepare(weights(theta))
        return ravel_pytree(cell.step(operands, state_of(state), cell.project(operands, x[None])[0]))[0]

    def error(state, y):
        return jaxrnn.softmax_cross_entropy(params.readout.V @ state[:H] + params.readout.c, y)

    return jax.jit(step), jax.jit(jax.jacfwd(step, (0, 1))), jax.jit(jax.grad(error))


def step_of_own(params, state, x):
    """A GRU with the reset before the product, in which units see one another as constants, in both its products."""
    U, W, b, _ = params
    own, constant = jnp.diagonal(W.reshape(3, H, H), 0, 1, 2), jax.lax.stop_gradient
    others = W * ~jnp.tile(jnp.eye(H, dtype=bool), (3, 1))
    product = (own * state).ravel() + others @ constant(state) + U @ x + b
    r, z = jnp.split(jax.nn.sigmoid(product[: 2 * H]), 2)
    n = own[2] * r * state + others[2 * H :] @ constant(r * state) + (U @ x + b)[2 * H :]
    return (1 - z) * jnp.tanh(n) + z * state


def by_dense_influence(Cell, given, method):
    """The recurrence P_t = J_t P_{t-1} + d+ s_t/dtheta with all of P and a J_t cut as the method has it, in loops."""
    layer, cell = given.params.layers[0], CELLS[Cell](D, H)
    step, both, g = derivatives(Cell)
    theta, unravel = ravel_pytree(layer)
    if Cell == "GRU before" and method != "rtrl":
        both = jax.jit(jax.jacfwd(lambda theta, *a: step_of_own(unravel(theta), *a), (0, 1)))
    start, plain = ravel_pytree(cell.initial_state((), jnp.float64))[0], jax.tree.map(np.asarray, layer)
    total = np.zeros(theta.size)
    for b in range(B):
        state, P = start, np.zeros((start.size, theta.size))
        for t in range(T):
            if given.reset[t, b]:
                state, P = start, np.zeros_like(P)
            if given.mask[t, b]:
                x = given.inputs[t, b]
                immediate, J = map(np.asarray, both(theta, state, x))
                P = cut_jacobian(cell, plain, np.asarray(state), np.asarray(x), J, method) @ P + immediate
                state = step(theta, state, x)
                total += given.weights[t, b] * np.asarray(g(state, given.targets[t, b])) @ P
    return unravel(jnp.asarray(total))


@pytest.mark.parametrize("method", online.METHODS)
@pytest.mark.parametrize("Cell", ["GRU", "GRU before", "LSTM"])
def test_gated_cells_by_their_definitions(Cell, method):
    """With a W that is full, so that gates and Jacobians of the wrong W do not pass."""
    given = problem(Cell, broken=True)
    _, grads = run_of(given, method)(*whole(given))
    assert relative_error(grads.layers[0], by_dense_influence(Cell, given.arguments(), method)) <= EXACT


def test_the_order_of_the_methods():
    """On a network that remembers, exact is exact, and the more is kept the nearer."""
    given = problem("GRU")
    found = online.compare(given.net, *given.arguments()[:3])
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


def test_a_cell_may_project_to_a_pytree():
    @dataclasses.dataclass(frozen=True)
    class Wrapped(jaxrnn.Elman):
        def project(self, operands, inputs):
            return {"z": super().project(operands, inputs)}

        def step_with_residuals(self, operands, state, projected):
            return super().step_with_residuals(operands, state, projected["z"])

    given = problem("Elman")
    wrapped = dataclasses.replace(given.net, layers=(Wrapped(D, H),))
    found, expected = (jitted(net, "snap1")(*whole(given)) for net in (wrapped, given.net))
    assert relative_error(found, expected) <= EXACT


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
        ({"layers": (CELLS["user"](4, 5),)}, "snap1", "needs a cell with a method own_operands"),
    ],
    ids=str,
)
def test_wrong_networks(change, method, message):
    net = None if change is None else dataclasses.replace(Problem().net, **change)
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
    given = problem("GRU")
    carry = online.Carry(jnp.zeros((B, H)), jnp.zeros((B, H, ravel_pytree(given.params().layers)[0].size)))
    with pytest.raises((ValueError, TypeError), match=message):
        online.value_and_grad(given.net, method)(*whole(given)[:4], change(carry))


def test_a_carry_of_another_dtype_is_cast():
    given = problem("Elman")
    params, inputs, targets, weights = whole(given)[:4]
    run = run_of(given)
    (_, carry), _ = run(params, inputs, targets, weights)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs))
    (_, after), grads = run(*single, targets, weights, carry)
    assert {leaf.dtype for leaf in jax.tree.leaves((after, grads))} == {jnp.dtype(jnp.float32)}


def test_weights_that_do_not_begin_with_units():
    given = Problem(Turned)
    with pytest.raises(ValueError, match=r"U'\] must have a first axis that is a multiple of H = 5"):
        online.value_and_grad(given.net, "snap1")(*given.arguments()[:3])
