"""The three truncations: against the double sum with pairs left out, and against their definitions, piece by piece."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error, softmax
from problems import Problem
from test_breaks import CELLS, Data, T

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12


def pairs_kept(truncate, steps):
    """keep[t, j]: whether the loss of step t blames step j."""
    t, j = np.indices((steps, steps))
    chunk = truncate.k
    kept = {
        jaxrnn.Carried: t // chunk == j // chunk,
        jaxrnn.Window: t - j <= truncate.k,
        jaxrnn.Tail: j >= steps - truncate.k,
    }
    return kept[type(truncate)] & (j <= t)


def double_sum(problem, keep):
    """dE/dU, dE/dW, dE/db of one Elman layer over the pairs (t, j) that are kept: NumPy, term by term."""
    params, (inputs, targets, _, _) = problem.params(), problem.data()
    (U, W, b), (V, c) = (jax.tree.map(np.asarray, part) for part in (params.layers[0], params.readout))
    x, y = np.asarray(inputs)[:, 0], np.asarray(targets)[:, 0]
    s = np.zeros((problem.T + 1, len(b)))
    for t in range(problem.T):
        s[t + 1] = np.tanh(W @ s[t] + U @ x[t] + b)
    dU, dW, db = np.zeros_like(U), np.zeros_like(W), np.zeros_like(b)
    for t in range(problem.T):
        e = softmax(V @ s[t + 1] + c) - np.eye(len(c))[y[t]]
        ds = V.T @ e / problem.T
        for j in range(t, -1, -1):
            delta = (1 - s[j + 1] ** 2) * ds
            if keep[t, j]:
                dU, dW, db = dU + np.outer(delta, x[j]), dW + np.outer(delta, s[j]), db + delta
            ds = W.T @ delta
    return dU, dW, db


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10, 11, 12])
@pytest.mark.parametrize("Truncation", [jaxrnn.Carried, jaxrnn.Window, jaxrnn.Tail])
def test_it_is_the_double_sum_without_the_pairs_left_out(Truncation, k):
    problem = Problem(T=11, batch=(1,), H=(5,))
    truncate = Truncation(k)
    keep = pairs_kept(truncate, problem.T)
    assert keep.all() == np.tri(problem.T, dtype=bool).all()
    E, grads = jax.jit(jaxrnn.value_and_grad(problem.network(), truncate=truncate))(problem.params(), *problem.data())
    full = jaxrnn.value_and_grad(problem.network())(problem.params(), *problem.data())
    assert relative_error(tuple(grads.layers[0]), double_sum(problem, keep)) <= EXACT
    assert relative_error((E, grads.readout), (full[0], full[1].readout)) <= EXACT
    whole = keep.sum() == problem.T * (problem.T + 1) // 2
    assert (relative_error(grads.layers, full[1].layers) <= EXACT) == whole
    assert whole == (k >= problem.T - (Truncation is jaxrnn.Window))


def by_definition(data, truncate):
    """The gradient of a truncation from full gradients of pieces, their states before them held constant."""
    states = [data.state]
    for t in range(T):
        now = slice(t, t + 1)
        flags = {name: None if f is None else f[now] for name, f in (("mask", data.mask), ("reset", data.reset))}
        states.append(data.net.apply(data.params, data.inputs[now], states[t], **flags)[1])
    gradient = jax.jit(jax.grad(data.net.loss))

    def piece(first, last, weights):
        """Of the steps [first, last), with these weights."""
        now = slice(first, last)
        flags = (None if flag is None else flag[now] for flag in (data.mask, data.reset))
        arguments = data.inputs[now], data.targets[now], weights[now], states[first], *flags
        return gradient(data.params, *arguments)

    k, zeros = truncate.k, jnp.zeros_like(data.weights)
    if isinstance(truncate, jaxrnn.Carried):
        pieces = [piece(first, min(first + k, T), data.weights) for first in range(0, T, k)]
    elif isinstance(truncate, jaxrnn.Window):
        pieces = [piece(max(0, t - k), t + 1, zeros.at[t].set(data.weights[t])) for t in range(T)]
    else:
        pieces = [piece(max(0, T - k), T, data.weights)]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *pieces)
    return summed._replace(readout=piece(0, T, data.weights).readout)


@pytest.mark.parametrize("Truncation", [jaxrnn.Carried, jaxrnn.Window, jaxrnn.Tail])
@pytest.mark.parametrize("Cell", CELLS)
def test_it_is_its_definition(Cell, Truncation):
    """For every cell, in two layers, with masks and resets, a state to set out from and a learned one."""
    data = Data(Cell, 2)
    data.net = dataclasses.replace(data.net, learn_state=True)
    data.params = data.params._replace(state=jax.tree.map(lambda leaf: jnp.sin(leaf[0]), data.state))
    by_hand = jax.jit(jaxrnn.value_and_grad(data.net, truncate=Truncation(3), return_state=True))
    (_, final), grads = by_hand(*data.arguments())
    assert relative_error(grads, by_definition(data, Truncation(3))) <= EXACT
    assert relative_error(final, data.net.apply(*data.arguments()[:2], *data.arguments()[4:])[1]) <= EXACT


@pytest.mark.parametrize("Truncation", [jaxrnn.Carried, jaxrnn.Window, jaxrnn.Tail])
def test_the_learned_state_is_reached_from_the_first_steps(Truncation):
    """With no state given: its gradient is that of the first chunk, of the windows that reach it, of a tail of all."""
    data = Data(jaxrnn.GRU, 1, False, "plain")
    net = dataclasses.replace(data.net, learn_state=True)
    learned = jax.tree.map(lambda leaf: jnp.sin(leaf[0]), data.state)
    arguments = data.params._replace(state=learned), data.inputs, data.targets, data.weights

    def truth(last):
        """Of the losses of the first `last` steps."""
        weights = jnp.where(jnp.arange(T)[:, None] < last, data.weights, 0)
        return jax.grad(net.loss)(*arguments[:3], weights).state

    grads = jaxrnn.value_and_grad(net, truncate=Truncation(4))(*arguments)[1]
    expected = {jaxrnn.Carried: truth(4), jaxrnn.Window: truth(5), jaxrnn.Tail: jax.tree.map(jnp.zeros_like, learned)}
    assert relative_error(grads.state, expected[Truncation]) <= EXACT


@pytest.mark.parametrize("truncate", [jaxrnn.Carried(4), jaxrnn.Window(3), jaxrnn.Tail(4)])
def test_one_answer_for_a_sequence(truncate):
    """The only loss is at the end: a window and a tail are the same thing, a chunk is the last one."""
    data = Data(jaxrnn.LSTM, 2, False, "mask")
    net = dataclasses.replace(data.net, last_step=True)
    params, inputs, targets, _, state, mask, _ = data.arguments()
    grads = jax.jit(jaxrnn.value_and_grad(net, truncate=truncate))(params, inputs, targets[0], None, state, mask)[1]
    first = 8 if isinstance(truncate, jaxrnn.Carried) else 5
    _, held = net.apply(params, inputs[:first], state, mask[:first])
    there = mask.any(0).astype(float)
    weights = there / there.sum()

    def loss(params):
        """From the state before the last piece; every sequence's last real step may lie before it."""
        outputs, _ = net.apply(params, inputs[first:], held, mask[first:])
        return jnp.sum(weights * jaxrnn.softmax_cross_entropy(outputs, targets[0]))

    assert relative_error(grads, jax.grad(loss)(params)) <= EXACT


@pytest.mark.parametrize("k", [4, 7])
def test_chunks_do_not_depend_on_segments(k):
    data = Data(jaxrnn.LSTM, 2, tokens=True)
    truth = by_definition(data, jaxrnn.Carried(k))
    for segment, recompute in ((1, False), (3, True), (5, "gates"), (8, False), ("auto", True)):
        options = {"truncate": jaxrnn.Carried(k), "segment": segment, "recompute": recompute}
        by_hand = jax.jit(jaxrnn.value_and_grad(data.net, **options))(*data.arguments())[1]
        assert relative_error(by_hand, truth) <= EXACT


@pytest.mark.parametrize("Cell", CELLS)
def test_lags_stop_where_the_terms_fall_under_the_tolerance(Cell):
    """The gradient is within the bound, the bound is not idle, and a smaller tolerance reaches further."""
    data = Data(Cell, 1, False, "plain")
    random = np.random.default_rng(3)
    inputs = jnp.asarray(random.normal(size=(120, 2, data.net.layers[0].inputs)))
    targets = jnp.asarray(random.integers(0, 6, (120, 2)))
    params = jax.tree.map(lambda leaf: leaf / 2, data.params)
    full = jax.jit(jaxrnn.value_and_grad(data.net))(params, inputs, targets)[1]
    used, errors = [], []
    for tolerance in (1e-1, 1e-3, 1e-6):
        options = {"truncate": jaxrnn.Window(200, tolerance), "return_lags": True, "return_state": True}
        (_, _, lags), grads = jax.jit(jaxrnn.value_and_grad(data.net, **options))(params, inputs, targets)
        used.append(int(lags.used))
        off = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), grads.layers[0], full.layers[0])
        errors.append(max(jax.tree.leaves(off)))
        assert float(lags.last) <= tolerance
        if Cell is jaxrnn.Elman:
            assert max(off.W, off.b) <= lags.bound <= 100 * off.b
    assert used == sorted(used)
    assert used[0] < used[-1] < 119
    assert errors[-1] < 1e-4 * errors[0]


def test_a_window_that_reaches_everything_leaves_nothing_out():
    data = Data(jaxrnn.Elman)
    options = {"truncate": jaxrnn.Window(T, 0.0), "return_lags": True}
    (_, lags), _ = jaxrnn.value_and_grad(data.net, **options)(*data.arguments())
    assert float(lags.bound) == 0
    (_, lags), grads = jaxrnn.value_and_grad(data.net, **options)(*data.arguments()[:3], 0 * data.weights)
    assert (int(lags.used), float(lags.last), float(lags.bound)) == (0, 0, 0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


NET = Data(jaxrnn.Elman).net
PAIR = jaxrnn.Network(
    (jaxrnn.Bidirectional(jaxrnn.Elman(3, 4), jaxrnn.Elman(3, 4)),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy
)
WRONG = {
    "k of zero": (lambda: jaxrnn.Carried(0), ValueError, "k must be at least 1, got 0"),
    "k of a half": (lambda: jaxrnn.Window(0.5), TypeError, "k must be an int"),
    "k negative": (lambda: jaxrnn.Tail(-3), ValueError, "k must be at least 1"),
    "tolerance": (lambda: jaxrnn.Window(3, -1.0), ValueError, "tolerance must be finite and not negative"),
    "a number": (lambda: jaxrnn.value_and_grad(NET, truncate=20), TypeError, "a number does not say which"),
    "segments of a window": (
        lambda: jaxrnn.value_and_grad(NET, 4, truncate=jaxrnn.Window(3)),
        ValueError,
        "it has no segments",
    ),
    "both ways": (
        lambda: jaxrnn.value_and_grad(PAIR, truncate=jaxrnn.Carried(3)),
        ValueError,
        "without bidirectional layers",
    ),
    "lags of what": (lambda: jaxrnn.value_and_grad(NET, return_lags=True), ValueError, "return_lags needs truncate"),
    "recompute": (lambda: jaxrnn.value_and_grad(NET, recompute="states"), ValueError, "recompute must be False"),
    "budget and segment": (
        lambda: jaxrnn.value_and_grad(NET, 4, memory_budget=10**6),
        ValueError,
        "memory_budget chooses segment and recompute",
    ),
    "budget of none": (
        lambda: jaxrnn.value_and_grad(NET, memory_budget=0),
        ValueError,
        "memory_budget must be at least",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
