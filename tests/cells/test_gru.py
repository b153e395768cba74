"""The GRU with the reset before the product: a loop in NumPy that knows nothing of the library, and the option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error, softmax
from problems import CELLS, KEY, Problem, autodiff

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def loop(params, inputs, labels):
    """E and its gradients (U, W, b, V, c), sequence by sequence and step by step, softmax cross-entropy.

    Args:
        params: U, W, b, V, c, the rows of the first three those of r, z, n.
        inputs: [T, B, D].
        labels: integers [T, B].
    """
    (U, W, b, V, c), (T, B) = params, labels.shape
    (Ur, Uz, Un), (Wr, Wz, Wn), (br, bz, bn) = (np.split(weight, 3) for weight in (U, W, b))
    E, grads = 0.0, [np.zeros_like(weight) for weight in params]
    for k in range(B):
        s, kept = np.zeros(W.shape[1]), []
        for x, label in zip(inputs[:, k], labels[:, k], strict=True):
            before, r, z = s, sigmoid(Wr @ s + Ur @ x + br), sigmoid(Wz @ s + Uz @ x + bz)
            n = np.tanh(Un @ x + bn + Wn @ (r * s))
            s = (1 - z) * n + z * s
            e = softmax(V @ s + c)
            E -= np.log(e[label])
            kept.append((x, before, r, z, n, s, e - np.eye(len(c))[label]))
        a = np.zeros_like(s)
        for x, before, r, z, n, s, e in reversed(kept):
            a = a + V.T @ e
            to_n = a * (1 - z) * (1 - n**2)
            to_reset_state = Wn.T @ to_n
            to_r, to_z = to_reset_state * before * r * (1 - r), a * (before - n) * z * (1 - z)
            rows = np.concatenate([to_r, to_z, to_n])
            W_rows = [np.outer(to_r, before), np.outer(to_z, before), np.outer(to_n, r * before)]
            added = np.outer(rows, x), np.concatenate(W_rows), rows, np.outer(e, s), e
            grads = [total + new for total, new in zip(grads, added, strict=True)]
            a = a * z + to_reset_state * r + Wr.T @ to_r + Wz.T @ to_z
    return E / (T * B), [total / (T * B) for total in grads]


@pytest.mark.parametrize("way", [{}, {"segment": 1}, {"recompute": "gates"}, {"recompute": True}], ids=str)
def test_numpy_loop(way):
    problem = Problem(CELLS["GRU before"], T=11, H=4)
    params, inputs, labels, *_ = problem.arguments()
    E, grads = jax.jit(jaxrnn.value_and_grad(problem.net, **way))(params, inputs, labels)
    as_arrays = lambda tree: [np.asarray(leaf) for leaf in (*tree.layers[0][:3], *tree.readout)]
    truth = loop(as_arrays(params), np.asarray(inputs), np.asarray(labels))
    assert relative_error((E, as_arrays(grads)), truth) <= EXACT


def test_the_two_resets_are_two_recurrences():
    """Alike where W_n is diagonal and d is zero, since r_t * (W_n s_{t-1}) = W_n (r_t * s_{t-1}), and there alone."""
    after, params, inputs, _ = Problem(jaxrnn.GRU).layer()
    before, H = jaxrnn.GRU(after.inputs, after.hidden, reset="before"), after.hidden
    diagonal = params.W.at[2 * H :].multiply(jnp.eye(H))
    for W, alike in ((diagonal, True), (params.W, False)):
        one, _ = jaxrnn.unroll(after, params._replace(W=W, d=jnp.zeros(H)), inputs)
        other, _ = jaxrnn.unroll(before, params._replace(W=W, d=None), inputs)
        assert (relative_error(one, other) <= EXACT) == alike


def test_the_parameters_have_no_second_bias_of_n():
    cell = jaxrnn.GRU(3, 5, reset="before")
    assert isinstance(cell, jaxrnn.GRU)
    assert cell != jaxrnn.GRU(3, 5)
    params, of_other = cell.init(KEY), jaxrnn.GRU(3, 5).init(KEY)
    assert params.d is None
    assert relative_error(params[:3], of_other[:3]) == 0  # the same numbers from the same key
    inputs = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match=r"params must have the structure.*they must come from the init of GRU"):
        jaxrnn.unroll(cell, of_other, inputs)
    with pytest.raises(TypeError, match="params must have the structure"):
        jaxrnn.unroll(jaxrnn.GRU(3, 5), params, inputs)


def test_an_unknown_reset_is_told():
    with pytest.raises(ValueError, match="reset must be one of 'after', 'before', got 'within'"):
        jaxrnn.GRU(3, 5, reset="within")


def test_layers_of_both_kinds_in_one_network():
    """The one below hands its hidden states to the other, as cells of any two kinds do."""
    problem = Problem(lambda D, H: jaxrnn.GRU(D, H, reset="before" if D == H else "after"), 2, masked=True)
    (E, _), grads = autodiff(problem)
    assert relative_error(jax.jit(jaxrnn.value_and_grad(problem.net))(*problem.arguments()), (E, grads)) <= EXACT
