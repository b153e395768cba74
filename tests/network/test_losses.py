"""The objectives by themselves: closed forms, their own gradient against autodiff, extremes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error, softmax
from problems import log_cosh

import jaxrnn
from jaxrnn.network.losses import Objective, value_and_gradient

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12

random = np.random.default_rng(0)
OUTPUTS = random.normal(size=(4, 3, 5)) * 3
LABELS = random.integers(0, 5, (4, 3))
NUMBERS = random.normal(size=(4, 3, 5))
MASS = np.abs(NUMBERS)  # probabilities but for their sum
PROBABILITIES = MASS / MASS.sum(-1, keepdims=True)
BITS = NUMBERS > 0

CASES = {
    "softmax, labels": (jaxrnn.softmax_cross_entropy, LABELS),
    "softmax, probabilities": (jaxrnn.softmax_cross_entropy, PROBABILITIES),
    "softmax, any sum": (jaxrnn.softmax_cross_entropy, MASS),
    "sigmoid, numbers": (jaxrnn.sigmoid_cross_entropy, PROBABILITIES),
    "sigmoid, integers": (jaxrnn.sigmoid_cross_entropy, BITS.astype(int)),
    "sigmoid, bools": (jaxrnn.sigmoid_cross_entropy, BITS),
    "squared": (jaxrnn.squared_error, NUMBERS),
    "squared, integers": (jaxrnn.squared_error, BITS.astype(int)),
    "user": (log_cosh, NUMBERS),
}


def autodiff(objective, outputs, targets):
    return objective(outputs, targets), jax.grad(lambda outputs: objective(outputs, targets).sum())(outputs)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("case", CASES)
def test_own_gradient_equals_autodiff(case, jit):
    objective, targets = CASES[case]
    own = lambda outputs, targets: value_and_gradient(objective, outputs, targets)
    found = (jax.jit(own) if jit else own)(jnp.asarray(OUTPUTS), jnp.asarray(targets))
    assert found[0].shape == OUTPUTS.shape[:-1]
    assert relative_error(found, autodiff(objective, jnp.asarray(OUTPUTS), jnp.asarray(targets))) <= EXACT


def test_the_librarys_objectives_carry_their_gradient_and_it_is_the_one_used():
    for objective in (jaxrnn.softmax_cross_entropy, jaxrnn.sigmoid_cross_entropy, jaxrnn.squared_error):
        assert objective._value_and_gradient is not None
    twice = Objective(jaxrnn.squared_error)
    twice.with_gradient(lambda outputs, targets: (outputs.sum(-1), 2 * targets))
    E, e = value_and_gradient(twice, jnp.asarray(OUTPUTS), jnp.asarray(NUMBERS))
    assert relative_error((E, e), (OUTPUTS.sum(-1), 2 * NUMBERS)) <= EXACT


@pytest.mark.parametrize("targets", [LABELS, PROBABILITIES, MASS], ids=["labels", "probabilities", "any sum"])
def test_softmax_closed_form(targets):
    """E = - sum_i y[i] log yhat[i], dE/dO = m yhat - y with m the sum of y."""
    y = np.eye(5)[targets] if targets.ndim == 2 else targets
    yhat = np.apply_along_axis(softmax, -1, OUTPUTS)
    expected = -np.sum(y * np.log(yhat), -1), y.sum(-1, keepdims=True) * yhat - y
    objective = jaxrnn.softmax_cross_entropy
    assert relative_error(value_and_gradient(objective, jnp.asarray(OUTPUTS), jnp.asarray(targets)), expected) <= EXACT
    assert relative_error(objective(jnp.asarray(OUTPUTS), jnp.asarray(targets)), expected[0]) <= EXACT


@pytest.mark.parametrize("targets", [PROBABILITIES, BITS], ids=["numbers", "bools"])
def test_sigmoid_closed_form(targets):
    """E = - sum_i y[i] log yhat[i] + (1 - y[i]) log(1 - yhat[i]), dE/dO = yhat - y."""
    yhat = 1 / (1 + np.exp(-OUTPUTS))
    expected = -np.sum(targets * np.log(yhat) + (1 - targets) * np.log(1 - yhat), -1), yhat - targets
    found = value_and_gradient(jaxrnn.sigmoid_cross_entropy, jnp.asarray(OUTPUTS), jnp.asarray(targets))
    assert relative_error(found, expected) <= EXACT


def test_squared_error_closed_form():
    expected = np.sum((OUTPUTS - NUMBERS) ** 2, -1), 2 * (OUTPUTS - NUMBERS)
    found = value_and_gradient(jaxrnn.squared_error, jnp.asarray(OUTPUTS), jnp.asarray(NUMBERS))
    assert relative_error(found, expected) <= EXACT


@pytest.mark.parametrize("V", [1, 4])
def test_equal_outputs_have_the_entropy_of_a_fair_choice(V):
    zeros = jnp.zeros((2, V))
    assert relative_error(jaxrnn.softmax_cross_entropy(zeros, jnp.array([0, V - 1])), np.full(2, np.log(V))) <= EXACT
    assert relative_error(jaxrnn.sigmoid_cross_entropy(zeros, zeros), np.full(2, V * np.log(2))) <= EXACT


def test_gradient_at_the_kink_of_the_stable_sigmoid_form():
    """|O| and max(O, 0) have no derivative at 0; their sum has. A fresh readout gives 0 for a state of zeros."""
    zeros, targets = jnp.zeros((1, 3)), jnp.array([[0.0, 0.25, 1.0]])
    for gradient in (value_and_gradient, autodiff):
        assert relative_error(gradient(jaxrnn.sigmoid_cross_entropy, zeros, targets)[1], 0.5 - targets) <= EXACT


EXTREMES = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [0.0, 1e4, 1e4]]


@pytest.mark.parametrize("gradient", [value_and_gradient, autodiff], ids=["own", "autodiff"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_outputs_of_a_softmax_stay_finite_and_right(dtype, gradient):
    outputs = jnp.asarray(EXTREMES, dtype)
    third, half = 1 / 3, 1 / 2
    yhat = np.array([[1, 0, 0], [third, third, third], [third, third, third], [0, half, half]])
    E, e = gradient(jaxrnn.softmax_cross_entropy, outputs, jnp.array([1, 0, 2, 0]))
    assert relative_error(e, yhat - np.eye(3)[[1, 0, 2, 0]]) <= 1e-6
    assert relative_error(E, np.array([2e4, np.log(3), np.log(3), 1e4 + np.log(2)])) <= 1e-6

    E, e = gradient(jaxrnn.softmax_cross_entropy, outputs, jnp.asarray(yhat, dtype))
    assert np.all(np.abs(e) <= 1e-6)
    assert np.all(np.isfinite(E))


@pytest.mark.parametrize("gradient", [value_and_gradient, autodiff], ids=["own", "autodiff"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_outputs_of_a_sigmoid_stay_finite_and_right(dtype, gradient):
    outputs = jnp.asarray([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]], dtype)
    E, e = gradient(jaxrnn.sigmoid_cross_entropy, outputs, jnp.ones_like(outputs))
    assert relative_error(e, np.array([[0, -1], [-1, -1], [0, 0]])) <= 1e-6
    assert relative_error(E, np.array([1e4, 2e4, 0])) <= 1e-6


@pytest.mark.parametrize("targets", [[2, 0], [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]], ids=["labels", "probabilities"])
@pytest.mark.parametrize("gradient", [value_and_gradient, autodiff], ids=["own", "autodiff"])
def test_what_all_logits_have_in_common_costs_no_precision(gradient, targets):
    """A softmax does not see it. 1024 added to these logits is exact in float32, so the error must be what it was."""
    logits = jnp.array([[0.0, 0.5, -0.25], [0.125, 1.0, 0.75]], jnp.float32)
    targets = jnp.asarray(targets, None if isinstance(targets[0], int) else jnp.float32)
    plain = gradient(jaxrnn.softmax_cross_entropy, logits, targets)
    assert relative_error(gradient(jaxrnn.softmax_cross_entropy, logits + 1024, targets), plain) <= 1e-6


@pytest.mark.parametrize("label", [-1, -5, 5, 1000])
def test_a_label_out_of_range_is_an_error_outside_jit_and_nan_inside(label):
    outputs, labels = jnp.asarray(OUTPUTS[0]), jnp.array([1, label, 0])
    for function in (jaxrnn.softmax_cross_entropy, lambda *a: value_and_gradient(jaxrnn.softmax_cross_entropy, *a)[0]):
        with pytest.raises(ValueError, match=r"targets must lie in 0 \.\. 4"):
            function(outputs, labels)
        assert np.isnan(jax.jit(function)(outputs, labels)).tolist() == [False, True, False]


def test_a_label_or_token_out_of_range_makes_the_loss_of_a_network_nan_under_jit():
    net = jaxrnn.Network((jaxrnn.Elman(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    params, zeros = net.init(jax.random.key(0)), jnp.zeros((6, 2), int)
    for function in (net.loss, lambda *a: jaxrnn.value_and_grad(net, 4)(*a)[0]):
        compiled = jax.jit(function)
        assert jnp.isfinite(compiled(params, zeros, zeros))
        for wrong in (-1, 5):
            assert jnp.isnan(compiled(params, zeros.at[2, 1].set(wrong), zeros))
            assert jnp.isnan(compiled(params, zeros, zeros.at[2, 1].set(wrong)))


@pytest.mark.parametrize(
    ("objective", "targets", "error", "message"),
    [
        (jaxrnn.softmax_cross_entropy, LABELS[:3], ValueError, "targets of integer labels must have shape"),
        (jaxrnn.softmax_cross_entropy, LABELS[..., None], ValueError, "targets of integer labels must have shape"),
        (jaxrnn.softmax_cross_entropy, BITS, TypeError, "targets must be integer labels or float"),
        (jaxrnn.softmax_cross_entropy, MASS[:1], ValueError, "targets must have the shape"),
        (jaxrnn.sigmoid_cross_entropy, BITS[..., :1], ValueError, "targets must have the shape"),
        (jaxrnn.sigmoid_cross_entropy, LABELS, ValueError, "targets must have the shape"),
        (jaxrnn.squared_error, NUMBERS[:, :1], ValueError, "targets must have the shape"),
        (jaxrnn.squared_error, NUMBERS[0], ValueError, "targets must have the shape"),
    ],
)
def test_nothing_is_broadcast(objective, targets, error, message):
    for function in (objective, lambda *a: value_and_gradient(objective, *a)):
        with pytest.raises(error, match=message):
            function(jnp.asarray(OUTPUTS), jnp.asarray(targets))
