"""Gradient flow: the terms sum to the gradient, and on networks whose flow is known, it is that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import relative_error
from test_breaks import CELLS, Data, T

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12


def elman(inputs=3, hidden=6, outputs=4, **options):
    return jaxrnn.Network(
        (jaxrnn.Elman(inputs, hidden, **options),), jaxrnn.Readout(hidden, outputs), jaxrnn.softmax_cross_entropy
    )


def example(net, steps, batch=(), seed=0, scale=1.0):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = net.init(keys[0], jnp.float64)
    inputs = scale * jax.random.normal(keys[1], (steps, *batch, net.layers[0].inputs), jnp.float64)
    return params, inputs, jax.random.randint(keys[2], (steps, *batch), 0, net.readout.outputs)


@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize(("layers", "tokens", "breaks"), [(1, True, "plain"), (2, False, "both")])
def test_the_sum_of_the_terms_is_the_gradient(Cell, layers, tokens, breaks):
    data = Data(Cell, layers, tokens, breaks)
    expected = jax.jit(jax.grad(data.net.loss))(*data.arguments())
    for block in (None, 4):
        found = flow.terms(data.net, *data.arguments(), block=block)
        assert relative_error(found.grads, expected) <= EXACT


@pytest.mark.parametrize("options", [{"last_step": True}, {"residual": True, "learn_state": True}], ids=str)
def test_the_sum_with_options_of_the_network(options):
    data = Data(jaxrnn.GRU, 2, False, "both")
    data.net = dataclasses.replace(data.net, **options)
    data.params = data.net.init(jax.random.key(0), jnp.float64)
    if data.net.last_step:
        data.targets, data.weights = data.targets[-1], data.weights[-1]
    data.state = None
    found = flow.terms(data.net, *data.arguments())
    assert relative_error(found.grads, jax.jit(jax.grad(data.net.loss))(*data.arguments())) <= EXACT
    assert found.deltas[0].shape == ((1, T) if data.net.last_step else (T, T))


def test_every_term_is_that_of_the_double_sum():
    """delta_{t,k} and its norms against loops in NumPy, with the batch summed within a term."""
    net = elman(hidden=5)
    params, inputs, targets = example(net, 7, (2,))
    found = flow.terms(net, params, inputs, targets, return_values=True)
    (U, W, b), (V, c) = jax.tree.map(np.asarray, (params.layers[0], params.readout))
    x, y = np.asarray(inputs), np.asarray(targets)
    steps, B = y.shape
    s = [np.zeros((B, 5))]
    for t in range(steps):
        s.append(np.tanh(s[-1] @ W.T + x[t] @ U.T + b))
    for t in range(steps):
        scores = s[t + 1] @ V.T + c
        yhat = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        adjoint = (yhat - np.eye(4)[y[t]]) / (steps * B) @ V
        for k in range(t, -1, -1):
            assert np.isclose(found.adjoints[0][t, k], np.linalg.norm(adjoint), rtol=1e-10, atol=0)
            delta = (1 - s[k + 1] ** 2) * adjoint
            assert np.allclose(found.values[0][t, k], delta, rtol=1e-9, atol=1e-16)
            assert np.isclose(found.deltas[0][t, k], np.linalg.norm(delta), rtol=1e-10, atol=0)
            for name, seen in (("W", s[k]), ("U", x[k]), ("b", np.ones((B, 1)))):
                expected = np.linalg.norm(delta.T @ seen)
                assert np.isclose(getattr(found.weights[0], name)[t, k], expected, rtol=1e-8, atol=1e-14)
            adjoint = delta @ W
    assert np.all(np.triu(found.deltas[0], 1) == 0)
    assert found.values[0].shape == (7, 7, 2, 5)


@pytest.mark.parametrize("Cell", [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM])
def test_the_factors_of_a_weight_are_those_of_its_gradient(Cell):
    data = Data(Cell, 1, False, "both")
    one = flow.terms(data.net, *data.arguments(), block=1)

    class Unfactored(Cell):
        def weight_factors(self, *arguments):
            return None

    net = dataclasses.replace(data.net, layers=(Unfactored(4, 5),))
    other = flow.terms(net, *data.arguments())
    assert relative_error(one.weights, other.weights) <= 1e-7  # square roots of differences of squares
    assert float(jax.tree.leaves(one.weights)[0].max()) > 1e-4


def test_no_flow_across_a_reset_and_none_on_masked_steps():
    net = elman()
    params, inputs, targets = example(net, 12, (1,))
    reset = jnp.zeros((12, 1), bool).at[5].set(True)
    mask = jnp.ones((12, 1), bool).at[8].set(False)
    found = flow.terms(net, params, inputs, targets, reset=reset, mask=mask)
    assert np.all(found.deltas[0][5:, :5] == 0)
    assert np.all(found.deltas[0][:5, :5][np.tril_indices(5)] > 0)
    assert np.all(found.deltas[0][8] == 0)
    assert np.all(found.deltas[0][:, 8] == 0)
    assert np.all(np.asarray(found.deltas[0][11])[[5, 6, 7, 9, 10, 11]] > 0)
    assert float(flow.horizon(found.adjoints[0], history=8).steps.max()) <= 7


def linear(scale, steps=30, hidden=8):
    """A network of which every step is all but linear: an Elman cell near zero, W orthogonal times a scale."""
    net = elman(hidden=hidden, recurrent_scale=scale)
    params, inputs, targets = example(net, steps, (2,), scale=1e-9 * min(1, scale**-steps))
    return net, params, inputs, targets


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_linear_network(scale):
    """Norms go like scale^lag, singular values are all alike, and the exponents are log scale."""
    net, params, inputs, targets = linear(scale)
    found = flow.terms(net, params, inputs, targets)
    rows = np.asarray(found.adjoints[0])
    lags = np.arange(29, -1, -1)
    assert np.allclose(rows[-1], rows[-1, -1] * scale**lags, rtol=1e-6)
    values = flow.jacobians(net, params, inputs, lags=20)
    assert values.shape == (21, 2, 8)
    assert np.allclose(values, scale ** np.arange(21)[:, None, None], rtol=1e-6)
    norms = flow.jacobian_norms(net, params, inputs, key=jax.random.key(0))
    assert np.allclose(np.diff(norms.log), np.log(scale), atol=1e-6)
    assert np.allclose(norms.log[0], 0, atol=4 * norms.error[0])
    exponents, error = flow.lyapunov_exponents(net, params, inputs)
    assert np.allclose(exponents, np.log(scale), atol=1e-6)
    assert float(error.max()) < 1e-6
    expected = {0.5: 7, 1.0: None, 2.0: None}[scale]  # 0.5^6 > 0.01 > 0.5^7
    reached = flow.horizon(found.adjoints[0])
    if expected:
        assert float(reached.mean) == expected
        assert float(reached.spread) == float(reached.beyond) == 0
    else:
        assert float(reached.beyond) == 1


def test_a_saturated_network_passes_nothing():
    net = elman()
    params, inputs, targets = example(net, 20, (2,))
    b = jnp.full_like(params.layers[0].b, 9.0)
    params = params._replace(layers=(params.layers[0]._replace(b=b, U=0 * params.layers[0].U),))
    assert float(flow.saturation(net, params, inputs)[0].units) == 1
    found = flow.terms(net, params, inputs, targets)
    assert float(flow.horizon(found.adjoints[0]).mean) == 1
    assert float(flow.lyapunov_exponents(net, params, inputs).exponents[0]) < np.log(1e-4)


def test_saturation_counts():
    """Shares of hand-made gates: an LSTM whose biases shut the input gate and open the forget gate."""
    net = jaxrnn.Network((jaxrnn.LSTM(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    params, inputs, _ = example(net, 20, (2,))
    layer = params.layers[0]
    b = jnp.repeat(jnp.array([-30.0, 30.0, 0.0, 0.0]), 4)
    params = params._replace(layers=(layer._replace(b=b),))
    mask = jnp.ones((20, 2), bool).at[3:].set(False)
    for options in ({}, {"mask": mask}):
        (found,) = flow.saturation(net, params, inputs, **options)
        assert found.gates["input"] == (1, 0)
        assert found.gates["forget"] == (0, 1)
        assert found.gates["output"][0] < 0.5
        assert found.units == 0
    relu = elman(activation="relu")
    params, inputs, _ = example(relu, 20, (2,))
    states, _ = jaxrnn.unroll(relu.layers[0], params.layers[0], inputs)
    assert np.isclose(flow.saturation(relu, params, inputs)[0].units, np.mean(np.asarray(states) == 0))


@dataclasses.dataclass(frozen=True)
class Map(jaxrnn.Cell):
    """A map of its state alone, whose exponents are known."""

    kind: str = "logistic"

    def init(self, key, dtype=jnp.float32):
        return jnp.zeros(1, dtype)

    def step(self, params, state, x):
        if self.kind == "logistic":
            return 4 * state * (1 - state)
        a, b = state[..., 0], state[..., 1]
        if self.kind == "cat":
            return jnp.stack([2 * a + b, a + b], -1) % 1
        return jnp.stack([1 - 1.4 * a * a + b, 0.3 * a], -1)  # Henon's map


@pytest.mark.parametrize(
    ("kind", "size", "steps", "expected"),
    [
        ("logistic", 1, 20_000, [np.log(2)]),  # r = 4
        ("cat", 2, 200, [np.log((3 + 5**0.5) / 2), -np.log((3 + 5**0.5) / 2)]),
        ("henon", 2, 20_000, [0.419, np.log(0.3) - 0.419]),  # Sprott 2003, appendix A: 0.41922
    ],
)
def test_exponents_of_systems_where_they_are_known(kind, size, steps, expected):
    net = jaxrnn.Network((Map(1, size, kind),), jaxrnn.Readout(size, 2), jaxrnn.softmax_cross_entropy)
    params = net.init(jax.random.key(0), jnp.float64)
    start = (jnp.full((3, size), 0.1) + 0.01 * jnp.arange(3.0)[:, None],)
    found = flow.lyapunov_exponents(net, params, jnp.zeros((steps, 3, 1)), start)
    assert np.all(np.abs(found.exponents - np.array(expected)) <= 4 * found.error + 1e-3)
    assert np.all(found.error < 0.02)
    some = flow.lyapunov_exponents(net, params, jnp.zeros((steps, 3, 1)), start, count=1, every=2)
    assert np.isclose(some.exponents[0], found.exponents[0], atol=2e-2)


@pytest.mark.parametrize("Cell", CELLS)
def test_jacobians_are_those_of_autodiff(Cell):
    data = Data(Cell, 1, False, "plain")
    cell, params = data.net.layers[0], data.params.layers[0]
    inputs, start = data.inputs[:, 0], jax.tree.map(lambda leaf: leaf[0], data.state[0])
    _, unravel = ravel_pytree(start)

    def final(numbers, first):
        return ravel_pytree(jaxrnn.unroll(cell, params, inputs[first:], unravel(numbers), gradient="autodiff")[1])[0]

    values = flow.jacobians(data.net, data.params, inputs, (start,))
    for lag in (1, 4, T):
        state = jaxrnn.unroll(cell, params, inputs[: T - lag], start)[1] if lag < T else start
        J = jax.jacobian(final)(ravel_pytree(state)[0], T - lag)
        assert np.allclose(values[lag], np.linalg.svd(J, compute_uv=False), atol=1e-12)
    norms = flow.jacobian_norms(data.net, data.params, inputs, (start,), key=jax.random.key(3), probes=500)
    exact = 0.5 * np.log(np.mean(np.asarray(values) ** 2, -1))
    assert np.all(np.abs(norms.log - exact) <= 5 * norms.error)
    assert np.all(norms.error < 0.1)


def test_norms_of_a_thousand_lags_neither_vanish_nor_overflow():
    net = elman(recurrent_scale=0.1)
    params, inputs, _ = example(net, 2000, scale=0.0)
    norms = flow.jacobian_norms(net, params, inputs, key=jax.random.key(0))
    assert np.isclose(norms.log[-1], 2000 * np.log(0.1), rtol=1e-3)


@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize(("layers", "tokens", "breaks"), [(1, True, "plain"), (2, False, "both")])
def test_per_example_norms_are_those_of_gradients_per_example(Cell, layers, tokens, breaks):
    data = Data(Cell, layers, tokens, breaks)
    found = flow.per_example_gradient_norms(data.net, *data.arguments())
    params, *arguments = data.arguments()
    axes = (1, 1, 1, 0, None if data.mask is None else 1, None if data.reset is None else 1)
    grads = jax.vmap(jax.grad(data.net.loss), (None, *axes))(params, *arguments)
    expected = jax.tree.map(lambda leaf: jnp.sqrt(jnp.sum(leaf * leaf, axis=tuple(range(1, leaf.ndim)))), grads.layers)
    assert relative_error(found.layers, expected) <= 1e-10
    assert np.allclose(found.total, np.sqrt(sum(leaf**2 for leaf in jax.tree.leaves(expected))), rtol=1e-10)


@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"segment": 4}, {"recompute": True}, {"memory_budget": 10**6}], ids=str)
def test_the_free_flow_is_the_sum_over_t(Cell, options):
    """|delta_k| and |dE/ds_k| of the sweep: of sums over t of what `terms` gives term by term."""
    data = Data(Cell, 2, False, "both")
    run = jax.jit(jaxrnn.value_and_grad(data.net, return_state=True, return_flow=True, **options))
    (E, final, found), grads = run(*data.arguments())
    plain = jax.jit(jaxrnn.value_and_grad(data.net, return_state=True, **options))(*data.arguments())
    assert relative_error(((E, final), grads), plain) <= EXACT
    values = flow.terms(data.net, *data.arguments(), return_values=True).values
    for norms, delta in zip(found, values, strict=True):
        summed = [np.asarray(leaf).sum(0).reshape(T, -1) for leaf in jax.tree.leaves(delta)]
        assert np.allclose(norms.delta, np.sqrt(sum((leaf**2).sum(1) for leaf in summed)), rtol=1e-10)


def test_the_adjoint_is_what_all_later_losses_ask():
    """|dE/ds_t| against `jax.grad` of the loss of a step and of all that follow, by the state that they go on from."""
    net = elman()
    params, inputs, targets = example(net, 8, (2,))
    weights = jnp.full((8, 2), 0.1)
    (_, (found,)), _ = jaxrnn.value_and_grad(net, return_flow=True)(params, inputs, targets, weights)
    states, _ = jaxrnn.unroll(net.layers[0], params.layers[0], inputs)

    def later(state, t):
        E = 0.1 * jnp.sum(net.objective(net.readout.apply(params.readout, state), targets[t]))
        after = slice(t + 1, None)
        return E + (net.loss(params, inputs[after], targets[after], weights[after], (state,)) if t < 7 else 0)

    expected = [jnp.linalg.norm(jax.grad(later)(states[t], t)) for t in range(8)]
    assert np.allclose(found.adjoint, expected, rtol=1e-12)


def test_the_flow_of_a_tail_and_of_chunks():
    net = elman()
    params, inputs, targets = example(net, 12, (2,))

    def run(**options):
        return jaxrnn.value_and_grad(net, return_flow=True, **options)(params, inputs, targets)[0][1][0]

    whole, tail, chunks = run(), run(truncate=jaxrnn.Tail(5)), run(truncate=jaxrnn.Carried(4))
    assert np.all(tail.delta[:7] == 0)
    assert np.allclose(tail.delta[7:], whole.delta[7:], rtol=1e-12)
    assert np.allclose(chunks.delta[8:], whole.delta[8:], rtol=1e-12)
    assert not np.allclose(chunks.delta[4:8], whole.delta[4:8], rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, p, x, y: flow.terms(net, p, x, y, block=0), "block"),
        (lambda net, p, x, y: flow.terms(None, p, x, y), "net must be a jaxrnn.Network"),
        (lambda net, p, x, y: flow.terms(net, p, x, y[:-1]), "targets"),
        (lambda net, p, x, y: flow.per_example_gradient_norms(net, p, x[:, 0], y[:, 0]), "batch axis"),
        (lambda net, p, x, y: flow.jacobians(net, p, x, lags=9), "lags must not be more than the T = 8"),
        (lambda net, p, x, y: flow.jacobians(net, p, x, layer=1), "layer must be one of the 1 layers"),
        (lambda net, p, x, y: flow.jacobian_norms(net, p, x, key=jax.random.key(0), probes=1), "probes"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x), "inputs must have 10 steps at least"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x, count=7), "count must lie in 1 .. 6"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x, segments=1), "segments"),
        (lambda net, p, x, y: flow.lyapunov_exponents(net, p, x, layer=-2), "layer"),
        (lambda net, p, x, y: flow.saturation(net, p, x, threshold=0.4), "threshold"),
        (lambda net, p, x, y: flow.horizon(jnp.ones((3, 4))), r"norms must be \[T, T\]"),
        (lambda net, p, x, y: flow.horizon(jnp.ones((4, 4)), fraction=1.0), "fraction"),
        (lambda net, p, x, y: flow.horizon(jnp.ones((4, 4)), history=4), "history"),
        (lambda net, p, x, y: jaxrnn.value_and_grad(net, truncate=jaxrnn.Window(2), return_flow=True), "return_flow"),
    ],
)
def test_wrong_input(call, message):
    net = elman()
    with pytest.raises((ValueError, TypeError), match=message):
        call(net, *example(net, 8, (2,)))


def test_networks_that_read_both_ways_have_no_flow():
    data = Data(jaxrnn.Elman, 1, False, "plain", both_ways=True)
    with pytest.raises(ValueError, match="bidirectional"):
        flow.terms(data.net, *data.arguments())
    with pytest.raises(ValueError, match="return_flow"):
        jaxrnn.value_and_grad(data.net, return_flow=True)
