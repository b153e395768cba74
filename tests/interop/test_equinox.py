"""equinox: our scan against `lax.scan` of the same cell, alone, batched and mapped; its cells there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.examples import assert_same
from interop.libraries import B, D, H, T, assert_alike, numbers
from pairwise import label, pairwise

import jaxrnn

eqx = pytest.importorskip("equinox")

from jaxrnn.interop.equinox import from_equinox, scan, to_equinox  # noqa: E402

OPTIONS = {
    "kind": ("GRUCell", "LSTMCell"),
    "use_bias": (True, False),
    "reverse": (False, True),
    "stateful": (False, True),
    "mapped": (True, False),
    "dtype": ("float64", "float32"),
}
ROWS = pairwise(OPTIONS)


def cell_of(kind, use_bias=True, dtype="float32"):
    return getattr(eqx.nn, kind)(D, H, use_bias, jnp.dtype(dtype), key=jax.random.key(0))


def theirs(cell, inputs, state=None, reverse=False):
    """Scans the cell as equinox's documentation does."""
    zeros = jnp.zeros(cell.hidden_size, cell.weight_hh.dtype)
    state = state if state is not None else (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros

    def step(state, x):
        state = cell(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    final, hidden = jax.lax.scan(step, state, inputs, reverse=reverse)
    return hidden, final


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_ours_is_theirs(row):
    arrays, static = eqx.partition(cell_of(row["kind"], row["use_bias"], row["dtype"]), eqx.is_array)
    state = numbers(H).astype(row["dtype"]) if row["stateful"] else None
    state = (state, 2 * state) if row["stateful"] and row["kind"] == "LSTMCell" else state
    inputs = numbers(*((B, T, D) if row["mapped"] else (T, D))).astype(row["dtype"])

    def run(loop):
        def one(arrays, x, state):
            return loop(eqx.combine(arrays, static), x, state, reverse=row["reverse"])

        return jax.vmap(one, (None, 0, None)) if row["mapped"] else one

    tolerance = 1e-12 if row["dtype"] == "float64" else 1e-5
    assert_alike(run(scan), run(theirs), arrays, inputs, state, tolerance=tolerance)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
def test_a_batch_is_what_is_mapped(kind):
    """With masks and resets that differ from sequence to sequence."""
    cell = cell_of(kind, dtype="float64")
    arrays = numbers(T, B, D), numbers(T, B, seed=1) < 0.5, numbers(T, B, seed=2) < 0
    run = lambda x, mask, reset: scan(cell, x, mask=mask, reset=reset)
    together, mapped = run(*arrays), jax.vmap(run, 1, (1, 0))(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), together, mapped)


def test_the_example_of_its_documentation():
    """A model that is trained with `filter_jit` and `filter_grad`, its own loop replaced."""

    class Model(eqx.Module):
        cell: eqx.nn.GRUCell

        def __init__(self, **kwargs):
            self.cell = eqx.nn.GRUCell(**kwargs)

        def __call__(self, xs):
            return scan(self.cell, xs)[1]

    @eqx.filter_jit
    def step(model, xs):
        error, grads = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(xs) - 0.5) ** 2))(model)
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.5 * g, grads)), error

    model, errors = Model(input_size=D, hidden_size=H, key=jax.random.key(0)), []
    for _ in range(3):
        model, error = step(model, jnp.ones((B, T, D)))
        errors.append(error)
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
def test_weights_there_and_back(kind, use_bias):
    module = cell_of(kind, use_bias)
    cell, params = from_equinox(module)
    again = to_equinox(cell, params)
    assert eqx.tree_equal(again, module)
    assert_same(from_equinox(again)[1], params)


WRONG = {
    "a cell": (lambda: scan(eqx.nn.Linear(3, 4, key=jax.random.key(0)), jnp.ones((T, D))), "cell must be an eqx.nn"),
    "a state": (lambda: scan(cell_of("LSTMCell"), jnp.ones((T, D)), jnp.ones(H)), "a pair"),
    "an Elman cell": (lambda: to_equinox(jaxrnn.Elman(D, H), None), "the two that equinox has"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_unsupported_is_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_the_other_gru_is_refused():
    cell = jaxrnn.GRU(D, H, reset="before")
    with pytest.raises(ValueError, match="another recurrence"):
        to_equinox(cell, cell.init(jax.random.key(0)))
