"""The bias of truncations: each is compared with the whole gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import relative_error

import jaxrnn

PNG = b"\x89PNG"


class Chunk:
    """What a chunk of a text is to the script: [T + 1, B] tokens as inputs and targets."""

    def __init__(self, tokens):
        self.inputs, self.targets = tokens[:-1], tokens[1:]


def test_compare_by_hand(truncation_bias):
    truth = np.array([[3.0, 4.0], [4.0, 3.0]])  # mean (3.5, 3.5)
    half, turned = np.array([0.5]) * truth, np.array([[-4.0, 3.0], [3.0, -4.0]])
    assert np.allclose(truncation_bias.compare(truth, truth), (1, 1, 0), atol=1e-12)
    assert np.allclose(truncation_bias.compare(half, truth), (1, 0.5, 0.5), atol=1e-12)
    assert np.allclose(truncation_bias.compare(turned, truth), (0, 1, 8 / 7), atol=1e-12)
    assert np.allclose(truncation_bias.compare(np.zeros((2, 2)), truth), (0, 0, 1), atol=1e-12)


def test_the_gradients_compared_are_those_of_a_text_read_on(truncation_bias):
    """Against jax.grad, the state of one chunk handed to the next: the whole gradient, and a tail of it."""
    net = jaxrnn.Network((jaxrnn.Elman(6, 5),), jaxrnn.Readout(5, 6), jaxrnn.softmax_cross_entropy)
    params, state = net.init(jax.random.key(0)), (jnp.full((2, 5), 0.3),)
    text = np.random.default_rng(0).integers(0, 6, (13, 2))
    chunks = [Chunk(text[first : first + 5]) for first in (0, 4, 8)]
    everything, W = truncation_bias.gradients(net, params, state, chunks, None)
    tail = truncation_bias.gradients(net, params, state, chunks, jaxrnn.Tail(2))[1]
    grad, apply = jax.jit(jax.grad(net.loss)), jax.jit(net.apply)
    for i, chunk in enumerate(chunks):
        whole = grad(params, chunk.inputs, chunk.targets, None, state)
        middle = apply(params, chunk.inputs[:2], state)[1]
        last = grad(params, chunk.inputs[2:], chunk.targets[2:], None, middle)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(whole)])
        assert relative_error(everything[i], flat) <= 1e-5
        assert relative_error(W[i], np.ravel(whole.layers[0].W)) <= 1e-5
        assert relative_error(tail[i], np.ravel(last.layers[0].W) / 2) <= 1e-5  # two of the four steps' mean
        state = apply(params, chunk.inputs, state)[1]


def test_the_bias_table(truncation_bias, call, rows_of, capsys, tmp_path):
    """At k = T every truncation is the whole gradient; below it, none is."""
    (tmp_path / "text.txt").write_text("peter piper picked a peck of pickled peppers\n" * 20)
    options = {"--data": tmp_path / "text.txt", "--hidden": 8, "--steps": 4, "--updates": 3, "--chunks": 2}
    call(truncation_bias, *(word for pair in options.items() for word in pair), "--out", tmp_path)
    printed = capsys.readouterr().out
    rows = rows_of(printed, 4)
    assert [row[0] for row in rows] == ["1", "2", "4"]
    figures = [[[list(map(float, part.split(","))) for part in cell.split(";")] for cell in row[1:]] for row in rows]
    for everything, W in figures[-1]:
        assert np.allclose([everything, W], [1, 1, 0], atol=1e-3)
    for row in figures[:-1]:
        for everything, W in row:
            assert W[0] < 0.9999
            assert W[2] > 1e-3
            assert everything[0] >= W[0] - 1e-3  # the readout's part is exact
    by_truncation = np.array([[cell[1][2] for cell in row] for row in figures])  # [k, truncation], the bias of W
    assert np.all(np.diff(by_truncation, axis=0) < 0)
    assert printed.count("dE/dW has a cosine of 0.99 with the whole one from k = ") == 3
    assert (tmp_path / "truncation_bias.png").read_bytes().startswith(PNG)
