"""Files of safetensors: what went in comes back bit for bit, and a file or a pytree that does not fit is told."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.examples import D, H, assert_same, fill, params_of, stack

import jaxrnn
from jaxrnn import interop


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
    with pytest.raises(ImportError, match=r'pip install "jaxrnn\[files\]"'):
        interop.save(tmp_path / "file", {"a": np.ones(1)})
    with pytest.raises(ImportError, match=r'pip install "jaxrnn\[files\]"'):
        interop.load(tmp_path / "file")


# Mistakes.


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
    for missing in (path, tmp_path, path / "below"):
        with pytest.raises(ValueError, match="there is no file"):
            interop.load(missing)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="must be a file of safetensors"):
        interop.load(path)
    header = b'{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(ValueError, match=r"'a' in .* must be F64, .* got dtype F8_E5M2"):
        interop.load(path)
