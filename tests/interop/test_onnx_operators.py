"""The operators around layers: each as the reference of ONNX has it, of constants and of what is traced."""

import jax
import numpy as np
import pytest
from interop.onnx_models import numbers

pytest.importorskip("onnx")

from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from jaxrnn.interop.onnx_graph import _node
from jaxrnn.interop.onnx_operators import OPERATORS, evaluate

X, FAR = numbers(2, 3, 4), 2**40
TOKENS = np.array([[0, -1, 2], [3, 1, -4]])
# Operator, inputs, attributes, and how many outputs.
CASES = [
    ("Identity", [X], {}),
    ("Dropout", [X], {}),
    ("Cast", [3 * X], {"to": TensorProto.INT32}),
    ("Cast", [TOKENS], {"to": TensorProto.FLOAT}),
    ("Shape", [X], {}),
    ("Shape", [X], {"start": -2, "end": 3}),
    ("Squeeze", [X[:1]], {}),
    ("Squeeze", [X[:, :, :1], [-1]], {}),
    ("Unsqueeze", [X, [0, -1]], {}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 0, 2]}),
    ("Reshape", [X, [0, -1]], {}),
    ("Reshape", [X[:0], [0, 2, 6]], {"allowzero": 1}),
    *(("Flatten", [X], {"axis": axis}) for axis in (0, 1, 3, -1)),
    ("Concat", [X, X[:, :, :1]], {"axis": -1}),
    ("Slice", [X, [1, 0], [FAR, 3]], {}),
    ("Slice", [X, [-1, 3], [-FAR, 0], [1, 2], [-1, -2]], {}),
    ("Split", [X, [1, 3]], {"axis": 2}, 2),
    ("Split", [X], {"axis": 1, "num_outputs": 2}, 2),
    ("Split", [X], {"num_outputs": 2}, 2),
    ("Gather", [X, [2, -1]], {"axis": 1}),
    ("Gather", [X, -1], {}),
    ("Expand", [X[:, :1], [3, 1]], {}),
    ("ConstantOfShape", [[2, 3]], {}),
    ("ConstantOfShape", [[2]], {"value": helper.make_tensor("", TensorProto.INT64, [1], [7])}),
    ("OneHot", [TOKENS, 5, np.float32([0, 1])], {}),
    ("OneHot", [TOKENS, 5, np.float32([2, 3])], {"axis": 0}),
    ("Gemm", [X[0], X[1], X[0, :, :3]], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [X[0], X[1]], {"transA": 1}),
    ("MatMul", [X, X[0].T], {}),
    ("MatMul", [X, X[0, 0]], {}),
    ("ReduceSum", [X, [1]], {"keepdims": 0}),
    ("ReduceSum", [X], {}),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    *((operator, [X, X[1, :1]], {}) for operator in ("Add", "Sub", "Mul", "Equal")),
    ("Where", [X > 0, X, np.float32(0)], {}),
    *((operator, [X], {}) for operator in ("Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Relu")),
    *((operator, [X], {"axis": 1}) for operator in ("Softmax", "LogSoftmax")),
    ("Constant", [], {"value_floats": [1.0, 2.0]}),
    ("Constant", [], {"value_int": 3}),
    ("Constant", [], {"value": helper.make_tensor("", TensorProto.FLOAT, [2], [1.0, 2.0])}),
]


def test_there_is_a_case_for_every_operator():
    assert {case[0] for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {' '.join(case[2])}")
def test_an_operator_is_as_the_reference_has_it(case):
    operator, values, attributes, *count = case
    names, outputs = ([f"{letter}{i}" for i in range(n)] for letter, n in (("x", len(values)), ("y", *(count or [1]))))
    proto = helper.make_node(operator, names, outputs, **attributes)
    values = [np.asarray(value) for value in values]
    truth = ReferenceEvaluator(proto, opsets={"": 22}).run(None, dict(zip(names, values, strict=True)))
    of_constants = evaluate(_node(proto), values)
    for found, expected in zip(of_constants, truth, strict=True):
        assert (type(found), found.dtype, found.shape) == (np.ndarray, expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    if not operator.startswith("Constant"):
        traced = jax.jit(lambda x: evaluate(_node(proto), [x, *values[1:]]))(values[0])
        for found, expected in zip(traced, truth, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
