"""How far single RNN, GRU and LSTM operators in JAX are from onnxruntime's, in float32, as a table.

    python scripts/onnx_errors.py

Every operator has biases and initial states. The error is that of Y, Y_h and Y_c, the largest difference over the
largest number. onnxruntime does not run layout=1: there it gets the same weights with layout=0, and exchanged axes.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jaxrnn.interop.onnx import load
from jaxrnn.interop.onnx_layers import DIRECTIONS, KINDS

T, B, D, H = 12, 5, 7, 16
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"activations": ["Relu"]}),
    "GRU linear_before_reset=0": ("GRU", {}),
    "GRU linear_before_reset=1": ("GRU", {"linear_before_reset": 1}),
    "LSTM": ("LSTM", {}),
}


class Case(NamedTuple):
    """Holds one operator to compare."""

    form: str
    direction: str
    lengths: bool
    layout: int


CASES = [Case(*options) for options in itertools.product(FORMS, DIRECTIONS, (False, True), (0, 1))]


def model_of(case: Case, opset: int = 22, seed: int = 0) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Makes a model of one operator with random weights, and inputs for it."""
    operator, attributes = FORMS[case.form]
    ways, rows, random = DIRECTIONS[case.direction], KINDS[operator].blocks * H, np.random.default_rng(seed)
    shapes = {"W": (ways, rows, D), "R": (ways, rows, H), "B": (ways, 2 * rows)}
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    states = ["initial_h", "initial_c"][: 1 + (operator == "LSTM")]
    inputs = {"X": random.normal(size=exchanged(case, (T, B, D))), "sequence_lens": random.integers(1, T + 1, B)}
    inputs |= {name: random.normal(size=exchanged(case, (ways, B, H))) for name in states}
    arrays = {name: array.astype(np.int32 if name == "sequence_lens" else np.float32) for name, array in inputs.items()}
    if not case.lengths:
        del arrays["sequence_lens"]
    names = ["X", "W", "R", "B", "sequence_lens" if case.lengths else "", *states]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    attributes = {**attributes, "direction": case.direction, "hidden_size": H, "layout": case.layout}
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * ways
    node = helper.make_node(operator, names, outputs, operator.lower(), **attributes)
    kinds = {name: TensorProto.INT32 if name == "sequence_lens" else TensorProto.FLOAT for name in arrays}
    given = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in arrays.items()]
    ranks = {name: 4 if name == "Y" else 3 for name in outputs}
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in ranks.items()]
    graph = helper.make_graph(
        [node], "operator", given, made, [numpy_helper.from_array(weights[k], k) for k in weights]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 7 + opset // 15)
    )
    return model, list(arrays.values())


def exchanged(case: Case, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape with its first two axes as the layout has them."""
    return (shape[1], shape[0], *shape[2:]) if case.layout else shape


def by_onnxruntime(model: onnx.ModelProto, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Runs a model in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))


def error_of(case: Case, seed: int = 0) -> float:
    """Returns the largest difference from onnxruntime, which has the weights of seed 0, over the largest number."""
    model, inputs = model_of(case, seed=seed)
    found = jax.jit(load(model))(*inputs)
    if not case.layout:
        truth = by_onnxruntime(model_of(case)[0], inputs)
    else:
        time_major = [array.swapaxes(0, 1) if array.ndim == 3 else array for array in inputs]
        Y, *states = by_onnxruntime(model_of(case._replace(layout=0))[0], time_major)
        truth = [Y.transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in states)]
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(found, truth, strict=True))


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    columns = [(lengths, layout) for lengths in (False, True) for layout in (0, 1)]
    titles = [f"{'lengths, ' if lengths else ''}layout={layout}" for lengths, layout in columns]
    print(f"| operator | direction | {' | '.join(titles)} |\n| --- | --- {'| --- ' * len(columns)}|")
    for form, direction in itertools.product(FORMS, DIRECTIONS):
        errors = [error_of(Case(form, direction, *column)) for column in columns]
        print(f"| {form} | {direction} | {' | '.join(f'{error:.1e}' for error in errors)} |", flush=True)


if __name__ == "__main__":
    main()
