"""haiku: its `dynamic_unroll` against ours on the same cores, and its weights there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.libraries import B, D, H, T, assert_alike, numbers
from pairwise import label, pairwise

import jaxrnn
from jaxrnn import interop

hk = pytest.importorskip("haiku")

from jaxrnn.interop.haiku import dynamic_unroll  # noqa: E402

OPTIONS = {
    "core": ("VanillaRNN", "GRU", "LSTM", "one bias"),
    "time_major": (True, False),
    "reverse": (False, True),
    "return_all_states": (False, True),
    "batched": (True, False),
    "dtype": ("float64", "float32"),
}
ROWS = pairwise(OPTIONS, lambda row: row.get("time_major", True) or row.get("batched", True))


def core_of(name):
    return hk.VanillaRNN(H, double_bias=False) if name == "one bias" else getattr(hk, name)(H)


def transformed(loop, name, batch, dtype="float32", **options):
    """Returns init and apply of a core within a module, unrolled from its initial state."""

    class Model(hk.Module):
        def __call__(self, x):
            core = core_of(name)
            state = jax.tree.map(lambda leaf: leaf.astype(dtype), core.initial_state(batch))
            return loop(core, x, state, **options)

    return hk.without_apply_rng(hk.transform(lambda x: Model()(x)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_ours_is_theirs(row):
    """Fresh parameters too, in names and in every bit."""
    options = {name: row[name] for name in ("time_major", "reverse", "return_all_states")}
    batch = B if row["batched"] else None
    ours, theirs = (
        transformed(loop, row["core"], batch, row["dtype"], **options) for loop in (dynamic_unroll, hk.dynamic_unroll)
    )
    shape = (T, D) if batch is None else (T, B, D) if row["time_major"] else (B, T, D)
    inputs = numbers(*shape).astype(row["dtype"])
    params, same = (jax.jit(each.init)(jax.random.key(0), inputs) for each in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no bias is zero
    tolerance = 1e-12 if row["dtype"] == "float64" else 1e-5
    assert_alike(ours.apply, theirs.apply, params, inputs, tolerance=tolerance)


def test_getters_of_parameters_are_obeyed():
    """As in mixed precision: the loop sees what the core would see."""
    doubled = lambda following, value, context: following(2 * value)

    def getting(loop):
        def run(core, x, state):
            with hk.custom_getter(doubled):
                return loop(core, x, state)

        return transformed(run, "LSTM", B)

    inputs = numbers(T, B, D).astype(jnp.float32)
    params = getting(hk.dynamic_unroll).init(jax.random.key(0), inputs)
    found, truth = (jax.jit(getting(loop).apply)(params, inputs) for loop in (dynamic_unroll, hk.dynamic_unroll))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, truth)


def test_masks_and_resets_with_time_second():
    mask, reset = numbers(T, B, seed=1) < 0.5, numbers(T, B, seed=2) < 0
    x = numbers(T, B, D).astype(jnp.float32)
    model = transformed(dynamic_unroll, "LSTM", B, time_major=False, mask=mask.T, reset=reset.T)
    params = model.init(jax.random.key(0), jnp.swapaxes(x, 0, 1))
    found, _ = model.apply(params, jnp.swapaxes(x, 0, 1))
    cell, ours = interop.from_haiku("LSTM", params, "model/lstm")
    truth, _ = jaxrnn.unroll(cell, ours, x, mask=mask, reset=reset)
    np.testing.assert_allclose(found, jnp.swapaxes(truth, 0, 1), atol=1e-6)


@pytest.mark.parametrize("core", OPTIONS["core"])
def test_weights_there_and_back(core):
    """The sum of two biases comes back as one; a forget bias that 1 can be added to exactly comes back in every bit."""
    model, x = transformed(hk.dynamic_unroll, core, B), numbers(T, B, D).astype(jnp.float32)
    params = jax.tree.map(lambda leaf: leaf + 0.25 * (leaf.ndim == 1), model.init(jax.random.key(0), x))
    kind = "VanillaRNN" if core == "one bias" else core
    name = "model/" + {"GRU": "gru", "LSTM": "lstm"}.get(core, "vanilla_rnn")
    cell, ours = interop.from_haiku(kind, params | {"other": {"w": x}}, name)
    np.testing.assert_allclose(jaxrnn.unroll(cell, ours, x)[0], model.apply(params, x)[0], atol=1e-6)
    back = interop.to_haiku(kind, cell, ours, name, double_bias=core != "one bias")
    if core == "VanillaRNN":
        first, second = (params[f"{name}/{linear}"] for linear in ("linear", "linear_1"))
        params = {f"{name}/linear": first | {"b": first["b"] + second["b"]}}
        params[f"{name}/linear_1"] = second | {"b": jnp.zeros(H)}
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


LINEAR = {"lstm/linear": {"w": np.ones((8, 20)), "b": np.zeros(19)}}
WRONG = {
    "another core": (
        lambda: hk.transform(lambda x: dynamic_unroll(hk.IdentityCore(), x, ())).init(None, jnp.ones((T, B, D))),
        ValueError,
        "core must be one of",
    ),
    "tanh": (
        lambda: interop.to_haiku("VanillaRNN", jaxrnn.Elman(D, H), jaxrnn.Elman(D, H).init(jax.random.key(0))),
        ValueError,
        "with activation='relu'",
    ),
    "a GRU that resets after": (
        lambda: interop.to_haiku("GRU", jaxrnn.GRU(D, H), jaxrnn.GRU(D, H).init(jax.random.key(0))),
        ValueError,
        "with reset='before'",
    ),
    "another name": (lambda: interop.from_haiku("LSTM", LINEAR, "model/lstm"), ValueError, "is 'model/lstm' the name"),
    "a shape": (lambda: interop.from_haiku("LSTM", LINEAR), ValueError, r"linear/b must have shape \(20,\)"),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_unsupported_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
