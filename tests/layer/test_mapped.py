"""vmap of `unroll`: one larger batch where parameters are not mapped; the gradient of a loop over sequences anyway."""

import functools

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import CELLS, Problem

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
T, B = 5, 3


def problem(Cell, **options):
    """Returns a layer, its parameters, inputs [B, T, D], and mask and reset [B, T]."""
    made = Problem(CELLS[Cell], T=T, batch=(B,), D=3, H=4, masked=True, reset=True, **options)
    cell, params, inputs, _ = made.layer()
    return cell, params, *(jnp.swapaxes(array, 0, 1) for array in (inputs, *made.flags().values()))


def loss(cell, gradient, params, x, mask, reset, state=None):
    hidden, final = jaxrnn.unroll(cell, params, x, state, mask=mask, reset=reset, gradient=gradient)
    return jnp.sin(3 * hidden).sum() + sum(jnp.cos(2 * leaf).sum() for leaf in jax.tree.leaves(final))


def products(function, *arguments):
    """Returns the shapes of the results of all matrix products in the program of a function."""
    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                sizes.append(equation.outvars[0].aval.shape)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return sizes


@pytest.mark.parametrize("Cell", ["Elman", "GRU", "LSTM", "user"])
def test_the_gradient_is_that_of_autodiff(Cell):
    """To shared parameters and mapped inputs; the inputs mapped at another axis, flags at another or not at all."""
    cell, params, x, mask, reset = problem(Cell)

    def total(gradient, params, x, mask, reset):
        one = functools.partial(loss, cell, gradient)
        first = jax.vmap(one, (None, 0, 0, 0))(params, x, mask, reset).sum()
        return first + jax.vmap(one, (None, 1, None, 0))(params, jnp.swapaxes(x, 0, 1), mask[0], reset).sum()

    found, truth = (
        jax.jit(jax.grad(functools.partial(total, gradient), argnums=(0, 1)))(params, x, mask, reset)
        for gradient in ("bptt", "autodiff")
    )
    assert relative_error(found, truth) <= EXACT


def test_no_sequence_has_a_weight_gradient_of_its_own():
    """In `grad` of `vmap`; in `vmap` of `grad` each has one."""
    cell, params, x, mask, reset = problem("LSTM")
    one = functools.partial(loss, cell, "bptt")
    mapped = jax.vmap(one, (None, 0, 0, 0))
    of_sum = products(jax.grad(lambda *a: mapped(*a).sum()), params, x, mask, reset)
    of_each = products(jax.vmap(jax.grad(one), (None, 0, 0, 0)), params, x, mask, reset)
    per_sequence = {(B, 16, 4), (B, 4, 16), (16, B, 4), (4, B, 16)}
    assert per_sequence.isdisjoint(of_sum)
    assert not per_sequence.isdisjoint(of_each)


def batches(one):
    return jax.vmap(one, (None, 0, 0, 0))


COMPOSITIONS = {
    "jit of vmap": lambda one: lambda *a: jax.jit(batches(one))(*a).sum(),
    "vmap of jit": lambda one: lambda *a: batches(jax.jit(one))(*a).sum(),
    "vmap of checkpoint": lambda one: lambda *a: batches(jax.checkpoint(one))(*a).sum(),
    "checkpoint of vmap": lambda one: lambda *a: jax.checkpoint(batches(one))(*a).sum(),
    "vmap twice": lambda one: (
        lambda p, x, m, r: jax.vmap(batches(one), (None, 0, None, 0))(p, jnp.stack([x, 2 * x]), m, jnp.stack([r, ~r]))
    ),
    "vmap over parameters inside": lambda one: (
        lambda p, *a: batches(lambda p, *a: jax.vmap(one, (0, None, None, None))(p, *a))(doubled(p), *a).sum()
    ),
    "vmap over parameters outside": lambda one: (
        lambda p, *a: jax.vmap(batches(one), (0, None, None, None))(doubled(p), *a).sum()
    ),
    "vmap of scan": lambda one: (
        lambda p, *a: batches(lambda *a: jax.lax.scan(lambda c, _: (c + one(*a), None), 0.0, None, 2)[0])(p, *a).sum()
    ),
    "per sequence": lambda one: (
        lambda p, *a: sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(batches(jax.grad(one))(p, *a)))
    ),
}


def sharded(one):
    """Runs a vmap on each device of a mesh, parameters shared."""
    rows = jax.P("devices")
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.shard_map(batches(one), mesh=mesh, in_specs=(jax.P(), rows, rows, rows), out_specs=rows)
    return lambda *a: whole(*a).sum()


COMPOSITIONS["shard_map of vmap"] = sharded


def doubled(params):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)


@pytest.mark.parametrize("compose", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_it_composes(compose):
    cell, params, *arrays = problem("GRU")

    def gradient(rule):
        run = compose(functools.partial(loss, cell, rule))
        return jax.jit(jax.grad(lambda params: jnp.sum(run(params, *arrays))))(params)

    assert relative_error(gradient("bptt"), gradient("autodiff")) <= EXACT


def test_it_runs_without_jit_and_keeps_forward_mode_an_error():
    cell, params, *arrays = problem("Elman")
    run = lambda gradient, params: batches(functools.partial(loss, cell, gradient))(params, *arrays).sum()
    found = jax.value_and_grad(functools.partial(run, "bptt"))(params)
    assert relative_error(found, jax.value_and_grad(functools.partial(run, "autodiff"))(params)) <= EXACT
    with pytest.raises(TypeError, match='gradient="autodiff"'):
        jax.jvp(functools.partial(run, "bptt"), (params,), (params,))


def test_a_bidirectional_layer_and_an_unmapped_state():
    layer, params, x, mask, reset = problem("GRU", both_ways=True)
    state = jax.tree.map(lambda leaf: leaf + 0.3, layer.initial_state((), jnp.float64))

    def total(gradient, params, state):
        return jax.vmap(lambda *a: loss(layer, gradient, params, *a, state))(x, mask, reset).sum()

    found, truth = (
        jax.jit(jax.grad(functools.partial(total, gradient), argnums=(0, 1)))(params, state)
        for gradient in ("bptt", "autodiff")
    )
    assert relative_error(found, truth) <= EXACT
