"""flax: its RNN and Bidirectional against ours on the same cells, and its weights there and back."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop.libraries import LENGTHS, B, D, H, T, assert_alike, numbers
from oracles import relative_error
from pairwise import label, pairwise

import jaxrnn
from jaxrnn import interop

nnx = pytest.importorskip("flax.nnx")

from jaxrnn.interop.flax import RNN, Bidirectional  # noqa: E402

KINDS = ("SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell")
OPTIONS = {
    "kind": (*KINDS, "relu", "residual"),
    "time_major": (False, True),
    "reverse": (False, True),
    "keep_order": (False, True),
    "return_carry": (False, True),
    "lengths": (False, True),
    "initial_carry": (False, True),
    "dtype": ("float64", "float32"),
}
ROWS = pairwise(OPTIONS)


def cell_of(kind, dtype="float64", seed=1):
    """Makes a cell with biases that are not zero."""
    name = kind if kind in KINDS else "SimpleCell"
    options = {"param_dtype": dtype, "rngs": nnx.Rngs(seed), "bias_init": nnx.initializers.normal(1.0)}
    options |= {"dtype": dtype} if name == "SimpleCell" else {}
    options |= {"relu": {"activation_fn": nnx.relu}, "residual": {"residual": True}}.get(kind, {})
    return getattr(nnx, name)(D, H, **options)


def pure(module, **call):
    """Returns a function of parameters, inputs and carry that runs a module, and its parameters."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def run(params, inputs, carry):
        return nnx.merge(graph, params, rest, copy=True)(inputs, initial_carry=carry, **call)

    return run, params


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_ours_is_theirs(row):
    cell = cell_of(row["kind"], row["dtype"])
    options = {name: row[name] for name in ("time_major", "reverse", "keep_order", "return_carry")}
    call = {"seq_lengths": LENGTHS if row["lengths"] else None}
    inputs = numbers(*((T, B, D) if row["time_major"] else (B, T, D))).astype(row["dtype"])
    carry = jax.tree.map(lambda leaf: leaf + 0.3, cell.initialize_carry((B, D), nnx.Rngs(0)))
    carry = carry if row["initial_carry"] else None
    (ours, params), (theirs, same) = (pure(Module(cell, **options), **call) for Module in (RNN, nnx.RNN))
    assert jax.tree.structure(params) == jax.tree.structure(same)
    tolerance = 1e-12 if row["dtype"] == "float64" else 1e-5
    assert_alike(ours, theirs, params, inputs, carry, tolerance=tolerance)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "lengths"), [("LSTMCell", True), ("GRUCell", False)])
def test_both_ways_is_theirs(kind, lengths):
    call = {"seq_lengths": LENGTHS if lengths else None, "return_carry": True}
    cells = cell_of(kind), cell_of(kind, seed=2)
    ours, params = pure(Bidirectional(*map(RNN, cells)), **call)
    theirs, _ = pure(nnx.Bidirectional(*map(nnx.RNN, cells)), **call)
    assert_alike(ours, theirs, params, numbers(B, T, D), None)


def test_lengths_of_eight_bits_are_lengths():
    """A sequence of no steps too, of which the step before the first is asked."""
    rnn = RNN(cell_of("GRUCell", "float32"), return_carry=True)
    found, expected = (
        rnn(numbers(B, T, D).astype("float32"), seq_lengths=jnp.array([0, 3], dtype))[0] for dtype in ("uint8", "int32")
    )
    assert relative_error(found, expected) == 0


@pytest.mark.usefixtures("float64")
def test_masks_and_resets_are_those_of_unroll():
    """With time second, in both directions."""
    cells = cell_of("LSTMCell"), cell_of("LSTMCell", seed=2)
    x, mask, reset = numbers(B, T, D), numbers(B, T, seed=1) < 0.5, numbers(B, T, seed=2) < 0
    found = Bidirectional(*map(RNN, cells), merge_fn=jnp.add)(x, mask=mask, reset=reset)
    ahead, back = (nnx.to_pure_dict(nnx.state(cell, nnx.Param)) for cell in cells)
    layer, params = interop.from_flax("LSTMCell", {"forward_rnn": ahead, "backward_rnn": back}, merge="sum")
    inputs, mask, reset = (jnp.swapaxes(array, 0, 1) for array in (x, mask, reset))
    truth, _ = jaxrnn.unroll(layer, params, inputs, mask=mask, reset=reset)
    np.testing.assert_allclose(found, jnp.swapaxes(truth, 0, 1), rtol=0, atol=1e-12)


def test_the_example_in_its_documentation_runs_unchanged():
    """But for where RNN and Bidirectional are imported from."""
    names = {"RNN": RNN, "Bidirectional": Bidirectional, "GRUCell": nnx.GRUCell}
    example = doctest.DocTestParser().get_doctest(nnx.Bidirectional.__doc__, names, "Bidirectional", None, None)
    assert sum("RNN(" in line.source or "Bidirectional(" in line.source for line in example.examples) == 3
    assert doctest.DocTestRunner().run(example).failed == 0


def test_a_model_is_trained_as_its_documentation_does():
    """With `nnx.Optimizer`."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.rnn = RNN(nnx.GRUCell(in_features=3, hidden_features=4, rngs=rngs))
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.rnn(x))

    @nnx.jit
    def train_step(model, optimizer, x, y):
        error, grads = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)
        return error

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    errors = [train_step(model, optimizer, jnp.ones((2, 3, 3)), jnp.ones((2, 3, 2))) for _ in range(3)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.usefixtures("float64")
def test_less_memory_changes_nothing():
    cell = cell_of("LSTMCell")
    (ours, params), (theirs, _) = pure(RNN(cell, recompute="states")), pure(nnx.RNN(cell))
    assert_alike(ours, theirs, params, numbers(B, T, D), None)


def test_a_random_carry_is_the_one_flax_draws():
    cell = nnx.GRUCell(D, H, rngs=nnx.Rngs(0))
    cell.carry_init = nnx.initializers.normal(1.0)
    ours, theirs = (Module(cell, rngs=nnx.Rngs(carry=3), return_carry=True) for Module in (RNN, nnx.RNN))
    for _ in range(2):  # each call draws anew
        carry, outputs = ours(numbers(B, T, D).astype(jnp.float32))
        same, expected = theirs(numbers(B, T, D).astype(jnp.float32))
        np.testing.assert_allclose(carry, same, atol=1e-6)
        np.testing.assert_allclose(outputs, expected, atol=1e-6)


def replaced(**attributes):
    cell = cell_of("GRUCell", "float32")
    for name, value in attributes.items():
        setattr(cell, name, value)
    return cell


WRONG = {
    "a cell of another class": (lambda: RNN(nnx.Linear(3, 4, rngs=nnx.Rngs(0))), TypeError, "cell must be one of"),
    "an activation": (lambda: RNN(replaced(activation_fn=nnx.relu)), ValueError, "activation_fn of an nnx.GRUCell"),
    "a gate": (lambda: RNN(replaced(gate_fn=nnx.hard_sigmoid)), ValueError, "gate_fn"),
    "a promotion": (lambda: RNN(replaced(promote_dtype=lambda *a, **_: a)), ValueError, "promote_dtype"),
    "a dtype": (lambda: RNN(replaced(dtype=jnp.bfloat16))(jnp.ones((B, T, D))), ValueError, "dtype of the cell"),
    "a layer": (lambda: RNN(replaced(dense_i=nnx.LoRA(3, 2, 12, rngs=nnx.Rngs(0)))), ValueError, r"cell\.dense_i"),
    "state_axes": (lambda: RNN(replaced(), state_axes=nnx.StateAxes({...: 0})), ValueError, "state_axes"),
    "one of theirs": (lambda: Bidirectional(RNN(replaced()), nnx.RNN(replaced())), TypeError, "backward_rnn"),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_unsupported_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_nnx_there_and_back(kind, both_ways):
    module = Bidirectional(*(RNN(cell_of(kind, "float32", seed)) for seed in (1, 2))) if both_ways else None
    module = RNN(cell_of(kind, "float32")) if module is None else module
    weights = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    layer, params = interop.from_flax(kind, weights)
    x = numbers(B, T, D).astype(jnp.float32)
    hidden, _ = jaxrnn.unroll(layer, params, jnp.swapaxes(x, 0, 1))
    np.testing.assert_allclose(module(x), jnp.swapaxes(hidden, 0, 1), atol=1e-6)
    back = interop.to_flax(kind, layer, params)
    assert same_bits(back, weights if both_ways else weights["cell"])


def same_bits(came, expected):
    return jax.tree.structure(came) == jax.tree.structure(expected) and jax.tree.all(
        jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), came, expected)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_linen_there_and_back(kind):
    """With the bias that nnx's GRUCell lacks, of an RNN and of a Bidirectional."""
    linen = pytest.importorskip("flax.linen")
    make = lambda: linen.RNN(getattr(linen, kind)(H))
    x = numbers(B, T, D).astype(jnp.float32)
    for module in (make(), linen.Bidirectional(make(), make())):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        weights = jax.tree.map(lambda leaf: np.asarray(numbers(*leaf.shape), np.float32), shapes)
        layer, params = interop.from_flax(kind, weights)
        hidden, _ = jaxrnn.unroll(layer, params, jnp.swapaxes(x, 0, 1))
        expected = jax.jit(module.apply)({"params": weights}, x)
        np.testing.assert_allclose(expected, jnp.swapaxes(hidden, 0, 1), atol=1e-5)
        back = interop.to_flax(kind, layer, params, style="linen")
        assert same_bits(back, weights if "forward_rnn" in weights else weights["cell"])


TORCH_GRU = {"weight_ih_l0": np.ones((3 * H, D)), "weight_hh_l0": np.ones((3 * H, H))}
TORCH_GRU |= {"bias_ih_l0": np.ones(3 * H), "bias_hh_l0": np.ones(3 * H)}


def test_what_flax_cannot_hold_is_an_error():
    cell = jaxrnn.GRU(D, H)
    params = jax.tree.map(np.asarray, cell.init(jax.random.key(0)))
    assert interop.to_flax("GRUCell", cell, params)["dense_h"]["kernel"].shape == (H, 3 * H)
    (cell,), (params,) = interop.from_torch(TORCH_GRU)
    with pytest.raises(ValueError, match=r"params\.d must be zero"):
        interop.to_flax("GRUCell", cell, params)
    before = jaxrnn.GRU(D, H, reset="before")
    with pytest.raises(ValueError, match="another recurrence"):
        interop.to_flax("GRUCell", before, before.init(jax.random.key(0)))
