"""Saved networks: in onnxruntime they compute the same, and they come back in every bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.examples import assert_same, fill
from interop.onnx_models import LENGTHS, B, D, H, T, V, by_onnxruntime
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem, shapes

import jaxrnn

onnx_library = pytest.importorskip("onnx")

from jaxrnn.interop import onnx  # noqa: E402

OPTIONS = {
    "cell": tuple(name for name in CELLS if name != "user"),
    "depth": (1, 2),
    "both_ways": (False, True),
    "merge": ("concatenate", "sum"),
    "bias": (True, False),
    "tokens": (False, True),
    "lengths": (False, True),
    "state": (False, True),
    "time_major": (True, False),
    "residual": (False, True),
    "last_step": (False, True),
    "learn_state": (False, True),
}


def allowed(row):
    """Says whether there can be such a network: directions are merged of two, and a residual path is between two."""
    return not (row.get("merge") == "sum" and not row.get("both_ways", True)) and not (
        row.get("residual") and row.get("depth", 2) == 1
    )


ROWS = pairwise(OPTIONS, allowed)
SAVED = ("tokens", "lengths", "state", "time_major")


def problem_of(row):
    options = {name: value for name, value in row.items() if name not in ("cell", "lengths", "state", "time_major")}
    return Problem(CELLS[row["cell"]], T=T, batch=(B,), D=D, H=H, V=V, stateful=row["state"], **options)


def rows_of_state(state):
    """Returns h (and c) of the state of one layer, [directions, B, H]."""
    parts = state if isinstance(state, tuple) and not hasattr(state, "s") else (state,)
    fields = zip(*(part if hasattr(part, "s") else (part,) for part in parts), strict=True)
    return [np.stack(field) for field in fields]


def assert_nothing_is_unused(graph):
    made = [name for node in graph.node for name in node.output if name]
    used = {value.name for value in graph.output}.union(*(node.input for node in graph.node))
    assert {*made, *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)} <= used


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_a_saved_network_computes_the_same_in_onnxruntime_and_comes_back(row, tmp_path):
    problem, path = problem_of(row), tmp_path / "net.onnx"
    given = problem.arguments(jnp.float32)
    onnx.save(problem.net, given.params, path, **{name: row[name] for name in SAVED})
    onnx_library.checker.check_model(str(path), full_check=True)
    assert_nothing_is_unused(onnx_library.load(path).graph)
    model = onnx.load(path, problem.net.objective)
    assert not [name for name in model.graph.constants if name.endswith((".W", ".R", ".B"))]  # nothing is held twice
    learned = None if row["state"] else given.params.state  # a state that is given takes the place of the learned one
    assert model.net == dataclasses.replace(problem.net, learn_state=learned is not None)
    assert_same(model.params, jax.tree.map(np.asarray, given.params._replace(state=learned)))

    mask = jnp.asarray(np.arange(T)[:, None] < LENGTHS) if row["lengths"] else None
    outputs, final = jax.jit(problem.net.apply)(given.params, given.inputs, given.state, mask)
    exchange = lambda array: array if row["time_major"] or array.ndim < 2 else np.swapaxes(array, 0, 1)
    inputs = [exchange(np.asarray(given.inputs, np.int64 if row["tokens"] else np.float32))]
    inputs += [LENGTHS] if row["lengths"] else []
    inputs += [array for state in given.state or () for array in rows_of_state(state)]
    ours, theirs = jax.jit(model)(*inputs), by_onnxruntime(path, *inputs)
    assert relative_error(list(ours), theirs) <= 1e-5
    truth = np.asarray(outputs)
    if not row["last_step"]:
        there = np.ones((T, B, 1), bool) if mask is None else np.asarray(mask)[..., None]
        padding = 0 if given.params.readout.c is None else given.params.readout.c  # what a state of zeros gives
        truth = exchange(np.where(there, truth, padding))
    assert relative_error(theirs[0], truth) <= 1e-5
    if row["state"]:
        assert relative_error(theirs[1:], [array for state in final for array in rows_of_state(state)]) <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes_come_back(dtype, tmp_path):
    problem = Problem(CELLS["GRU"], depth=2, both_ways=True)
    params = problem.params(dtype)
    onnx.save(problem.net, params, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert_same(model.params, jax.tree.map(np.asarray, params))
    with jax.enable_x64(dtype == "float64"):
        assert model(jnp.ones((2, 3, problem.D), dtype))[0].dtype == dtype


def test_a_loaded_network_goes_on_training(tmp_path):
    problem = Problem(CELLS["LSTM"], depth=2)
    given = problem.arguments(jnp.float32)
    onnx.save(problem.net, given.params, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    E, grads = jax.jit(jaxrnn.value_and_grad(model.net))(model.params, given.inputs, given.targets)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, model.params, grads)
    onnx.save(model.net, params, tmp_path / "trained.onnx")
    assert model.net.loss(onnx.load(tmp_path / "trained.onnx").params, given.inputs, given.targets) < E


def test_a_learned_state_of_zeros_is_still_learned(tmp_path):
    net = jaxrnn.Network((jaxrnn.LSTM(D, H),), jaxrnn.Readout(H, V), jaxrnn.squared_error, learn_state=True)
    params = net.init(jax.random.key(0))
    onnx.save(net, params, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx", jaxrnn.squared_error)
    assert model.net == net
    assert_same(model.params, jax.tree.map(np.asarray, params))


def test_any_number_of_steps_and_sequences(tmp_path):
    problem = Problem(CELLS["GRU"], both_ways=True, learn_state=True)
    params = problem.params(jnp.float32)
    onnx.save(problem.net, params, tmp_path / "net.onnx")
    for steps, batch in ((1, 1), (7, 2)):
        x = np.random.default_rng(0).normal(size=(steps, batch, problem.D)).astype(np.float32)
        truth = by_onnxruntime(tmp_path / "net.onnx", x)[0]
        assert relative_error(problem.net.apply(params, x)[0], truth) <= 1e-5


# What cannot be saved.


class Mine(jaxrnn.GRU):
    """A user's cell, which may compute anything."""


def network(layer, **options):
    return jaxrnn.Network((layer,), jaxrnn.Readout(layer.outputs, V), jaxrnn.squared_error, **options)


PLAIN = network(jaxrnn.Elman(D, H))
WRONG = {
    "a cell": ((jaxrnn.GRU(D, H), None), TypeError, "net must be a jaxrnn.Network, got GRU"),
    "a user's cell": ((network(Mine(D, H)), None), TypeError, r"layers\[0\] must be an Elman, GRU or LSTM cell"),
    "two kinds": (
        (network(jaxrnn.Bidirectional(jaxrnn.Elman(D, H), jaxrnn.GRU(D, H))), None),
        ValueError,
        "must have one kind, as the directions of an operator of ONNX do",
    ),
    "another's parameters": ((PLAIN, fill(shapes(network(jaxrnn.GRU(D, H)))[0])), TypeError, "params.layers"),
    "bfloat16": ((PLAIN, fill(shapes(PLAIN)[0], jnp.bfloat16)), ValueError, "got bfloat16"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_saved_is_told(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        onnx.save(*arguments, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
