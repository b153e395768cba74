"""What each sequence of a batch adds to the gradient, as a norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem

from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")


ROWS = pairwise(
    {
        "Cell": tuple(CELLS),
        "depth": (1, 2),
        "tokens": (False, True),
        "stateful": (False, True),
        "masked": (False, True),
        "reset": (False, True),
    }
)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_per_example_norms_are_those_of_gradients_per_example(row):
    problem = Problem(**row | {"Cell": CELLS[row["Cell"]], "weighted": True})
    given = problem.arguments()[:7]
    found = flow.per_example_gradient_norms(problem.net, *given)
    axes = (None, *(None if array is None else axis for array, axis in zip(given[1:], (1, 1, 1, 0, 1, 1), strict=True)))
    grads = jax.jit(jax.vmap(jax.grad(problem.net.loss), axes))(*given)
    expected = jax.tree.map(lambda leaf: jnp.sqrt(jnp.sum(leaf * leaf, axis=tuple(range(1, leaf.ndim)))), grads.layers)
    assert relative_error(found.layers, expected) <= 1e-10
    assert np.allclose(found.total, np.sqrt(sum(leaf**2 for leaf in jax.tree.leaves(expected))), rtol=1e-10)
