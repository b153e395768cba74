"""The three truncations: against the double sum with pairs left out, and against their definitions, piece by piece."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error, softmax
from pairwise import label, pairwise
from problems import CELLS, Problem, autodiff

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
KINDS = [jaxrnn.Carried, jaxrnn.Window, jaxrnn.Tail]


def pairs_kept(truncate, steps):
    """keep[t, j]: whether the loss of step t blames step j."""
    t, j = np.indices((steps, steps))
    chunk = truncate.k
    kept = {
        jaxrnn.Carried: t // chunk == j // chunk,
        jaxrnn.Window: t - j <= truncate.k,
        jaxrnn.Tail: j >= steps - truncate.k,
    }
    return kept[type(truncate)] & (j <= t)


def double_sum(problem, keep):
    """dE/dU, dE/dW, dE/db of one Elman layer over the pairs (t, j) that are kept: NumPy, term by term."""
    params, inputs, targets, *_ = problem.arguments()
    (U, W, b), (V, c) = (jax.tree.map(np.asarray, part) for part in (params.layers[0], params.readout))
    x, y = np.asarray(inputs)[:, 0], np.asarray(targets)[:, 0]
    s = np.zeros((problem.T + 1, len(b)))
    for t in range(problem.T):
        s[t + 1] = np.tanh(W @ s[t] + U @ x[t] + b)
    dU, dW, db = np.zeros_like(U), np.zeros_like(W), np.zeros_like(b)
    for t in range(problem.T):
        e = softmax(V @ s[t + 1] + c) - np.eye(len(c))[y[t]]
        ds = V.T @ e / problem.T
        for j in range(t, -1, -1):
            delta = (1 - s[j + 1] ** 2) * ds
            if keep[t, j]:
                dU, dW, db = dU + np.outer(delta, x[j]), dW + np.outer(delta, s[j]), db + delta
            ds = W.T @ delta
    return dU, dW, db


@pytest.mark.parametrize("k", [1, 4, 10, 11])
@pytest.mark.parametrize("Truncation", KINDS)
def test_it_is_the_double_sum_without_the_pairs_left_out(Truncation, k):
    problem = Problem(T=11, batch=(1,))
    truncate = Truncation(k)
    keep = pairs_kept(truncate, problem.T)
    assert keep.all() == np.tri(problem.T, dtype=bool).all()
    E, grads = jax.jit(jaxrnn.value_and_grad(problem.net, truncate=truncate))(*problem.arguments())
    (E_full, _), full = autodiff(problem)
    assert relative_error(tuple(grads.layers[0]), double_sum(problem, keep)) <= EXACT
    assert relative_error((E, grads.readout), (E_full, full.readout)) <= EXACT
    whole = keep.sum() == problem.T * (problem.T + 1) // 2
    assert (relative_error(grads.layers, full.layers) <= EXACT) == whole
    assert whole == (k >= problem.T - (Truncation is jaxrnn.Window))


@functools.cache
def from_a_step_on(problem):
    """Returns a function of `first` and weights: the gradient by autodiff of a plain scan, one network of one step at a
    time, in which only the steps from `first` on are differentiated; the state before them is a constant."""
    net, given = problem.net, problem.arguments()
    steps = problem.T, *problem.batch
    mask = jnp.ones(steps, bool) if given.mask is None else given.mask
    reset = jnp.zeros(steps, bool) if given.reset is None else given.reset

    def loss(params, first, weights):
        def step(state, x):
            t, inputs, mask, reset, targets, weights = x
            cut = lambda tree, here: jax.tree.map(lambda p: jnp.where(here, jax.lax.stop_gradient(p), p), tree)
            seen = cut(params, t < first)
            state = cut(state, (t == first) & (t > 0))
            outputs, state = net.apply(seen, inputs[None], state, mask[None], reset[None], gradient="autodiff")
            return state, jnp.sum(weights * jnp.where(mask, net.objective(outputs[0], targets), 0))

        zeros = net.initial_state(problem.batch, jnp.float64)
        learned = zeros if params.state is None else params.state
        start = jax.tree.map(lambda s, zero: jnp.broadcast_to(s, zero.shape), learned, zeros)
        start = start if given.state is None else given.state
        start = jax.tree.map(lambda s: jnp.where(first > 0, jax.lax.stop_gradient(s), s), start)
        xs = jnp.arange(problem.T), given.inputs, mask, reset, given.targets, weights
        return jnp.sum(jax.lax.scan(step, start, xs)[1])

    return jax.jit(lambda first, weights: jax.grad(loss)(given.params, first, weights))


def by_definition(problem, truncate):
    """Returns the gradient of a truncation as a sum over its pieces: chunks, windows, or the tail."""
    given, k, T = problem.arguments(), truncate.k, problem.T
    there = jnp.ones((T, *problem.batch)) if given.mask is None else given.mask
    weights = there / there.sum() if given.weights is None else given.weights
    piece, t = from_a_step_on(problem), jnp.arange(T)[:, None]
    if isinstance(truncate, jaxrnn.Carried):
        pieces = [piece(first, jnp.where(t // k == first // k, weights, 0)) for first in range(0, T, k)]
    elif isinstance(truncate, jaxrnn.Window):
        pieces = [piece(max(0, last - k), jnp.where(t == last, weights, 0)) for last in range(T)]
    else:
        pieces = [piece(max(0, T - k), weights)]
    return jax.tree.map(lambda *leaves: sum(leaves), *pieces)._replace(readout=piece(0, weights).readout)


OPTIONS = {
    "Cell": tuple(CELLS),
    "truncate": (*(kind(k) for kind in KINDS for k in (3, 4)), jaxrnn.Window(3, 0.0)),
    "depth": (2, 1),
    "tokens": (False, True),
    "weighted": (False, True),
    "stateful": (False, True),
    "masked": (False, True),
    "reset": (False, True),
    "learn_state": (False, True),
    "residual": (False, True),
    "segment": ("auto", 1, 5, 8),
    "recompute": (False, "gates", True),
    "memory_budget": (None, 10**7),
    "return_flow": (False, True),
    "compute_dtype": (None, "float64"),
}


def allowed(row):
    chosen = row.get("segment", "auto") != "auto" or row.get("recompute", False) is not False
    window = isinstance(row.get("truncate"), jaxrnn.Window)
    return not (
        (row.get("residual") and row.get("depth") == 1)
        or (row.get("memory_budget") and chosen)
        or (window and (chosen or row.get("memory_budget") or row.get("return_flow")))
    )


ROWS = pairwise(OPTIONS, allowed)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_it_is_its_definition(row):
    choice = dict(row)
    names = ("truncate", "segment", "recompute", "memory_budget", "return_flow", "compute_dtype")
    options = {name: choice.pop(name) for name in names}
    problem = Problem(CELLS[choice.pop("Cell")], **choice)
    by_hand = jax.jit(jaxrnn.value_and_grad(problem.net, return_state=True, **options))
    (_, final, *_), grads = by_hand(*problem.arguments())
    assert relative_error(grads, by_definition(problem, row["truncate"])) <= EXACT
    given = problem.arguments()
    expected = problem.net.apply(given.params, given.inputs, given.state, given.mask, given.reset)[1]
    assert relative_error(final, expected) <= EXACT


@pytest.mark.parametrize("truncate", [jaxrnn.Carried(4), jaxrnn.Window(3), jaxrnn.Tail(4)])
def test_one_answer_for_a_sequence(truncate):
    """The only loss is at the end: a window and a tail are the same thing, a chunk is the last one."""
    problem = Problem(jaxrnn.LSTM, depth=2, last_step=True, stateful=True, masked=True)
    net, (params, inputs, targets, weights, state, mask, *_) = problem.net, problem.arguments()
    grads = jax.jit(jaxrnn.value_and_grad(net, truncate=truncate))(*problem.arguments())[1]
    first = 8 if isinstance(truncate, jaxrnn.Carried) else 5
    _, held = net.apply(params, inputs[:first], state, mask[:first])
    there = mask.any(0).astype(float)
    weights = there / there.sum()

    def loss(params):
        """From the state before the last piece; every sequence's last real step may lie before it."""
        outputs, _ = net.apply(params, inputs[first:], held, mask[first:])
        return jnp.sum(weights * jaxrnn.softmax_cross_entropy(outputs, targets))

    assert relative_error(grads, jax.jit(jax.grad(loss))(params)) <= EXACT


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM", "user"])
def test_lags_stop_where_the_terms_fall_under_the_tolerance(Cell):
    """The gradient is within the bound, the bound is not idle, and a smaller tolerance reaches further."""
    problem = Problem(CELLS[Cell], T=120, batch=(2,))
    params, inputs, targets, *_ = problem.arguments()
    params = jax.tree.map(lambda leaf: leaf / 2, params)
    full = jax.jit(jaxrnn.value_and_grad(problem.net))(params, inputs, targets)[1]
    used, errors = [], []
    for tolerance in (1e-1, 1e-3, 1e-6) if Cell == "Elman" else (1e-1, 1e-6):
        options = {"truncate": jaxrnn.Window(200, tolerance), "return_lags": True, "return_state": True}
        (_, _, lags), grads = jax.jit(jaxrnn.value_and_grad(problem.net, **options))(params, inputs, targets)
        used.append(int(lags.used))
        off = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), grads.layers[0], full.layers[0])
        errors.append(max(jax.tree.leaves(off)))
        assert float(lags.last) <= tolerance
        if Cell == "Elman":
            assert max(off.W, off.b) <= lags.bound <= 100 * off.b
    assert used == sorted(used)
    assert used[0] < used[-1] < 119
    assert errors[-1] < 1e-4 * errors[0]


def test_a_window_that_reaches_everything_leaves_nothing_out():
    problem = Problem(weighted=True, stateful=True, masked=True, reset=True)
    given, options = problem.arguments(), {"truncate": jaxrnn.Window(problem.T, 0.0), "return_lags": True}
    run = jax.jit(jaxrnn.value_and_grad(problem.net, **options))
    (_, lags), _ = run(*given)
    assert float(lags.bound) == 0
    (_, lags), grads = run(*given._replace(weights=0 * given.weights))
    assert (int(lags.used), float(lags.last), float(lags.bound)) == (0, 0, 0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


NET = Problem().net
PAIR = Problem(both_ways=True).net
WRONG = {
    "k of zero": (lambda: jaxrnn.Carried(0), ValueError, "k must be at least 1, got 0"),
    "k of a half": (lambda: jaxrnn.Window(0.5), TypeError, "k must be an int"),
    "k negative": (lambda: jaxrnn.Tail(-3), ValueError, "k must be at least 1"),
    "tolerance": (lambda: jaxrnn.Window(3, -1.0), ValueError, "tolerance must be finite and not negative"),
    "a number": (lambda: jaxrnn.value_and_grad(NET, truncate=20), TypeError, "a number does not say which"),
    "segments of a window": (
        lambda: jaxrnn.value_and_grad(NET, 4, truncate=jaxrnn.Window(3)),
        ValueError,
        "it has no segments",
    ),
    "both ways": (
        lambda: jaxrnn.value_and_grad(PAIR, truncate=jaxrnn.Carried(3)),
        ValueError,
        "without bidirectional layers",
    ),
    "lags of what": (lambda: jaxrnn.value_and_grad(NET, return_lags=True), ValueError, "return_lags needs truncate"),
    "recompute": (lambda: jaxrnn.value_and_grad(NET, recompute="all"), ValueError, "recompute must be"),
    "budget and segment": (
        lambda: jaxrnn.value_and_grad(NET, 4, memory_budget=10**6),
        ValueError,
        "memory_budget chooses segment and recompute",
    ),
    "budget of none": (
        lambda: jaxrnn.value_and_grad(NET, memory_budget=0),
        ValueError,
        "memory_budget must be at least",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_a_tolerance_does_not_stop_at_padding():
    """The loss at the end goes back through masked steps first, where every delta is zero and the adjoint is held."""
    net = jaxrnn.Network((jaxrnn.Elman(2, 3),), jaxrnn.Readout(3, 2), jaxrnn.softmax_cross_entropy, last_step=True)
    params, inputs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 2, 2))
    arguments = (params, inputs, jnp.array([0, 1]))
    mask = jaxrnn.lengths_to_mask(jnp.array([4, 5]), 6)
    tolerant = jaxrnn.value_and_grad(net, truncate=jaxrnn.Window(5, tolerance=1e-9))(*arguments, mask=mask)
    assert relative_error(tolerant, jaxrnn.value_and_grad(net)(*arguments, mask=mask)) <= 1e-6
