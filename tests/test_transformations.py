"""vmap either way round, per-example gradients, forward mode, and bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error

import jaxrnn

EXACT = 1e-12
T, B, D, H, V = 6, 4, 3, 5, 4
CELLS = [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM]
KEY = jax.random.key(2)


def problem(Cell, both_ways=False, last_step=False, dtype=jnp.float64, **options):
    """A network, its parameters, and for every sequence inputs, targets, mask, reset, key: [B, T, ...]."""
    cells = Cell(D, H), Cell(H, H)
    layers = [jaxrnn.Bidirectional(cell, cell, "sum") for cell in cells] if both_ways else cells
    readout = jaxrnn.Readout(H, V)
    net = jaxrnn.Network(tuple(layers), readout, jaxrnn.softmax_cross_entropy, last_step=last_step, **options)
    random = np.random.default_rng(4)
    shapes = jax.eval_shape(net.init, KEY)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / 2, dtype), shapes)
    sequences = (
        jnp.asarray(random.normal(size=(B, T, D)), dtype),
        jnp.asarray(random.integers(0, V, (B,) if last_step else (B, T))),
        jnp.asarray(random.random((B, T)) < 0.7),
        jnp.asarray(random.random((B, T)) < 0.3),
        jax.random.split(KEY, B),
    )
    return net, params, sequences


OPTIONS = {"learn_state": True, "dropout": 0.3, "recurrent_dropout": 0.3}
VARIANTS = [
    *((Cell, {}) for Cell in CELLS),
    *((Cell, {"both_ways": True, **OPTIONS}) for Cell in CELLS),
    (jaxrnn.LSTM, OPTIONS),
    (jaxrnn.GRU, {"last_step": True}),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("Cell", "variant"), VARIANTS)
def test_vmap_either_way_round_is_a_loop_over_sequences(Cell, variant):
    net, params, sequences = problem(Cell, **variant)

    def loss(params, inputs, targets, mask, reset, key, gradient="bptt"):
        return net.loss(params, inputs, targets, None, None, mask, reset, key, gradient=gradient)

    def by_hand(params, inputs, targets, mask, reset, key):
        return jaxrnn.value_and_grad(net, 4)(params, inputs, targets, None, None, mask, reset, key)[1]

    each = (None, *(0,) * len(sequences))
    truth = jax.jit(jax.grad(functools.partial(loss, gradient="autodiff")))
    one_by_one = [truth(params, *(array[b] for array in sequences)) for b in range(B)]
    per_example = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    assert relative_error(jax.jit(jax.vmap(jax.grad(loss), each))(params, *sequences), per_example) <= EXACT
    assert relative_error(jax.jit(jax.vmap(by_hand, each))(params, *sequences), per_example) <= EXACT
    summed = jax.jit(jax.grad(lambda params: jax.vmap(loss, each)(params, *sequences).sum()))(params)
    assert relative_error(summed, jax.tree.map(lambda leaf: leaf.sum(0), per_example)) <= EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", CELLS)
def test_vmap_is_the_batch(Cell):
    net, params, (inputs, targets, mask, reset, _) = problem(Cell)
    native = [jnp.swapaxes(array, 0, 1) for array in (inputs, targets, mask, reset)]
    weights = jnp.ones((T, B))
    batch = jaxrnn.value_and_grad(net)(params, *native[:2], weights, None, *native[2:])

    def loss(params):
        one = lambda x, y, m, r: net.loss(params, x, y, weights[:, 0], None, m, r, gradient="bptt")
        return jax.vmap(one)(inputs, targets, mask, reset).sum()

    assert relative_error(jax.jit(jax.value_and_grad(loss))(params), batch) <= EXACT


def unrolled(gradient):
    cell = jaxrnn.GRU(D, H)
    params = cell.init(KEY)
    inputs = jax.random.normal(KEY, (T, B, D))
    return lambda params: jnp.sum(jaxrnn.unroll(cell, params, inputs, gradient=gradient)[0] ** 2), params


FORWARD_MODE = {
    "jvp": lambda f, p: jax.jvp(f, (p,), (p,)),
    "jvp in jit": lambda f, p: jax.jit(lambda p: jax.jvp(f, (p,), (p,)))(p),
    "jvp of jit": lambda f, p: jax.jvp(jax.jit(f), (p,), (p,)),
    "hessian": lambda f, p: jax.hessian(f)(p),
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
        cell = jaxrnn.LSTM(D, H)
        params = cell.init(KEY, jnp.float64)
        run = lambda inputs: jnp.tanh(jaxrnn.unroll(cell, params, inputs, gradient=gradient)[0][..., :D])
        inputs = jax.random.normal(KEY, (T, D))
        once = jax.grad(nested(run))
        return once(inputs), jax.grad(lambda x: jnp.sum(once(x) ** 2))(inputs)

    assert relative_error(gradients("bptt"), gradients("autodiff")) <= EXACT


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("Cell", CELLS)
def test_bfloat16_computes_in_it_and_sums_in_float32(Cell, both_ways):
    net, params, (inputs, targets, *_) = problem(Cell, both_ways, dtype=jnp.float32)
    inputs, targets = jnp.swapaxes(inputs, 0, 1), jnp.swapaxes(targets, 0, 1)
    E, grads = jaxrnn.value_and_grad(net, 2, compute_dtype=jnp.bfloat16)(params, inputs, targets)
    assert {leaf.dtype for leaf in jax.tree.leaves((E, grads))} == {jnp.dtype(jnp.float32)}
    outputs, final = net.apply(params, inputs, compute_dtype=jnp.bfloat16)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(final)} == {jnp.dtype(jnp.bfloat16)}
    truth = jaxrnn.value_and_grad(net)(params, inputs, targets)
    error = relative_error((E, grads), truth)
    plain = jax.value_and_grad(functools.partial(net.loss, compute_dtype=jnp.bfloat16))(params, inputs, targets)
    # bfloat16 has 8 bits: 0.4 % a rounding. Exactly equal would mean that nothing was computed in it.
    assert 1e-4 < error < 0.05
    assert error <= 2 * relative_error(plain, truth)


def test_long_sums_of_bfloat16_are_float32_sums():
    """2,000 equal terms: a bfloat16 sum stops growing at 256 of them."""
    cell = jaxrnn.Elman(1, 1)
    net = jaxrnn.Network((cell,), jaxrnn.Readout(1, 1), jaxrnn.squared_error)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(net.init, KEY))
    steps = 2000, 1, 1
    for segment in (1, 7, "auto"):
        value_and_grad = jaxrnn.value_and_grad(net, segment, compute_dtype=jnp.bfloat16)
        E, grads = value_and_grad(params, jnp.ones(steps), jnp.ones(steps), jnp.ones(steps[:2]))
        assert E == 2000
        assert grads.readout.c == -4000


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", CELLS)
def test_float64_stays_float64(Cell):
    net, params, (inputs, targets, *_) = problem(Cell)
    (E, final), grads = jaxrnn.value_and_grad(net, return_state=True)(params, inputs[0], targets[0])
    assert {leaf.dtype for leaf in jax.tree.leaves((E, final, grads))} == {jnp.dtype(jnp.float64)}
