"""Every mistake is a TypeError or ValueError whose message names the argument: a row per mistake, all else is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Elman, Network, Readout, softmax_cross_entropy, squared_error, unroll, value_and_grad

T, B, D, H, V = 5, 2, 3, 4, 5

cell, readout = Elman(D, H), Readout(H, V)
net = Network((cell, Elman(H, H)), readout, softmax_cross_entropy)


def params_of(initialised):
    shapes = jax.eval_shape(initialised.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)


floats, tokens, labels = np.ones((T, B, D), np.float32), np.zeros((T, B), int), np.zeros((T, B), int)
numbers, state = np.ones((T, B, V), np.float32), np.zeros((B, H), np.float32)
params, layer = params_of(net), params_of(cell)
either = (TypeError, ValueError)

CELL = {
    "no inputs": ((0, H), ValueError, "inputs must be at least 1"),
    "negative hidden": ((D, -4), ValueError, "hidden must be at least 1"),
    "float hidden": ((D, 4.0), TypeError, "hidden must be an int"),
    "bool inputs": ((True, H), TypeError, "inputs must be an int"),
    "unknown activation": ((D, H, "sigmoid"), ValueError, "activation must be one of 'tanh', 'relu'"),
    "activation a function": ((D, H, jnp.tanh), ValueError, "activation must be one of"),
}
READOUT = {
    "no hidden": ((0, V), ValueError, "hidden must be at least 1"),
    "outputs a text": ((H, "5"), TypeError, "outputs must be an int"),
    "no outputs": ((H, 0), ValueError, "outputs must be at least 1"),
}
NETWORK = {
    "no layers": ({"layers": ()}, ValueError, "layers must hold at least one"),
    "layers of ints": ({"layers": (3,)}, TypeError, "layers must be"),
    "a layer by itself": ({"layers": cell}, TypeError, "layers must be"),
    "layers that do not chain": ({"layers": (cell, Elman(7, H))}, ValueError, r"layers\[0\] has 4 .* expects 7"),
    "readout that does not follow": ({"readout": Readout(6, V)}, ValueError, r"layers\[0\] has 4 .* expects 6"),
    "readout an int": ({"readout": V}, TypeError, "readout must be"),
    "objective a name": ({"objective": "mse"}, TypeError, "objective must be"),
}
GRADIENT = {
    "segment zero": ({"segment": 0}, ValueError, "segment must be at least 1"),
    "segment negative": ({"segment": -1}, ValueError, "segment must be at least 1"),
    "segment unknown": ({"segment": "big"}, ValueError, 'segment must be an int or "auto"'),
    "segment a float": ({"segment": 2.5}, TypeError, "segment must be an int"),
    "segment a bool": ({"segment": True}, TypeError, "segment must be an int"),
    "segment None": ({"segment": None}, TypeError, "segment must be an int"),
    "net a function": ({"net": net.loss}, TypeError, "net must be a jaxrnn.Network"),
}
INPUTS = {
    "too few features": ({"inputs": floats[..., :2]}, ValueError, r"inputs must be .* D = 3, got shape \(5, 2, 2\)"),
    "no features": ({"inputs": floats[:, 0, 0]}, ValueError, r"inputs must be .* got shape \(5,\)"),
    "a number": ({"inputs": 1.0}, ValueError, "inputs must be"),
    "a token": ({"inputs": np.array(1)}, ValueError, "inputs of tokens must be"),
    "no steps": ({"inputs": floats[:0]}, ValueError, "inputs must have at least one step, got T = 0"),
    "no tokens": ({"inputs": tokens[:0]}, ValueError, "inputs must have at least one step, got T = 0"),
    "token too large": ({"inputs": tokens + D}, ValueError, r"inputs must lie in 0 \.\. 2, got values from 3 to 3"),
    "token negative": ({"inputs": tokens - 1}, ValueError, r"inputs must lie in 0 \.\. 2, got values from -1"),
    "float8": (
        {"inputs": floats.astype(jnp.float8_e4m3fn)},
        TypeError,
        "inputs must be floats of 16 bits .* float8_e4m3fn",
    ),
    "a number too large": ({"inputs": 10**30}, TypeError, "inputs must be an array, got int"),
    "bools": ({"inputs": tokens > 0}, TypeError, "inputs must be floats .* got dtype bool"),
    "complex": ({"inputs": floats.astype(complex)}, TypeError, "inputs must be floats .* got dtype complex"),
    "None": ({"inputs": None}, either, "inputs"),
    "ragged": ({"inputs": [[1.0], [1.0, 2.0]]}, either, "inputs"),
}
UNROLL = INPUTS | {
    "cell a class": ({"cell": Elman}, TypeError, "cell must be"),
    "cell a network": ({"cell": net}, TypeError, "cell must be"),
    "params of a larger cell": ({"params": params_of(Elman(D, 9))}, ValueError, "params.U must have shape"),
    "params without bias": ({"params": layer._replace(b=None)}, TypeError, "params must have the structure"),
    "params of a network": ({"params": params}, TypeError, "params must have the structure"),
    "params None": ({"params": None}, TypeError, "params must have the structure"),
    "params of integers": ({"params": layer._replace(W=np.ones((H, H), int))}, TypeError, "params.W must be floating"),
    "params of numbers": ({"params": layer._replace(b=1.0)}, TypeError, "params.b must be an array"),
    "state of an example": ({"state": state[0]}, ValueError, r"state must have shape \(2, 4\), got \(4,\)"),
    "state of another batch": ({"state": np.zeros((3, H))}, ValueError, "state must have shape"),
    "state of another cell": ({"state": np.zeros((B, 9))}, ValueError, "state must have shape"),
    "state of integers": ({"state": np.zeros((B, H), int)}, TypeError, "state must be floating"),
    "state of a network": ({"state": (state,)}, TypeError, "state must have the structure"),
    "float8 to compute in": ({"compute_dtype": jnp.float8_e5m2}, TypeError, "compute_dtype must be floating, of 16"),
    "recompute of autodiff": (
        {"gradient": "autodiff", "recompute": "gates"},
        ValueError,
        r"recompute and backward .* got 'gates' and 'seq",
    ),
    "backward of autodiff": (
        {"gradient": "autodiff", "backward": "associative"},
        ValueError,
        r"recompute and backward .* 'associative'",
    ),
    "gradient": ({"gradient": "rtrl"}, ValueError, "gradient must be one of 'bptt', 'autodiff'"),
}
LOSS = INPUTS | {
    "no sequences": ({"inputs": floats[:, :0], "targets": labels[:, :0]}, ValueError, "inputs"),
    "targets None": ({"targets": None}, either, "targets"),
    "fewer targets": ({"targets": labels[:4]}, ValueError, r"targets must have a shape that begins with \(5, 2\)"),
    "one-hot integers": ({"targets": np.eye(V, dtype=int)[labels]}, ValueError, "targets of integer labels must have"),
    "bool targets": ({"targets": labels > 0}, TypeError, "targets must be integer labels or float"),
    "label too large": ({"targets": labels + V}, ValueError, r"targets must lie in 0 \.\. 4, got values from 5"),
    "label negative": ({"targets": labels - 1}, ValueError, r"targets must lie in 0 \.\. 4, got values from -1"),
    "probabilities of any sum": ({"targets": numbers}, ValueError, "probabilities must sum to one .* from 5"),
    "negative probabilities": ({"targets": numbers - 1.5}, ValueError, "targets must be labels or prob.* from -0.5"),
    "NaN for a probability": ({"targets": numbers * np.nan}, ValueError, "targets must be labels or prob.* from nan"),
    "numbers for probabilities": (
        {"objective": jaxrnn.sigmoid_cross_entropy, "targets": numbers * 3}, ValueError, "targets must lie in 0 .. 1",
    ),
    "float8 targets": (
        {"objective": squared_error, "targets": numbers.astype(jnp.float8_e5m2)}, TypeError, "targets must be floats",
    ),
    "float8 weights": ({"weights": np.ones((T, B), jnp.float8_e4m3fn)}, TypeError, "weights must be floats of 16"),
    "a number for a key": ({"key": 3}, TypeError, r"key must be one key, such as jax.random.key\(0\), got 3"),
    "floats for a key": ({"key": state}, TypeError, "key must be one key, .* got .*float32"),
    "several keys": ({"key": jax.random.split(jax.random.key(0))}, TypeError, r"one key, .* got key<fry>\[2\]"),
    "other probabilities": ({"targets": numbers[..., :4]}, ValueError, "targets must have the shape"),
    "labels for numbers": ({"objective": squared_error}, ValueError, "targets must have the shape"),
    "one number for all": (
        {"objective": squared_error, "targets": numbers[..., :1]}, ValueError, "targets must have the shape",
    ),
    "one step for all": (
        {"objective": jaxrnn.sigmoid_cross_entropy, "targets": numbers[:1]}, ValueError, "targets must have a shape",
    ),
    "weights of steps": ({"weights": np.ones(T)}, ValueError, "weights must be one per step"),
    "weights a number": ({"weights": 1.0}, ValueError, "weights must be one per step"),
    "weights to broadcast": ({"weights": np.ones((T, 1))}, ValueError, "weights must be one per step"),
    "weights complex": ({"weights": np.ones((T, B), complex)}, TypeError, "weights must be"),
    "state of a layer": ({"state": state}, TypeError, "state must be a tuple of 2"),
    "states too few": ({"state": (state,)}, TypeError, "state must be a tuple of 2"),
    "state of another batch": ({"state": (state, state[:1])}, ValueError, r"state\[1\] must have shape"),
    "params of fewer layers": (
        {"params": params._replace(layers=params.layers[:1])}, TypeError, "params must be NetworkParams with 2 layers",
    ),
    "params of a layer": ({"params": layer}, TypeError, "params must be NetworkParams"),
    "params None": ({"params": None}, TypeError, "params must be NetworkParams"),
    "params of another readout": (
        {"params": params._replace(readout=params_of(Readout(H, 9)))}, ValueError, "params.readout.V must have shape",
    ),
    "params of another layer": (
        {"params": params._replace(layers=(layer, params_of(Elman(9, H))))}, ValueError,
        r"params.layers\[1\].U must have shape",
    ),
    "error of all": ({"objective": lambda outputs, targets: outputs.sum()}, ValueError, "objective must give one"),
    "error of an output": ({"objective": lambda outputs, targets: outputs}, ValueError, "objective must give one"),
    "no error": ({"objective": lambda outputs, targets: None}, either, "objective must give one"),
}  # fmt: skip


def table(rows):
    return pytest.mark.parametrize(("wrong", "error", "message"), rows.values(), ids=rows)


@table(CELL)
def test_elman(wrong, error, message):
    with pytest.raises(error, match=message):
        Elman(*wrong)


@table(READOUT)
def test_readout(wrong, error, message):
    with pytest.raises(error, match=message):
        Readout(*wrong)


@table(NETWORK)
def test_network(wrong, error, message):
    with pytest.raises(error, match=message):
        Network(**{"layers": (cell,), "readout": readout, "objective": squared_error} | wrong)


@table(GRADIENT)
def test_value_and_grad(wrong, error, message):
    with pytest.raises(error, match=message):
        value_and_grad(**{"net": net} | wrong)


@pytest.mark.parametrize("gradient", ["bptt", "autodiff"])
@table(UNROLL)
def test_unroll(wrong, error, message, gradient):
    with pytest.raises(error, match=message):
        unroll(**{"cell": cell, "params": layer, "inputs": floats, "state": state, "gradient": gradient} | wrong)


@pytest.mark.parametrize("function", [value_and_grad, lambda net: net.loss], ids=["value_and_grad", "loss"])
@table(LOSS)
def test_loss(wrong, error, message, function):
    wrong = dict(wrong)
    chosen = Network(net.layers, readout, wrong.pop("objective", softmax_cross_entropy))
    with pytest.raises(error, match=message):
        function(chosen)(**{"params": params, "inputs": floats, "targets": labels} | wrong)


def test_apply():
    with pytest.raises(TypeError, match="state must be a tuple of 2"):
        net.apply(params, floats, state)
    with pytest.raises(ValueError, match="gradient must be one of"):
        net.apply(params, floats, gradient="none")


@pytest.mark.parametrize("wrong", [{"inputs": floats[..., :2]}, {"targets": labels[:, :1]}, {"weights": np.ones(T)}])
def test_shapes_are_checked_under_jit_too(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        jax.jit(value_and_grad(net))(**{"params": params, "inputs": floats, "targets": labels} | wrong)


TARGETS = {
    "labels": (softmax_cross_entropy, labels),
    "a list": (softmax_cross_entropy, labels.tolist()),
    "probabilities": (softmax_cross_entropy, numbers / V),
    "integers": (squared_error, numbers.astype(int)),
    "bools": (jaxrnn.sigmoid_cross_entropy, numbers > 0),
}
RIGHT = [(floats, name) for name in TARGETS] + [
    (x, "labels") for x in (tokens, tokens.astype(np.uint8), tokens.tolist())
]


@pytest.mark.parametrize(("inputs", "name"), RIGHT)
def test_what_is_right_raises_nothing(name, inputs):
    """The arguments that the tables spoil one at a time, NumPy arrays and lists, with integer weights and a state."""
    objective, targets = TARGETS[name]
    right = Network(net.layers, readout, objective)
    E, _ = value_and_grad(right, 2)(params, inputs, targets, np.ones((T, B), int), (state, state))
    assert jnp.isfinite(E)


INIT = {
    "key a number": ((0,), TypeError, r"key must be one key, such as jax.random.key\(0\), got 0"),
    "key None": ((None,), TypeError, "key must be one key, .* got None"),
    "key of floats": ((np.ones(2),), TypeError, r"key must be one key, .* got float64\[2\]"),
    "several keys": (
        (jax.random.split(jax.random.key(0), 3),),
        TypeError,
        r"key must be one key, .* got key<fry>\[3\]",
    ),
    "dtype of integers": ((jax.random.key(0), jnp.int32), TypeError, "dtype must be floating, of 16 bits .* got int32"),
    "dtype of 8 bits": ((jax.random.key(0), jnp.float8_e5m2), TypeError, "dtype must be floating, of 16 bits"),
    "dtype a word": ((jax.random.key(0), "single precision"), TypeError, "dtype must be a dtype such as"),
}


@pytest.mark.parametrize(
    "initialised", [cell, readout, net, jaxrnn.Bidirectional(cell, cell)], ids=lambda x: type(x).__name__
)
@table(INIT)
def test_init(wrong, error, message, initialised):
    with pytest.raises(error, match=message):
        initialised.init(*wrong)


def test_keys_of_both_styles_and_arrays_of_numpy_are_taken():
    """Old-style keys are arrays of two numbers; under vmap and eval_shape a key is one of several, or has no values."""
    for key in (jax.random.key(1), jax.random.PRNGKey(1), np.asarray(jax.random.PRNGKey(1))):
        assert cell.init(key).U.shape == (H, D)
        assert jax.eval_shape(net.init, key).readout.V.shape == (V, H)
    assert jax.vmap(cell.init)(jax.random.split(jax.random.key(0), 3)).U.shape == (3, H, D)


def test_what_is_masked_needs_no_probabilities():
    """Targets of steps that are padding may be anything, and rows of zeros are no loss."""
    mask = np.ones((T, B), bool)
    mask[3:] = False
    targets = np.where(mask[..., None], numbers / V, np.nan)
    assert jnp.isfinite(net.loss(params, floats, targets, mask=mask))
    assert net.loss(params, floats, 0 * numbers) == 0
