"""The objectives by themselves: closed forms, their own gradient against autodiff, extremes, and what is refused."""

import copy
import functools
import pickle

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


@functools.partial(jax.jit, static_argnums=0)
def by_both_ways(objective, outputs, targets):
    """Returns E_t and dE_t/dO_t by the objective's own gradient, and by autodiff, from one compiled program."""
    return value_and_gradient(objective, outputs, targets), autodiff(objective, outputs, targets)


@pytest.mark.parametrize("case", CASES)
def test_own_gradient_equals_autodiff(case):
    objective, targets = CASES[case]
    own, truth = by_both_ways(objective, OUTPUTS, targets)
    assert own[0].shape == OUTPUTS.shape[:-1]
    assert relative_error(own, truth) <= EXACT


def test_the_librarys_objectives_carry_their_gradient_and_it_is_the_one_used(monkeypatch):
    twice = Objective(jaxrnn.squared_error)
    twice.with_gradient(lambda outputs, targets: (outputs.sum(-1), 2 * targets))
    monkeypatch.setattr(jax, "vjp", lambda *_: pytest.fail("autodiff in the place of the objective's own gradient"))
    for objective in (jaxrnn.softmax_cross_entropy, jaxrnn.sigmoid_cross_entropy, jaxrnn.squared_error):
        value_and_gradient(objective, jnp.asarray(OUTPUTS), jnp.asarray(PROBABILITIES))
    E, e = value_and_gradient(twice, jnp.asarray(OUTPUTS), jnp.asarray(NUMBERS))
    assert relative_error((E, e), (OUTPUTS.sum(-1), 2 * NUMBERS)) <= EXACT


def softmax_by_hand(targets):
    """E = - sum_i y[i] log yhat[i], dE/dO = m yhat - y with m the sum of y."""
    y = np.eye(5)[targets] if targets.ndim == 2 else targets
    yhat = np.apply_along_axis(softmax, -1, OUTPUTS)
    return -np.sum(y * np.log(yhat), -1), y.sum(-1, keepdims=True) * yhat - y


def sigmoid_by_hand(targets):
    """E = - sum_i y[i] log yhat[i] + (1 - y[i]) log(1 - yhat[i]), dE/dO = yhat - y."""
    yhat = 1 / (1 + np.exp(-OUTPUTS))
    return -np.sum(targets * np.log(yhat) + (1 - targets) * np.log(1 - yhat), -1), yhat - targets


CLOSED_FORMS = {
    "softmax": softmax_by_hand,
    "sigmoid": sigmoid_by_hand,
    "squared": lambda targets: (np.sum((OUTPUTS - targets) ** 2, -1), 2 * (OUTPUTS - targets)),
    "user": lambda targets: (np.sum(np.log(np.cosh(OUTPUTS - targets)), -1), np.tanh(OUTPUTS - targets)),
}


@pytest.mark.parametrize("case", CASES)
def test_closed_forms(case):
    """Outside jit, as the test above is inside, where alone the values of targets are not read."""
    objective, targets = CASES[case]
    if case == "softmax, any sum":
        with pytest.raises(
            ValueError, match="targets of probabilities must sum to one over the outputs, got sums from"
        ):
            objective(jnp.asarray(OUTPUTS), jnp.asarray(targets))
        targets = targets / targets.sum(-1, keepdims=True)
    expected = CLOSED_FORMS[case.split(",")[0]](targets)
    outputs, targets = jnp.asarray(OUTPUTS), jnp.asarray(targets)
    assert relative_error(value_and_gradient(objective, outputs, targets), expected) <= EXACT
    assert relative_error(objective(outputs, targets), expected[0]) <= EXACT


@pytest.mark.parametrize("V", [1, 4])
def test_equal_outputs_have_the_entropy_of_a_fair_choice(V):
    zeros = jnp.zeros((2, V))
    assert relative_error(jaxrnn.softmax_cross_entropy(zeros, jnp.array([0, V - 1])), np.full(2, np.log(V))) <= EXACT
    assert relative_error(jaxrnn.sigmoid_cross_entropy(zeros, zeros), np.full(2, V * np.log(2))) <= EXACT


def test_gradient_at_the_kink_of_the_stable_sigmoid_form():
    """|O| and max(O, 0) have no derivative at 0; their sum has. A fresh readout gives 0 for a state of zeros."""
    zeros, targets = jnp.zeros((1, 3)), jnp.array([[0.0, 0.25, 1.0]])
    for _, e in by_both_ways(jaxrnn.sigmoid_cross_entropy, zeros, targets):
        assert relative_error(e, 0.5 - targets) <= EXACT


EXTREMES = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [0.0, 1e4, 1e4]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_outputs_of_a_softmax_stay_finite_and_right(dtype):
    outputs = jnp.asarray(EXTREMES, dtype)
    third, half = 1 / 3, 1 / 2
    yhat = np.array([[1, 0, 0], [third, third, third], [third, third, third], [0, half, half]])
    for E, e in by_both_ways(jaxrnn.softmax_cross_entropy, outputs, jnp.array([1, 0, 2, 0])):
        assert relative_error(e, yhat - np.eye(3)[[1, 0, 2, 0]]) <= 1e-6
        assert relative_error(E, np.array([2e4, np.log(3), np.log(3), 1e4 + np.log(2)])) <= 1e-6

    for E, e in by_both_ways(jaxrnn.softmax_cross_entropy, outputs, jnp.asarray(yhat, dtype)):
        assert np.all(np.abs(e) <= 1e-6)
        assert np.all(np.isfinite(E))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_outputs_of_a_sigmoid_stay_finite_and_right(dtype):
    outputs = jnp.asarray([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]], dtype)
    for E, e in by_both_ways(jaxrnn.sigmoid_cross_entropy, outputs, jnp.ones_like(outputs)):
        assert relative_error(e, np.array([[0, -1], [-1, -1], [0, 0]])) <= 1e-6
        assert relative_error(E, np.array([1e4, 2e4, 0])) <= 1e-6


@pytest.mark.parametrize("targets", [[2, 0], [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]], ids=["labels", "probabilities"])
def test_what_all_logits_have_in_common_costs_no_precision(targets):
    """A softmax does not see it. 1024 added to these logits is exact in float32, so the error must be what it was."""
    logits = jnp.array([[0.0, 0.5, -0.25], [0.125, 1.0, 0.75]], jnp.float32)
    targets = jnp.asarray(targets, None if isinstance(targets[0], int) else jnp.float32)
    shifted, plain = (by_both_ways(jaxrnn.softmax_cross_entropy, logits + common, targets) for common in (1024, 0))
    for way in (0, 1):
        assert relative_error(shifted[way], plain[way]) <= 1e-6


def test_a_label_out_of_range_is_an_error_outside_jit_and_nan_inside():
    outputs, objective = jnp.asarray(OUTPUTS[0]), jaxrnn.softmax_cross_entropy
    for label in (-1, -5, 5, 1000):
        labels = jnp.array([1, label, 0])
        for function in (objective, functools.partial(value_and_gradient, objective)):
            with pytest.raises(ValueError, match=r"targets must lie in 0 \.\. 4"):
                function(outputs, labels)
        for E, _ in by_both_ways(objective, outputs, labels):
            assert np.isnan(E).tolist() == [False, True, False]


def test_a_label_or_token_out_of_range_makes_the_loss_of_a_network_nan_under_jit():
    net = jaxrnn.Network((jaxrnn.Elman(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    shapes, zeros = jax.eval_shape(net.init, jax.random.key(0)), jnp.zeros((6, 2), int)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), shapes)
    losses = jax.jit(lambda *a: jnp.array([net.loss(*a), jaxrnn.value_and_grad(net, 4)(*a)[0]]))
    assert jnp.isfinite(losses(params, zeros, zeros)).all()
    for wrong in (-1, 5):
        out_of_range = zeros.at[2, 1].set(wrong)
        assert jnp.isnan(losses(params, out_of_range, zeros)).all()
        assert jnp.isnan(losses(params, zeros, out_of_range)).all()


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


OBJECTIVES = (jaxrnn.softmax_cross_entropy, jaxrnn.sigmoid_cross_entropy, jaxrnn.squared_error)


@pytest.mark.parametrize("objective", [*OBJECTIVES, *(each.checked for each in OBJECTIVES[:2])], ids=str)
def test_a_network_is_copied_and_pickled_with_its_objective(objective):
    net = jaxrnn.Network((jaxrnn.GRU(3, 4),), jaxrnn.Readout(4, 5), objective)
    assert copy.deepcopy(net) == net == pickle.loads(pickle.dumps(net))
    assert copy.copy(objective) is objective
