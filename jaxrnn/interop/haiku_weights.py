"""Conversions from and to the weights of haiku's VanillaRNN and LSTM. Haiku is not imported.

    VanillaRNN    linear.w [D, H], linear_1.w [H, H] are U^T, W^T; b is the sum of linear.b and linear_1.b
    LSTM          linear.w [D + H, 4H] is (U, W)^T, of x and of h, and linear.b [4H] is b, with gates in the order
                  i, g, f, o; haiku adds 1 to what the forget gate sees, so 1 is added to b_f, and taken off again

That 1 rounds: b_f is exact to half a unit in the last place of b_f + 1, all other numbers in every bit.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import numpy as np
from chex import Array

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Params
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.lstm import LSTM
from jaxrnn.interop.layers import Kind, as_floats, assemble, check_layers, check_names, check_shape, directions_of
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.scan import check_params

Core = Literal["VanillaRNN", "LSTM"]
CORES: dict[str, Kind] = {"VanillaRNN": Elman, "LSTM": LSTM}
OPTIONAL = "linear_1/b"  # of a VanillaRNN with double_bias


def from_haiku(core: Core, weights: Mapping[str, Any], name: str | None = None) -> tuple[Layer, Params]:
    """Returns a cell and its parameters from the weights of a haiku core.

    Args:
        core: the name of the core's class.
        weights: the parameters that `init` of a transformed function returns, such as {"lstm/linear": {"w": ...,
            "b": ...}}; those of other modules are ignored.
        name: of the core among the modules, such as "my_model/~/lstm"; by default as haiku names one alone.

    Returns:
        The cell and its parameters, NumPy arrays in the dtypes of the weights.

    Raises:
        TypeError: weights that are not dicts of arrays of floats.
        ValueError: a core that jaxrnn has no cell for; names missing or unknown, or wrong shapes.

    >>> import numpy as np, jaxrnn.interop
    >>> weights = {"lstm/linear": {"w": np.ones((8, 20)), "b": np.zeros(20)}}
    >>> cell, params = jaxrnn.interop.from_haiku("LSTM", weights)
    >>> cell.inputs, cell.hidden, params.b[4:6]
    (3, 5, array([0., 1.]))
    """
    check_core(core)
    name = {"VanillaRNN": "vanilla_rnn", "LSTM": "lstm"}[core] if name is None else name
    if not isinstance(weights, Mapping) or not all(isinstance(value, Mapping) for value in weights.values()):
        raise TypeError(f"weights must be dicts of arrays by module, as init returns, got {type(weights).__name__}")
    arrays = {
        f"{module.removeprefix(name + '/')}/{leaf}": as_floats(f"weights[{module!r}][{leaf!r}]", value)
        for module, leaves in weights.items()
        if module.startswith(name + "/")
        for leaf, value in leaves.items()
    }
    expected = _shapes(core, arrays)
    check_names(f"the weights of {name!r}", arrays, expected, f"is {name!r} the name of an hk.{core}?")
    for place, shape in expected.items():
        check_shape(f"the weight {name}/{place}", arrays[place], shape, "are they the weights of one core?")
    gathered = [np.ascontiguousarray(array) for array in gather(core, arrays, np)]
    return assemble(CORES[core], "relu" if core == "VanillaRNN" else "tanh", [gathered])


def to_haiku(
    core: Core, layer: Layer, params: Params, name: str | None = None, double_bias: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the weights of the haiku core that computes the same: the inverse of `from_haiku`.

    Haiku's cores always have a bias: it is zero where the layer has none.

    Args:
        core: the name of the core's class.
        layer: an Elman cell with relu for a VanillaRNN, an LSTM cell for an LSTM.
        params: its parameters.
        name: of the core among the modules; by default as haiku names one alone.
        double_bias: of a VanillaRNN; the second bias is then zero.

    Returns:
        module -> name -> NumPy array, to be merged into the parameters of a transformed function.

    Raises:
        TypeError: a layer that is not one of jaxrnn's own, or parameters of another layer.
        ValueError: a core that jaxrnn has no cell for; a layer of another kind or activation than the core.

    >>> import jax, jaxrnn, jaxrnn.interop
    >>> cell = jaxrnn.LSTM(3, 5)
    >>> weights = jaxrnn.interop.to_haiku("LSTM", cell, cell.init(jax.random.key(0)))
    >>> {module: {name: array.shape for name, array in leaves.items()} for module, leaves in weights.items()}
    {'lstm/linear': {'w': (8, 20), 'b': (20,)}}
    """
    check_core(core)
    check_layers("layer", {"layer": layer}, "a haiku core")
    check_params(layer, params)
    if isinstance(layer, Bidirectional) or type(layer) is not CORES[core] or _activation(layer) != "relu":
        wanted = 'an Elman cell with activation="relu"' if core == "VanillaRNN" else "an LSTM cell"
        raise ValueError(f"layer must be {wanted} for an hk.{core}, got {layer}")
    name = {"VanillaRNN": "vanilla_rnn", "LSTM": "lstm"}[core] if name is None else name
    ((_, (U, W, *biases)),) = directions_of(layer, params)
    b = biases[0] if biases else np.zeros(len(W), W.dtype)
    if core == "VanillaRNN":
        second = {"b": np.zeros_like(b)} if double_bias else {}
        return {
            f"{name}/linear": {"w": np.ascontiguousarray(U.T), "b": b},
            f"{name}/linear_1": {"w": np.ascontiguousarray(W.T), **second},
        }
    rows = np.concatenate([U, W], -1)
    return {
        f"{name}/linear": {
            "w": np.ascontiguousarray(_exchange(rows, np).T),
            "b": _exchange(b - _forget_bias(len(b), b.dtype, np), np),
        }
    }


def gather(core: str, arrays: Mapping[str, Any], numpy: types.ModuleType) -> list[Array]:
    """Returns U, W, b of the arrays of one core, by their names below its own such as "linear/w".

    Args:
        core: the name of its class.
        arrays: its parameters.
        numpy: NumPy, or `jax.numpy` for traced arrays.
    """
    if core == "VanillaRNN":
        b = arrays["linear/b"]
        b = b + arrays[OPTIONAL] if OPTIONAL in arrays else b
        return [arrays["linear/w"].T, arrays["linear_1/w"].T, b]
    w, b = (_exchange(arrays[name].T, numpy) for name in ("linear/w", "linear/b"))
    H = len(b) // 4
    return [w[:, :-H], w[:, -H:], b + _forget_bias(len(b), b.dtype, numpy)]


def check_core(core: str) -> None:
    """Raises unless jaxrnn has a cell that computes what the core does."""
    if core == "GRU":
        _no_gru()
    check_choice("core", core, tuple(CORES))


def _no_gru() -> NoReturn:
    raise ValueError(
        "core must be 'VanillaRNN' or 'LSTM', got 'GRU': haiku's GRU resets the state before the recurrent product, "
        "another recurrence than jaxrnn.GRU, which resets the product"
    )


def _shapes(core: str, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of a core, as its first weight gives them."""
    first = arrays.get("linear/w", np.zeros((0, 0)))
    rows, columns = first.shape if first.ndim == 2 else (0, 0)
    if core == "LSTM":
        return {"linear/w": (max(rows, columns // 4 + 1), columns // 4 * 4), "linear/b": (columns // 4 * 4,)}
    shapes: dict[str, tuple[int, ...]] = {"linear/w": (rows, columns), "linear/b": (columns,)}
    shapes["linear_1/w"] = (columns, columns)
    return shapes | ({OPTIONAL: (columns,)} if OPTIONAL in arrays else {})


def _activation(layer: Any) -> str:
    return getattr(layer, "activation", "relu")


def _exchange(rows: Any, numpy: types.ModuleType) -> Any:
    """Exchanges the rows of the gates f and g: i, g, f, o to i, f, g, o, and back."""
    i, g, f, o = numpy.split(rows, 4)
    return numpy.concatenate([i, f, g, o])


def _forget_bias(rows: int, dtype: Any, numpy: types.ModuleType) -> Any:
    """Makes the 1 that haiku adds to what the forget gate sees, [4H]."""
    return numpy.repeat(numpy.array([0, 1, 0, 0], dtype), rows // 4)
