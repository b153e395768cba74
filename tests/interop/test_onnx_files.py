"""ONNX files that are refused: what jaxrnn has no equal of, and what is damaged or hostile."""

import jax.numpy as jnp
import numpy as np
import pytest
from interop.onnx_models import FLOAT, D, H, graph_of, numbers, one_layer
from problems import CELLS, Problem

onnx_library = pytest.importorskip("onnx")

from jaxrnn.interop import onnx  # noqa: E402

REFUSED = {
    "peepholes": (one_layer("LSTM", ["P"]), "P \\(peepholes\\), which no layer of jaxrnn has"),
    "clip": (one_layer("GRU", attributes={"clip": 3.0}), "GRU 'gru_0' has clip"),
    "input_forget": (one_layer("LSTM", attributes={"input_forget": 1}), "has input_forget"),
    "an activation": (one_layer("RNN", attributes={"activations": ["Sigmoid"]}), "or relu, as in jaxrnn, got sigmoid"),
    "activations of gates": (
        one_layer("GRU", attributes={"activations": ["HardSigmoid", "Tanh"]}),
        "activations of GRU 'gru_0' must be sigmoid, tanh for each direction",
    ),
    "alpha": (one_layer("RNN", attributes={"activation_alpha": [0.1]}), "has activation_alpha"),
    "two activations": (
        one_layer("RNN", attributes={"activations": ["Tanh", "Relu"], "direction": "bidirectional"}),
        "got tanh, relu",
    ),
    "a wrong hidden_size": (one_layer("GRU", attributes={"hidden_size": 4}), "hidden_size of GRU 'gru_0' must be 5"),
    "weights of integers": (one_layer("GRU", weights={"W": np.ones((1, 15, 4), np.int64)}), "W of GRU .* floating"),
    "weights of another size": (one_layer("GRU", weights={"B": numbers(1, 29)}), r"B of GRU .* shape \(1, 30\)"),
    "weights that are inputs": (
        graph_of([("GRU", ["X", "X", "X"], ["Y"], {"hidden_size": H})], {"X": (FLOAT, [1, 15, 4])}, ["Y"], {}),
        "W of GRU 'gru_0' must be weights in the file",
    ),
    "an operator": (
        graph_of([("Conv", ["X", "W"], ["Y"], {})], {"X": (FLOAT, [1, 1, 4])}, ["Y"], {"W": numbers(1, 1, 2)}),
        "Conv 'conv_0' is not supported; beside RNN, GRU and LSTM these are: Constant",
    ),
    "an old opset": (one_layer("GRU", opset=12), "opset 13 to 28, got 12"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_what_jaxrnn_has_no_equal_of_is_named(model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        onnx.load(model)


# Damaged and hostile files.


def outside(location):
    """Makes a model whose W is in another file."""
    model = one_layer("GRU")
    onnx_library.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    return model


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "nothing", "folder/../../secret", ""])
def test_data_outside_of_the_folder_are_not_read(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 15 * D))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "model.onnx").write_bytes(outside(location).SerializeToString())
    with pytest.raises(ValueError, match=r"must stand in a file of the model's own folder|cannot be read from"):
        onnx.load(folder / "model.onnx")


def test_data_in_the_folder_are_read(tmp_path):
    W = numbers(1, 15, D, seed=5)
    (tmp_path / "weights").write_bytes(W.tobytes())
    (tmp_path / "model.onnx").write_bytes(outside("weights").SerializeToString())
    np.testing.assert_array_equal(onnx.load(tmp_path / "model.onnx").params.layers[0].U[:H], W[0, H : 2 * H])
    with pytest.raises(ValueError, match="must be given by its path"):
        onnx.load(outside("weights"))
    (tmp_path / "weights").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"tensor name: W|'W'"):
        onnx.load(tmp_path / "model.onnx")


def huge(operator, names, weights, attributes=None):
    nodes = [(operator, names, ["huge"], attributes or {}), ("Identity", ["x"], ["y"], {})]
    return graph_of(nodes, {"x": (FLOAT, [1])}, ["y"], weights)


LARGE = np.array([2**20, 2**20, 2**20])
HUGE = {
    "ConstantOfShape": huge("ConstantOfShape", ["n"], {"n": LARGE}),
    "Expand": huge("Expand", ["a", "n"], {"a": numbers(1), "n": LARGE}),
    "OneHot": huge("OneHot", ["i", "n", "v"], {"i": np.array([1]), "n": np.array([2**40]), "v": np.array([0, 1])}),
    "Add": huge("Add", ["a", "b"], {"a": numbers(2**15, 1), "b": numbers(1, 2**15)}),
    "Gather": huge("Gather", ["a", "i"], {"a": numbers(2, 2**15), "i": np.zeros(2**15, np.int64)}),
    "MatMul": huge("MatMul", ["a", "b"], {"a": numbers(2**15, 1), "b": numbers(1, 2**15)}),
    "Gemm": huge("Gemm", ["a", "b"], {"a": numbers(1, 2**15), "b": numbers(1, 2**15)}, {"transA": 1}),
    "Concat": huge("Concat", ["a"] * 2**9, {"a": numbers(2**20)}, {"axis": 0}),
    "negative": huge("ConstantOfShape", ["n"], {"n": np.array([-1])}),
}


@pytest.mark.parametrize("model", HUGE.values(), ids=HUGE)
def test_huge_constants_are_not_made(model):
    with pytest.raises(ValueError, match="would make an array of shape"):
        onnx.load(model)


def test_constants_that_grow_are_told():
    """Each is twice as large as the one before."""
    nodes = [("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], {"axis": 0}) for i in range(40)]
    model = graph_of([*nodes, ("Identity", ["x"], ["y"], {})], {"x": (FLOAT, [1])}, ["y"], {"c0": numbers(2)})
    with pytest.raises(ValueError, match=r"Concat 'concat_\d+' is one constant too many"):
        onnx.load(model)


def test_shapes_that_lie_are_told():
    model = one_layer("GRU")
    model.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(ValueError, match=r"'W'|onnx.checker says"):
        onnx.load(model)
    model = one_layer("GRU")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    with pytest.raises(ValueError, match="too large to be read"):
        _ = onnx.load(model).net


def test_damaged_files_are_told(tmp_path):
    """Whatever byte is lost or changed: a ValueError or TypeError, or a model of other numbers."""
    path, whole = tmp_path / "net.onnx", tmp_path / "whole.onnx"
    problem = Problem(CELLS["LSTM"], D=2, H=2, V=2, both_ways=True)
    onnx.save(problem.net, problem.params(jnp.float32), whole, state=True)
    data, random, told = whole.read_bytes(), np.random.default_rng(0), 0
    for trial in range(300):
        damaged = bytearray(data)
        if trial % 3:
            for place in random.integers(0, len(data), 1 + trial % 5):
                damaged[place] = random.integers(0, 256)
        else:
            del damaged[random.integers(0, len(data)) :]
        path.write_bytes(bytes(damaged))
        try:
            _ = onnx.load(path).net
        except (ValueError, TypeError):
            told += 1
    assert told > 100
    with pytest.raises(FileNotFoundError):
        onnx.load(tmp_path / "missing.onnx")
