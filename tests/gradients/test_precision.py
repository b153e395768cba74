"""What dtypes do: float32 as exact as autodiff's, bfloat16 summed in float32, float64 kept; narrow integers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, KEY, Problem, autodiff

import jaxrnn

SINGLE = 1e-5  # float32 against the float64 truth
# An entry of a gradient is a sum over T B rounded products: within two units in its last place either method is as
# exact as float32 allows, and which of them is nearer is luck. For the same reason errors are averaged over networks.
FLOOR = 2 * float(jnp.finfo(jnp.float32).eps)

SIZES = {
    "layers": {"T": 50, "batch": (8,), "D": 8, "hidden": (32, 16), "V": 10},
    "tokens": {"T": 101, "batch": (), "D": 20, "H": 24, "V": 20, "tokens": True},
    "relu": {"Cell": CELLS["relu"], "T": 40, "batch": (4,), "D": 5, "H": 30, "objective": "sigmoid"},
    "deep": {
        "T": 40,
        "batch": (2, 2),
        "hidden": (20, 10, 10),
        "objective": "squared",
        "weighted": True,
        "stateful": True,
    },
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_float32_is_as_good_as_autodiff(sizes):
    """Against the float64 truth: always within 1e-5, and over 32 networks no worse than twice jax.grad."""
    net = Problem(**sizes).net
    autodiff = jax.jit(jax.grad(net.loss))
    by_hand = jax.jit(lambda *a: jaxrnn.value_and_grad(net, 7)(*a)[1])
    by_rule = jax.jit(jax.grad(lambda *a: net.loss(*a, gradient="bptt")))
    errors = []
    for seed in range(32):
        problem = Problem(**sizes, seed=seed)
        truth, single = autodiff(*problem.arguments()), problem.arguments(jnp.float32)
        errors.append([leaf_errors(gradient(*single), truth) for gradient in (autodiff, by_hand, by_rule)])
    own, *ours = np.sqrt(np.mean(np.square(errors), 0))  # [leaf]
    assert np.max(errors) <= SINGLE
    for error in ours:
        assert np.all(error <= 2 * np.maximum(own, FLOOR))


def leaf_errors(grads, truth):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    return [relative_error(a, b) for a, b in zip(*map(jax.tree.leaves, (grads, truth)), strict=True)]


OPTIONS = {
    "Cell": tuple(CELLS),
    "recompute": (False, "gates", True),
    "objective": ("labels", "sigmoid", "squared"),
    "depth": (1, 2),
    "segment": ("auto", 4),
    "memory_budget": (None, 10**7),
    **dict.fromkeys(("both_ways", "last_step", "weighted", "stateful", "masked", "reset"), (False, True)),
}


def allowed(row):
    chosen = row.get("segment", "auto") != "auto" or row.get("recompute")
    return not (row.get("memory_budget") and (chosen or row.get("both_ways")))


ROWS = pairwise(OPTIONS, allowed)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_float32_is_exact_with_every_option(row):
    """The loss and its gradient against the float64 truth."""
    choice = dict(row)
    options = {name: choice.pop(name) for name in ("recompute", "segment", "memory_budget")}
    problem = Problem(CELLS[choice.pop("Cell")], **choice)
    E, grads = jax.jit(jaxrnn.value_and_grad(problem.net, **options))(*problem.arguments(jnp.float32))
    (E_truth, _), truth = autodiff(problem)
    assert {leaf.dtype for leaf in jax.tree.leaves((E, grads))} == {jnp.dtype(jnp.float32)}
    assert relative_error((E, grads), (E_truth, truth)) <= SINGLE


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backward", ["sequential", "associative"])
@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM", "user"])
def test_a_layer_in_float32(Cell, backward):
    """Either way round, with masks and resets and without."""
    problem = Problem(CELLS[Cell], stateful=True, masked=True, reset=True)
    flags = problem.flags() if backward == "sequential" else {}
    reverse = Cell in ("GRU", "user")

    def gradient(dtype, **options):
        cell, params, inputs, state = problem.layer(dtype)
        state = state if backward == "sequential" else None
        run = lambda params: jaxrnn.unroll(cell, params, inputs, state, reverse=reverse, **flags, **options)[0]
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(run(params)))))(params)

    truth = gradient(jnp.float64, gradient="autodiff")
    assert relative_error(gradient(jnp.float32, backward=backward), truth) <= SINGLE


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dtype", "tokens"), [(jnp.bfloat16, False), (jnp.float32, False), (jnp.bfloat16, True)])
def test_bfloat16_parameters_get_finite_gradients_of_their_dtype(dtype, tokens):
    """Whatever the dtype of the data."""
    problem = Problem(D=5, H=6, depth=2, batch=(4,), tokens=tokens, stateful=True)
    given = problem.arguments(dtype)._replace(params=problem.params(jnp.bfloat16))
    E, grads = jax.jit(jaxrnn.value_and_grad(problem.net, 4))(*given)
    (truth, _), expected = autodiff(problem)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((E, grads)))
    assert relative_error((E, grads), (truth, expected)) < 0.1


@pytest.mark.usefixtures("float64")
def test_bfloat16_segments_are_added_in_float32():
    """A sum of a thousand small bfloat16 terms in bfloat16 would stop growing after some hundreds."""
    problem = Problem(T=1024, batch=())
    run = lambda segment: jax.jit(jaxrnn.value_and_grad(problem.net, segment))(*problem.arguments(jnp.bfloat16))
    assert relative_error(run(1), run(1024)) < 0.05


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_bfloat16_computes_in_it_and_sums_in_float32(Cell, both_ways):
    problem = Problem(CELLS[Cell], depth=2, T=6, both_ways=both_ways, merge="sum")
    net, given = problem.net, problem.arguments(jnp.float32)
    E, grads = jax.jit(jaxrnn.value_and_grad(net, 2, compute_dtype=jnp.bfloat16))(*given)
    assert {leaf.dtype for leaf in jax.tree.leaves((E, grads))} == {jnp.dtype(jnp.float32)}
    outputs, final = jax.eval_shape(functools.partial(net.apply, compute_dtype=jnp.bfloat16), *given[:2])
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(final)} == {jnp.dtype(jnp.bfloat16)}
    truth = jax.jit(jax.value_and_grad(net.loss))(*given)
    plain = jax.jit(jax.value_and_grad(functools.partial(net.loss, compute_dtype=jnp.bfloat16)))(*given)
    error = relative_error((E, grads), truth)
    # bfloat16 has 8 bits: 0.4 % a rounding. Exactly equal would mean that nothing was computed in it.
    assert 1e-4 < error < 0.05
    assert error <= 2 * relative_error(plain, truth)


@pytest.mark.parametrize("segment", [1, 7, "auto"])
def test_long_sums_of_bfloat16_are_float32_sums(segment):
    """2,000 equal terms: a bfloat16 sum stops growing at 256 of them."""
    net = jaxrnn.Network((jaxrnn.Elman(1, 1),), jaxrnn.Readout(1, 1), jaxrnn.squared_error)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(net.init, KEY))
    steps = 2000, 1, 1
    value_and_grad = jax.jit(jaxrnn.value_and_grad(net, segment, compute_dtype=jnp.bfloat16))
    E, grads = value_and_grad(params, jnp.ones(steps), jnp.ones(steps), jnp.ones(steps[:2]))
    assert E == 2000
    assert grads.readout.c == -4000


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", ["Elman", "GRU", "LSTM"])
def test_float64_stays_float64(Cell):
    problem = Problem(CELLS[Cell], depth=2)
    found = jax.eval_shape(jaxrnn.value_and_grad(problem.net, return_state=True), *problem.arguments())
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float64)}


GRADIENTS = {
    "segments": lambda net: jaxrnn.value_and_grad(net, 2),
    "states": lambda net: jaxrnn.value_and_grad(net, recompute="states"),
    "carried": lambda net: jaxrnn.value_and_grad(net, truncate=jaxrnn.Carried(7)),
    "window": lambda net: jaxrnn.value_and_grad(net, truncate=jaxrnn.Window(7)),
    "by rule": lambda net: jax.value_and_grad(functools.partial(net.loss, gradient="bptt")),
    "online": lambda net: lambda *given: jaxrnn.online.value_and_grad(net)(*given[:3])[:2],
}
BOTH_WAYS = ("segments", "states", "by rule")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("way", "both_ways"), [*((way, False) for way in GRADIENTS), *((way, True) for way in BOTH_WAYS)]
)
def test_float32_parameters_in_a_float64_computation(way, both_ways):
    """Inputs that are wider than the parameters decide what is computed in; gradients are as the parameters are."""
    problem = Problem(T=7, batch=(3,), both_ways=both_ways)
    params, *others = problem.arguments()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    _, grads = GRADIENTS[way](problem.net)(narrow, *others)
    _, truth = autodiff(problem)
    assert max(leaf_errors(grads, truth)) < 1e-6


def of_layer(run):
    """Returns a layer's gradient through its hidden states alone."""

    def gradient(net, params, inputs, _):
        return jax.grad(lambda params: jnp.sum(jnp.sin(run(net.layers[0], params.layers[0], inputs)[0])))(params)

    return gradient


def of_chunks(net, params, inputs, targets):
    return jaxrnn.value_and_grad_of_chunks(net)(params, [jaxrnn.Chunk(inputs, targets)])[1]


INTEGER_WAYS = {
    "value_and_grad": lambda net, *given: jaxrnn.value_and_grad(net, 2)(*given)[1],
    "online": lambda net, *given: jaxrnn.online.value_and_grad(net)(*given)[1],
    "chunks": of_chunks,
    "terms": lambda net, *given: jaxrnn.flow.terms(net, *given).grads,
    "unroll": of_layer(jaxrnn.unroll),
    "deer": of_layer(jaxrnn.deer),
}
NARROW = [
    *itertools.product(("value_and_grad", "online", "unroll"), ("uint8", "int8"), (257, 300)),
    *itertools.product(("chunks", "terms", "deer"), ("uint8",), (257,)),
    *itertools.product(("value_and_grad",), ("uint16", "int16"), (65537,)),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("way", "dtype", "V"), NARROW)
def test_narrow_integers_are_tokens_and_labels_of_a_larger_vocabulary(way, dtype, V):
    """What counts up to V must not do so in the dtype of the tokens: 256 would be token 0."""
    problem = Problem(T=5, batch=(2,), D=V, H=2, V=V, tokens=True)
    tokens = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 2), endpoint=True)
    tokens[1:3] = 0, V % (np.iinfo(dtype).max + 1)
    truth = lambda inputs, targets: jax.grad(problem.net.loss)(problem.params(), inputs, targets)
    if way in ("unroll", "deer"):
        plain = of_layer(functools.partial(jaxrnn.unroll, gradient="autodiff"))
        truth = lambda *data: plain(problem.net, problem.params(), *data)
    expected = truth(*(jnp.asarray(array, jnp.int32) for array in (tokens[:-1], tokens[1:])))
    narrow = tokens.astype(dtype)
    found = INTEGER_WAYS[way](problem.net, problem.params(), narrow[:-1], narrow[1:])
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_negative_narrow_integers_are_not_a_number(dtype):
    """Under jit, where values are not read."""
    V = 300 if dtype == "int8" else 65537
    problem = Problem(T=2, batch=(), D=V, H=2, V=V, tokens=True)
    good, bad = jnp.zeros(2, dtype), jnp.full(2, -1, dtype)
    loss = jax.jit(lambda *data: problem.net.loss(problem.params(jnp.float32), *data))
    assert np.isnan([loss(bad, good), loss(good, bad)]).all()
    assert np.isfinite(loss(good, good))
