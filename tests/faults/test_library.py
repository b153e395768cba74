"""Random arguments: what is wrong is a ValueError or TypeError that names an argument. `-s` prints what was tried."""

import collections
import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.training.step import adam

T, B, D, H, V = 3, 2, 2, 3, 4
KEY = jax.random.key(0)
CELL, READOUT = jaxrnn.Elman(D, H), jaxrnn.Readout(H, V)
NET = jaxrnn.Network((CELL, jaxrnn.GRU(H, H)), READOUT, jaxrnn.softmax_cross_entropy)
DROPPING = dataclasses.replace(NET, recurrent_dropout=0.5)
ONE = jaxrnn.Network((CELL,), READOUT, jaxrnn.softmax_cross_entropy)


def filled(initialised):
    shapes = jax.eval_shape(initialised.init, KEY)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)


INPUTS, LABELS, NUMBERS = np.ones((T, B, D), np.float32), np.zeros((T, B), int), np.full((T, B, V), 0.25, np.float32)
FLAGS = np.ones((T, B), bool)
STATE = tuple(np.zeros((B, H), np.float32) for _ in range(2))
OF_CALL = {
    **{"params": filled(NET), "inputs": INPUTS, "targets": LABELS, "weights": FLAGS.astype(np.float32)},
    **{"state": STATE, "mask": FLAGS, "reset": ~FLAGS, "key": None},
}
FAULT = "a library call with wrong arguments"
CALLS = {  # a function, and arguments that are right
    "Elman": (jaxrnn.Elman, {"inputs": D, "hidden": H, "activation": "tanh", "input_scale": 1.0}),
    "GRU": (jaxrnn.GRU, {"inputs": D, "hidden": H, "recurrent_scale": 1.0, "reset": "after"}),
    "LSTM": (jaxrnn.LSTM, {"inputs": D, "hidden": H, "input_scale": 1.0}),
    "Readout": (jaxrnn.Readout, {"hidden": H, "outputs": V}),
    "Bidirectional": (jaxrnn.Bidirectional, {"forward": CELL, "backward": CELL, "merge": "sum"}),
    "Network": (
        jaxrnn.Network,
        {"layers": (CELL,), "readout": READOUT, "objective": jaxrnn.squared_error, "recurrent_dropout": 0.1},
    ),
    "init of a cell": (CELL.init, {"key": KEY, "dtype": jnp.float32}),
    "init of a network": (NET.init, {"key": KEY, "dtype": jnp.float32}),
    "init of a readout": (READOUT.init, {"key": KEY, "dtype": jnp.float32}),
    "apply": (NET.apply, {k: v for k, v in OF_CALL.items() if k not in ("targets", "weights")}),
    "loss": (NET.loss, OF_CALL | {"compute_dtype": jnp.float32}),
    "loss with dropout": (DROPPING.loss, OF_CALL | {"key": KEY}),
    "value_and_grad": (
        jaxrnn.value_and_grad,
        {"net": NET, "segment": 2, "recompute": "none", "truncate": None, "clip": 1.0, "compute_dtype": jnp.float32},
    ),
    "its function": (lambda **given: jaxrnn.value_and_grad(NET)(**given), OF_CALL),
    "unroll": (
        jaxrnn.unroll,
        {"cell": CELL, "params": filled(CELL), "inputs": INPUTS, "state": STATE[0], "mask": FLAGS, "gradient": "bptt"},
    ),
    "lengths_to_mask": (jaxrnn.lengths_to_mask, {"lengths": np.array([1, T]), "steps": T}),
    "softmax": (jaxrnn.softmax_cross_entropy, {"outputs": jnp.asarray(NUMBERS), "targets": jnp.asarray(LABELS)}),
    "sigmoid": (jaxrnn.sigmoid_cross_entropy, {"outputs": jnp.asarray(NUMBERS), "targets": jnp.asarray(NUMBERS)}),
    "adam": (adam, {"rate": 0.1, "steps": 10, "warmup": 2, "clip": 1.0, "decay": 0.0, "accumulate": 1}),
    "plan": (jaxrnn.plan, {"net": NET, "inputs": INPUTS, "segment": 2, "recompute": "none", "truncate": None}),
    "online": (jaxrnn.online.value_and_grad, {"net": ONE, "method": "snap1"}),
    "deer": (
        jaxrnn.deer,
        {"cell": CELL, "params": filled(CELL), "inputs": INPUTS, "state": STATE[0], "damping": 0.0, "iterations": 2},
    ),
    "saturation": (
        jaxrnn.flow.saturation,
        {"net": NET, "params": filled(NET), "inputs": INPUTS, "state": STATE, "mask": FLAGS, "threshold": 0.9},
    ),
    "Tail": (jaxrnn.Tail, {"k": 2}),
    "Window": (jaxrnn.Window, {"k": 2}),
    "Carried": (jaxrnn.Carried, {"k": 2}),
}
DTYPES = ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "int32", "uint8", "bool",
          "complex64", "O", "U3", "M8[s]"]  # fmt: skip
VALUES = [0, 1, -1, 3, 1e30, np.nan, np.inf]


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4]), max_size=4))
    dtype, value = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(VALUES))
    with np.errstate(all="ignore"):
        array = np.full(shape, value).astype(jnp.dtype(dtype) if "float" in dtype else dtype)
    return jnp.asarray(array) if array.dtype.kind in "fiub" and draw(st.booleans()) else array


@st.composite
def nearly(draw, right):
    """Changes what is right a little: a dtype, an axis, a sign, an entry."""
    if isinstance(right, tuple) and right and isinstance(right[0], np.ndarray):
        return draw(st.sampled_from([right[:1], right * 2, list(right), tuple(leaf.T for leaf in right), right[0]]))
    if hasattr(right, "_fields"):
        return draw(st.sampled_from([right[:-1], tuple(right), jax.tree.map(lambda leaf: leaf.astype(np.int32), right),
                                     jax.tree.map(lambda leaf: leaf[..., None], right)]))  # fmt: skip
    if isinstance(right, (np.ndarray, jax.Array)) and not jnp.issubdtype(right.dtype, jax.dtypes.prng_key):
        right, dtype = np.asarray(right), draw(st.sampled_from(DTYPES))
        changed = [
            right[:0],
            right[0],
            right[..., None],
            right[..., :1],
            right.T,
            right.swapaxes(0, -1),
            -1 - right * 1,
        ]
        with np.errstate(all="ignore"):
            cast = right.astype(jnp.dtype(dtype) if "float" in dtype else dtype)
            changed += [cast, cast, right * np.nan, right.tolist(), right + 7]
        return draw(st.sampled_from(changed))
    if isinstance(right, (int, float)):
        return draw(st.sampled_from([-right, 0, right + 1, float(right), np.float32(right), np.int64(1), str(right)]))
    return draw(ANYTHING)


ANYTHING = st.one_of(
    arrays(),
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=4),
    st.sampled_from([10**20, -(2**63), 1j, b"x", object(), {}, (), [], [1.0, [2.0]], {1}, jnp.tanh, jnp.int32]),
    st.sampled_from([jnp.float8_e5m2]),
    st.sampled_from([CELL, NET, READOUT, KEY, jax.random.split(KEY), jax.random.key_data(KEY), STATE, STATE[:1]]),
)  # fmt: skip


def wrong(right):
    """Returns what to draw in the place of a right argument: mostly something close to it."""
    return st.sampled_from([nearly(right)] * 3 + [ANYTHING]).flatmap(lambda chosen: chosen)


def tell(name, arguments):
    """Calls; returns how it ended, and fails where the error is of another kind or names no argument."""
    function, _ = CALLS[name]
    try:
        jax.block_until_ready(function(**arguments))
        return "taken"
    except Exception as error:
        ended = error
    assert isinstance(ended, (ValueError, TypeError)), f"{name} {arguments} ended in {ended!r}"
    assert any(argument in str(ended) for argument in arguments), f"{name} {arguments}: {ended!r} names none"
    return type(ended).__name__


def fuzz(count, seed, table):
    ends = collections.Counter()

    @hypothesis.settings(max_examples=count)
    @hypothesis.seed(seed)
    @hypothesis.given(st.data())
    def run(data):
        call = data.draw(st.sampled_from(list(CALLS)))
        right = CALLS[call][1]
        spoilt = data.draw(st.lists(st.sampled_from(list(right)), min_size=1, max_size=2, unique=True))
        given = right | {name: data.draw(wrong(right[name])) for name in spoilt}
        try:
            ended = tell(call, given)
        except AssertionError as error:
            table.add(FAULT, "lost", call=call, words=str(error))
            raise
        table.add(FAULT, "survived" if ended == "taken" else "noticed", call=call, spoilt=spoilt, ended=ended)
        ends[ended] += 1

    run()
    print(f"\n{ends.total()} calls (seed {seed}): {dict(ends)}")
    return ends


def test_the_calls_are_right_to_begin_with():
    assert {tell(name, right) for name, (_, right) in CALLS.items()} == {"taken"}


def test_some_calls(table):
    assert set(fuzz(60, 0, table)) == {"taken", "ValueError", "TypeError"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_calls(seed, table):
    """1,000 in all, with those of the other seeds."""
    fuzz(200, seed, table)
