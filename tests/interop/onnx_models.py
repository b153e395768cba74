"""Small ONNX models, made node by node, and onnxruntime to run them."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

T, B, D, H, V = 5, 3, 4, 5, 6
FLOAT = TensorProto.FLOAT
LENGTHS = np.array([3, 5, 1], np.int32)


def by_onnxruntime(model, *inputs):
    """Runs a file or a model in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))


def graph_of(nodes, inputs, outputs, weights, opset=22):
    """Makes a model of (operator, inputs, outputs, attributes), shapes of inputs, names, and arrays."""
    nodes = [helper.make_node(*node[:3], f"{node[0].lower()}_{i}", **node[3]) for i, node in enumerate(nodes)]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    rank = len(next(iter(inputs.values()))[1])
    made = [helper.make_tensor_value_info(name, FLOAT, [None] * (4 if name == "Y" else rank)) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", given, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_layer(operator="GRU", inputs=(), attributes=None, opset=22, weights=None):
    """Makes a model of one operator whose further inputs have the names of the specification."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    attributes = {"hidden_size": H} | (attributes or {})
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    shapes = {"W": (ways, gates * H, D), "R": (ways, gates * H, H), "B": (ways, 2 * gates * H), "P": (ways, 3 * H)}
    arrays = {name: numbers(*shapes[name]) for name in "WRBP" if name != "P" or "P" in inputs} | (weights or {})
    places = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [name if name in (*"XWRB", *inputs) else "" for name in places]
    while not names[-1]:
        names.pop()
    given = {"X": (FLOAT, ["T", "B", D])}
    given |= {name: (FLOAT, [ways, "B", H]) for name in inputs if name.startswith("initial") and name not in arrays}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    return graph_of([(operator, names, outputs, attributes)], given, outputs, arrays, opset)
