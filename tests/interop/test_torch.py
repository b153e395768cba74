"""State dicts of torch: equal outputs, final states and gradients, modules that load them, mistakes that are told."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.examples import COVERING_ROWS, D, H, Layer, activation_of, assert_same, cases, params_of, stack
from oracles import relative_error

import jaxrnn
from jaxrnn import interop

T, B = 6, 4
FULL, PADDED = np.full(B, T), np.array([4, 6, 1, 3])
BOUND = {"float32": 1e-5, "float64": 1e-10}
rows = pytest.mark.parametrize(("kind", "depth", "bidirectional", "bias", "dtype"), COVERING_ROWS)


class Data(NamedTuple):
    """Inputs, and by what the outputs and the final states count in the loss."""

    inputs: np.ndarray  # [T, B, D]
    targets: np.ndarray  # [T, B, outputs]
    state: tuple[np.ndarray, ...]  # h_0, and c_0 of an LSTM, [layers * directions, B, H]
    of_outputs: np.ndarray  # [T, B, outputs]
    of_state: tuple[np.ndarray, ...]  # as the state
    mask: np.ndarray | None  # [T, B], where there is padding


def data_for(kind: str, depth: int, bidirectional: bool, dtype: str, lengths: np.ndarray | None) -> Data:
    random = np.random.default_rng(3)
    normal = lambda *shape: random.normal(size=shape).astype(dtype)
    ways, fields = 1 + bidirectional, 2 if kind == "LSTM" else 1
    there = np.arange(T)[:, None, None] < (np.full(B, T) if lengths is None else lengths)[:, None]
    inputs = np.where(there, normal(T, B, D), np.nan).astype(dtype)  # padding must not be read
    targets, of_outputs = (normal(T, B, ways * H) * there for _ in range(2))
    state, of_state = (tuple(normal(depth * ways, B, H) for _ in range(fields)) for _ in range(2))
    return Data(inputs, targets, state, of_outputs, of_state, None if lengths is None else there[..., 0])


def module_for(torch: Any, kind: str, depth: int, bidirectional: bool, dtype: str, bias: bool = True) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(11)
    options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    make = getattr(torch.nn, kind if kind in ("GRU", "LSTM") else "RNN")
    return make(D, H, depth, bias=bias, bidirectional=bidirectional, dtype=getattr(torch, dtype), **options)


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
            if of_cell.b is None:
                continue
            found[f"bias_ih_l{i}{suffix}"] = found[f"bias_hh_l{i}{suffix}"] = of_cell.b
            if hasattr(of_cell, "d"):
                found[f"bias_hh_l{i}{suffix}"] = jnp.concatenate([of_cell.b[: 2 * H], of_cell.d])
    return found


@rows
def test_torch_computes_the_same(kind: str, depth: int, bidirectional: bool, bias: bool, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    module = module_for(torch, kind, depth, bidirectional, dtype, bias)
    layers, params = interop.from_torch(module.state_dict(), activation_of(kind))
    assert layers == stack(kind, depth, bidirectional, bias)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    for lengths in (None,) if dtype == "float32" else (FULL, PADDED):
        data = data_for(kind, depth, bidirectional, dtype, lengths)
        with jax.enable_x64(dtype == "float64"):
            computed = run_jaxrnn(layers, params, data)
        assert computed["outputs"].dtype == dtype
        assert relative_error(computed, run_torch(torch, module, data)) <= BOUND[dtype]


@rows
def test_modules_load_what_comes_out_and_give_it_back(
    kind: str, depth: int, bidirectional: bool, bias: bool, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    module, activation = module_for(torch, kind, depth, bidirectional, dtype, bias), activation_of(kind)
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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("RNNCell", "relu"), ("GRUCell", "GRU"), ("LSTMCell", "LSTM")])
def test_the_cell_of_one_step_gives_a_layer(name: str, kind: str, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    options = {"nonlinearity": "relu"} if kind == "relu" else {}
    module = getattr(torch.nn, name)(D, H, bias, **options)
    ((layer,), (params,)) = interop.from_torch(module.state_dict(), activation_of(kind))
    assert layer == stack(kind, bias=bias)[0]
    inputs, state = torch.randn(T, B, D), None
    for x in inputs:
        state = module(x, state)
    _, final = jaxrnn.unroll(layer, params, inputs.numpy())
    theirs = state if kind == "LSTM" else (state,)
    assert relative_error(jax.tree.leaves(final), [part.detach().numpy() for part in theirs]) <= 1e-5


def test_the_names_of_a_cell_of_one_step() -> None:
    (layer,), (params,) = stack("GRU"), params_of(stack("GRU"))
    of_cell = {name.removesuffix("_l0"): array for name, array in interop.to_torch([layer], [params]).items()}
    (came,), (back,) = interop.from_torch({f"core.{name}": array for name, array in of_cell.items()}, prefix="core.")
    assert came == layer
    assert_same(back, params)


def test_a_larger_module_gives_what_has_the_prefix() -> None:
    layers = stack("LSTM", 2)
    params = params_of(layers)
    tensors = {f"weights.{name}": array for name, array in interop.to_torch(layers, params).items()}
    came, back = interop.from_torch(tensors | {"head.weight": np.ones((2, 5)), "steps": 3}, prefix="weights.")
    assert came == layers
    assert_same(back, params)


# Mistakes: each is told by the name of the argument.


class Mine(jaxrnn.GRU):
    """A user's cell, which may compute anything."""


ELMAN, GRU, LSTM = (stack(kind)[0] for kind in ("tanh", "GRU", "LSTM"))
WIDE = jaxrnn.Elman(5, 6)
RELU, BARE = jaxrnn.Elman(D, H, "relu"), jaxrnn.Elman(D, H, bias=False)
RESETS = jaxrnn.GRU(D, H, reset="before")
SUMMED = jaxrnn.Bidirectional(ELMAN, ELMAN, "sum")
tensors = {name: np.ones(array.shape) for name, array in interop.to_torch([GRU], params_of((GRU,))).items()}

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
    "a cell in a larger module": (
        ({"core.weight_ih": np.ones(1)},),
        ValueError,
        "before weight_ih in those of one RNNC",
    ),
    "one bias of a cell": (
        ({"weight_ih": np.ones((15, 3)), "weight_hh": np.ones((15, 5)), "bias_ih": np.ones(15)},),
        ValueError,
        "missing bias_hh;",
    ),
    "a cell and a layer": ((tensors | {"weight_ih": np.ones((15, 3))},), ValueError, "missing weight_hh"),
    "rows of no cell": (
        ({"weight_ih": np.ones((10, 3)), "weight_hh": np.ones((10, 5))},),
        ValueError,
        r"weight_hh must be .* \(10, 5\)",
    ),
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
    "a reset before": (((RESETS,), params_of((RESETS,))), ValueError, 'must have reset="after", as torch'),
    "a sum": (((SUMMED,), ((),)), ValueError, 'one merge, none or "concatenate", .* got sum'),
    "one way, then both": (((*stack("tanh"), *stack("tanh", 1, True)), ((), ())), ValueError, "got concatenate, none"),
    "layers that do not chain": (((ELMAN, ELMAN), ((), ())), ValueError, r"layers\[0\] has 5 .* layers\[1\] expects 3"),
}
MISTAKES = cases((interop.from_torch, TORCH_IN), (interop.to_torch, TORCH_OUT))


@pytest.mark.parametrize(("function", "arguments", "error", "message"), MISTAKES)
def test_mistakes_are_told(function: Any, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_the_arguments_beside_the_mistakes_are_right() -> None:
    assert interop.from_torch(tensors)[0] == (GRU,)
    assert len(interop.to_torch(stack("tanh", 2), params_of(stack("tanh", 2)))) == 8
