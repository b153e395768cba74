"""Parameters of jaxrnn in models of other libraries: each finds them by itself, and trains them with its optimiser."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop.libraries import B, D, H, T, numbers

import jaxrnn

LAYERS = {
    "GRU that resets before": jaxrnn.GRU(D, H, reset="before"),  # one of its parameters is None
    "both ways": jaxrnn.Bidirectional(jaxrnn.LSTM(D, H), jaxrnn.LSTM(D, H)),
}
OPTIMIZER = optax.adam(0.1)
INPUTS = numbers(T, B, D).astype(jnp.float32)
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def error(layer, params):
    return jnp.mean((jaxrnn.unroll(layer, params, INPUTS)[0] - 0.5) ** 2)


def train(gradient, params, apply_updates=optax.apply_updates):
    """Takes three steps of optax, as most loops do."""
    state = OPTIMIZER.init(params)
    for _ in range(3):
        updates, state = OPTIMIZER.update(gradient(params), state, params)
        params = apply_updates(params, updates)
    return params


def assert_trained(layer, fresh, found):
    expected = train(jax.jit(jax.grad(lambda params: error(layer, params))), fresh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert not np.allclose(jax.tree.leaves(found)[0], jax.tree.leaves(fresh)[0])


@each_layer
def test_equinox(layer):
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        params: Any

        def __init__(self, key):
            self.params = layer.init(key)

    model = Model(jax.random.key(0))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: error(layer, model.params)))
    assert_trained(layer, model.params, train(gradient, model, eqx.apply_updates).params)


@each_layer
def test_flax_linen(layer):
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self):
            return error(layer, self.param("rnn", layer.init))

    fresh = Model().init(jax.random.key(0))
    found = train(jax.jit(jax.grad(Model().apply)), fresh)
    assert_trained(layer, *(variables["params"]["rnn"] for variables in (fresh, found)))


@each_layer
def test_flax_nnx(layer):
    nnx = pytest.importorskip("flax.nnx")
    as_pure = getattr(nnx, "as_pure", None) or nnx.pure

    class Model(nnx.Module):
        def __init__(self, key):
            self.params = nnx.data(jax.tree.map(nnx.Param, layer.init(key)))

        def __call__(self):
            return error(layer, as_pure(self.params))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: model())(model))

    model = Model(jax.random.key(0))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    for _ in range(3):
        step(model, optimizer)
    assert_trained(layer, layer.init(jax.random.key(0)), as_pure(model.params))


@each_layer
def test_haiku(layer):
    hk = pytest.importorskip("haiku")
    from jaxrnn.interop.haiku import get_parameters

    made = []

    class Model(hk.Module):
        def __call__(self):
            made.append(get_parameters("rnn", layer))
            return error(layer, made[-1])

    init, run = hk.without_apply_rng(hk.transform(lambda: Model()()))
    fresh = init(jax.random.key(0))
    assert set(fresh["model"]) == {f"rnn.{name}" for name in names_of(made[0])}
    found = train(jax.jit(jax.grad(run)), fresh)
    gather = lambda params: [params["model"][f"rnn.{name}"] for name in names_of(made[0])]
    assert_trained(layer, *(jax.tree.structure(made[0]).unflatten(gather(params)) for params in (fresh, found)))


def names_of(params):
    """Names every parameter, in the order of leaves."""
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def test_haiku_wants_what_was_made_at_init():
    hk = pytest.importorskip("haiku")
    from jaxrnn.interop.haiku import get_parameters

    run = hk.without_apply_rng(hk.transform(lambda: get_parameters("rnn", jaxrnn.Elman(D, H)))).apply
    with pytest.raises(ValueError, match=r"Unable to retrieve parameter 'rnn\.U'"):
        run({})


def test_variables_of_flax_in_the_place_of_arrays_are_told():
    nnx = pytest.importorskip("flax.nnx")
    cell = jaxrnn.Elman(D, H)
    params = cell.init(jax.random.key(0))
    for given in (nnx.Param(params), jax.tree.map(nnx.Param, params)):
        with pytest.raises(TypeError, match=r"^params must hold arrays, got .*: pass nnx\.as_pure\(params\)"):
            jaxrnn.unroll(cell, given, INPUTS)
    net = jaxrnn.Network((cell,), jaxrnn.Readout(H, 2), jaxrnn.squared_error)
    params = net.init(jax.random.key(0))
    for given in (jax.tree.map(nnx.Param, params), params._replace(readout=jax.tree.map(nnx.Param, params.readout))):
        with pytest.raises(TypeError, match=r"^params must hold arrays, got .*: pass nnx\.as_pure\(params\)"):
            net.apply(given, INPUTS)
