"""What is made anew instead of kept: the gradient stays, the memory goes; and plans keep what they promise."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from test_breaks import CELLS, Data, T

import jaxrnn
from jaxrnn.arguments import batch_shape
from jaxrnn.gradients.plan import decide
from jaxrnn.gradients.value_and_grad import both_passes
from jaxrnn.layer import unroll as layer
from jaxrnn.layer.segments import balanced_lengths

EXACT = 1e-12


def truth(data):
    return jax.jit(jax.value_and_grad(lambda *a: data.net.loss(*a, return_state=True), has_aux=True))(*data.arguments())


def error(data, expected, net=None, **options):
    run = jax.jit(jaxrnn.value_and_grad(net or data.net, return_state=True, **options))
    return relative_error(run(*data.arguments()), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize(("layers", "tokens"), [(1, True), (3, False)])
def test_recompute_changes_nothing(Cell, layers, tokens):
    data = Data(Cell, layers, tokens, "both")
    expected = truth(data)
    assert error(data, expected, recompute="gates", segment=4) <= EXACT
    assert error(data, expected, recompute=True) <= EXACT
    assert error(data, expected, recompute=True, segment=4) <= EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", CELLS)
def test_recompute_of_both_directions(Cell):
    data = Data(Cell, 2, False, "both", both_ways=True)
    expected = truth(data)
    assert error(data, expected, recompute="gates") <= EXACT
    assert error(data, expected, recompute=True, segment=2) <= EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("recompute", ["gates", True])
@pytest.mark.parametrize("options", [{"residual": True, "learn_state": True}, {"last_step": True}], ids=str)
def test_recompute_with_options_of_the_network(recompute, options):
    data = Data(jaxrnn.GRU, 2, False, "both")
    data.net = dataclasses.replace(data.net, **options)
    data.params = data.net.init(jax.random.key(0), jnp.float64)
    if data.net.last_step:
        data.targets, data.weights = data.targets[-1], data.weights[-1]
    data.state = None
    assert error(data, truth(data), recompute=recompute, segment=2) <= EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("lengths", [(4, 2), (6, 3, 1), (7, 5, 2), (8, 4, 2, 1)], ids=str)
def test_segments_of_segments_change_nothing(lengths, monkeypatch):
    """Lengths that do not divide one another, or T, included."""
    data = Data(jaxrnn.LSTM, 2, False, "both")
    monkeypatch.setattr(
        "jaxrnn.gradients.value_and_grad.decide",
        lambda *a: dataclasses.replace(decide(*a), recompute=True, lengths=lengths),
    )
    assert error(data, truth(data)) <= EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("Cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_unroll_makes_anew_what_it_did_not_keep(Cell, reverse, monkeypatch):
    data = Data(Cell)
    cell, params, start = data.net.layers[0], data.params.layers[0], data.state[0]
    probe = jax.random.normal(jax.random.key(1), (T, 3, 5))

    def loss(params, inputs, state, **options):
        hidden, final = jaxrnn.unroll(
            cell, params, inputs, state, mask=data.mask, reset=data.reset, initial=state, reverse=reverse, **options
        )
        return jnp.sum(probe * hidden) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(final))

    def grads(**options):
        function = jax.grad(lambda *a: loss(*a, **options), argnums=(0, 1, 2))
        return jax.jit(function)(params, data.inputs, start)

    expected = grads(gradient="autodiff")
    for recompute in ("gates", True):
        assert relative_error(grads(recompute=recompute), expected) <= EXACT
    monkeypatch.setattr(layer, "_layer_segment", lambda *a: 4)
    assert relative_error(grads(recompute=True), expected) <= EXACT


def compiled_bytes(net, inputs, mask=None, **options):
    params = jax.eval_shape(net.init, jax.random.key(0))
    targets = jax.ShapeDtypeStruct((inputs.shape[0], *batch_shape(inputs)), jnp.int32)
    function = jaxrnn.value_and_grad(net, **options)
    compiled = jax.jit(lambda p, x, y, m: function(p, x, y, mask=m)).lower(params, inputs, targets, mask).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def network(Cell, D, H, V, layers=1):
    cells = tuple(Cell(H if i else D, H) for i in range(layers))
    return jaxrnn.Network(cells, jaxrnn.Readout(H, V), jaxrnn.softmax_cross_entropy)


GRID = [
    (jaxrnn.Elman, (2000, 4, 16, 128, 16, 1), True),
    (jaxrnn.Elman, (4096, 32, 64, 256, 128, 1), False),
    (jaxrnn.GRU, (500, 32, 64, 128, 65, 3), True),
    (jaxrnn.LSTM, (1000, 16, 88, 64, 88, 2), False),
]


@pytest.mark.parametrize(("Cell", "shape", "tokens"), GRID, ids=str)
@pytest.mark.parametrize("budget", [40_000_000, 12_000_000, 6_500_000])
def test_a_budget_is_kept(Cell, shape, tokens, budget):
    """By what the compiler says that it takes, masks included, and without giving much of the budget away."""
    steps, B, D, H, V, layers = shape
    net = network(Cell, D, H, V, layers)
    inputs = jax.ShapeDtypeStruct((steps, B), jnp.int32) if tokens else jax.ShapeDtypeStruct((steps, B, D), jnp.float32)
    mask = jax.ShapeDtypeStruct((steps, B), bool)
    plan = jaxrnn.plan(net, inputs, memory_budget=budget)
    actual = compiled_bytes(net, inputs, mask, memory_budget=budget)
    assert actual <= budget
    assert 0.65 * plan.total_bytes <= actual <= 1.05 * plan.total_bytes


def test_what_is_kept_is_what_memory_is_spent_on():
    """At T = 4096, B = 32, H = 256, V = 128, where `jax.grad` of the scan takes more than 300 MB."""
    net, inputs = network(jaxrnn.Elman, 64, 256, 128), jax.ShapeDtypeStruct((4096, 32, 64), jnp.float32)
    assert compiled_bytes(net, inputs) > 130e6
    assert compiled_bytes(net, inputs, recompute=True) < 15e6
    gru = network(jaxrnn.GRU, 64, 256, 128)
    assert compiled_bytes(gru, inputs, recompute="gates") < 0.3 * compiled_bytes(gru, inputs)


def test_a_million_steps_fit_in_a_budget():
    net, tokens = network(jaxrnn.Elman, 65, 64, 65), jax.ShapeDtypeStruct((1_000_000, 1), jnp.int32)
    assert compiled_bytes(net, tokens, memory_budget=20_000_000) <= 20_000_000
    assert compiled_bytes(net, tokens, recompute=True) <= 20_000_000


def test_a_budget_that_cannot_be_met_names_the_least_that_can():
    net, inputs = network(jaxrnn.Elman, 64, 256, 128), jax.ShapeDtypeStruct((4096, 32, 64), jnp.float32)
    with pytest.raises(ValueError, match="memory_budget of 1,000,000 bytes cannot be met; the least") as caught:
        jaxrnn.plan(net, inputs, memory_budget=1_000_000)
    assert "edges of segments kept" in str(caught.value)
    with pytest.raises(ValueError, match="cannot be met"):
        compiled_bytes(net, inputs, memory_budget=1_000_000)


def test_the_fastest_that_fits_is_chosen():
    net, inputs = network(jaxrnn.LSTM, 64, 128, 65), jax.ShapeDtypeStruct((2048, 8, 64), jnp.float32)
    chosen = [jaxrnn.plan(net, inputs, memory_budget=budget) for budget in (10**9, 3 * 10**7, 10**7, 3 * 10**6)]
    assert [plan.recompute for plan in chosen] == [False, "gates", True, True]
    assert [plan.extra_forward for plan in chosen][:3] == [0, 0, 1]
    assert chosen[-1].extra_forward > 1
    assert len(chosen[-1].lengths) > 1


def test_the_plan_is_a_table_and_what_is_done():
    net, inputs = network(jaxrnn.Elman, 4, 8, 3), jax.ShapeDtypeStruct((100, 2, 4), jnp.float32)
    plan = jaxrnn.plan(net, inputs, recompute=True, segment=10)
    assert plan.lengths == (10,)
    assert plan.state_bytes == 10 * 2 * 8 * 4  # ten edges, two sequences, eight units of four bytes
    assert plan.loop_steps == 300
    lines = str(plan).splitlines()
    assert lines[:2] == ["mode                  edges of segments kept", "segments              10 of 100 steps"]
    assert len(lines) == 9
    assert jaxrnn.plan(net, inputs, truncate=jaxrnn.Window(5)).loop_steps == 106
    assert jaxrnn.plan(net, inputs, truncate=jaxrnn.Tail(30)).steps == 30
    assert 20 % jaxrnn.plan(net, inputs, segment=8, truncate=jaxrnn.Carried(20)).lengths[-1] == 0


def test_the_plan_decided_is_the_plan_carried_out(monkeypatch):
    """`plan` and `value_and_grad` decide alike: the driver is handed the very plan that `plan` returns."""
    data = Data(jaxrnn.GRU, 1, False, "plain")
    data = dataclasses.replace(data)
    seen = []
    monkeypatch.setattr(
        "jaxrnn.gradients.value_and_grad.both_passes",
        lambda stack, plan, *a: seen.append(plan) or both_passes(stack, plan, *a),
    )
    for options in ({}, {"recompute": True}, {"segment": 2, "recompute": "gates"}, {"memory_budget": 10**6}):
        jaxrnn.value_and_grad(data.net, **options)(data.params, data.inputs, data.targets)
        assert seen.pop() == jaxrnn.plan(data.net, data.inputs, compute_dtype=data.params.readout.V.dtype, **options)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_balanced_lengths_need_the_least(levels):
    """No other lengths of as many levels need a tenth less, tried one by one."""
    steps, state, step = 720, 3, 8

    def needed(lengths):
        edges = sum(-(-above // length) for above, length in zip((steps, *lengths[:-1]), lengths, strict=True))
        return edges * state + lengths[-1] * step

    def all_lengths(above, levels):
        if levels == 0:
            return [()]
        return [(K, *rest) for K in range(1, above + 1) if above % K == 0 for rest in all_lengths(K, levels - 1)]

    least = min(map(needed, all_lengths(steps, levels)))
    assert needed(balanced_lengths(steps, state, step, levels)) <= 1.1 * least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recompute": "states"}, "recompute must be False, True or \"gates\", got 'states'"),
        ({"recompute": 1}, "recompute must be"),
        ({"memory_budget": 0}, "memory_budget"),
        ({"memory_budget": 10**7, "recompute": True}, "memory_budget chooses segment and recompute by itself"),
        ({"memory_budget": 10**7, "segment": 4}, "memory_budget chooses segment and recompute by itself"),
        ({"segment": 0}, "segment"),
        ({"truncate": jaxrnn.Window(3), "recompute": True}, "by lags"),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    net = network(jaxrnn.Elman, 4, 8, 3)
    with pytest.raises(ValueError, match=message):
        jaxrnn.value_and_grad(net, **options)
    with pytest.raises(ValueError, match=message):
        jaxrnn.plan(net, jax.ShapeDtypeStruct((10, 2, 4), jnp.float32), **options)


def test_wrong_budgets():
    net = network(jaxrnn.Elman, 4, 8, 3)
    with pytest.raises(TypeError, match="memory_budget"):
        jaxrnn.value_and_grad(net, memory_budget=1e7)
    both = jaxrnn.Network(
        (jaxrnn.Bidirectional(jaxrnn.Elman(4, 8), jaxrnn.Elman(4, 8)),),
        jaxrnn.Readout(16, 3),
        jaxrnn.softmax_cross_entropy,
    )
    with pytest.raises(ValueError, match="bidirectional"):
        jaxrnn.value_and_grad(both, memory_budget=10**7)
    with pytest.raises(ValueError, match="bidirectional"):
        jaxrnn.plan(both, jax.ShapeDtypeStruct((10, 2, 4), jnp.float32))
