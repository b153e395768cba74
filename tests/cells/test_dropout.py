"""Recurrent dropout within a cell: what the recurrent products see of a state."""

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import CELLS, KEY, Problem
from user_cells import Leaky

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "GRU before", "LSTM"])
def test_it_is_what_the_products_see(Cell):
    """With W diag(keep) for W, one sequence at a time."""
    problem = Problem(CELLS[Cell])
    cell, params, inputs, _ = problem.layer()
    keep = jax.random.bernoulli(KEY, 0.5, (3, problem.H)) / 0.5
    hidden, _ = jaxrnn.unroll(cell, params, inputs, dropout_mask=keep)
    for b in range(3):
        alone, _ = jaxrnn.unroll(cell, params._replace(W=params.W * keep[b]), inputs[:, b])
        assert relative_error(hidden[:, b], alone) <= EXACT


def test_one_of_another_shape_is_told():
    cell, params, inputs, _ = Problem().layer()
    with pytest.raises(ValueError, match="dropout_mask must have shape"):
        jaxrnn.unroll(cell, params, inputs, dropout_mask=jnp.ones((9, 3, 5)))


def test_a_cell_without_it_says_so():
    problem = Problem(Leaky, recurrent_dropout=0.5)
    with pytest.raises(TypeError, match="with_dropout"):
        problem.net.loss(*problem.arguments())
