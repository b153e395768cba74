"""BPTT by hand against gradients that JAX did not make: a NumPy loop, the double sum, central differences, PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import central_difference, double_sum, inner, relative_error, textbook
from problems import CELLS, Problem

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
DIFFERENCES = 1e-7  # h^2 times a third derivative, h = 1e-5, and the rounding of E / h


def as_textbook(params):
    """U, W, b, V, c of a network of one layer, in NumPy."""
    return tuple(np.asarray(leaf) for leaf in (*params.layers[0], *params.readout))


def test_the_random_W_does_not_commute_with_its_transpose():
    """Otherwise W in the place of W^T would pass all of the tests of gradients."""
    W = np.asarray(Problem().params().layers[0].W)
    assert relative_error(W.T @ W, W @ W.T) > 0.1


@pytest.mark.parametrize(("T", "B", "H", "segment"), [(1, 3, 4, 1), (11, 1, 4, "auto"), (13, 4, 6, 4), (13, 4, 6, 1)])
def test_numpy_loop(T, B, H, segment):
    """The loss and all gradients, of three networks and sequences by one program."""
    run = jax.jit(jaxrnn.value_and_grad(Problem(H=H).net, segment))
    for seed in range(3):
        params, inputs, labels, *_ = Problem(T=T, batch=(B,), H=H, seed=seed).arguments()
        E, grads = run(params, inputs, labels)
        truth = textbook(as_textbook(params), np.asarray(inputs), np.asarray(labels))
        assert relative_error((E, as_textbook(grads)), truth) <= EXACT


@pytest.mark.parametrize("T", [1, 2, 9])
def test_double_sum(T):
    """The sweep, and the sum over who errs and who is blamed, are the same dE/dW."""
    problem = Problem(T=T, batch=(), H=6, seed=3)
    params, inputs, labels, *_ = problem.arguments()
    _, grads = jax.jit(jaxrnn.value_and_grad(problem.net, 2))(params, inputs, labels)
    truth = double_sum(as_textbook(params), np.asarray(inputs), np.asarray(labels))
    assert relative_error(grads.layers[0].W, truth) <= EXACT


@pytest.mark.parametrize(
    ("objective", "Cell"),
    [
        ("labels", "Elman"),
        ("probabilities", "relu"),
        ("sigmoid", "GRU"),
        ("labels", "GRU before"),
        ("squared", "LSTM"),
        ("user", "relu"),
    ],
)
def test_central_differences(objective, Cell):
    """Along random directions of each parameter by itself, through two layers, weights and a state."""
    problem = Problem(CELLS[Cell], T=6, hidden=(4, 3), objective=objective, weighted=True, stateful=True)
    net, (params, *data) = problem.net, problem.arguments()
    loss = jax.jit(lambda params: net.loss(params, *data))
    _, grads = jax.jit(jaxrnn.value_and_grad(net, 4))(params, *data)
    random = np.random.default_rng(5)
    leaves, structure = jax.tree.flatten(params)
    for i in range(len(leaves)):
        found, expected = [], []
        for _ in range(3):
            direction = [np.zeros(leaf.shape) for leaf in leaves]
            direction[i] = random.normal(size=leaves[i].shape)
            direction = jax.tree.unflatten(structure, direction)
            found.append(inner(grads, direction))
            expected.append(central_difference(loss, params, direction))
        # Of several directions, since a single one may happen to be almost level.
        assert relative_error(np.array(found), np.array(expected)) <= DIFFERENCES


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_torch(activation):
    """torch.nn.RNN with a linear readout and cross-entropy, two layers, from a given state."""
    torch = pytest.importorskip("torch")
    problem = Problem(CELLS["relu" if activation == "relu" else "Elman"], 2, T=11, V=5, stateful=True)
    params, inputs, labels, _, state, *_ = problem.arguments()
    rnn = torch.nn.RNN(4, 5, num_layers=2, nonlinearity=activation, dtype=torch.float64)
    readout = torch.nn.Linear(5, 5, dtype=torch.float64)
    with torch.no_grad():
        for layer, (U, W, b, second_bias) in zip(params.layers, rnn.all_weights, strict=True):
            for theirs, ours in ((U, layer.U), (W, layer.W), (b, layer.b)):
                theirs.copy_(torch.tensor(np.asarray(ours)))
            second_bias.zero_()
        readout.weight.copy_(torch.tensor(np.asarray(params.readout.V)))
        readout.bias.copy_(torch.tensor(np.asarray(params.readout.c)))
    hidden, final = rnn(torch.tensor(np.asarray(inputs)), torch.tensor(np.stack(state)))
    logits = readout(hidden).flatten(0, 1)
    E = torch.nn.functional.cross_entropy(logits, torch.tensor(np.asarray(labels)).flatten())
    E.backward()
    leaves = [leaf for weights in rnn.all_weights for leaf in weights[:3]] + [readout.weight, readout.bias]
    truth = [E.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]
    function = jax.jit(jaxrnn.value_and_grad(problem.net, 4, return_state=True))
    (ours, ours_final), grads = function(params, inputs, labels, state=state)
    assert relative_error([ours, *jax.tree.leaves(grads)], truth) <= EXACT
    assert relative_error(jnp.stack(ours_final), final.detach().numpy()) <= EXACT
