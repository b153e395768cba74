"""The gradient of a sequence that comes in chunks: that of the whole, whatever the chunks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from test_breaks import CELLS, D, Data, T, V

import jaxrnn
from jaxrnn import Chunk
from jaxrnn.gradients import streaming

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12


def cut(data, lengths, weighted=True):
    """The sequence in chunks of these lengths."""
    _, inputs, targets, weights, _, mask, reset = data.arguments()
    arrays = inputs, targets, weights if weighted else None, mask, reset
    edges = [0, *np.cumsum(lengths)]
    assert edges[-1] == T
    for first, last in itertools.pairwise(edges):
        yield Chunk(*(None if array is None else array[first:last] for array in arrays))


def whole(data, weighted=True):
    params, inputs, targets, weights, state, mask, reset = data.arguments()
    weights = weights if weighted else None
    run = jax.value_and_grad(lambda *a: data.net.loss(*a, return_state=True), has_aux=True)
    return jax.jit(run)(params, inputs, targets, weights, state, mask, reset)


WAYS = [  # layers, tokens, weighted, and the chunks with what goes with them
    (1, True, False, [((4, 4, 1), {}), ((9,), {"recompute": True})]),
    (2, False, True, [((2, 7), {"recompute": "gates"})]),
]


@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize(("layers", "tokens", "weighted", "ways"), WAYS, ids=["tokens", "floats"])
def test_the_gradient_is_that_of_the_whole(Cell, layers, tokens, weighted, ways, tmp_path):
    """`cut` is a generator: what comes from it is read once."""
    data = Data(Cell, layers, tokens, "both")
    expected = whole(data, weighted)
    for lengths, options in ways:
        for directory in (None, tmp_path):
            run = jaxrnn.value_and_grad_of_chunks(data.net, directory=directory, return_state=True, **options)
            assert relative_error(run(data.params, cut(data, lengths, weighted), data.state), expected) <= EXACT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("breaks", "given"), [("plain", False), ("both", False), ("both", True)])
def test_what_is_learned_is_reached_through_the_first_chunk_and_through_resets(breaks, given):
    data = Data(jaxrnn.LSTM, 2, False, breaks)
    data.net = dataclasses.replace(data.net, residual=True, learn_state=True)
    params = data.net.init(jax.random.key(0), jnp.float64)
    data.params = params._replace(state=jax.tree.map(lambda leaf: leaf + 0.3, params.state))
    data.state = data.state if given else None
    found = jaxrnn.value_and_grad_of_chunks(data.net, return_state=True)(data.params, cut(data, (3, 3, 3)), data.state)
    assert relative_error(found, whole(data)) <= EXACT
    twin = jax.jit(jaxrnn.value_and_grad(data.net, return_state=True))
    assert relative_error(found, twin(*data.arguments())) <= EXACT
    assert float(jnp.abs(found[1].state[0].s).max()) > 1e-6


def test_float32_and_bfloat16(tmp_path):
    """What NumPy has no dtype for comes back from a file as it went there."""
    data = Data(jaxrnn.Elman, 1, False, "mask")
    data.params, data.inputs, data.state, data.weights = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), (data.params, data.inputs, data.state, data.weights)
    )
    E, grads = jaxrnn.value_and_grad_of_chunks(data.net)(data.params, cut(data, (3, 3, 3)), data.state)
    assert E.dtype == grads.layers[0].W.dtype == jnp.float32
    data.inputs = data.inputs.astype(jnp.bfloat16)
    halves, same = (
        jaxrnn.value_and_grad_of_chunks(data.net, directory=directory, compute_dtype=jnp.bfloat16)(
            data.params, cut(data, (3, 3, 3)), data.state
        )
        for directory in (None, tmp_path)
    )
    assert halves[1].layers[0].W.dtype == jnp.float32
    assert 1e-5 < relative_error(halves[0], E) < 2e-2
    assert relative_error(same, halves) == 0


@pytest.mark.parametrize("spilled_to", ["host", "disk"])
def test_an_iterator_may_fill_the_same_arrays_again(spilled_to, tmp_path):
    data = Data(jaxrnn.Elman, 1, False, "both")

    def refilled():
        arrays = None
        for chunk in cut(data, (3, 3, 3)):
            arrays = arrays or jax.tree.map(np.array, chunk)
            for array, values in zip(arrays, chunk, strict=True):
                array[:] = values
            yield arrays

    directory = tmp_path if spilled_to == "disk" else None
    run = jaxrnn.value_and_grad_of_chunks(data.net, directory=directory, return_state=True)
    assert relative_error(run(data.params, refilled(), data.state), whole(data)) <= EXACT


def test_files_are_there_while_they_are_needed(tmp_path):
    data = Data(jaxrnn.Elman, 1, False, "plain")
    seen = []

    def watched():
        for chunk in cut(data, (3, 3, 3)):
            seen.append(sum(1 for _ in tmp_path.rglob("*.npy")))
            yield chunk

    run = jaxrnn.value_and_grad_of_chunks(data.net, directory=tmp_path)
    run(data.params, watched(), data.state)
    assert seen == [0, 4, 8]  # inputs, targets, weights and the state before
    assert list(tmp_path.iterdir()) == []

    def broken():
        yield from list(cut(data, (3, 3, 3)))[:2]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(data.params, broken(), data.state)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_compiled_twice(monkeypatch):
    data = Data(jaxrnn.Elman, 1, False, "plain")
    net = dataclasses.replace(data.net, readout=dataclasses.replace(data.net.readout, bias=True))
    traces = []
    decide = streaming.decide
    monkeypatch.setattr(streaming, "decide", lambda *a, **b: traces.append(1) or decide(*a, **b))
    for _ in range(2):
        run = jaxrnn.value_and_grad_of_chunks(dataclasses.replace(net, layers=(jaxrnn.Elman(4, 5, "relu"),)))
        for _ in range(2):
            run(data.params, cut(data, (3, 3, 3)), data.state)
    assert len(traces) == 1


def test_the_device_holds_one_chunk(tmp_path, monkeypatch):
    """What is alive there while chunks are read does not grow with their number; on the way back each is waited for."""
    net = jaxrnn.Network((jaxrnn.Elman(16, 8),), jaxrnn.Readout(8, 4), jaxrnn.softmax_cross_entropy)
    params = net.init(jax.random.key(0))
    alive = []

    def chunks(count):
        for i in range(count):
            alive.append(sum(array.nbytes for array in jax.live_arrays()))
            random = np.random.default_rng(i)
            yield Chunk(random.normal(size=(50, 2, 16)).astype(np.float32), random.integers(0, 4, (50, 2)))

    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: waited.append(len(alive)) or wait(tree))
    run = jaxrnn.value_and_grad_of_chunks(net, directory=tmp_path)
    run(params, chunks(3))
    alive.clear()
    waited.clear()
    E, grads = run(params, chunks(40))
    assert max(alive[2:]) - alive[2] < 50 * 2 * 16 * 4  # the inputs of one chunk
    assert waited == [40] * 40
    every = [np.concatenate(arrays) for arrays in zip(*(chunk[:2] for chunk in chunks(40)), strict=True)]
    assert relative_error((E, grads), jax.jit(jaxrnn.value_and_grad(net))(params, *map(jnp.asarray, every))) <= 1e-5


def plain_chunks():
    return list(cut(Data(jaxrnn.Elman, 1, False, "plain"), (4, 5)))


def told_at_once(chunk):
    yield chunk
    raise AssertionError("the next chunk was read before the first was checked")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], "chunks must hold at least one"),
        (
            lambda: [c._replace(inputs=c.inputs[:, :2]) if i else c for i, c in enumerate(plain_chunks())],
            "agree in all but",
        ),
        (
            lambda: [c._replace(inputs=c.inputs.astype(np.float32)) if i else c for i, c in enumerate(plain_chunks())],
            "agree",
        ),
        (
            lambda: [c._replace(weights=None) if i else c for i, c in enumerate(plain_chunks())],
            "all have weights, or none",
        ),
        (lambda: [tuple(c) for c in plain_chunks()], r"chunks must give jaxrnn\.Chunk"),
        (lambda: told_at_once(plain_chunks()[0]._replace(targets=np.zeros((3, 3), int))), "targets"),
        (
            lambda: told_at_once(plain_chunks()[0]._replace(targets=np.full((4, 3), V))),
            f"targets must lie in 0 .. {V - 1}",
        ),
        (lambda: told_at_once(Chunk(np.full((4, 3), D), np.zeros((4, 3), int))), f"inputs must lie in 0 .. {D - 1}"),
        (lambda: [c._replace(mask=np.ones(3)) for c in plain_chunks()], "mask must be boolean"),
    ],
)
def test_wrong_chunks(make, message):
    data = Data(jaxrnn.Elman, 1, False, "plain")
    with pytest.raises((ValueError, TypeError), match=message):
        jaxrnn.value_and_grad_of_chunks(data.net)(data.params, make(), data.state)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (None, {}, "net must be a jaxrnn.Network"),
        ({"last_step": True}, {}, "last_step, which need all of a sequence"),
        ({"recurrent_dropout": 0.5}, {}, "must not have dropout"),
        ({}, {"directory": "/nowhere/at/all"}, "directory must be a folder"),
        ({}, {"directory": 3}, "directory must be a path"),
        ({}, {"recompute": "all"}, "recompute must be"),
        ({}, {"compute_dtype": int}, "compute_dtype"),
    ],
    ids=str,
)
def test_wrong_networks_and_options(net, options, message):
    made = None if net is None else dataclasses.replace(Data(jaxrnn.Elman).net, **net)
    with pytest.raises((ValueError, TypeError), match=message):
        jaxrnn.value_and_grad_of_chunks(made, **options)


def test_both_directions_need_the_whole():
    with pytest.raises(ValueError, match="bidirectional layers, which need all"):
        jaxrnn.value_and_grad_of_chunks(Data(jaxrnn.Elman, both_ways=True).net)
