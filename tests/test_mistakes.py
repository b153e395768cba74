"""The mistakes that people make most, at every entry point where they can be made: the message names the mistake.

All other arguments are right. `test_arguments.py` has the rest of what is checked.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

T, B, D, H, V = 5, 4, 3, 7, 6
KEY = jax.random.key(0)

cell = jaxrnn.Elman(D, H)
net = jaxrnn.Network((cell,), jaxrnn.Readout(H, V), jaxrnn.softmax_cross_entropy)


def filled(initialised):
    shapes = jax.eval_shape(initialised.init, KEY)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)


params, layer = filled(net), filled(cell)
tokens, labels = np.arange(T * B).reshape(T, B) % D, np.arange(T * B).reshape(T, B) % V
floats, state = np.ones((T, B, D), np.float32), (np.zeros((B, H), np.float32),)
flags, lengths = labels > 1, np.arange(1, 1 + B)
RIGHT = {"params": params, "inputs": floats, "targets": labels}


def of_chunks(params, state=None, **chunk):
    return jaxrnn.value_and_grad_of_chunks(net)(params, [jaxrnn.Chunk(**chunk)], state)


def of_layer(function):
    """Takes what a network takes, of which a layer sees its own."""

    def call(params, inputs, state=None, **flags):
        own = params.layers[0] if isinstance(params, jaxrnn.NetworkParams) else params
        return function(cell, own, inputs, state[0] if isinstance(state, tuple) else state, **flags)

    return call


CALLS = {
    "apply": net.apply,
    "loss": net.loss,
    "value_and_grad": jaxrnn.value_and_grad(net),
    "value_and_grad, jitted": jax.jit(jaxrnn.value_and_grad(net)),
    "data_parallel": jaxrnn.data_parallel(jaxrnn.value_and_grad(net)),
    "online": jaxrnn.online.value_and_grad(net),
    "chunks": of_chunks,
    "unroll": of_layer(jaxrnn.unroll),
    "deer": of_layer(jaxrnn.deer),
}
LAYERS = {"unroll", "deer"}
EAGER = set(CALLS) - {"value_and_grad, jitted"}
NETWORKS = set(CALLS) - LAYERS
LOSSES = NETWORKS - {"apply"}
STATEFUL = set(CALLS) - {"online"}
KEYED = NETWORKS - {"online", "chunks"}


def flipped(array):
    return np.swapaxes(array, 0, 1)


TIME_FIRST = r"other way round: time comes first.*jnp.swapaxes\(array, 0, 1\)"
ROWS = {
    # which axis is time
    "inputs batch-major": ({"inputs": flipped(floats)}, TIME_FIRST, LOSSES),
    "targets batch-major": ({"targets": flipped(labels)}, rf"targets .* \(5, 4\), got \(4, 5\).*{TIME_FIRST}", LOSSES),
    "probabilities batch-major": ({"targets": np.ones((B, T, V))}, TIME_FIRST, LOSSES),
    "weights batch-major": ({"weights": np.ones((B, T))}, f"weights must be one per step.*{TIME_FIRST}", LOSSES),
    "mask batch-major": ({"mask": flipped(flags)}, f"mask must be one per step.*{TIME_FIRST}", set(CALLS)),
    "reset batch-major": ({"reset": flipped(flags)}, f"reset must be one per step.*{TIME_FIRST}", set(CALLS)),
    "inputs batch-major, with a mask": ({"inputs": flipped(floats), "mask": flags}, TIME_FIRST, set(CALLS)),
    "inputs batch-major, with a state": (
        {"inputs": flipped(floats), "targets": flipped(labels), "state": state},
        r"must have shape \(5, 7\), got \(4, 7\).*for a batch \(5,\) as inputs \[T, \*batch, \.\.\.\] have", STATEFUL,
    ),
    "the next step": ({"targets": labels[:-1]}, r"inputs are tokens\[:-1\] and targets tokens\[1:\]", LOSSES),
    # labels
    "one-hot integers": ({"targets": np.eye(V, dtype=int)[labels]}, r"targets\.argmax\(-1\)", LOSSES),
    "one-hot bools": ({"targets": np.eye(V, dtype=bool)[labels]}, r"targets\.argmax\(-1\)", LOSSES),
    "labels with an axis": ({"targets": labels[..., None]}, r"one too many, array\[\.\.\., 0\]", LOSSES),
    "float labels": ({"targets": labels.astype(float)}, r"targets\.astype\(jnp\.int32\)", LOSSES),
    # inputs
    "one-hot integer inputs": (
        {"inputs": np.eye(D, dtype=int)[tokens]}, r"one-hot .* floats, inputs\.astype\(jnp\.float32\)", LOSSES
    ),
    "integer features": (
        {"inputs": np.full((T, B, D), 255)}, r"features must be floats, inputs\.astype\(jnp\.float32\)", EAGER
    ),
    "float tokens": ({"inputs": tokens.astype(float)}, r"must be integers, inputs\.astype\(jnp\.int32\)", set(CALLS)),
    "bool inputs": ({"inputs": floats > 0}, r"dtype bool; .* inputs\.astype\(jnp\.float32\)", set(CALLS)),
    "objects": ({"inputs": np.array([floats[:, 0], floats[:2, 0]], object)}, "several lengths", EAGER),
    "ragged lists": ({"inputs": [[[1.0] * D] * 2, [[1.0] * D] * 3]}, "several lengths", EAGER - {"chunks"}),
    # masks and resets
    "a mask of floats": ({"mask": flags.astype(float)}, r"dtype float.*: mask\.astype\(bool\)", set(CALLS)),
    "a mask of integers": ({"mask": flags.astype(int)}, r"dtype int.*: mask\.astype\(bool\)", set(CALLS)),
    "resets of floats": ({"reset": flags.astype(float)}, r"dtype float.*: reset\.astype\(bool\)", set(CALLS)),
    "lengths for a mask": ({"mask": lengths}, r"jaxrnn\.lengths_to_mask\(lengths, T\)", set(CALLS)),
    # states
    "a state of another batch": (
        {"state": (np.zeros((2, H)),)}, r"state.* must have shape \(4, 7\), got \(2, 7\).*for a batch \(4,\)", STATEFUL
    ),
    "a state of a layer": ({"state": state[0]}, r"tuple of 1 states, .* got float32\[4,7\]", NETWORKS & STATEFUL),
    "a state of another cell": (
        {"state": (jaxrnn.LSTM(D, H).initial_state((B,)),)},
        r"float32\[4,7\], got LSTMState\(s: float32\[4,7\], .*one of Elman\(inputs=3, hidden=7\)", STATEFUL,
    ),
    # parameters
    "a dict of parameters": (
        {"params": params._asdict()}, "must be NetworkParams with 1 layers, got {'layers': .*init of this", NETWORKS
    ),
    "a layer as a dict": (
        {"params": params._replace(layers=(layer._asdict(),))}, r"ElmanParams\(\*\*params.*\) makes it one", set(CALLS)
    ),
    "layers in a list": ({"params": params._replace(layers=[layer])}, r"in a tuple, got \[ElmanParams", NETWORKS),
    "another class": (
        {"params": params._replace(layers=(filled(jaxrnn.GRU(D, H)),))},
        r"params.* must have the structure ElmanParams\(U: float32\[7,3\].*, got GRUParams\(U: float32\[21,3\].*"
        r"the init of Elman\(inputs=3, hidden=7\)", set(CALLS),
    ),
    "other sizes": (
        {"params": params._replace(layers=(filled(jaxrnn.Elman(D, 8)),))},
        r"params.*\.U must have shape \(7, 3\), got \(8, 3\); they must come from the init of Elman", set(CALLS),
    ),
    "more layers": (
        {"params": params._replace(layers=(layer, layer))}, "with 1 layers in a tuple, got 2; they must", NETWORKS
    ),
    # keys
    "a seed for a key": ({"key": 3}, r"key must be one key, such as jax\.random\.key\(0\), got 3", KEYED & EAGER),
    "several keys": ({"key": jax.random.split(KEY, B)}, r"key must be one key, .* got key<fry>\[4\]", KEYED),
}  # fmt: skip
CASES = [(name, call) for name, (_, _, calls) in ROWS.items() for call in CALLS if call in calls]


@pytest.mark.parametrize(("name", "call"), CASES, ids=map(": ".join, CASES))
def test_the_message_names_the_mistake(name, call):
    wrong, message, _ = ROWS[name]
    given = RIGHT | wrong if call in LOSSES else {"params": params, "inputs": floats} | wrong
    given = {name: value for name, value in given.items() if call in LOSSES or name != "targets"}
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        CALLS[call](**given)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_right_raises_nothing(call):
    """float64 from NumPy, which JAX holds in float32, and all that the table spoils."""
    given = {"params": params, "inputs": floats.astype(np.float64), "mask": flags, "reset": flags}
    given |= {"targets": labels} if call in LOSSES else {}
    given |= {"state": state} if call in STATEFUL else {}
    CALLS[call](**given)


@pytest.mark.parametrize("call", ["value_and_grad", "data_parallel"])
def test_a_forgotten_key(call):
    dropping = jaxrnn.value_and_grad(dataclasses.replace(net, recurrent_dropout=0.5))
    function = dropping if call == "value_and_grad" else jaxrnn.data_parallel(dropping)
    with pytest.raises(ValueError, match=r"key must be a jax\.random\.key, got None, and the network has dropout"):
        function(**RIGHT)


WIDE = {"compute_dtype": "float64"}
NARROWED = {
    "apply": lambda: net.apply(params, floats, **WIDE),
    "loss": lambda: net.loss(params, floats, labels, **WIDE),
    "value_and_grad": lambda: jaxrnn.value_and_grad(net, **WIDE),
    "chunks": lambda: jaxrnn.value_and_grad_of_chunks(net, **WIDE),
    "unroll": lambda: jaxrnn.unroll(cell, layer, floats, **WIDE),
    "deer": lambda: jaxrnn.deer(cell, layer, floats, **WIDE),
}


@pytest.mark.parametrize("call", NARROWED.values(), ids=NARROWED)
def test_float64_that_is_switched_off(call):
    with pytest.raises(ValueError, match=r"float64 needs jax\.config\.update\('jax_enable_x64', True\)"):
        call()
    with jax.enable_x64(True):
        jaxrnn.value_and_grad(net, **WIDE)


@pytest.mark.parametrize("made", [net, cell, jaxrnn.GRU(D, H)], ids=lambda made: type(made).__name__)
def test_a_seed_to_draw_parameters_from(made):
    with pytest.raises(TypeError, match=r"key must be one key, such as jax\.random\.key\(0\), got 3"):
        made.init(3)
    assert jax.eval_shape(jax.vmap(made.init), jax.random.split(KEY, 3))


def test_one_hot_integers_beside_probabilities():
    with pytest.raises(ValueError, match=r"a one-hot array must be floats, inputs\.astype\(jnp\.float32\)"):
        net.loss(params, np.eye(D, dtype=int)[tokens], np.ones((T, B, V)))


def test_a_forgotten_axis_of_the_only_output():
    for objective in (jaxrnn.squared_error, jaxrnn.sigmoid_cross_entropy):
        one = jaxrnn.Network((cell,), jaxrnn.Readout(H, 1), objective)
        with pytest.raises(ValueError, match=r"targets\[\.\.\., None\]"):
            one.loss(filled(one), floats, np.ones((T, B)))


def test_targets_of_every_step_where_only_the_last_has_one():
    with pytest.raises(ValueError, match=r"with last_step each sequence has one target, targets\[-1\]"):
        dataclasses.replace(net, last_step=True).loss(params, floats, labels)


def test_chunks():
    run = jaxrnn.value_and_grad_of_chunks(net)
    with pytest.raises(TypeError, match="got a single one: put it into a list"):
        run(params, jaxrnn.Chunk(floats, labels))
    with pytest.raises(ValueError, match=r"chunks must have targets, got Batch\(inputs: float32\[5,4,3\]\)"):
        run(params, [jaxrnn.Chunk(floats)])


def test_arrays_of_torch():
    torch = pytest.importorskip("torch")
    own = jax.tree.map(torch.tensor, layer)
    with pytest.raises(TypeError, match=r"params\.U must be an array of JAX or NumPy, got torch\.Tensor"):
        jaxrnn.unroll(cell, own, floats)
    with pytest.raises(TypeError, match=r"params\.layers\[0\]\.U must be an array of JAX or NumPy, got torch\.Tensor"):
        net.loss(params._replace(layers=(own,)), floats, labels)
    with pytest.raises(TypeError, match=r"inputs must be an array, got torch\.Tensor.*requires grad"):
        net.loss(params, torch.tensor(floats, requires_grad=True), labels)
    assert jnp.isfinite(net.loss(params, torch.tensor(floats), torch.tensor(labels)))
