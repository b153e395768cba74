"""Which network a model is, and why some models, which run, are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.onnx_models import FLOAT, LENGTHS, B, D, H, T, V, by_onnxruntime, graph_of, numbers, one_layer
from oracles import relative_error

import jaxrnn

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from jaxrnn.interop import onnx

WEIGHTS = {"V": numbers(H, V), "c": numbers(V), "W": numbers(1, H, D), "R": numbers(1, H, H), "one": np.array([1])}
LAYER = ("RNN", ["x", "W", "R"], ["Y", "Y_h"], {"hidden_size": H})
SQUEEZE = ("Squeeze", ["Y", "one"], ["s"], {})


PRODUCT = ("MatMul", ["s", "V"], ["y"], {})


def layer_on(below, made, *more):
    """Returns a second layer, on `below`, and the squeeze of what it makes."""
    layer = ("RNN", [below, "R", "R", *more], [f"Y of {made}"], {"hidden_size": H})
    return [layer, ("Squeeze", [f"Y of {made}", "one"], [made], {})]


NO_NETWORK = {
    "reverse": ([("RNN", *LAYER[1:3], {"hidden_size": H, "direction": "reverse"})], "Y", "its direction is reverse"),
    "an activation between": (
        [LAYER, SQUEEZE, ("Relu", ["s"], ["r"], {}), ("MatMul", ["r", "V"], ["y"], {})],
        "y",
        "Relu",
    ),
    "a softmax between": (
        [LAYER, SQUEEZE, ("Softmax", ["s"], ["r"], {}), ("MatMul", ["r", "V"], ["y"], {})],
        "y",
        "Softmax 'softmax_2'",
    ),
    "lengths that are weights": (
        [("RNN", [*LAYER[1], "", "lengths"], *LAYER[2:])],
        "Y",
        "sequence_lens must be one input of the model for all layers",
    ),
    "two readouts": (
        [LAYER, SQUEEZE, ("MatMul", ["s", "V"], ["y"], {}), ("MatMul", ["s", "V"], ["z"], {})],
        "z",
        "MatMul 'matmul_3' has no place .* stands behind a readout",
    ),
    "two biases": (
        [
            LAYER,
            SQUEEZE,
            ("MatMul", ["s", "V"], ["y"], {}),
            ("Add", ["c", "y"], ["z"], {}),
            ("Add", ["z", "c"], ["u"], {}),
        ],
        "u",
        "Add 'add_4' has no place",
    ),
    "scaled inputs": (
        [("Mul", ["x", "two"], ["z"], {}), ("RNN", ["z", *LAYER[1][1:]], *LAYER[2:])],
        "Y",
        "Mul 'mul_0'",
    ),
    "steps in another order": (
        [("Slice", ["x", "minus", "far", "zero", "minus"], ["z"], {}), ("RNN", ["z", *LAYER[1][1:]], *LAYER[2:])],
        "Y",
        "its X is not an input of the model as it is",
    ),
    "a product before": (
        [("MatMul", ["x", "square"], ["z"], {}), ("RNN", ["z", *LAYER[1][1:]], *LAYER[2:])],
        "Y",
        "MatMul 'matmul_0' has no place .* does not read what the top layer hands up",
    ),
    "a layer behind the readout": ([LAYER, SQUEEZE, PRODUCT, *layer_on("s", "z")], "z", "RNN 'rnn_3' has no place"),
    "two layers on one": ([LAYER, SQUEEZE, *layer_on("s", "a"), *layer_on("s", "b")], "b", "not what the layer below"),
    "a residual path of one layer": (
        [
            LAYER,
            SQUEEZE,
            *layer_on("s", "a"),
            ("Add", ["s", "a"], ["r"], {}),
            *layer_on("r", "b"),
            ("MatMul", ["b", "V"], ["y"], {}),
        ],
        "y",
        "some layers have a residual path",
    ),
    "lengths of one layer": (
        [LAYER, SQUEEZE, *layer_on("s", "a", "", "lengths")],
        "a",
        "sequence_lens must be one input of the model for all layers",
    ),
    "a state that a layer makes": (
        [LAYER, SQUEEZE, *layer_on("s", "a", "", "", "Y_h")],
        "a",
        "its initial state must be an input of the model",
    ),
    "a state by sequence": (
        [("RNN", [*LAYER[1], "", "", "h"], *LAYER[2:])],
        "Y",
        "differs from sequence to sequence",
    ),
    "no layer": ([("Relu", ["x"], ["y"], {})], "y", "Relu 'relu_0'"),
}


@pytest.mark.parametrize(("nodes", "output", "message"), NO_NETWORK.values(), ids=NO_NETWORK)
def test_a_graph_that_runs_and_is_no_network_says_why(nodes, output, message):
    constants = {
        "square": numbers(D, D),
        "lengths": LENGTHS,
        "minus": np.array([-1]),
        "far": np.array([-9]),
        "zero": np.array([0]),
        "h": numbers(1, B, H),
    }
    proto = graph_of(nodes, {"x": (FLOAT, [T, B, D])}, [output], WEIGHTS | constants | {"two": np.float32([2])})
    model, x = onnx.load(proto), numbers(T, B, D)
    assert relative_error(model(x)[0], by_onnxruntime(proto, x)[0]) <= 1e-5
    with pytest.raises(ValueError, match=message):
        _ = model.params


def test_a_readout_of_matmul_and_add_and_a_softmax():
    nodes = [
        LAYER,
        SQUEEZE,
        ("MatMul", ["s", "V"], ["y"], {}),
        ("Add", ["c", "y"], ["z"], {}),
        ("Softmax", ["z"], ["p"], {}),
    ]
    model = onnx.load(graph_of(nodes, {"x": (FLOAT, ["T", "B", D])}, ["p"], WEIGHTS))
    x = numbers(T, B, D)
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(model(x)[0], jax.nn.softmax(outputs)) <= 1e-6
    np.testing.assert_array_equal(model.params.readout.V, WEIGHTS["V"].T)


def test_steps_and_sequences_that_are_mixed_up_are_told():
    """A reshape where a transpose is meant: it runs, and trains something else."""
    nodes = [
        ("Shape", ["x"], ["B"], {"start": 0, "end": 1}),
        ("Shape", ["x"], ["TD"], {"start": 1}),
        ("Split", ["TD", "ones"], ["T", "D"], {}),
        ("Concat", ["T", "B", "D"], ["shape"], {"axis": 0}),
        ("Reshape", ["x", "shape"], ["X"], {}),
        ("RNN", ["X", *LAYER[1][1:]], *LAYER[2:]),
    ]
    weights = WEIGHTS | {"ones": np.array([1, 1])}
    model = onnx.load(graph_of(nodes, {"x": (FLOAT, ["B", "T", D])}, ["Y"], weights))
    assert model(numbers(B, T, D))[0].shape == (T, 1, B, H)
    with pytest.raises(ValueError, match="its X is not an input of the model as it is"):
        _ = model.net


@pytest.mark.parametrize("ends", [False, True])
def test_the_last_row_of_both_directions_is_the_end_of_one_only(ends):
    """The backward direction ends at the first step; at the last row it has seen one step."""
    nodes = [
        ("GRU", ["x", "W2", "R2"], ["Y"], {"hidden_size": H, "direction": "bidirectional", "linear_before_reset": 1}),
        ("Split", ["Y"], ["ahead", "back"], {"axis": 1, "num_outputs": 2}),
        ("Gather", ["ahead", "minus"], ["a"], {"axis": 0}),
        ("Gather", ["back", "zero" if ends else "minus"], ["b"], {"axis": 0}),
        ("Concat", ["a", "b"], ["both"], {"axis": -1}),
        ("Squeeze", ["both", "axis"], ["s"], {}),
        ("MatMul", ["s", "V2"], ["y"], {}),
    ]
    weights = {"W2": numbers(2, 3 * H, D), "R2": numbers(2, 3 * H, H), "V2": numbers(2 * H, V)}
    weights |= {"minus": np.array(-1), "zero": np.array(0), "axis": np.array([0])}
    proto = graph_of(nodes, {"x": (FLOAT, ["T", "B", D])}, [], weights)
    proto.graph.output.append(helper.make_tensor_value_info("y", FLOAT, ["B", V]))
    x, model = numbers(T, B, D), onnx.load(proto)
    assert relative_error(list(model(x)), by_onnxruntime(proto, x)) <= 1e-5
    if not ends:
        with pytest.raises(ValueError, match="does not read what the top layer hands up"):
            _ = model.net
        return
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(outputs, model(x)[0]) <= 1e-6


def test_a_readout_with_factors():
    """alpha, beta, one bias for all outputs, and a V that lies as a product takes it."""
    flat = ("Reshape", ["s", "rows"], ["r"], {})
    nodes = [LAYER, SQUEEZE, flat, ("Gemm", ["r", "V", "one bias"], ["y"], {"alpha": 0.5, "beta": 3.0})]
    weights = WEIGHTS | {"rows": np.array([-1, H]), "one bias": np.float32([0.25])}
    proto = graph_of(nodes, {"x": (FLOAT, ["T", "B", D])}, [], weights)
    proto.graph.output.append(helper.make_tensor_value_info("y", FLOAT, [None, V]))
    x, model = numbers(T, B, D), onnx.load(proto)
    (truth,) = by_onnxruntime(proto, x)
    assert relative_error(model(x)[0], truth) <= 1e-5
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(outputs.reshape(-1, V), truth) <= 1e-5


def test_the_last_step_of_padded_sequences_is_not_their_last_states():
    """With lengths, a readout of the last row of Y sees zeros, which no network does; one of Y_h is a network's."""
    last = ("Gather", ["Y", "minus"], ["a"], {"axis": 0})
    nodes = {"y": [last, ("Squeeze", ["a", "zero one"], ["s"], {})], "h": [("Squeeze", ["Y_h", "zero"], ["s"], {})]}
    weights = WEIGHTS | {"minus": np.array([-1]), "zero": np.array([0]), "zero one": np.array([0, 1])}
    models = []
    for between in nodes.values():
        layer = ("RNN", [*LAYER[1], "", "lengths"], *LAYER[2:])
        inputs = {"x": (FLOAT, ["T", "B", D]), "lengths": (TensorProto.INT32, ["B"])}
        proto = graph_of([layer, *between, PRODUCT], inputs, [], WEIGHTS | weights)
        proto.graph.output.append(helper.make_tensor_value_info("y", FLOAT, ["B", V]))
        models.append(onnx.load(proto))
        truth = by_onnxruntime(proto, numbers(T, B, D), LENGTHS)
        assert relative_error(list(models[-1](numbers(T, B, D), LENGTHS)), truth) <= 1e-5
    with pytest.raises(ValueError, match=r"MatMul .* does not read what the top layer hands up"):
        _ = models[0].net
    net, mask = models[1].net, jaxrnn.lengths_to_mask(LENGTHS, T)
    outputs, _ = net.apply(models[1].params, numbers(T, B, D), mask=mask)
    assert relative_error(outputs, models[1](numbers(T, B, D), LENGTHS)[0]) <= 1e-6


def test_lengths_of_all_steps_are_none():
    nodes = [("RNN", [*LAYER[1], "", "full"], *LAYER[2:])]
    proto = graph_of(nodes, {"x": (FLOAT, [T, B, D])}, ["Y"], WEIGHTS | {"full": np.full(B, T, np.int32)})
    x, model = numbers(T, B, D), onnx.load(proto)
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(outputs[:, None], by_onnxruntime(proto, x)[0]) <= 1e-5


def test_a_layer_without_a_readout_has_one_that_changes_nothing():
    x, model = numbers(T, B, D), onnx.load(one_layer("LSTM", attributes={"direction": "bidirectional"}))
    outputs, _ = model.net.apply(model.params, x)
    Y, _, _ = model(x)
    assert relative_error(outputs, jnp.moveaxis(Y, 1, 2).reshape(T, B, 2 * H)) <= 1e-6


def test_directions_that_are_split_and_joined_again():
    """As tf2onnx writes a Bidirectional of Keras, whose inputs are batch-major."""
    nodes = [
        ("Transpose", ["x"], ["X"], {"perm": [1, 0, 2]}),
        (
            "GRU",
            ["X", "W", "R", "B"],
            ["Y"],
            {"hidden_size": H, "direction": "bidirectional", "linear_before_reset": 1},
        ),
        ("Split", ["Y"], ["ahead", "back"], {"axis": 1, "num_outputs": 2}),
        ("Squeeze", ["ahead", "one"], ["a"], {}),
        ("Squeeze", ["back", "one"], ["b"], {}),
        ("Concat", ["a", "b"], ["both"], {"axis": 2}),
        ("Transpose", ["both"], ["steps"], {"perm": [1, 0, 2]}),
        ("MatMul", ["steps", "V"], ["product"], {}),
        ("Add", ["product", "c"], ["y"], {}),
    ]
    weights = {
        "W": numbers(2, 15, D),
        "R": numbers(2, 15, H),
        "B": numbers(2, 30),
        "V": numbers(10, V),
        "c": numbers(V),
    }
    proto = graph_of(nodes, {"x": (FLOAT, ["B", "T", D])}, ["y"], weights | {"one": np.array([1])})
    x, model = numbers(B, T, D), onnx.load(proto)
    assert relative_error(model(x)[0], by_onnxruntime(proto, x)[0]) <= 1e-5
    outputs, _ = model.net.apply(model.params, x.swapaxes(0, 1))
    assert relative_error(outputs.swapaxes(0, 1), model(x)[0]) <= 1e-5


def test_axes_of_any_size_need_no_names():
    model = one_layer("LSTM", ["initial_h"], {"direction": "bidirectional"})
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.Clear()
    loaded = onnx.load(model)
    x, h = numbers(T, B, D), numbers(2, B, H, seed=1)
    state = tuple(jaxrnn.LSTMState(row, jnp.zeros_like(row)) for row in h)
    outputs, _ = loaded.net.apply(loaded.params, x, (state,))
    Y, _, _ = loaded(x, h)
    assert relative_error(outputs, jnp.moveaxis(Y, 1, 2).reshape(T, B, 2 * H)) <= 1e-6
