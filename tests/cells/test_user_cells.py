"""A user's own cell: given by `step` alone, and with its adjoint by hand; a plain state, and a NamedTuple."""

import jax
import pytest
from oracles import relative_error
from problems import Problem, autodiff
from user_cells import Glider, GliderByHand, Leaky, LeakyByHand

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12


def between(Cell):
    """Returns a function that makes the cell for layers 1 and 3, and another kind for the layer between them."""
    return lambda inputs, hidden: (jaxrnn.Elman if (inputs, hidden) == (4, 5) else Cell)(inputs, hidden)


@pytest.mark.parametrize(
    ("Cell", "ByHand", "tokens"),
    [(Leaky, LeakyByHand, False), (Glider, GliderByHand, False), (Leaky, LeakyByHand, True)],
)
def test_below_and_above_layers_of_another_kind(Cell, ByHand, tokens):
    """The gradient is that of autodiff, and an adjoint by hand gives what the step alone gives."""
    options = {"T": 7, "D": 3, "hidden": (4, 5, 4), "tokens": tokens, "weighted": True}
    by_step, by_hand = (Problem(between(kind), **options) for kind in (Cell, ByHand))
    (E, final), grads = autodiff(by_step)
    alone = jax.jit(jaxrnn.value_and_grad(by_step.net, 3))(*by_step.arguments())
    assert relative_error(alone, (E, grads)) <= EXACT
    by_hand_too = jax.jit(jaxrnn.value_and_grad(by_hand.net, 3, return_state=True))(*by_hand.arguments())
    assert relative_error(by_hand_too, ((E, final), grads)) <= EXACT


def test_equal_cells_are_equal_and_hash_alike():
    assert Leaky(3, 4, 0.5) == Leaky(3, 4, 0.5)
    assert hash(Leaky(3, 4, 0.5)) == hash(Leaky(3, 4, 0.5))
    assert Leaky(3, 4, 0.5) != Leaky(3, 4, 0.25)
