"""Models of one operator, run as functions: versions, layouts, lengths, inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.onnx_models import FLOAT, B, D, H, T, by_onnxruntime, numbers, one_layer
from oracles import relative_error

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from jaxrnn.interop import onnx


@pytest.mark.parametrize("opset", [13, 14, 21, 22])
@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
def test_operators_of_older_opsets(operator, opset):
    model = one_layer(operator, opset=opset)
    x = numbers(T, B, D)
    assert relative_error(list(onnx.load(model)(x)), by_onnxruntime(model, x)) <= 1e-5


def test_batch_first_is_what_the_reference_of_onnx_computes():
    """layout=1, which onnxruntime does not run."""
    pytest.importorskip("onnx", "1.23")  # older ones do not run it as they specify it
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    model, x = one_layer("GRU", attributes={"layout": 1, "linear_before_reset": 1}), numbers(B, T, D)
    assert relative_error(list(onnx.load(model)(x)), evaluator(model).run(None, {"X": x})) <= 1e-5


def test_a_sequence_without_steps_keeps_its_state():
    model = one_layer("GRU", ["initial_h"], {"direction": "bidirectional"})
    model.graph.node[0].input[4] = "lengths"
    model.graph.input.insert(1, helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
    x, h, lengths = numbers(T, B, D), numbers(2, B, H, seed=1), np.array([0, 2, 5], np.int32)
    Y, Y_h = onnx.load(model)(x, lengths, h)
    np.testing.assert_array_equal(Y[:, :, 0], 0)
    np.testing.assert_array_equal(Y_h[:, 0], h[:, 0])


def test_the_call_is_pure_jax():
    model, x = onnx.load(one_layer("GRU")), jnp.asarray(numbers(T, B, D))
    loss = lambda x: (model(x)[1] ** 2).sum()
    assert jax.jit(jax.grad(loss))(x).shape == x.shape
    mapped = jax.vmap(lambda x: model(x)[0])(jnp.stack([x, 2 * x]))
    assert relative_error(mapped[1], model(2 * x)[0]) <= 1e-6


def test_inputs_that_are_initialisers_are_defaults():
    """As in the files of older exporters, which list weights among the inputs."""
    model = one_layer("GRU")
    model.graph.input.append(helper.make_tensor_value_info("W", FLOAT, [1, 3 * H, D]))
    assert onnx.load(model).inputs == ("X",)


def test_wrong_inputs_are_told():
    model = onnx.load(one_layer("GRU"))
    with pytest.raises(ValueError, match="inputs must be X, in this order, got 2 arrays"):
        model(1, 2)
    with pytest.raises(ValueError, match=r"X must have shape \('T', 'B', 4\), as the model says, got \(5, 3, 3\)"):
        model(numbers(T, B, 3))
    with pytest.raises(TypeError, match="X must be float32, as the model says, got dtype int32"):
        model(np.ones((T, B, D), np.int32))
