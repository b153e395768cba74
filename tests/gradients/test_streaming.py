"""The gradient of a sequence that comes in chunks: that of the whole, whatever the chunks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem, autodiff
from user_cells import TRACES, Traced

import jaxrnn
from jaxrnn import Chunk

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12
T, B, D, V = 9, 3, 4, 6


def cut(given, lengths=(3, 3, 3)):
    """Yields the sequence in chunks of these lengths, once."""
    edges = [0, *np.cumsum(lengths)]
    assert edges[-1] == T
    arrays = given.inputs, given.targets, given.weights, given.mask, given.reset
    for first, last in itertools.pairwise(edges):
        yield Chunk(*(None if array is None else array[first:last] for array in arrays))


ROWS = pairwise(
    {
        "Cell": tuple(CELLS),
        "lengths": ((3, 3, 3), (4, 4, 1), (2, 7), (9,)),
        "recompute": (False, "gates", True),
        "spilled_to": ("host", "disk"),
        "depth": (1, 2),
        "tokens": (False, True),
        "weighted": (False, True),
        "stateful": (False, True),
        "masked": (False, True),
        "reset": (False, True),
        "learn_state": (False, True),
        "residual": (False, True),
    },
    lambda row: not (row.get("residual") and row.get("depth") == 1),
)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_the_gradient_is_that_of_the_whole(row, tmp_path):
    choice = dict(row)
    lengths, recompute, spilled_to = (choice.pop(name) for name in ("lengths", "recompute", "spilled_to"))
    problem = Problem(CELLS[choice.pop("Cell")], **choice)
    directory = tmp_path if spilled_to == "disk" else None
    run = jaxrnn.value_and_grad_of_chunks(problem.net, directory=directory, recompute=recompute, return_state=True)
    given = problem.arguments()
    assert relative_error(run(given.params, cut(given, lengths), given.state), autodiff(problem)) <= EXACT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("masked", "stateful"), [(False, False), (True, True)])
def test_what_is_learned_is_reached_through_the_first_chunk_and_through_resets(masked, stateful):
    problem = Problem(jaxrnn.LSTM, masked=masked, reset=masked, stateful=stateful, weighted=True, learn_state=True)
    given = problem.arguments()
    _, grads = jaxrnn.value_and_grad_of_chunks(problem.net)(given.params, cut(given), given.state)
    assert float(jnp.abs(grads.state[0].s).max()) > 1e-6


def test_float32_and_bfloat16(tmp_path):
    """What NumPy has no dtype for comes back from a file as it went there."""
    problem = Problem(masked=True, weighted=True, stateful=True)
    given = problem.arguments(jnp.float32)
    E, grads = jaxrnn.value_and_grad_of_chunks(problem.net)(given.params, cut(given), given.state)
    assert E.dtype == grads.layers[0].W.dtype == jnp.float32
    given = given._replace(inputs=given.inputs.astype(jnp.bfloat16))
    halves, same = (
        jaxrnn.value_and_grad_of_chunks(problem.net, directory=directory, compute_dtype=jnp.bfloat16)(
            given.params, cut(given), given.state
        )
        for directory in (None, tmp_path)
    )
    assert halves[1].layers[0].W.dtype == jnp.float32
    assert 1e-5 < relative_error(halves[0], E) < 2e-2
    assert relative_error(same, halves) == 0


@pytest.mark.parametrize("spilled_to", ["host", "disk"])
def test_an_iterator_may_fill_the_same_arrays_again(spilled_to, tmp_path):
    problem = Problem(masked=True, reset=True, weighted=True, stateful=True)
    given = problem.arguments()

    def refilled():
        arrays = None
        for chunk in cut(given):
            arrays = arrays or jax.tree.map(np.array, chunk)
            for array, values in zip(arrays, chunk, strict=True):
                array[:] = values
            yield arrays

    directory = tmp_path if spilled_to == "disk" else None
    run = jaxrnn.value_and_grad_of_chunks(problem.net, directory=directory, return_state=True)
    assert relative_error(run(given.params, refilled(), given.state), autodiff(problem)) <= EXACT


def test_files_are_there_while_they_are_needed(tmp_path):
    problem = Problem(weighted=True, stateful=True)
    given, seen = problem.arguments(), []

    def watched():
        for chunk in cut(given):
            seen.append(sum(1 for _ in tmp_path.rglob("*.npy")))
            yield chunk

    run = jaxrnn.value_and_grad_of_chunks(problem.net, directory=tmp_path)
    run(given.params, watched(), given.state)
    assert seen == [0, 4, 8]  # inputs, targets, weights and the state before
    assert list(tmp_path.iterdir()) == []

    def broken():
        yield from list(cut(given))[:2]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(given.params, broken(), given.state)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_compiled_twice():
    """An equal network, made anew, is traced no more: neither for the next chunks nor for the next sequence."""
    counts = []
    for seed in range(3):
        TRACES.clear()
        given = Problem(Traced, seed=seed).arguments()
        jaxrnn.value_and_grad_of_chunks(Problem(Traced, seed=seed).net)(given.params, cut(given))
        counts.append(len(TRACES))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


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
    return list(cut(Problem(weighted=True).arguments(), (4, 5)))


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
    problem = Problem()
    with pytest.raises((ValueError, TypeError), match=message):
        jaxrnn.value_and_grad_of_chunks(problem.net)(problem.params(), make())


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
    made = None if net is None else dataclasses.replace(Problem().net, **net)
    with pytest.raises((ValueError, TypeError), match=message):
        jaxrnn.value_and_grad_of_chunks(made, **options)


def test_both_directions_need_the_whole():
    with pytest.raises(ValueError, match="bidirectional layers, which need all"):
        jaxrnn.value_and_grad_of_chunks(Problem(both_ways=True).net)
