"""One layer over time: its gradient against autodiff over every pair of options, directions, batches, compilations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, KEY, Problem, normal
from user_cells import GliderByHand

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
CELLS = CELLS | {"by hand": GliderByHand}

OPTIONS = {
    "Cell": (*CELLS, "GRU both ways", "LSTM both ways"),
    "shape": ((9, (2,)), (13, (2, 3)), (5, ()), (1, (3,))),
    "reverse": (False, True),
    "recompute": (False, "gates", True),
    "backward": ("sequential", "associative"),
    "tokens": (False, True),
    "stateful": (False, True),
    "initial": (False, True),
    "masked": (False, True),
    "reset": (False, True),
    "dropout_mask": (False, True),
    "compute_dtype": (None, "float64"),
    "batch_major": (False, True),
}


def allowed(row):
    return not (
        (row.get("Cell", "").endswith("both ways") and row.get("reverse"))
        or (row.get("backward") == "associative" and row.get("recompute"))
        or (row.get("dropout_mask") and row.get("Cell") in ("user", "by hand"))
    )


ROWS = pairwise(OPTIONS, allowed)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_the_gradient_is_that_of_autodiff(row):
    """To parameters, inputs, state and initial state, through the hidden states, the held ones too, and the final."""
    T, batch = row["shape"]
    given = {name: row[name] for name in ("tokens", "stateful", "masked", "reset")}
    both_ways = row["Cell"].endswith("both ways")
    Cell = CELLS[row["Cell"].removesuffix(" both ways")]
    problem = Problem(Cell, T=T, batch=batch, D=3, H=4, both_ways=both_ways, **given)
    layer, params, inputs, state = problem.layer()
    like = jax.tree.map(lambda leaf: leaf + 0.3, layer.initial_state(batch, jnp.float64))
    flags = problem.flags() | {"reverse": row["reverse"], "compute_dtype": row["compute_dtype"]}
    if row["dropout_mask"]:
        keep = tuple(jax.random.bernoulli(KEY, 0.5, (2, *batch, 4)) / 0.5)
        flags["dropout_mask"] = keep if both_ways else keep[0]
    probe = np.random.default_rng(3).normal(size=(T, *batch, layer.outputs))

    def gradient(time_major=True, **options):
        place = 0 if time_major else len(batch)
        lay = lambda array: None if array is None else jnp.moveaxis(array, 0, place)
        given = flags | options | {"mask": lay(flags["mask"]), "reset": lay(flags["reset"]), "time_major": time_major}

        def error(params, state, initial, inputs):
            hidden, final = jaxrnn.unroll(layer, params, lay(inputs), state, initial=initial, **given)
            hidden = jnp.moveaxis(hidden, place, 0)
            return jnp.sum(probe * jnp.sin(hidden)) + sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(final))

        wanted = tuple(i for i, there in enumerate((True, row["stateful"], row["initial"], not row["tokens"])) if there)
        return jax.jit(jax.value_and_grad(error, wanted))(params, state, like if row["initial"] else None, inputs)

    by_rule = gradient(not row["batch_major"], recompute=row["recompute"], backward=row["backward"])
    assert relative_error(by_rule, gradient(gradient="autodiff")) <= EXACT


@pytest.mark.parametrize("Cell", CELLS.values(), ids=CELLS)
def test_backwards_is_forwards_of_the_reversed(Cell):
    """Hidden states and the final state, with mask, reset and a state to set out from."""
    problem = Problem(Cell, masked=True, reset=True, stateful=True)
    cell, params, inputs, state = problem.layer()
    flags = problem.flags()
    backwards, last = jaxrnn.unroll(cell, params, inputs, state, reverse=True, **flags)
    flipped = {name: flag[::-1] for name, flag in flags.items()}
    forwards, final = jaxrnn.unroll(cell, params, inputs[::-1], state, **flipped)
    assert relative_error((backwards, last), (forwards[::-1], final)) <= EXACT


@pytest.mark.parametrize("gradient", ["bptt", "autodiff"])
def test_backwards_ends_at_the_first_step(gradient):
    cell, params, inputs, state = Problem(stateful=True).layer()
    hidden, final = jaxrnn.unroll(cell, params, inputs, state, reverse=True, gradient=gradient)
    assert relative_error(hidden[0], final) <= EXACT


@pytest.mark.parametrize(("tokens", "gradient"), [(False, "bptt"), (True, "bptt"), (True, "autodiff")])
def test_vmap_is_the_batch(tokens, gradient):
    """Hidden states, final state, and the gradient through both, with the batch as an axis or under vmap."""
    cell, params, inputs, state = Problem(T=5, tokens=tokens, stateful=True).layer()

    def unroll(params, inputs, state):
        return jaxrnn.unroll(cell, params, inputs, state, gradient=gradient)

    def mapped(params, inputs, state):
        return jax.vmap(unroll, in_axes=(None, 1, 0), out_axes=(1, 0))(params, inputs, state)

    def with_gradients(function):
        def error(params, state):
            hidden, final = function(params, inputs, state)
            return jnp.sum(jnp.sin(hidden)) + jnp.sum(final**2), (hidden, final)

        return jax.jit(jax.value_and_grad(error, (0, 1), has_aux=True))(params, state)

    assert relative_error(with_gradients(mapped), with_gradients(unroll)) <= EXACT


@pytest.mark.parametrize("Cell", CELLS.values(), ids=CELLS)
def test_the_final_state_has_the_type_of_the_cells_own(Cell):
    cell = Cell(3, 4)
    hidden, final = jaxrnn.unroll(cell, cell.init(KEY, jnp.float64), jnp.ones((6, 2, 3)))
    assert jax.tree.structure(final) == jax.tree.structure(cell.initial_state((2,)))
    assert relative_error(hidden[-1], jax.tree.leaves(final)[0]) == 0


def test_equal_cells_and_new_content_compile_once():
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(jaxrnn.unroll, n=1), static_argnums=0)
    for seed in range(3):
        counted(*Problem(seed=seed).layer()[:3])
    with pytest.raises(AssertionError, match="traced"):
        counted(*Problem(CELLS["relu"]).layer()[:3])


def test_bfloat16_segments_are_added_in_float32():
    """The sum of 2^14 ones over segments of some tens of steps: a sum in bfloat16 would stop growing on the way."""
    cell = jaxrnn.Elman(1, 1, "relu")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.bfloat16), cell.init(KEY))
    params = params._replace(b=params.b + 1)
    inputs = normal(np.random.default_rng(0), (2**14, 1), jnp.bfloat16)
    sum_of_states = lambda params, **options: jaxrnn.unroll(cell, params, inputs, **options)[0].sum(dtype=jnp.float32)
    for recompute in (False, True):
        grads = jax.jit(jax.grad(lambda params, how=recompute: sum_of_states(params, recompute=how)))(params)
        assert grads.b.dtype == jnp.bfloat16
        assert grads.b == 2**14


def test_outside_of_jit_a_second_call_compiles_nothing(caplog):
    net = jaxrnn.Network((jaxrnn.GRU(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    params, inputs, targets = net.init(jax.random.key(0)), jnp.ones((6, 2, 3)), jnp.zeros((6, 2), int)
    calls = {
        "unroll": lambda: jaxrnn.unroll(net.layers[0], params.layers[0], inputs),
        "apply": lambda: net.apply(params, inputs),
        "value_and_grad": lambda: jaxrnn.value_and_grad(net)(params, inputs, targets),
        "online": lambda: jaxrnn.online.value_and_grad(net)(params, inputs, targets),
    }
    for name, call in calls.items():
        with jax.log_compiles():
            first = call()
            assert "Compiling" in caplog.text, name
            caplog.clear()
            second = call()
            assert "Compiling" not in caplog.text, name
        chex.assert_trees_all_equal(second, first)
