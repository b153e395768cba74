"""What steers the reverse scan: the vanishing-gradient regulariser and clipping inside it, against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from problems import Problem

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
T, B, D, H, V = 9, 3, 4, 5, 6


def sweep(params, x, y, clip=np.inf):
    """Per sequence and step the states, delta_t and dE/ds_t of a plain Elman network, by loops."""
    (U, W, b), (V_, c) = jax.tree.map(np.asarray, (params.layers[0], params.readout))
    steps, size = y.shape
    found = []
    for n in range(size):
        s = [np.zeros(H)]
        for t in range(steps):
            s.append(np.tanh(W @ s[-1] + U @ x[t, n] + b))
        carried, rows = np.zeros(H), [None] * steps
        for t in reversed(range(steps)):
            scores = V_ @ s[t + 1] + c
            yhat = np.exp(scores) / np.exp(scores).sum()
            after = V_.T @ (yhat - np.eye(V)[y[t, n]]) / (steps * size) + carried
            after = after * min(1, clip / np.linalg.norm(after))
            delta = (1 - s[t + 1] ** 2) * after
            carried = W.T @ delta
            rows[t] = (s[t], s[t + 1], delta, after, x[t, n])
        found.append(rows)
    return W, found


def omega(W, found, there=None):
    """Omega as a function of the W in ds_t/ds_{t-1} alone."""
    terms = [
        (np.linalg.norm(W.T @ ((1 - s * s) * after)) / np.linalg.norm(after) - 1) ** 2
        for n, rows in enumerate(found)
        for t, (_, s, _, after, _) in enumerate(rows)
        if there is None or there[t, n]
    ]
    return np.mean(terms)


def test_the_gradient_of_omega_is_its_immediate_derivative():
    net, arguments = Problem().net, Problem().arguments()[:3]
    W, found = sweep(*arguments[:1], *map(np.asarray, arguments[1:]))
    assert np.isclose(flow.vanishing_penalty(net, *arguments)[0], omega(W, found), rtol=1e-12)
    expected, h = np.zeros((H, H)), 1e-6
    for i in range(H):
        for j in range(H):
            step = np.zeros((H, H))
            step[i, j] = h
            expected[i, j] = (omega(W + step, found) - omega(W - step, found)) / (2 * h)
    E_plain, plain = jax.jit(jaxrnn.value_and_grad(net))(*arguments)
    for options in ({}, {"segment": 4}, {"recompute": True}):
        run = jax.jit(
            lambda weight, options=options: jaxrnn.value_and_grad(net, **options)(*arguments, vanishing=weight)
        )
        E, grads = run(3.0)
        assert relative_error(E, E_plain) <= 1e-12
        assert relative_error((grads.layers[0].W - plain.layers[0].W) / 3, expected) <= 1e-7
        assert relative_error(grads._replace(layers=()), plain._replace(layers=())) <= 1e-12
        assert relative_error(grads.layers[0]._replace(W=0.0), plain.layers[0]._replace(W=0.0)) <= 1e-12


def test_omega_counts_unmasked_steps_only():
    problem = Problem(depth=2, masked=True)
    net, given = problem.net, problem.arguments()
    arguments = given[:6]
    there = jnp.where(given.mask[..., None], given.inputs, jnp.nan)
    penalty = jax.jit(lambda *a: flow.vanishing_penalty(net, *a))
    whole, garbled = penalty(*arguments), penalty(*given._replace(inputs=there)[:6])
    assert relative_error(garbled, whole) <= 1e-12
    assert all(0 < float(value) < 10 for value in whole)
    _, grads = jax.jit(functools.partial(jaxrnn.value_and_grad(net), vanishing=1.0))(*arguments)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))


def test_descending_omega_keeps_the_gradient():
    """A W that shrinks is led to one that does not, and the gradient reaches further back."""
    net = jaxrnn.Network(
        (jaxrnn.Elman(3, 16, recurrent_scale=0.5),), jaxrnn.Readout(16, 4), jaxrnn.softmax_cross_entropy
    )
    keys = jax.random.split(jax.random.key(0), 3)
    params = net.init(keys[0], jnp.float64)
    data = 0.1 * jax.random.normal(keys[1], (30, 4, 3)), jax.random.randint(keys[2], (30, 4), 0, 4)
    before = flow.vanishing_penalty(net, params, *data)[0]

    @jax.jit
    def step(params):
        with_omega = jaxrnn.value_and_grad(net)(params, *data, vanishing=1.0)[1].layers[0].W
        omega_alone = with_omega - jaxrnn.value_and_grad(net)(params, *data)[1].layers[0].W
        return params._replace(layers=(params.layers[0]._replace(W=params.layers[0].W - 0.3 * omega_alone),))

    reach = [float(flow.horizon(flow.terms(net, params, *data).adjoints[0]).mean)]
    for _ in range(100):
        params = step(params)
    reach.append(float(flow.horizon(flow.terms(net, params, *data).adjoints[0]).mean))
    assert float(flow.vanishing_penalty(net, params, *data)[0]) < 0.2 * float(before)
    assert reach[1] > 2 * reach[0]


@pytest.mark.parametrize("options", [{}, {"segment": 4}, {"recompute": True}], ids=str)
def test_clipping_inside_the_reverse_scan(options):
    net, arguments = Problem().net, Problem().arguments()[:3]
    x, y = map(np.asarray, arguments[1:])
    sizes = [np.linalg.norm(row[3]) for rows in sweep(arguments[0], x, y)[1] for row in rows]
    clip = float(np.median(sizes))
    _, found = sweep(arguments[0], x, y, clip)
    dW = sum(np.outer(delta, before) for rows in found for before, _, delta, _, _ in rows)
    dU = sum(np.outer(delta, seen) for rows in found for _, _, delta, _, seen in rows)
    gradient = lambda **more: jax.jit(jaxrnn.value_and_grad(net, **options, **more))(*arguments)[1]
    grads = gradient(clip=clip)
    assert relative_error(grads.layers[0].W, dW) <= 1e-12
    assert relative_error(grads.layers[0].U, dU) <= 1e-12
    plain = gradient()
    assert relative_error(gradient(clip=10.0), plain) <= 1e-12
    assert relative_error(grads, plain) > 1e-2


def test_clipping_of_an_exploding_gradient():
    net = jaxrnn.Network((jaxrnn.LSTM(3, 8),), jaxrnn.Readout(8, 4), jaxrnn.softmax_cross_entropy)
    params = jax.tree.map(lambda leaf: 4 * leaf, net.init(jax.random.key(0), jnp.float64))
    data = jax.random.normal(jax.random.key(1), (60, 2, 3)), jnp.zeros((60, 2), int)
    (_, flows), _ = jaxrnn.value_and_grad(net, clip=0.01, return_flow=True)(params, *data)
    assert float(flows[0].adjoint.max()) <= 0.01 * np.sqrt(2) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, a: jaxrnn.value_and_grad(net, clip=0), "clip must be greater than 0"),
        (lambda net, a: jaxrnn.value_and_grad(net, clip=-1.0), "clip"),
        (lambda net, a: jaxrnn.value_and_grad(net, clip="1"), "clip"),
        (lambda net, a: jaxrnn.value_and_grad(net, clip=1.0, truncate=jaxrnn.Window(3)), "clip needs a reverse scan"),
        (lambda net, a: jaxrnn.value_and_grad(net, truncate=jaxrnn.Window(3))(*a, vanishing=1.0), "vanishing needs"),
        (lambda net, a: jaxrnn.value_and_grad(net)(*a, vanishing=1.0), "vanishing needs layers with a method"),
    ],
)
def test_wrong_input(call, message):
    problem = Problem(jaxrnn.GRU)
    with pytest.raises((ValueError, TypeError), match=message):
        call(problem.net, problem.arguments()[:3])
