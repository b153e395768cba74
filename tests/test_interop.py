"""Weights in and out of torch, Keras and files: the same numbers come out, and what went in comes back bit for bit."""

import dataclasses
import functools
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error

import jaxrnn
from jaxrnn import interop
from jaxrnn.interop.keras import KERAS
from jaxrnn.interop.layers import GATES
from jaxrnn.layer.bidirectional import Layer

T, B, D, H = 6, 4, 3, 5
LENGTHS = np.array([4, 6, 1, 3])
KINDS = ("tanh", "relu", "GRU", "LSTM")  # the first two are activations of torch.nn.RNN
BOUND = {"float32": 1e-5, "float64": 1e-10}
CELLS = {"tanh": jaxrnn.Elman, "relu": jaxrnn.Elman, "GRU": jaxrnn.GRU, "LSTM": jaxrnn.LSTM}


def activation_of(kind: str) -> str:
    return kind if kind in ("tanh", "relu") else "tanh"


def stack(kind: str, depth: int = 1, both: bool = False, bias: bool = True) -> tuple[Layer, ...]:
    layers, inputs = [], D
    for _ in range(depth):
        options = {"activation": kind} if kind in ("tanh", "relu") else {}
        cell: Any = CELLS[kind](inputs, H, bias=bias, **options)
        layers.append(jaxrnn.Bidirectional(cell, cell) if both else cell)
        inputs = layers[-1].outputs
    return tuple(layers)


def fill(tree: Any, dtype: Any = np.float32) -> Any:
    """Random numbers in the shapes of a pytree, some zeros of either sign among them."""
    random = np.random.default_rng(7)

    def numbers(leaf: Any) -> np.ndarray:
        array = random.normal(size=leaf.shape).astype(dtype)
        array.flat[:2] = 0.0, -0.0
        return array

    return jax.tree.map(numbers, tree)


def params_of(layers: tuple[Layer, ...], dtype: Any = np.float32) -> Any:
    return fill(tuple(jax.eval_shape(layer.init, jax.random.key(0)) for layer in layers), dtype)


def assert_same(came: Any, expected: Any) -> None:
    """Equal in structure, shapes, dtypes, and in every bit."""
    assert jax.tree.structure(came) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, np.asarray(b).tobytes())


# Against torch: outputs, final states, and the gradient of everything that goes in.


class Data(NamedTuple):
    """Inputs, and by what the outputs and the final states count in the loss."""

    inputs: np.ndarray  # [T, B, D]
    targets: np.ndarray  # [T, B, outputs]
    state: tuple[np.ndarray, ...]  # h_0, and c_0 of an LSTM, [layers * directions, B, H]
    of_outputs: np.ndarray  # [T, B, outputs]
    of_state: tuple[np.ndarray, ...]  # as the state
    mask: np.ndarray | None  # [T, B], where there is padding


def data_for(kind: str, depth: int, both: bool, dtype: str, lengths: np.ndarray | None) -> Data:
    random = np.random.default_rng(3)
    normal = lambda *shape: random.normal(size=shape).astype(dtype)
    ways, fields = 1 + both, 2 if kind == "LSTM" else 1
    there = np.arange(T)[:, None, None] < (np.full(B, T) if lengths is None else lengths)[:, None]
    inputs = np.where(there, normal(T, B, D), np.nan).astype(dtype)  # padding must not be read
    targets, of_outputs = (normal(T, B, ways * H) * there for _ in range(2))
    state, of_state = (tuple(normal(depth * ways, B, H) for _ in range(fields)) for _ in range(2))
    return Data(inputs, targets, state, of_outputs, of_state, None if lengths is None else there[..., 0])


def module_for(torch: Any, kind: str, depth: int, both: bool, dtype: str, bias: bool = True) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(11)
    options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    make = getattr(torch.nn, kind if kind in ("GRU", "LSTM") else "RNN")
    return make(D, H, depth, bias=bias, bidirectional=both, dtype=getattr(torch, dtype), **options)


def run_torch(torch: Any, module: Any, data: Data) -> dict[str, Any]:
    """What torch makes of it, by names; gradients of the two losses of `run_jaxrnn`."""
    tensor = lambda array: torch.tensor(array, requires_grad=True)
    inputs, state = tensor(data.inputs), [tensor(array) for array in data.state]
    lengths = np.full(B, T) if data.mask is None else data.mask.sum(0)
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
    start = tuple(state) if len(state) == 2 else state[0]
    hidden, final = module(inputs if data.mask is None else packed, start)
    if data.mask is not None:
        hidden, _ = torch.nn.utils.rnn.pad_packed_sequence(hidden, total_length=T)
    final = final if len(state) == 2 else (final,)
    linear = sum(
        (a * torch.tensor(b)).sum() for a, b in zip((hidden, *final), (data.of_outputs, *data.of_state), strict=True)
    )
    squared = ((hidden - torch.tensor(data.targets)) ** 2).sum() / lengths.sum()
    weights = dict(module.named_parameters())
    leaves = [*weights.values(), inputs, *state]
    of_linear = torch.autograd.grad(linear, leaves, retain_graph=True)
    of_squared = torch.autograd.grad(squared, list(weights.values()))
    array = lambda tensor: tensor.detach().numpy()
    return {
        "outputs": array(hidden),
        "final": tuple(map(array, final)),
        "linear": {name: array(grad) for name, grad in zip(weights, of_linear, strict=False)},
        "inputs": array(of_linear[len(weights)]),
        "state": tuple(map(array, of_linear[len(weights) + 1 :])),
        "squared": array(squared),
        "of squared": {name: array(grad) for name, grad in zip(weights, of_squared, strict=True)},
    }


@functools.partial(jax.jit, static_argnums=0)
def run_jaxrnn(layers: tuple[Layer, ...], params: Any, data: Data) -> dict[str, Any]:
    """The same by jaxrnn, through a readout that changes nothing."""
    outputs, dtype = layers[-1].outputs, data.inputs.dtype
    net = jaxrnn.Network(layers, jaxrnn.Readout(outputs, outputs), jaxrnn.squared_error)
    readout = jaxrnn.ReadoutParams(jnp.eye(outputs, dtype=dtype), jnp.zeros(outputs, dtype))
    whole = lambda params: jaxrnn.NetworkParams(params, readout)

    def linear(params: Any, inputs: Any, state: Any) -> Any:
        hidden, final = net.apply(whole(params), inputs, as_jaxrnn(layers, state), mask=data.mask)
        # torch pads with zeros what jaxrnn holds.
        hidden = hidden if data.mask is None else jnp.where(data.mask[..., None], hidden, 0)
        final = as_torch(layers, final)
        loss = sum(jnp.sum(a * b) for a, b in zip((hidden, *final), (data.of_outputs, *data.of_state), strict=True))
        return loss, (hidden, final)

    differentiated = jax.value_and_grad(linear, (0, 1, 2), has_aux=True)
    (_, (hidden, final)), (of_params, of_inputs, of_state) = differentiated(params, data.inputs, data.state)
    squared = functools.partial(jaxrnn.value_and_grad(net), state=as_jaxrnn(layers, data.state), mask=data.mask)
    E, of_E = squared(whole(params), data.inputs, data.targets)
    return {
        "outputs": hidden,
        "final": final,
        "linear": torch_gradients(layers, of_params),
        "inputs": of_inputs,
        "state": of_state,
        "squared": E,
        "of squared": torch_gradients(layers, of_E.layers),
    }


def as_jaxrnn(layers: tuple[Layer, ...], state: Any) -> tuple:
    """A state per layer, from torch's h_0 (and c_0), whose rows are the directions of the layers."""
    rows = zip(*state, strict=True)
    one = lambda cell: jaxrnn.LSTMState(*next(rows)) if isinstance(cell, jaxrnn.LSTM) else next(rows)[0]
    return tuple(
        (one(layer.forward), one(layer.backward)) if isinstance(layer, jaxrnn.Bidirectional) else one(layer)
        for layer in layers
    )


def as_torch(layers: tuple[Layer, ...], state: tuple) -> tuple:
    """h_n (and c_n) from a state per layer."""
    rows = []
    for layer, part in zip(layers, state, strict=True):
        rows += part if isinstance(layer, jaxrnn.Bidirectional) else [part]
    fields = [row if isinstance(row, tuple) else (row,) for row in rows]
    return tuple(jnp.stack(field) for field in zip(*fields, strict=True))


def torch_gradients(layers: tuple[Layer, ...], grads: Any) -> dict[str, Any]:
    """By torch's names: b is the sum of two biases, so its gradient is that of both; d is the second bias of n."""
    found = {}
    for i, (layer, of_layer) in enumerate(zip(layers, grads, strict=True)):
        both = isinstance(layer, jaxrnn.Bidirectional)
        for suffix, of_cell in zip(("", "_reverse"), of_layer if both else (of_layer,), strict=False):
            found[f"weight_ih_l{i}{suffix}"] = of_cell.U
            found[f"weight_hh_l{i}{suffix}"] = of_cell.W
            found[f"bias_ih_l{i}{suffix}"] = found[f"bias_hh_l{i}{suffix}"] = of_cell.b
            if hasattr(of_cell, "d"):
                found[f"bias_hh_l{i}{suffix}"] = jnp.concatenate([of_cell.b[: 2 * H], of_cell.d])
    return found


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [("float32", None), ("float64", np.full(B, T)), ("float64", LENGTHS)],
    ids=["float32", "float64", "float64 packed"],
)
def test_torch_computes_the_same(kind: str, depth: int, both: bool, dtype: str, lengths: Any) -> None:
    torch = pytest.importorskip("torch")
    module, data = module_for(torch, kind, depth, both, dtype), data_for(kind, depth, both, dtype, lengths)
    truth = run_torch(torch, module, data)
    with jax.enable_x64(dtype == "float64"):
        layers, params = interop.from_torch(module.state_dict(), activation_of(kind))
        assert layers == stack(kind, depth, both)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
        computed = run_jaxrnn(layers, params, data)
        assert computed["outputs"].dtype == dtype
        assert relative_error(computed, truth) <= BOUND[dtype]


@pytest.mark.parametrize("kind", ["tanh", "GRU", "LSTM"])
def test_torch_computes_the_same_without_bias(kind: str) -> None:
    torch = pytest.importorskip("torch")
    module, inputs = module_for(torch, kind, 2, True, "float32", bias=False), fill(np.empty((T, B, D)))
    layers, params = interop.from_torch(module.state_dict())
    assert layers == stack(kind, 2, True, bias=False)
    hidden = jnp.asarray(inputs)
    for layer, layer_params in zip(layers, params, strict=True):
        hidden, _ = jaxrnn.unroll(layer, layer_params, hidden)
    assert relative_error(hidden, module(torch.tensor(inputs))[0].detach().numpy()) <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", KINDS)
def test_modules_load_what_comes_out_and_give_it_back(kind: str, both: bool, bias: bool, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    module, activation = module_for(torch, kind, 2, both, dtype, bias), activation_of(kind)
    layers, params = interop.from_torch(dict(module.state_dict()), activation)
    # The biases that a module starts with are not zero, so this first trip sums them.
    for ours in (params, params_of(layers, dtype)):
        module.load_state_dict(
            {name: torch.from_numpy(array) for name, array in interop.to_torch(layers, ours).items()}
        )
        again, back = interop.from_torch(module.state_dict(), activation)
        assert again == layers
        assert_same(back, ours)


def test_torch_tensors_that_numpy_cannot_read_are_told() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.GRU(D, H)
    with pytest.raises(TypeError, match=r"tensors\['weight_ih_l0'\] must be an array, got Parameter.*detached"):
        interop.from_torch(dict(module.named_parameters()))
    with pytest.raises(TypeError, match=r"got Tensor.*not in bfloat16"):
        interop.from_torch(module.to(torch.bfloat16).state_dict())


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_are_exact(kind: str, both: bool, bias: bool, dtype: Any, tmp_path: pathlib.Path) -> None:
    """In every bit, also where the dtype is one that JAX would not hold, and through a file on the way."""
    layers = stack(kind, 3, both, bias)
    params = params_of(layers, dtype)
    interop.save(tmp_path / "torch.safetensors", interop.to_torch(layers, params))
    again, back = interop.from_torch(interop.load(tmp_path / "torch.safetensors"), activation_of(kind))
    assert again == layers
    assert_same(back, params)
    name = {"GRU": "GRU", "LSTM": "LSTM"}.get(kind, "SimpleRNN")
    for layer, layer_params in zip(layers, params, strict=True):
        came, back = interop.from_keras(name, interop.to_keras(layer, layer_params), activation_of(kind))
        assert came == layer
        assert_same(back, layer_params)
    interop.save(tmp_path / "layers.safetensors", params)
    loaded = interop.load(tmp_path / "layers.safetensors", like=params)
    assert_same(loaded, params)
    assert all(leaf.flags.writeable for leaf in jax.tree.leaves(loaded))


def test_sums_of_biases_come_back_as_one() -> None:
    """What the second bias of torch and Keras becomes: part of b, but for n in a GRU."""
    first, second = np.arange(1.0, 16), 100 * np.arange(1.0, 16)
    tensors = {"weight_ih_l0": np.ones((15, D)), "weight_hh_l0": np.ones((15, H))}
    (_,), (params,) = interop.from_torch(tensors | {"bias_ih_l0": first, "bias_hh_l0": second})
    np.testing.assert_array_equal(params.b, [*(first + second)[:10], *first[10:]])
    np.testing.assert_array_equal(params.d, second[10:])
    tensors = interop.to_torch([jaxrnn.GRU(D, H)], [params])
    np.testing.assert_array_equal(tensors["bias_ih_l0"], params.b)
    np.testing.assert_array_equal(tensors["bias_hh_l0"], [*np.zeros(10), *second[10:]])
    _, from_keras = interop.from_keras("GRU", [np.ones((D, 15)), np.ones((H, 15)), np.stack([first, second])])
    np.testing.assert_array_equal(from_keras.b, params.b.reshape(3, 5)[[1, 0, 2]].ravel())
    np.testing.assert_array_equal(from_keras.d, params.d)


def test_a_larger_module_gives_what_has_the_prefix() -> None:
    layers = stack("LSTM", 2)
    params = params_of(layers)
    tensors = {f"weights.{name}": array for name, array in interop.to_torch(layers, params).items()}
    came, back = interop.from_torch(tensors | {"head.weight": np.ones((2, 5)), "steps": 3}, prefix="weights.")
    assert came == layers
    assert_same(back, params)


def test_arrays_are_copies() -> None:
    """To train on with either library must not move the other's weights."""
    layers, writable = stack("GRU"), lambda arrays: all(array.flags.writeable for array in jax.tree.leaves(arrays))
    params = tuple(layer.init(jax.random.key(0)) for layer in layers)
    tensors, weights = interop.to_torch(layers, params), interop.to_keras(layers[0], params[0])
    from_torch, from_keras = interop.from_torch(tensors)[1], interop.from_keras("GRU", weights)[1]
    assert all(map(writable, (tensors, weights, from_torch, from_keras)))
    for array in (*tensors.values(), *weights):
        array += 1
    assert_same(from_torch, jax.tree.map(np.asarray, params))
    assert_same(from_keras, jax.tree.map(np.asarray, params[0]))


# Against Keras. Weights that are all alike, and answers to them, are those of Keras's own tests; answers to waves, in
# which no gate is like another, were computed by Keras 3.15.1. All are in float32.


def constants(kind: str, inputs: int, units: int, bias: float | None = 0.03, forget: float | None = None) -> list:
    """Kernel .01, recurrent kernel .02, and a bias, in which that of the forget gate may be another."""
    gates = GATES[KERAS[kind]] * units
    weights = [np.full((inputs, gates), 0.01, np.float32), np.full((units, gates), 0.02, np.float32)]
    if bias is None:
        return weights
    b = np.full((2, gates) if kind == "GRU" else gates, bias, np.float32)
    if forget is not None:
        b[units : 2 * units] = forget
    return [*weights, b]


def counting(*shape: int) -> np.ndarray:
    """0, 1, 2 ... batch-major [B, T, D], as [T, B, D]."""
    return np.arange(np.prod(shape)).reshape(shape).astype(np.float32).swapaxes(0, 1)


def close(came: Any, expected: Any) -> bool:
    return np.shape(came) == np.shape(expected) and np.allclose(came, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "units", "options", "reverse", "expected"),
    [
        ("SimpleRNN", (2, 3, 4), 4, {}, False, [0.405432, 0.73605347]),
        ("SimpleRNN", (2, 3, 4), 4, {}, True, [0.11144729, 0.5528889]),
        ("GRU", (3, 6, 4), 3, {}, False, [0.5217289, 0.6371659, 0.39384964]),
        ("GRU", (3, 6, 4), 3, {}, True, [0.24406259, 0.611516, 0.3928808]),
        ("GRU", (3, 6, 4), 3, {"bias": None}, False, [0.49988455, 0.64701194, 0.4103359]),
        ("LSTM", (3, 6, 4), 3, {"forget": 1.0}, False, [0.6288687, 0.86899155, 0.9460773]),
        ("LSTM", (3, 6, 4), 3, {"forget": 1.0}, True, [0.35622165, 0.74789524, 0.8872726]),
        ("LSTM", (3, 6, 4), 3, {}, False, [0.57019705, 0.8661914, 0.9459622]),
        ("LSTM", (3, 6, 4), 3, {"bias": None}, False, [0.54986924, 0.86226785, 0.9443936]),
    ],
)
def test_keras_known_answers(
    kind: str, shape: tuple[int, ...], units: int, options: dict, reverse: bool, expected: list
) -> None:
    layer, params = interop.from_keras(kind, constants(kind, shape[-1], units, **options))
    hidden, _ = jaxrnn.unroll(layer, params, counting(*shape), reverse=reverse)
    assert close(hidden[0 if reverse else -1], np.repeat(expected, units).reshape(-1, units))


@pytest.mark.parametrize(
    ("kind", "forget", "expected"),
    [
        ("SimpleRNN", None, [[0.33621645] * 4, [0.6262637] * 4]),
        ("GRU", None, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
        ("LSTM", 1.0, [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
    ],
)
def test_keras_known_answers_from_a_state(kind: str, forget: float | None, expected: list) -> None:
    units = len(expected[0])
    layer, params = interop.from_keras(kind, constants(kind, 3, units, forget=forget))
    s = np.arange(2 * units).reshape(2, units).astype(np.float32)
    hidden, _ = jaxrnn.unroll(layer, params, counting(2, 4, 3), jaxrnn.LSTMState(s, s) if kind == "LSTM" else s)
    assert close(hidden[-1], expected)


def test_keras_known_answers_under_a_mask() -> None:
    layer, params = interop.from_keras("GRU", constants("GRU", 3, 2))
    mask = np.array([[True, True, False, True], [True, False, False, True]]).T
    hidden, _ = jaxrnn.unroll(layer, params, counting(2, 4, 3), mask=mask)
    first, second = [0.03606692, 0.09497581, 0.09497581, 0.19393763], [0.16051409, 0.16051409, 0.16051409, 0.30818558]
    assert close(hidden[..., 0], np.transpose([first, second]))
    assert close(hidden[..., 1], hidden[..., 0])


def test_keras_known_answers_in_both_directions() -> None:
    weights = constants("SimpleRNN", 4, 2) * 2
    _, final = jaxrnn.unroll(*interop.from_keras("SimpleRNN", weights), counting(2, 3, 4))
    assert close(final[0], [[0.39687276] * 2, [0.7237238] * 2])
    assert close(final[1], [[0.10004295] * 2, [0.53391594] * 2])
    layer, params = interop.from_keras("GRU", constants("GRU", 4, 2) * 2, merge="sum")
    hidden, _ = jaxrnn.unroll(layer, params, counting(2, 3, 4))
    first, second = [0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]
    assert close(hidden[..., 0], np.transpose([first, second]))
    assert close(hidden[..., 1], hidden[..., 0])
    _, final = jaxrnn.unroll(*interop.from_keras("LSTM", constants("LSTM", 3, 2, forget=1.0) * 2), counting(2, 4, 3))
    for state, s, m in zip(
        final,
        [(0.1990008, 0.52335435), (0.12659755, 0.44717982)],
        [(0.35567185, 1.0492687), (0.2501858, 0.941473)],
        strict=True,
    ):
        assert close(state.s[:, 0], s)
        assert close(state.m[:, 0], m)


def waves(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """sin(7 i + 1.3 n) for the n-th number of the i-th array."""
    numbers = [np.sin(7.0 * i + 1.3 * np.arange(np.prod(shape))) for i, shape in enumerate(shapes)]
    return [array.reshape(shape).astype(np.float32) for array, shape in zip(numbers, shapes, strict=True)]


KERNELS = {
    "SimpleRNN": [(3, 2), (2, 2), (2,)],
    "GRU": [(3, 6), (2, 6), (2, 6)],
    "LSTM": [(3, 8), (2, 8), (8,)],
}
WAVES = np.cos(np.arange(24)).reshape(2, 4, 3).astype(np.float32).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("kind", "arrays", "activation", "expected"),
    [
        ("SimpleRNN", 3, "tanh", [[0.77543974, 0.09691443], [0.89436281, 0.5733003]]),
        ("SimpleRNN", 3, "relu", [[1.80432034, 0.7309711], [2.08320022, 1.28577578]]),
        ("SimpleRNN", 2, "tanh", [[-0.26279944, -0.39058074], [0.02372421, 0.11817096]]),
        ("GRU", 3, "tanh", [[0.3782177, 0.25801972], [0.24790965, 0.30942819]]),
        ("GRU", 2, "tanh", [[0.13301583, -0.75439793], [-0.3436735, -0.4919259]]),
        ("LSTM", 3, "tanh", [[0.24625535, 0.09894925], [0.11654456, 0.16392681]]),
        ("LSTM", 2, "tanh", [[0.19630016, 0.05640403], [0.01089074, 0.08521304]]),
    ],
)
def test_keras_computes_the_same(kind: str, arrays: int, activation: str, expected: list) -> None:
    layer, params = interop.from_keras(kind, waves(*KERNELS[kind][:arrays]), activation)
    hidden, _ = jaxrnn.unroll(layer, params, WAVES)
    assert close(hidden[-1], expected)


@pytest.mark.parametrize(
    ("kind", "concatenated", "summed"),
    [
        (
            "SimpleRNN",
            [[0.71005321, 0.07695153, 0.23116997, -0.49558279], [0.83871901, 0.46590391, 0.23622331, -0.78712904]],
            [[0.94122314, -0.41863126], [1.07494235, -0.32122514]],
        ),
        (
            "GRU",
            [[0.24394248, 0.17480268, -0.62062979, -0.68651158], [0.22920352, 0.13263822, -0.11032034, -0.58465135]],
            [[-0.37668729, -0.51170892], [0.11888318, -0.45201313]],
        ),
        (
            "LSTM",
            [[0.19475411, 0.06752098, 0.07042462, -0.10427895], [0.20962581, 0.11167581, 0.06356771, -0.17162837]],
            [[0.26517874, -0.03675797], [0.27319351, -0.05995256]],
        ),
    ],
)
def test_keras_computes_the_same_in_both_directions(kind: str, concatenated: list, summed: list) -> None:
    for merge, expected in (("concatenate", concatenated), ("sum", summed)):
        layer, params = interop.from_keras(kind, waves(*2 * KERNELS[kind]), merge=merge)
        hidden, _ = jaxrnn.unroll(layer, params, WAVES)
        assert close(hidden[1], expected)


# Files.


def test_files_hold_any_pytree(tmp_path: pathlib.Path) -> None:
    net = jaxrnn.Network(
        (jaxrnn.LSTM(D, H), jaxrnn.Bidirectional(jaxrnn.GRU(H, H), jaxrnn.GRU(H, H))),
        jaxrnn.Readout(2 * H, 2, bias=False),
        jaxrnn.squared_error,
        learn_state=True,
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = fill(shapes)
    interop.save(tmp_path / "net.safetensors", params)
    names = set(interop.load(tmp_path / "net.safetensors"))
    assert {"layers.0.U", "layers.1.backward.d", "readout.V", "state.0.m", "state.1.0"} <= names
    assert len(names) == len(jax.tree.leaves(params))
    assert_same(interop.load(str(tmp_path / "net.safetensors"), shapes), params)


def test_files_hold_arrays_of_every_kind(tmp_path: pathlib.Path) -> None:
    dtypes = (bool, np.int8, np.uint16, np.int32, np.int64, np.float16, jnp.bfloat16, np.float32, np.float64)
    arrays = {f"{np.dtype(dtype)}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes}
    arrays |= {"scalar": np.array(3.0), "empty": np.zeros((0, 3)), "not a number": np.array([np.nan, -0.0, np.inf])}
    odd = {"jax": jnp.arange(3.0), "columns": np.arange(6.0).reshape(3, 2).T, "steps": np.arange(9.0)[::2]}
    big = {"big-endian": np.arange(3, dtype=">f4")}
    interop.save(tmp_path / "all.safetensors", arrays | odd | big | {"rnn.bias": np.ones(1), "none": None})
    loaded = interop.load(tmp_path / "all.safetensors")
    assert_same({name: loaded[name] for name in arrays}, arrays)
    assert set(loaded) == {*arrays, *odd, *big, "rnn.bias"}
    for name, array in (odd | big).items():
        np.testing.assert_array_equal(loaded[name], array)


def test_files_are_what_safetensors_makes_of_them(tmp_path: pathlib.Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    params = params_of(stack("GRU"))
    interop.save(tmp_path / "ours.safetensors", params)
    theirs = safetensors.load_file(tmp_path / "ours.safetensors")
    assert_same(theirs, {f"0.{name}": leaf for name, leaf in params[0]._asdict().items()})
    safetensors.save_file(theirs, tmp_path / "theirs.safetensors")
    assert_same(interop.load(tmp_path / "theirs.safetensors", params), params)


def test_without_safetensors_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        interop.save(tmp_path / "file", {"a": np.ones(1)})
    with pytest.raises(ImportError, match="pip install safetensors"):
        interop.load(tmp_path / "file")


def test_nothing_of_other_libraries_is_imported() -> None:
    command = [sys.executable, "-c", "import sys, jaxrnn.interop; print(*sys.modules)"]
    folder = pathlib.Path(interop.__file__).parents[2]
    names = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert "jaxrnn.interop" in names
    assert {"torch", "keras", "tensorflow", "safetensors"}.isdisjoint(names)


# Mistakes: each is told by the name of the argument.


@dataclasses.dataclass(frozen=True)
class Mine(jaxrnn.GRU):
    """A user's cell, which may compute anything."""


ELMAN, GRU, LSTM = (stack(kind)[0] for kind in ("tanh", "GRU", "LSTM"))
WIDE = jaxrnn.Elman(5, 6)
RELU, BARE = jaxrnn.Elman(D, H, "relu"), jaxrnn.Elman(D, H, bias=False)
SUMMED = jaxrnn.Bidirectional(ELMAN, ELMAN, "sum")
tensors = {name: np.ones(array.shape) for name, array in interop.to_torch([GRU], params_of((GRU,))).items()}
weights = [np.ones(array.shape) for array in interop.to_keras(GRU, params_of((GRU,))[0])]

TORCH_IN: dict[str, tuple] = {
    "no mapping": (([np.ones(3)],), TypeError, "tensors must map names to arrays, .* got list"),
    "no names": (({0: np.ones(3)},), TypeError, "tensors must map names to arrays, .* got dict"),
    "nothing": (({},), ValueError, "missing weight_ih_l0, weight_hh_l0"),
    "a projection": ((tensors | {"weight_hr_l0": np.ones(2)},), ValueError, "proj_size"),
    "a larger module": (
        ({f"rnn.{name}": a for name, a in tensors.items()},),
        ValueError,
        "unknown rnn.weight.*prefix=''",
    ),
    "another prefix": ((tensors, "tanh", "rnn."), ValueError, "missing weight_ih_l0.*prefix='rnn.'"),
    "one bias": (({n: a for n, a in tensors.items() if n != "bias_hh_l0"},), ValueError, "missing bias_hh_l0"),
    "the second bias": (({n: a for n, a in tensors.items() if n != "bias_ih_l0"},), ValueError, "unknown bias_hh_l0"),
    "a layer left out": ((tensors | {"weight_ih_l2": np.ones(2)},), ValueError, "unknown weight_ih_l2"),
    "half a direction": ((tensors | {"weight_ih_l0_reverse": np.ones(2)},), ValueError, "missing weight_hh_l0_reverse"),
    "only weights above": ((tensors | {"weight_ih_l1": np.ones((15, 5))},), ValueError, "missing weight_hh_l1"),
    "rows of no module": ((tensors | {"weight_hh_l0": np.ones((10, 5))},), ValueError, r"weight_hh_l0 .* \(10, 5\)"),
    "rows of another": ((tensors | {"weight_ih_l0": np.ones((20, 3))},), ValueError, r"weight_ih_l0'\] .* \(15, 3\)"),
    "a vector": ((tensors | {"weight_ih_l0": np.ones(15)},), ValueError, r"weight_ih_l0'\] must .* got \(15,\)"),
    "a bias too long": ((tensors | {"bias_hh_l0": np.ones(16)},), ValueError, r"bias_hh_l0'\] .* \(15,\), got \(16,\)"),
    "a bias of one": ((tensors | {"bias_hh_l0": np.ones(1)},), ValueError, r"bias_hh_l0'\] .* \(15,\), got \(1,\)"),
    "integers": ((tensors | {"bias_hh_l0": np.ones(15, int)},), TypeError, "bias_hh_l0'] must be floating"),
    "complex numbers": ((tensors | {"bias_hh_l0": np.ones(15, complex)},), TypeError, "bias_hh_l0'] must be floating"),
    "a text": ((tensors | {"bias_hh_l0": "bias"},), TypeError, "bias_hh_l0'] must be floating"),
    "ragged lists": ((tensors | {"bias_hh_l0": [[1.0], [1.0, 2.0]]},), TypeError, "bias_hh_l0'] must be an array"),
    "an unknown activation": ((tensors, "sigmoid"), ValueError, "activation must be one of"),
    "an activation of a GRU": ((tensors, "relu"), ValueError, "activation is for .* GRU"),
}
TORCH_OUT: dict[str, tuple] = {
    "no layers": (((), ()), ValueError, "one entry per layer, .* got 0 and 0"),
    "a layer by itself": ((GRU, params_of((GRU,))), TypeError, "layers and params must be tuples"),
    "parameters by themselves": (((GRU, GRU), params_of((GRU,))[0]), ValueError, "got 2 and 4"),
    "another's parameters": (((GRU,), params_of((LSTM,))), TypeError, r"params\[0\] must have the structure"),
    "other shapes": (((WIDE,), params_of((ELMAN,))), ValueError, r"params\[0\].U must have shape"),
    "a user's cell": (((Mine(D, H),), params_of((GRU,))), TypeError, r"layers\[0\] must be an Elman.* got Mine"),
    "an int": (((3,), ((),)), TypeError, r"layers\[0\] must be an Elman.* got 3"),
    "two kinds": (((ELMAN, GRU), ((), ())), ValueError, "one kind, .* got Elman, GRU"),
    "two kinds of direction": (((jaxrnn.Bidirectional(ELMAN, GRU),), ((),)), ValueError, "one kind, .* got Elman, GRU"),
    "two sizes": (((ELMAN, WIDE), ((), ())), ValueError, "one hidden, .* got 5, 6"),
    "two activations": (((ELMAN, RELU), ((), ())), ValueError, "one activation, .* got tanh, relu"),
    "a bias and none": (((ELMAN, BARE), ((), ())), ValueError, "one bias, .* got True, False"),
    "a sum": (((SUMMED,), ((),)), ValueError, 'one merge, none or "concatenate", .* got sum'),
    "one way, then both": (((*stack("tanh"), *stack("tanh", 1, True)), ((), ())), ValueError, "got concatenate, none"),
    "layers that do not chain": (((ELMAN, ELMAN), ((), ())), ValueError, r"layers\[0\] has 5 .* layers\[1\] expects 3"),
}
KERAS_IN: dict[str, tuple] = {
    "an unknown kind": (("RNN", weights), ValueError, "kind must be one of 'SimpleRNN'"),
    "an unknown activation": (("SimpleRNN", weights, "sigmoid"), ValueError, "activation must be one of"),
    "an activation of a GRU": (("GRU", weights, "relu"), ValueError, "activation is for .* GRU"),
    "an unknown merge": (("GRU", weights, "tanh", "concat"), ValueError, "merge must be one of"),
    "a merge of one": (("GRU", weights, "tanh", "sum"), ValueError, "merge is for a Bidirectional"),
    "one array": (("GRU", weights[0]), TypeError, "weights must be the list .* got ndarray"),
    "one array in a list": (("GRU", weights[:1]), ValueError, "weights must be 2 or 3 .* got 1"),
    "five arrays": (("GRU", (weights * 2)[:5]), ValueError, "weights must be 2 or 3 .* got 5"),
    "another kind": (("LSTM", weights), ValueError, r"weights\[0\] must have shape \(3, 20\), got \(3, 15\); .* LSTM"),
    "reset before": (
        ("GRU", [*weights[:2], np.ones(15)]),
        ValueError,
        r"weights\[2\] must be \(2, 15\).* reset_after=False",
    ),
    "reset before, backwards": (
        ("GRU", [*weights, *weights[:2], np.ones(15)]),
        ValueError,
        r"weights\[5\] must be \(2, 15\).* reset_after=False",
    ),
    "a bias of one": (("GRU", [*weights[:2], np.ones((2, 1))]), ValueError, r"weights\[2\] must have shape \(2, 15\)"),
    "transposed": (("GRU", [weights[0].T, *weights[1:]]), ValueError, r"weights\[0\] must have shape \(15, 15\)"),
    "a scalar": (("GRU", [np.float32(1), *weights[1:]]), ValueError, r"weights\[0\] must have shape .*, got \(\)"),
    "integers": (("GRU", [*weights[:2], np.ones((2, 15), int)]), TypeError, r"weights\[2\] must be floating"),
    "two layers": (
        ("LSTM", [np.ones((3, 20)), np.ones((5, 20)), np.ones((5, 20)), np.ones((5, 20))]),
        ValueError,
        "same",
    ),
}
KERAS_OUT: dict[str, tuple] = {
    "two layers": (((GRU, GRU), params_of((GRU, GRU))), TypeError, "layer must be an Elman"),
    "a user's cell": ((Mine(D, H), params_of((GRU,))[0]), TypeError, "layer must be an Elman.* got Mine"),
    "two kinds": ((jaxrnn.Bidirectional(ELMAN, GRU), ()), ValueError, "layer must have one kind.* Elman, GRU"),
    "two activations": ((jaxrnn.Bidirectional(ELMAN, RELU), ()), ValueError, "layer must have one activation"),
    "another's parameters": ((GRU, params_of((LSTM,))[0]), TypeError, "params must have the structure"),
    "parameters of a stack": ((GRU, params_of((GRU,))), TypeError, "params must have the structure"),
}
MISTAKES = [
    pytest.param(function, *mistake, id=f"{function.__name__}: {name}")
    for function, mistakes in (
        (interop.from_torch, TORCH_IN),
        (interop.to_torch, TORCH_OUT),
        (interop.from_keras, KERAS_IN),
        (interop.to_keras, KERAS_OUT),
    )
    for name, mistake in mistakes.items()
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), MISTAKES)
def test_mistakes_are_told(function: Any, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_the_arguments_beside_the_mistakes_are_right() -> None:
    assert interop.from_torch(tensors)[0] == (GRU,)
    assert interop.from_keras("GRU", weights)[0] == GRU
    assert len(interop.to_torch(stack("tanh", 2), params_of(stack("tanh", 2)))) == 8


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"a": 3.0}, TypeError, "params must be a pytree of arrays, got float at 'a'"),
        ({"a": "text"}, TypeError, "params must be a pytree of arrays, got str at 'a'"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, ValueError, "params must .* 'a.b': two leaves"),
        ({"__metadata__": np.ones(1)}, ValueError, "'__metadata__': the name is reserved"),
        ({"a": np.ones(2, complex)}, TypeError, "params 'a' must be float64, .* got dtype complex128"),
        ({"a": jax.ShapeDtypeStruct((2,), np.float32)}, TypeError, "params 'a' must be float64, .* got dtype object"),
        ({"a": jax.random.key(0)}, TypeError, "params 'a' must be an array"),
    ],
)
def test_what_no_file_holds_is_told(params: Any, error: type[Exception], message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(error, match=message):
        interop.save(tmp_path / "file.safetensors", params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("like", "error", "message"),
    [
        ({"a": np.ones(2)}, ValueError, "missing none; unknown b; was it saved from another network"),
        ({"a": np.ones(2), "b": np.ones(3), "c": np.ones(1)}, ValueError, "missing c; unknown none"),
        ({"a": np.ones(2), "b": np.ones((3, 1))}, ValueError, r"'b' in .* must have shape \(3, 1\), got \(3,\)"),
        ({"a": np.ones(2), "b": 3.0}, TypeError, "like must be a pytree of arrays, got float at 'b'"),
    ],
)
def test_files_that_do_not_fit_are_told(
    like: Any, error: type[Exception], message: str, tmp_path: pathlib.Path
) -> None:
    interop.save(tmp_path / "file.safetensors", {"a": np.ones(2), "b": np.ones(3)})
    with pytest.raises(error, match=message):
        interop.load(tmp_path / "file.safetensors", like)


def test_files_that_are_none_are_told(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError):
        interop.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="must be a file of safetensors"):
        interop.load(path)
    header = b'{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(ValueError, match=r"'a' in .* must be F64, .* got dtype F8_E5M2"):
        interop.load(path)
