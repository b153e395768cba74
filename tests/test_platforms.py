"""Programs for accelerators, lowered where there is none: everything public has one, and its loops are lean."""

import functools

import jax
import jax.numpy as jnp
import pytest
from problems import CELLS, KEY, Problem
from programs import loop_operations, product_precisions

import jaxrnn

PLATFORMS = ("cpu", "cuda", "tpu")
DEEP = Problem(jaxrnn.LSTM, depth=2, masked=True, reset=True, recurrent_dropout=0.2, fresh=True)
PLAIN = Problem(jaxrnn.GRU, fresh=True)


def lower(function, *arguments, platforms=PLATFORMS):
    return jax.export.export(jax.jit(function), platforms=platforms)(*arguments)


def layer(function):
    """Returns the gradient of a function of a layer, and what it is taken of."""
    given = PLAIN.arguments(jnp.float32)
    loss = jax.grad(lambda params, inputs: function(PLAIN.net.layers[0], params, inputs)[0].sum(), argnums=(0, 1))
    return loss, given.params.layers[0], given.inputs


WAYS = {
    "whole": {},
    "segments": {"segment": 4},
    "bfloat16": {"compute_dtype": jnp.bfloat16},
    "recompute": {"recompute": "states", "return_flow": True, "return_state": True},
    "Carried": {"truncate": jaxrnn.Carried(3)},
    "Window": {"truncate": jaxrnn.Window(3, tolerance=1e-3), "return_lags": True},
    "Tail": {"truncate": jaxrnn.Tail(3)},
    "clip": {"clip": 1.0},
    "budget": {"memory_budget": 10**6},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_gradient_has_a_program_for_every_platform(way):
    exported = lower(jaxrnn.value_and_grad(DEEP.net, **WAYS[way]), *DEEP.arguments(jnp.float32))
    assert exported.platforms == PLATFORMS


@pytest.mark.parametrize("method", ["rtrl", "snap1", "rflo"])
def test_online_learning_has_a_program_for_every_platform(method):
    lower(jaxrnn.online.value_and_grad(PLAIN.net, method=method), *PLAIN.arguments(jnp.float32)[:3])


LAYERS = {
    "unroll": jaxrnn.unroll,
    "gates": functools.partial(jaxrnn.unroll, recompute="gates"),
    "associative": functools.partial(jaxrnn.unroll, backward="associative"),
    "autodiff": functools.partial(jaxrnn.unroll, gradient="autodiff"),
    "deer": jaxrnn.deer,
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_way_through_a_layer_has_a_program_for_every_platform(name):
    lower(*layer(LAYERS[name]))


def test_the_model_has_a_program_for_every_platform():
    params, inputs, targets, *_ = DEEP.arguments(jnp.float32)
    lower(DEEP.net.init, KEY)
    lower(DEEP.net.apply, params, inputs)
    lower(DEEP.net.loss, params, inputs, targets)
    for objective in (jaxrnn.squared_error, jaxrnn.sigmoid_cross_entropy):
        lower(objective, jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    lower(lambda lengths: jaxrnn.lengths_to_mask(lengths, 5), jnp.array([2, 5]))
    both = Problem(jaxrnn.Elman, depth=2, both_ways=True, tokens=True, last_step=True, fresh=True)
    lower(jaxrnn.value_and_grad(both.net), *both.arguments(jnp.float32))


def without_targets(view, **options):
    return lambda net, params, inputs, targets: view(net, params, inputs, **options)


VIEWS = {
    "terms": lambda *given: jaxrnn.flow.horizon(jaxrnn.flow.terms(*given).weights[0].W),
    "per_example_gradient_norms": jaxrnn.flow.per_example_gradient_norms,
    "jacobian_norms": without_targets(jaxrnn.flow.jacobian_norms, key=KEY),
    "jacobians": without_targets(jaxrnn.flow.jacobians),
    "lyapunov_exponents": without_targets(jaxrnn.flow.lyapunov_exponents),
    "saturation": without_targets(jaxrnn.flow.saturation),
}


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_of_flow_has_a_program_for_every_platform(name):
    problem = Problem(jaxrnn.GRU, T=40, fresh=True)
    lower(functools.partial(VIEWS[name], problem.net), *problem.arguments(jnp.float32)[:3])


# What `jax.default_matmul_precision` is set to, and what products then ask for: "" is DEFAULT, which is not printed.
PRECISIONS = {"highest": "HIGHEST", "tensorfloat32": "HIGH", "bfloat16": "", "TF32_TF32_F32": "tf32"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_product_has_the_precision_that_is_set(precision):
    given = DEEP.arguments(jnp.float32)
    for function in (jaxrnn.value_and_grad(DEEP.net), jax.value_and_grad(DEEP.net.loss)):
        with jax.default_matmul_precision(precision):
            exported = lower(function, *given, platforms=("cuda", "tpu"))
        assert product_precisions(exported) == {PRECISIONS[precision]}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "whole"])
def test_no_way_to_a_gradient_has_a_precision_of_its_own(way):
    with jax.default_matmul_precision("highest"):
        exported = lower(jaxrnn.value_and_grad(DEEP.net, **WAYS[way]), *DEEP.arguments(jnp.float32))
    assert product_precisions(exported) == {"HIGHEST"}


@pytest.mark.parametrize("name", LAYERS)
def test_a_precision_that_is_set_within_a_loss_holds_on_the_way_back_too(name):
    def precise(*arguments):
        with jax.default_matmul_precision("highest"):
            return LAYERS[name](*arguments)

    assert product_precisions(lower(*layer(precise))) == {"HIGHEST"}


def test_a_precision_around_the_way_back_alone_reaches_the_products_that_it_reaches_under_autodiff():
    def gradient(params, inputs, way):
        hidden, pull = jax.vjp(lambda p: jaxrnn.unroll(PLAIN.net.layers[0], p, inputs, gradient=way)[0], params)
        with jax.default_matmul_precision("highest"):
            return pull(hidden)

    _, params, inputs = layer(jaxrnn.unroll)
    for way in ("bptt", "autodiff"):
        found = lower(functools.partial(gradient, way=way), params, inputs)
        assert product_precisions(found) == {"", "HIGHEST"}


# Operations in the body of the forward loop and of the reverse one, and with mask and reset. On a CPU each costs about
# a microsecond a step, on a GPU a part of a kernel. jax 0.8 to 0.12 give the same numbers. What makes a loop leaner
# belongs here; what fattens it needs a reason.
OPERATIONS = {
    "Elman": ([8, 12], [18, 23]),
    "relu": ([9, 12], [19, 23]),
    "GRU": ([35, 22], [45, 33]),
    "GRU before": ([29, 27], [39, 38]),
    "LSTM": ([38, 20], [54, 38]),
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("cell", OPERATIONS)
def test_the_loops_are_as_lean_as_they_were(cell, platform):
    for flags, most in zip((False, True), OPERATIONS[cell], strict=True):
        problem = Problem(CELLS[cell], masked=flags, reset=flags)
        given = problem.arguments(jnp.float32)
        found = loop_operations(lower(jaxrnn.value_and_grad(problem.net), *given, platforms=(platform,)))
        by_autodiff = loop_operations(lower(jax.value_and_grad(problem.net.loss), *given, platforms=(platform,)))
        assert [count <= bound for count, bound in zip(found, most, strict=True)] == [True, True], found
        assert sum(found) < sum(by_autodiff)
