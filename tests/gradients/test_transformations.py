"""vmap either way round, per-example gradients, forward mode, and derivatives inside other loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import CELLS, KEY, Problem

import jaxrnn

EXACT = 1e-12
B = 4
ALL = {"learn_state": True, "dropout": 0.3, "recurrent_dropout": 0.3}
VARIANTS = {
    "Elman": Problem(CELLS["Elman"], 2),
    "GRU, last step": Problem(CELLS["GRU"], 2, last_step=True),
    "LSTM, all options": Problem(CELLS["LSTM"], 2, **ALL),
    "Elman, both ways": Problem(CELLS["Elman"], 2, both_ways=True, merge="sum", **ALL),
    "GRU, both ways": Problem(CELLS["GRU"], 2, both_ways=True, merge="sum", **ALL),
    "GRU before": Problem(CELLS["GRU before"], recurrent_dropout=0.3),
}


def sequences(problem):
    """Returns parameters, and for every sequence inputs, targets, mask, reset, key: [B, T, ...]."""
    given = dataclasses.replace(problem, T=6, batch=(B,), masked=True, reset=True).arguments()
    turned = [jnp.swapaxes(array, 0, 1) for array in (given.inputs, given.mask, given.reset)]
    targets = given.targets if problem.last_step else jnp.swapaxes(given.targets, 0, 1)
    return given.params, (turned[0], targets, *turned[1:], jax.random.split(KEY, B))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_vmap_either_way_round_is_a_loop_over_sequences(variant):
    net, (params, arrays) = VARIANTS[variant].net, sequences(VARIANTS[variant])

    def loss(params, inputs, targets, mask, reset, key, gradient="bptt"):
        return net.loss(params, inputs, targets, None, None, mask, reset, key, gradient=gradient)

    def by_hand(params, inputs, targets, mask, reset, key):
        return jaxrnn.value_and_grad(net, 4)(params, inputs, targets, None, None, mask, reset, key)[1]

    each = (None, *(0,) * len(arrays))
    truth = jax.jit(jax.grad(functools.partial(loss, gradient="autodiff")))
    one_by_one = [truth(params, *(array[b] for array in arrays)) for b in range(B)]
    per_example = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    assert relative_error(jax.jit(jax.vmap(jax.grad(loss), each))(params, *arrays), per_example) <= EXACT
    assert relative_error(jax.jit(jax.vmap(by_hand, each))(params, *arrays), per_example) <= EXACT
    summed = jax.jit(jax.grad(lambda params: jax.vmap(loss, each)(params, *arrays).sum()))(params)
    assert relative_error(summed, jax.tree.map(lambda leaf: leaf.sum(0), per_example)) <= EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", ["Elman", "GRU", "LSTM"])
def test_vmap_is_the_batch(Cell):
    """With mask and resets, which differ from sequence to sequence."""
    problem = Problem(CELLS[Cell], T=6, masked=True, reset=True)
    given = problem.arguments()
    weights = jnp.ones(given.targets.shape)
    batch = jax.jit(jaxrnn.value_and_grad(problem.net))(*given._replace(weights=weights))

    def loss(params):
        one = lambda x, y, m, r: problem.net.loss(params, x, y, weights[:, 0], None, m, r, gradient="bptt")
        return jax.vmap(one, 1)(given.inputs, given.targets, given.mask, given.reset).sum()

    assert relative_error(jax.jit(jax.value_and_grad(loss))(given.params), batch) <= EXACT


def unrolled(gradient):
    cell, params, inputs, _ = Problem(jaxrnn.GRU, T=6).layer(jnp.float32)
    return lambda params: jnp.sum(jaxrnn.unroll(cell, params, inputs, gradient=gradient)[0] ** 2), params


FORWARD_MODE = {
    "jvp": lambda f, p: jax.jvp(f, (p,), (p,)),
    "jvp in jit": lambda f, p: jax.jit(lambda p: jax.jvp(f, (p,), (p,)))(p),
    "jvp of jit": lambda f, p: jax.jvp(jax.jit(f), (p,), (p,)),
    "hessian": lambda f, p: jax.jit(jax.hessian(f))(p),
    "jacfwd": lambda f, p: jax.jacfwd(jax.jit(f))(p),
    "linearize": lambda f, p: jax.linearize(f, p)[1](p),
}


@pytest.mark.parametrize("differentiate", FORWARD_MODE.values(), ids=FORWARD_MODE)
def test_forward_mode_of_the_reverse_scan_names_the_way_out(differentiate):
    function, params = unrolled("bptt")
    with pytest.raises(TypeError, match='gradient="autodiff"'):
        differentiate(function, params)
    differentiate(*unrolled("autodiff"))


@pytest.mark.usefixtures("float64")
def test_reverse_mode_works_inside_scan_and_checkpoint_and_twice():
    def nested(f):
        body = lambda carry, _: (carry + jax.checkpoint(f)(carry), None)
        return lambda x: jax.lax.scan(body, x, None, length=2)[0].sum()

    def gradients(gradient):
        cell, params, inputs, _ = Problem(jaxrnn.LSTM, T=6, batch=()).layer()
        run = lambda inputs: jnp.tanh(jaxrnn.unroll(cell, params, inputs, gradient=gradient)[0][..., : cell.inputs])
        once = jax.jit(jax.grad(nested(run)))
        return once(inputs), jax.jit(jax.grad(lambda x: jnp.sum(once(x) ** 2)))(inputs)

    assert relative_error(gradients("bptt"), gradients("autodiff")) <= EXACT
