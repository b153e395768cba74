"""A batch spread over devices: by `jaxrnn.data_parallel`, and inside parallel programs of a user's own."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracles import relative_error
from pairwise import label, pairwise
from problems import CHOICES, Problem
from programs import collectives
from user_cells import Glider

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12  # float64 against float64: nothing but rounding
STEPS, BATCH = PartitionSpec(None, "data"), PartitionSpec("data")

PROBLEM = {
    "Cell": (jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM, Glider),
    "depth": (1, 2),
    **CHOICES,
    "last_step": (False, True),
    "learn_state": (False, True),
    "batch": ((12,), (12, 2)),
}
WAYS = {
    "plain": {},
    "segments": {"segment": 4},
    "states recomputed": {"recompute": True},
    "gates recomputed": {"recompute": "gates", "segment": 3, "return_state": True},
    "budget": {"memory_budget": 100_000},
    "carried": {"truncate": jaxrnn.Carried(4), "return_state": True},
    "window": {"truncate": jaxrnn.Window(2)},
    "tolerant window": {"truncate": jaxrnn.Window(6, 0.2), "return_lags": True},
    "tail": {"truncate": jaxrnn.Tail(4)},
    "clip": {"clip": 0.01},
    "flow": {"return_flow": True, "return_state": True},
    "float32": {"compute_dtype": "float32"},
    "vanishing": {"vanishing": 0.3},
}
ONE_WAY = {"truncate", "memory_budget", "clip", "return_flow", "vanishing"}  # what layers that read both ways lack


def allowed(row):
    """Says whether the options go together, for rows of which some options are still open."""
    way = WAYS[row.get("way", "plain")]
    excluded = (
        row.get("depth") == 1 and row.get("dropout"),
        row.get("both_ways") and ONE_WAY & set(way),
        "vanishing" in way and row.get("Cell", jaxrnn.Elman) is not jaxrnn.Elman,
        row.get("Cell") is Glider and row.get("recurrent_dropout"),
    )
    return not any(excluded)


def problem_of(row):
    """Returns the problem of a row, the options of its gradient, and the named arguments of the call."""
    way = dict(WAYS[row["way"]])
    named = {name: way.pop(name) for name in ("vanishing",) if name in way}
    return Problem(**{name: row[name] for name in PROBLEM if name in row}), way, named


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices])


def bound_of(way):
    return 1e-5 if way.get("compute_dtype") == "float32" else EXACT


ROWS = pairwise(PROBLEM | {"way": tuple(WAYS), "devices": (4, 3, 2)}, allowed)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_devices_change_nothing(row):
    problem, way, named = problem_of(row)
    function = jaxrnn.value_and_grad(problem.net, **way)
    here = jax.jit(function)(*problem.arguments(), **named)
    there = jax.jit(jaxrnn.data_parallel(function, mesh_of(row["devices"])))(*problem.arguments(), **named)
    chex.assert_trees_all_equal_shapes_and_dtypes(here, there)
    assert relative_error(there, here) < bound_of(way)


@pytest.mark.parametrize("method", ["rtrl", "snap1", "rflo"])
def test_online_gradients_and_their_carry(method):
    problem = Problem(jaxrnn.GRU, masked=True, reset=True, batch=(4,))
    params, inputs, targets, _, _, mask, reset, _ = problem.arguments()
    function = jaxrnn.online.value_and_grad(problem.net, method)
    spread = jax.jit(jaxrnn.data_parallel(function))

    def in_two_calls(function):
        (first, carry), _ = function(params, inputs[:4], targets[:4], None, None, mask[:4], reset[:4])
        (second, carry), grads = function(params, inputs[4:], targets[4:], None, carry, mask[4:], reset[4:])
        return first, second, carry, grads

    assert relative_error(in_two_calls(spread), in_two_calls(jax.jit(function))) < EXACT


@pytest.mark.parametrize(
    "way",
    [{}, {"segment": 3}, {"recompute": True, "segment": 3}, {"truncate": jaxrnn.Window(3)}, {"return_flow": True}],
    ids=str,
)
def test_one_sum_at_the_end(way):
    """What is moved: loss and gradients, and before the loops the number of real steps; nothing within a loop."""
    problem = Problem(jaxrnn.LSTM, masked=True, batch=(8,), T=6)
    parallel = jax.jit(jaxrnn.data_parallel(jaxrnn.value_and_grad(problem.net, **way)))
    count, total = collectives(parallel.lower(*problem.arguments()).compile())
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.params()))
    assert count == ("all-reduce", False, 8)
    assert total[:2] == ("all-reduce", False)
    assert 8 * (size + 1) <= total[2] <= 8 * (size + 100)  # and the sizes of lags, or norms


def test_a_tolerance_is_one_number_for_every_lag():
    problem = Problem(jaxrnn.GRU, batch=(4,))
    parallel = jax.jit(jaxrnn.data_parallel(jaxrnn.value_and_grad(problem.net, truncate=jaxrnn.Window(6, 0.1))))
    within = [moved for moved in collectives(parallel.lower(*problem.arguments()).compile()) if moved[1]]
    assert within == [("all-reduce", True, 8 * 20)]  # a sum for every unit's deltas, of which a GRU has four


def test_an_axis_among_several():
    problem = Problem(jaxrnn.GRU, masked=True, batch=(4, 3))
    function = jaxrnn.value_and_grad(problem.net)
    here = function(*problem.arguments())
    mesh = jax.make_mesh((2, 2), ("model", "data"), axis_types=(AxisType.Auto,) * 2)
    for axis in ("data", ("data", "model")):
        there = jax.jit(jaxrnn.data_parallel(function, mesh, axis))(*problem.arguments())
        assert relative_error(there, here) < EXACT


def test_outside_jit_values_are_checked():
    problem = Problem(tokens=True, batch=(2,), T=2)
    function = jaxrnn.data_parallel(jaxrnn.value_and_grad(problem.net), mesh_of(2))
    given = problem.arguments()
    assert relative_error(function(*given), jax.jit(function)(*given)) < EXACT
    with pytest.raises(ValueError, match=r"inputs must lie in 0 \.\. 3"):
        function(*given._replace(inputs=given.inputs + 1))


def test_mistakes_are_named():
    function = jaxrnn.value_and_grad(Problem().net)
    with pytest.raises(TypeError, match=r"function must be what value_and_grad .* got a jitted function"):
        jaxrnn.data_parallel(jax.jit(function))
    with pytest.raises(ValueError, match=r"axis must name axes of the mesh, \('data',\), got \('batch',\)"):
        jaxrnn.data_parallel(function, mesh_of(2), "batch")
    with pytest.raises(ValueError, match="a batch of 3 sequences cannot be spread over 4 devices"):
        jaxrnn.data_parallel(function)(*Problem().arguments())
    with pytest.raises(ValueError, match="inputs must have a batch axis"):
        jaxrnn.data_parallel(function)(*Problem(batch=()).arguments())


# A user's own shard_map, with its default check_vma: what every device computes is the loss of its part, and gradients
# of parameters that all devices share are summed, as those of jax.grad are.
PARTS = pairwise(
    {
        **{name: PROBLEM[name] for name in ("both_ways", "tokens", "stateful", "masked", "reset", "last_step")},
        "Cell": (jaxrnn.LSTM, Glider),
        "depth": (2, 1),
        "learn_state": (True, False),
        "way": ("segments", "states recomputed", "carried", "tolerant window", "flow"),
    },
    allowed,
)


def part_of(number, tree, axis):
    return jax.tree.map(lambda leaf: jnp.split(leaf, 4, axis)[number], tree)


@pytest.mark.parametrize("row", PARTS, ids=map(label, PARTS))
def test_inside_a_users_shard_map(row):
    problem, way, named = problem_of(row | {"batch": (4,)})
    function = jaxrnn.value_and_grad(problem.net, **{**way, "return_state": False})
    params, inputs, targets, _, state, mask, reset, _ = problem.arguments()
    given = inputs, targets, state, mask, reset

    def gradient(params, inputs, targets, state, mask, reset):
        return function(params, inputs, targets, None, state, mask, reset, **named)[1]

    specs = PartitionSpec(), STEPS, BATCH if problem.last_step else STEPS, BATCH, STEPS, STEPS
    mapped = jax.shard_map(gradient, mesh=mesh_of(4), in_specs=specs, out_specs=PartitionSpec())
    there = jax.jit(mapped)(params, *given)
    each = jax.jit(gradient)
    axes = 1, 0 if problem.last_step else 1, 0, 1, 1
    parts = [each(params, *map(functools.partial(part_of, i), given, axes)) for i in range(4)]
    here = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert relative_error(there, here) < bound_of(way)


# One layer by itself, in a user's own shard_map and under a mesh of explicit axes.
LAYERS = {
    "unroll": jaxrnn.unroll,
    "recomputed": functools.partial(jaxrnn.unroll, recompute=True),
    "autodiff": functools.partial(jaxrnn.unroll, gradient="autodiff"),
    "associative": functools.partial(jaxrnn.unroll, backward="associative"),
    "deer": jaxrnn.deer,
    "diagonal": functools.partial(jaxrnn.deer, diagonal=True),
}


def loss_of_layer(unroll, cell):
    def loss(params, inputs, mask, reset):
        hidden, final, *_ = unroll(cell, params, inputs, mask=mask, reset=reset)
        return jnp.sum(hidden**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(final))

    return loss


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_inside_a_users_shard_map(name):
    problem = Problem(jaxrnn.GRU, masked=True, reset=True, batch=(4,))
    cell, params, inputs, _ = problem.layer()
    loss, given = loss_of_layer(LAYERS[name], cell), (params, inputs, *problem.flags().values())
    mapped = jax.shard_map(
        jax.grad(loss), mesh=mesh_of(4), in_specs=(PartitionSpec(), STEPS, STEPS, STEPS), out_specs=PartitionSpec()
    )
    assert relative_error(jax.jit(mapped)(*given), jax.jit(jax.grad(loss))(*given)) < EXACT


@pytest.mark.parametrize("name", ["unroll", "deer"])
def test_a_layer_under_explicit_axes(name):
    problem = Problem(jaxrnn.LSTM, masked=True, reset=True, batch=(4,))
    cell, params, inputs, _ = problem.layer()
    loss, given = loss_of_layer(LAYERS[name], cell), (params, inputs, *problem.flags().values())
    with jax.set_mesh(mesh_of(4, AxisType.Explicit)):
        spread = jax.device_put(given, (PartitionSpec(), STEPS, STEPS, STEPS))
        hidden, final, *_ = jax.jit(functools.partial(LAYERS[name], cell))(*spread[:2])
        assert jax.typeof(hidden).sharding.spec == PartitionSpec(None, "data", None)
        assert jax.typeof(final.s).sharding.spec == PartitionSpec("data", None)
        there = jax.jit(jax.grad(loss))(*spread)
    assert relative_error(there, jax.jit(jax.grad(loss))(*given)) < EXACT


@pytest.mark.parametrize("last_step", [False, True])
def test_a_network_under_explicit_axes(last_step):
    problem = Problem(jaxrnn.GRU, masked=True, reset=True, batch=(4,), last_step=last_step, learn_state=True)
    function, net = jaxrnn.value_and_grad(problem.net, return_state=True), problem.net
    given = problem.arguments()
    specs = given._replace(
        params=PartitionSpec(), inputs=STEPS, targets=BATCH if last_step else STEPS, mask=STEPS, reset=STEPS
    )
    here = jax.jit(function)(*given), jax.jit(net.loss)(*given), jax.jit(net.apply)(*given[:2])
    with jax.set_mesh(mesh_of(4, AxisType.Explicit)):
        spread = jax.device_put(given, specs)
        there = jax.jit(function)(*spread), jax.jit(net.loss)(*spread), jax.jit(net.apply)(*spread[:2])
        (_, final), grads = there[0]
        assert jax.typeof(final[0]).sharding.spec == PartitionSpec("data", None)
        assert jax.typeof(grads.layers[0].W).sharding.spec == PartitionSpec(None, None)
        parallel = jax.jit(jaxrnn.data_parallel(function))(*spread)
    assert relative_error(there, here) < EXACT
    assert relative_error(parallel, here[0]) < EXACT


# Under jit with automatic axes nothing is gathered: every device does its part of the arithmetic.


@pytest.mark.parametrize("Cell", [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM])
def test_jit_spreads_the_work_of_a_batch_that_is_spread(Cell):
    problem = Problem(Cell, T=12, batch=(8,), D=16, H=32, V=8, masked=True, weighted=True)
    function = jax.jit(jaxrnn.value_and_grad(problem.net))
    given, mesh = problem.arguments(), mesh_of(4)
    steps, everywhere = (NamedSharding(mesh, spec) for spec in (STEPS, PartitionSpec()))
    shardings = given._replace(params=everywhere, inputs=steps, targets=steps, weights=steps, mask=steps)
    there = function.lower(*jax.device_put(given, shardings)).compile()
    here = function.lower(*given).compile()
    size = 1 + sum(leaf.size for leaf in jax.tree.leaves(given.params))
    assert collectives(there) == [("all-reduce", False, 8 * size)]
    assert there.cost_analysis()["flops"] < 0.27 * here.cost_analysis()["flops"]
    assert relative_error(there(*jax.device_put(given, shardings)), here(*given)) < EXACT


def test_jit_sums_once_a_segment_where_time_is_cut():
    problem = Problem(T=12, batch=(8,))
    given, mesh = problem.arguments(), mesh_of(4)
    steps, everywhere = (NamedSharding(mesh, spec) for spec in (STEPS, PartitionSpec()))
    spread = jax.device_put(given, given._replace(params=everywhere, inputs=steps, targets=steps))
    by_hand = jax.jit(jaxrnn.value_and_grad(problem.net, segment=4)).lower(*spread).compile()
    assert {(kind, within) for kind, within, _ in collectives(by_hand)} == {("all-reduce", True)}


def test_chunks_come_back_spread_as_they_were():
    problem = Problem(jaxrnn.Elman, batch=(4,), masked=True, stateful=True)
    params, inputs, targets, _, state, mask, _, _ = problem.arguments()
    steps = NamedSharding(mesh_of(4), STEPS)
    function = jaxrnn.value_and_grad_of_chunks(problem.net, return_state=True)

    def chunks(place):
        for t in range(0, 9, 3):
            yield jaxrnn.Chunk(*(place(array[t : t + 3]) for array in (inputs, targets)), None, place(mask[t : t + 3]))

    there = function(params, chunks(lambda array: jax.device_put(array, steps)), state)
    ((_, (final,)), _) = there
    assert len(final.sharding.device_set) == 4
    assert not final.is_fully_replicated
    assert relative_error(there, function(params, chunks(lambda array: array), state)) < EXACT
