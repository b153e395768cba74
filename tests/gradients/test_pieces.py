"""The plain twin of the truncations: its gradient is theirs, and its value is E."""

import jax
import jax.numpy as jnp
import pytest
from oracles import central_difference, inner, relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem

import jaxrnn
from jaxrnn.gradients.pieces import loss_of_pieces

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
OPTIONS = {
    "Cell": ("Elman", "LSTM", "user"),
    "truncate": (jaxrnn.Carried(4), jaxrnn.Window(3), jaxrnn.Tail(4)),
    "masked": (False, True),
    "reset": (False, True),
    "learn_state": (False, True),
}
ROWS = pairwise(OPTIONS)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_its_gradient_is_that_of_the_truncation(row):
    choice = dict(row)
    truncate = choice.pop("truncate")
    problem = Problem(CELLS[choice.pop("Cell")], **choice)
    params, inputs, targets, _, _, mask, reset, _ = problem.arguments()
    given = {"inputs": inputs, "targets": targets, "mask": mask, "reset": reset}
    run = jax.value_and_grad(lambda params, held: loss_of_pieces(problem.net, truncate, params, held, **given))
    by_hand = jax.jit(jaxrnn.value_and_grad(problem.net, truncate=truncate))(params, **given)
    assert relative_error(by_hand, jax.jit(run)(params, params)) <= EXACT


def test_differences_see_it_too():
    """What is held is not moved: the derivative along a direction is that of the truncated gradient."""
    problem = Problem(jaxrnn.GRU)
    params, inputs, targets, *_ = problem.arguments()
    truncate, direction = jaxrnn.Carried(3), Problem(jaxrnn.GRU, seed=3).params()
    loss = jax.jit(lambda moved: loss_of_pieces(problem.net, truncate, moved, params, inputs, targets))
    _, grads = jaxrnn.value_and_grad(problem.net, truncate=truncate)(params, inputs, targets)
    _, full = jaxrnn.value_and_grad(problem.net)(params, inputs, targets)
    found = central_difference(loss, params, direction)
    assert abs(found / inner(grads, direction) - 1) <= 1e-8
    assert abs(found / inner(full, direction) - 1) > 1e-3


def test_one_answer_for_a_sequence_is_refused():
    problem = Problem(last_step=True)
    params, inputs, targets, *_ = problem.arguments()
    with pytest.raises(ValueError, match="net must have a loss at every step, not last_step"):
        loss_of_pieces(problem.net, jaxrnn.Tail(3), params, params, inputs, jnp.zeros_like(targets))
