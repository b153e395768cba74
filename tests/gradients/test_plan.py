"""What is kept and what is made anew: plans keep what they promise, in memory and in loops, and change no gradient."""

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import Problem, autodiff
from programs import compiled_bytes, loops_of

import jaxrnn
from jaxrnn import gradients
from jaxrnn.layer import machine

EXACT = 1e-12
NAMES = {False: "none", True: "states"}  # of what is made anew, where a plan says it by a bool


def mode(plan):
    """Returns what a plan makes anew: "none", "gates" or "states"."""
    return NAMES.get(plan.recompute, plan.recompute)


def all_plans(net, inputs, dtype):
    """Returns a budget for every number of levels of segments, the fewest bytes that are enough for it."""
    found, budget = {}, 10**7
    while True:
        try:
            plan = jaxrnn.plan(net, inputs, memory_budget=budget, compute_dtype=dtype)
        except ValueError:
            return found
        found[len(plan.lengths)] = budget, plan
        budget = min(budget - 1, int(1.05 * plan.total_bytes) - 1)


@pytest.mark.usefixtures("float64")
def test_segments_of_segments_change_nothing():
    """Of as many levels as a budget leads to, of lengths that do not divide T."""
    problem = Problem(jaxrnn.LSTM, 2, T=1009, batch=(1,), D=2, H=2, V=2, masked=True, reset=True, stateful=True)
    net, given = problem.net, problem.arguments()
    plans = all_plans(net, given.inputs, jnp.float64)
    assert max(plans) >= 3
    for levels, (budget, plan) in plans.items():
        if levels > 1:
            assert problem.T % plan.lengths[0]
            run = jax.jit(jaxrnn.value_and_grad(net, memory_budget=budget, return_state=True))
            assert relative_error(run(*given), autodiff(problem)) <= EXACT
            assert loops_are_those_of(plan, loops_of(run, *given))


def loops_are_those_of(plan, found):
    """Says whether there is a loop over the segments of every level, and one over the steps of the innermost."""
    above, wanted = plan.steps, set()
    for length in plan.lengths:
        wanted |= {above // length} - {0, 1}
        above = length
    return wanted | {above} - {1} <= set(found)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [{}, {"recompute": True}, {"segment": 3, "recompute": "gates"}, {"segment": 12}, {"memory_budget": 10**6}],
    ids=str,
)
def test_the_plan_decided_is_the_plan_carried_out(options):
    """`plan` and `value_and_grad` decide alike: the loops of the gradient have the lengths of the plan."""
    problem = Problem(jaxrnn.GRU, T=60)
    plan = jaxrnn.plan(problem.net, problem.arguments().inputs, compute_dtype=jnp.float64, **options)
    found = loops_of(jaxrnn.value_and_grad(problem.net, **options), *problem.arguments())
    assert loops_are_those_of(plan, found)


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
    plan = jaxrnn.plan(net, inputs, memory_budget=budget)
    actual = compiled_bytes(net, inputs, masked=True, memory_budget=budget)
    assert actual <= budget
    assert 0.65 * plan.total_bytes <= actual <= 1.05 * plan.total_bytes


@pytest.mark.parametrize(("Cell", "recompute", "share"), [(jaxrnn.Elman, True, 0.1), (jaxrnn.GRU, "gates", 0.3)])
def test_what_is_kept_is_what_memory_is_spent_on(Cell, recompute, share):
    """At T = 4096, B = 32, H = 256, V = 128, where `jax.grad` of the scan of an Elman cell takes more than 300 MB."""
    net, inputs = network(Cell, 64, 256, 128), jax.ShapeDtypeStruct((4096, 32, 64), jnp.float32)
    kept, anew = compiled_bytes(net, inputs), compiled_bytes(net, inputs, recompute=recompute)
    assert kept > 130e6
    assert anew < share * kept
    assert recompute == "gates" or anew < 15e6


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
    assert [mode(plan) for plan in chosen] == ["none", "gates", "states", "states"]
    assert [plan.extra_forward for plan in chosen][:3] == [0, 0, 1]
    assert chosen[-1].extra_forward > 1
    assert len(chosen[-1].lengths) > 1


@pytest.mark.parametrize(("layers", "steps"), [(1, 70), (2, 14), (3, 14)])
def test_a_stack_in_one_piece_is_cut_where_memory_would_be_mapped_anew(layers, steps, monkeypatch):
    cells = (jaxrnn.LSTM(48, 160), *[jaxrnn.LSTM(160, 160)] * (layers - 1))
    net = jaxrnn.Network(cells, jaxrnn.Readout(160, 90), jaxrnn.softmax_cross_entropy)
    inputs = jax.ShapeDtypeStruct((70, 24, 48), jnp.float32)
    monkeypatch.setattr(gradients.plan, "limits", lambda: machine.default_limits("cpu", 32 * machine.MB))
    monkeypatch.setattr(gradients.plan, "mapped_anew", lambda: 32 * machine.MB)
    assert jaxrnn.plan(net, inputs).lengths == (steps,)
    assert jaxrnn.plan(net, inputs, segment=70).lengths == (70,)
    assert compiled_bytes(net, inputs) < 32 * machine.MB
    monkeypatch.setattr(gradients.plan, "mapped_anew", lambda: 2**60)
    assert jaxrnn.plan(net, inputs).lengths == (70,)


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
    assert jaxrnn.plan(net, inputs, truncate=jaxrnn.Carried(20)).steps == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recompute": "all"}, "recompute must be .*, got 'all'"),
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
