"""There and back: by names of torch and haiku, by Keras's order, and through a file; in every bit, in copies."""

import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.examples import KINDS, D, H, activation_of, assert_same, params_of, stack

import jaxrnn
from jaxrnn import interop

DTYPES = (np.float16, jnp.bfloat16, np.float32, np.float64)
# Bits of the two indices, so chosen that every pair of options occurs.
ROWS = [
    pytest.param(kind, (i ^ j) % 2 == 1, (i ^ j) // 2 == 1, dtype, id=f"{kind} {np.dtype(dtype)}")
    for i, kind in enumerate(KINDS)
    for j, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("kind", "bidirectional", "bias", "dtype"), ROWS)
def test_round_trips_are_exact(kind: str, bidirectional: bool, bias: bool, dtype: Any, tmp_path: pathlib.Path) -> None:
    """In every bit, also where the dtype is one that JAX would not hold, and through a file on the way."""
    layers = stack(kind, 3, bidirectional, bias)
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


@pytest.mark.parametrize("bias", [True, False])
def test_a_gru_that_resets_before_goes_to_keras_and_back(bias: bool, tmp_path: pathlib.Path) -> None:
    cell = jaxrnn.GRU(D, H, bias=bias, reset="before")
    for layer in (cell, jaxrnn.Bidirectional(cell, cell)):
        (params,) = params_of((layer,), np.float64)
        weights = interop.to_keras(layer, params)
        assert [array.shape for array in weights[: 2 + bias]] == [(D, 3 * H), (H, 3 * H), (3 * H,)][: 2 + bias]
        came, back = interop.from_keras("GRU", weights, reset=None if bias else "before")
        assert came == layer
        assert_same(back, params)
        interop.save(tmp_path / "layer.safetensors", params)
        assert_same(interop.load(tmp_path / "layer.safetensors", like=params), params)


@pytest.mark.parametrize("dtype", DTYPES)
def test_haiku_there_and_back(dtype: Any) -> None:
    """In every bit, but for the forget bias of an LSTM, to which 1 is added on the way."""
    cells = {
        "VanillaRNN": jaxrnn.Elman(D, H, "relu"),
        "GRU": jaxrnn.GRU(D, H, reset="before"),
        "LSTM": jaxrnn.LSTM(D, H),
    }
    for core, cell in cells.items():
        (params,) = params_of((cell,), dtype)
        if core == "LSTM":
            params.b[H : 2 * H] = 0.5
        came, back = interop.from_haiku(core, interop.to_haiku(core, cell, params))
        assert came == cell
        assert_same(back, params)


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


def test_arrays_are_copies() -> None:
    """To train on with either library must not move the other's weights."""
    layers, writable = stack("GRU"), lambda arrays: all(array.flags.writeable for array in jax.tree.leaves(arrays))
    params = jax.tree.map(jnp.asarray, params_of(layers))
    tensors, weights = interop.to_torch(layers, params), interop.to_keras(layers[0], params[0])
    from_torch, from_keras = interop.from_torch(tensors)[1], interop.from_keras("GRU", weights)[1]
    assert all(map(writable, (tensors, weights, from_torch, from_keras)))
    for array in (*tensors.values(), *weights):
        array += 1
    assert_same(from_torch, jax.tree.map(np.asarray, params))
    assert_same(from_keras, jax.tree.map(np.asarray, params[0]))


def test_nothing_of_other_libraries_is_imported() -> None:
    command = [sys.executable, "-c", "import sys, jaxrnn.interop; print(*sys.modules)"]
    folder = pathlib.Path(interop.__file__).parents[2]
    names = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert "jaxrnn.interop" in names
    assert {"torch", "keras", "tensorflow", "safetensors", "flax", "equinox", "haiku", "onnx"}.isdisjoint(names)
