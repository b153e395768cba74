"""Loops that take several steps a turn: the same gradients, in fewer turns."""

import jax
import pytest
from oracles import relative_error
from problems import CELLS, Problem
from programs import loop_operations

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")
WAYS = {
    "Elman": {},
    "relu": {"truncate": jaxrnn.Window(3)},
    "GRU": {"segment": 4},
    "GRU before": {"recompute": True},
    "LSTM": {"truncate": jaxrnn.Carried(3)},
    "user": {"segment": 5, "recompute": "gates"},
}


@pytest.mark.parametrize(("cell", "way"), WAYS.items(), ids=str)
def test_gradients_are_the_same(cell, way):
    problem = Problem(CELLS[cell], depth=2, masked=True, reset=True)
    given = problem.arguments()
    one, three = (jaxrnn.value_and_grad(problem.net, **way, unroll=unroll)(*given) for unroll in (1, 3))
    assert relative_error(three, one) < 1e-12


def test_those_of_a_layer_of_chunks_and_of_online_learning_are_the_same():
    problem = Problem(jaxrnn.GRU, masked=True)
    given = problem.arguments()
    cell, params = problem.net.layers[0], given.params.layers[0]

    def of_layer(unroll):
        loss = lambda params: jaxrnn.unroll(cell, params, given.inputs, mask=given.mask, unroll=unroll)[0].sum()
        return jax.grad(loss)(params)

    def of_chunks(unroll):
        chunk = jaxrnn.Chunk(given.inputs, given.targets, mask=given.mask)
        return jaxrnn.value_and_grad_of_chunks(problem.net, unroll=unroll)(given.params, [chunk])

    def online(unroll):
        return jaxrnn.online.value_and_grad(problem.net, unroll=unroll)(*given[:3], mask=given.mask)

    for gradient in (of_layer, of_chunks, online):
        assert relative_error(gradient(3), gradient(1)) < 1e-12


def test_a_turn_takes_so_many_steps():
    problem = Problem(jaxrnn.LSTM, T=8)
    once, twice = (
        loop_operations(jax.export.export(jax.jit(jaxrnn.value_and_grad(problem.net, unroll=n)))(*problem.arguments()))
        for n in (1, 2)
    )
    assert all(1.9 * one < two < 2.4 * one for one, two in zip(once, twice, strict=True)), (once, twice)


@pytest.mark.parametrize("unroll", [0, -1, 1.5, "2"])
def test_a_turn_takes_a_positive_number_of_steps(unroll):
    problem = Problem()
    makers = (
        lambda: jaxrnn.value_and_grad(problem.net, unroll=unroll),
        lambda: jaxrnn.value_and_grad_of_chunks(problem.net, unroll=unroll),
        lambda: jaxrnn.online.value_and_grad(problem.net, unroll=unroll),
        lambda: jaxrnn.unroll(problem.net.layers[0], problem.params().layers[0], None, unroll=unroll),
    )
    for make in makers:
        with pytest.raises((TypeError, ValueError), match="unroll"):
            make()
