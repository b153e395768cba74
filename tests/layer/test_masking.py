"""Masks and resets: against plain runs of the pieces that they make of a sequence, and what stands at masked steps."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem, autodiff

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
T, B = 9, 3
REAL = 3  # steps in every piece, so that one program serves them all


def pieces(breaks):
    """Draws a mask and resets that cut every sequence into pieces of `REAL` real steps.

    Returns:
        mask and reset [T, B], or None for what is not asked for, and a list of (sequence, whether its state goes on,
        the real steps) in order of time.
    """
    random = np.random.default_rng(6)
    mask, reset, found = np.zeros((T, B), bool), np.zeros((T, B), bool), []
    for b in range(B):
        count = {"mask": 1, "reset": 3, "both": 2}[breaks]
        real = np.sort(random.permutation(T)[: count * REAL])
        mask[real, b] = True
        reset[0, b] = breaks != "mask" and b == 0
        runs = real.reshape(count, REAL)
        for i, steps in enumerate(runs):
            if i > 0:  # at the piece's first real step, or at a masked one before it
                reset[random.integers(runs[i - 1][-1] + 1, steps[0] + 1), b] = True
            found.append((b, i == 0 and not reset[0, b], steps))
    return jnp.asarray(mask) if breaks != "reset" else None, jnp.asarray(reset) if breaks != "mask" else None, found


@functools.cache
def of_a_piece(net):
    run = lambda params, *a: net.loss(params, *a, return_state=True)
    return jax.jit(jax.value_and_grad(run, has_aux=True))


@pytest.mark.parametrize("breaks", ["mask", "reset", "both"])
@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM", "user"])
def test_the_loss_is_that_of_the_pieces(Cell, breaks):
    """Packed equals apart, padded equals cut, with holes equals without; gradient and final state too."""
    problem = Problem(CELLS[Cell], weighted=True, stateful=True)
    mask, reset, runs = pieces(breaks)
    given = problem.arguments()._replace(mask=mask, reset=reset)
    found, final = [], {}
    for b, goes_on, steps in runs:
        state = jax.tree.map(lambda leaf, b=b: leaf[b], given.state)
        state = state if goes_on else problem.net.initial_state((), jnp.float64)
        sequence = (array[steps, b] for array in (given.inputs, given.targets, given.weights))
        (E, final[b]), grads = of_a_piece(problem.net)(given.params, *sequence, state)
        found.append((E, grads))
    E, grads = jax.tree.map(lambda *leaves: sum(leaves), *found)
    final = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(final[b] for b in range(B)))
    by_hand = jax.jit(jaxrnn.value_and_grad(problem.net, 3, return_state=True))
    assert relative_error(by_hand(*given), ((E, final), grads)) <= EXACT


def test_the_pieces_are_as_they_are_said_to_be():
    mask, reset, runs = pieces("both")
    assert [len(steps) for _, _, steps in runs] == [REAL] * 2 * B
    assert int(mask.sum()) == 2 * B * REAL
    assert reset[:, 0].sum() == 2
    assert reset[:, 1].sum() == 1
    for (b, _, before), (c, _, after) in itertools.pairwise(runs):
        assert b != c or bool(reset[before[-1] + 1 : after[0] + 1, b].any())


ANY = Problem(jaxrnn.GRU, depth=2, stateful=True, weighted=True, masked=True, reset=True)


@functools.cache
def both_gradients():
    by_hand = jaxrnn.value_and_grad(ANY.net, 4, return_state=True)
    truth = jax.value_and_grad(lambda *a: ANY.net.loss(*a, return_state=True), has_aux=True)
    return jax.jit(lambda *a: (by_hand(*a), truth(*a)))


@hypothesis.given(st.lists(st.booleans(), min_size=2 * T * B, max_size=2 * T * B))
@hypothesis.settings(max_examples=50)
@hypothesis.example([True] * 2 * T * B)
@hypothesis.example([False, True] * T * B)
def test_any_mask_and_any_resets(flags):
    """One program for all of them: whole sequences masked, resets at the first step, at masked steps, and none."""
    mask, reset = jnp.array(flags).reshape(2, T, B)
    by_hand, truth = both_gradients()(*ANY.arguments()._replace(mask=mask, reset=reset))
    assert relative_error(by_hand, truth) <= EXACT


ROWS = pairwise(
    {
        "Cell": ("Elman", "GRU", "GRU before", "LSTM", "user"),
        "gradient": ("bptt", "autodiff"),
        "tokens": (False, True),
        "jit": (True, False),
        "depth": (1, 2),
    }
)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_what_stands_at_a_masked_step_is_of_no_consequence(row):
    """NaN, tokens and labels out of range, and NaN weights change no bit of loss or gradient.

    And where all steps are masked, the loss and its gradient are zero.
    """
    options = {"depth": row["depth"], "tokens": row["tokens"], "masked": True, "reset": True}
    problem = Problem(CELLS[row["Cell"]], T=5, weighted=True, stateful=True, **options)
    net, given = problem.net, problem.arguments()
    function = jaxrnn.value_and_grad(net) if row["gradient"] == "bptt" else jax.value_and_grad(net.loss)
    function = jax.jit(function) if row["jit"] else function
    there = given.mask if row["tokens"] else given.mask[..., None]
    garbled = given._replace(
        inputs=jnp.where(there, given.inputs, 10**6 if row["tokens"] else jnp.nan),
        targets=jnp.where(given.mask, given.targets, -7),
        weights=jnp.where(given.mask, given.weights, jnp.nan),
    )
    clean = function(*given)
    assert relative_error(function(*garbled), clean) == 0
    (E, _), grads = autodiff(problem)
    assert relative_error(clean, (E, grads)) <= EXACT
    E, grads = function(*given._replace(mask=given.mask & False))
    assert E == 0
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))


def test_a_mask_of_nothing_holds_the_state():
    """Whatever the weights would be by default: the number of steps is zero."""
    problem = Problem(jaxrnn.LSTM, depth=2, stateful=True, masked=True)
    given = problem.arguments()
    given = given._replace(mask=given.mask & False)
    (E, final), grads = jaxrnn.value_and_grad(problem.net, return_state=True)(*given)
    assert E == 0
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))
    assert relative_error(final, given.state) == 0


def test_masked_inputs_get_no_gradient():
    problem = Problem(masked=True)
    cell, params, inputs, _ = problem.layer()
    mask = problem.flags()["mask"]
    inputs = jnp.where(mask[..., None], inputs, jnp.nan)
    dx = jax.grad(lambda inputs: jaxrnn.unroll(cell, params, inputs, mask=mask)[0].sum())(inputs)
    assert jnp.all((dx == 0).all(-1) == ~mask)


def test_default_weights_count_the_steps_that_are_there():
    problem = Problem(masked=True, reset=True)
    given = problem.arguments()
    weights = given.mask / given.mask.sum()
    assert relative_error(problem.net.loss(*given), problem.net.loss(*given._replace(weights=weights))) <= EXACT


def test_lengths_make_the_mask():
    mask = jaxrnn.lengths_to_mask(jnp.array([[0, 2], [3, 1]]), 3)
    assert mask.shape == (3, 2, 2)
    assert mask.sum(0).tolist() == [[0, 2], [3, 1]]
    assert mask[:, 0, 1].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([4], ValueError, "lengths must lie in 0 .. T = 3"),
        ([-1], ValueError, "lengths must lie in 0 .. T = 3"),
        ([1.0], TypeError, "lengths must be integers"),
    ],
)
def test_wrong_lengths_are_told(lengths, error, words):
    with pytest.raises(error, match=words):
        jaxrnn.lengths_to_mask(jnp.array(lengths), 3)


@pytest.mark.parametrize("name", ["mask", "reset"])
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.ones((T, B)), TypeError, "must be boolean, got dtype float64"),
        (np.ones((T, B), int), TypeError, "must be boolean, got dtype int64"),
        (np.ones((B, T), bool), ValueError, "time comes first"),
        (np.ones(T, bool), ValueError, "nothing is broadcast"),
    ],
)
def test_wrong_masks_and_resets_are_told(name, value, error, words):
    problem = Problem()
    cell, params, inputs, _ = problem.layer()
    arguments = problem.arguments()[:3]
    calls = [
        lambda **flags: jaxrnn.unroll(cell, params, inputs, **flags),
        lambda **flags: problem.net.loss(*arguments, **flags),
        lambda **flags: jaxrnn.value_and_grad(problem.net)(*arguments, **flags),
    ]
    for call in calls:
        with pytest.raises(error, match=f"{name} .*{words}"):
            call(**{name: value})
