"""What the reverse scan carries, as `return_flow` gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from problems import CELLS, Problem, autodiff

import jaxrnn
from jaxrnn import flow

pytestmark = pytest.mark.usefixtures("float64")
EXACT = 1e-12
PLAIN = {"D": 3, "H": 6, "V": 4, "fresh": True}


@pytest.mark.parametrize(
    ("Cell", "options"),
    [
        ("Elman", {}),
        ("GRU", {"segment": 4}),
        ("LSTM", {"recompute": True}),
        ("user", {"memory_budget": 10**6}),
        ("LSTM", {"segment": 4}),
    ],
    ids=str,
)
def test_the_free_flow_is_the_sum_over_t(Cell, options):
    """|delta_k| and |dE/ds_k| of the sweep: of sums over t of what `terms` gives term by term."""
    problem = Problem(CELLS[Cell], 2, weighted=True, stateful=True, masked=True, reset=True)
    run = jax.jit(jaxrnn.value_and_grad(problem.net, return_state=True, return_flow=True, **options))
    (E, final, found), grads = run(*problem.arguments())
    assert relative_error(((E, final), grads), autodiff(problem)) <= EXACT
    values = flow.terms(problem.net, *problem.arguments()[:7], return_values=True).values
    for norms, delta in zip(found, values, strict=True):
        summed = [np.asarray(leaf).sum(0).reshape(problem.T, -1) for leaf in jax.tree.leaves(delta)]
        assert np.allclose(norms.delta, np.sqrt(sum((leaf**2).sum(1) for leaf in summed)), rtol=1e-10)


def test_the_adjoint_is_what_all_later_losses_ask():
    """|dE/ds_t| against `jax.grad` of the loss of a step and of all that follow, by the state that they go on from."""
    problem = Problem(T=5, batch=(2,), **PLAIN)
    net, (params, inputs, targets, *_) = problem.net, problem.arguments()
    weights = jnp.full((5, 2), 0.1)
    (_, (found,)), _ = jax.jit(jaxrnn.value_and_grad(net, return_flow=True))(params, inputs, targets, weights)
    states, _ = jaxrnn.unroll(net.layers[0], params.layers[0], inputs)

    def later(state, t):
        E = 0.1 * jnp.sum(net.objective(net.readout.apply(params.readout, state), targets[t]))
        after = slice(t + 1, None)
        return E + (net.loss(params, inputs[after], targets[after], weights[after], (state,)) if t < 4 else 0)

    expected = [jnp.linalg.norm(jax.jit(jax.grad(later), static_argnums=1)(states[t], t)) for t in range(5)]
    assert np.allclose(found.adjoint, expected, rtol=1e-12)


def test_the_flow_of_a_tail_and_of_chunks():
    problem = Problem(T=12, batch=(2,), **PLAIN)
    net, (params, inputs, targets, *_) = problem.net, problem.arguments()

    def run(**options):
        return jax.jit(jaxrnn.value_and_grad(net, return_flow=True, **options))(params, inputs, targets)[0][1][0]

    whole, tail, chunks = run(), run(truncate=jaxrnn.Tail(5)), run(truncate=jaxrnn.Carried(4))
    assert np.all(tail.delta[:7] == 0)
    assert np.allclose(tail.delta[7:], whole.delta[7:], rtol=1e-12)
    assert np.allclose(chunks.delta[8:], whole.delta[8:], rtol=1e-12)
    assert not np.allclose(chunks.delta[4:8], whole.delta[4:8], rtol=1e-3)
