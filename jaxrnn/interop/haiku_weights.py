"""Conversions from and to the weights of haiku's VanillaRNN, GRU and LSTM. Haiku is not imported.

    VanillaRNN    linear.w [D, H], linear_1.w [H, H] are U^T, W^T; b is the sum of linear.b and linear_1.b
    GRU           w_i [D, 3H], w_h [H, 3H] are U^T, W^T, and b [3H] is b, with gates in the order z, r, a; haiku's z is
                  1 - z of `jaxrnn.GRU(..., reset="before")`, h' = (1 - z) h + z a, so its weights and bias are negated
    LSTM          linear.w [D + H, 4H] is (U, W)^T, of x and of h, and linear.b [4H] is b, with gates in the order
                  i, g, f, o; haiku adds 1 to what the forget gate sees, so 1 is added to b_f, and taken off again

That 1 rounds: b_f is exact to half a unit in the last place of b_f + 1, all other numbers in every bit.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from chex import Array

from jaxrnn.arguments import check_choice
from jaxrnn.cells.base import Params
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM
from jaxrnn.interop.layers import Kind, as_floats, assemble, check_layers, check_names, check_shape, directions_of
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.scan import check_params

CoreName = Literal["VanillaRNN", "GRU", "LSTM"]


class Core(NamedTuple):
    """Says which cell computes what a core does, and what haiku names the core where it is the only one."""

    kind: Kind
    options: dict[str, Any]  # of the cell
    name: str

    def cell(self, inputs: int, hidden: int) -> Elman | GRU | LSTM:
        """Makes the cell."""
        return self.kind(inputs, hidden, **self.options)


CORES = {
    "VanillaRNN": Core(Elman, {"activation": "relu"}, "vanilla_rnn"),
    "GRU": Core(GRU, {"reset": "before"}, "gru"),
    "LSTM": Core(LSTM, {}, "lstm"),
}
OPTIONAL = "linear_1/b"  # of a VanillaRNN with double_bias


def from_haiku(core: CoreName, weights: Mapping[str, Any], name: str | None = None) -> tuple[Layer, Params]:
    """Returns a cell and its parameters from the weights of a haiku core.

    Args:
        core: the name of the core's class.
        weights: the parameters that `init` of a transformed function returns, such as {"lstm/linear": {"w": ...,
            "b": ...}} or {"gru": {"w_i": ..., "w_h": ..., "b": ...}}; those of other modules are ignored.
        name: of the core among the modules, such as "my_model/~/lstm"; by default as haiku names one alone. The second
            LSTM of an `hk.DeepRNN` is "lstm_1".

    Returns:
        The cell, of a GRU with `reset="before"`, and its parameters, NumPy arrays in the dtypes of the weights.

    Raises:
        TypeError: weights that are not dicts of arrays of floats.
        ValueError: a core that jaxrnn has no cell for; names missing or unknown, or wrong shapes.

    >>> import numpy as np, jaxrnn.interop
    >>> weights = {"lstm/linear": {"w": np.ones((8, 20)), "b": np.zeros(20)}}
    >>> cell, params = jaxrnn.interop.from_haiku("LSTM", weights)
    >>> cell.inputs, cell.hidden, params.b[4:6]
    (3, 5, array([0., 1.]))
    """
    check_choice("core", core, tuple(CORES))
    name = CORES[core].name if name is None else name
    if not isinstance(weights, Mapping) or not all(isinstance(value, Mapping) for value in weights.values()):
        raise TypeError(f"weights must be dicts of arrays by module, as init returns, got {type(weights).__name__}")
    arrays = {
        f"{module}/{leaf}".removeprefix(f"{name}/"): as_floats(f"weights[{module!r}][{leaf!r}]", value)
        for module, leaves in weights.items()
        if f"{module}/".startswith(f"{name}/")
        for leaf, value in leaves.items()
    }
    expected = _shapes(core, arrays)
    check_names(f"the weights of {name!r}", arrays, expected, f"is {name!r} the name of an hk.{core}?")
    for place, shape in expected.items():
        check_shape(f"the weight {name}/{place}", arrays[place], shape, "are they the weights of one core?")
    gathered = [np.ascontiguousarray(array) for array in gather(core, arrays, np)]
    kind, options, _ = CORES[core]
    return assemble(kind, options.get("activation", "tanh"), [gathered], reset=options.get("reset", "after"))


def to_haiku(
    core: CoreName, layer: Layer, params: Params, name: str | None = None, double_bias: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the weights of the haiku core that computes the same: the inverse of `from_haiku`.

    Haiku's cores always have a bias: it is zero where the layer has none.

    Args:
        core: the name of the core's class.
        layer: an Elman cell with relu for a VanillaRNN, a GRU cell with `reset="before"` for a GRU, an LSTM cell for
            an LSTM.
        params: its parameters.
        name: of the core among the modules; by default as haiku names one alone.
        double_bias: of a VanillaRNN; the second bias is then zero.

    Returns:
        module -> name -> NumPy array, to be merged into the parameters of a transformed function.

    Raises:
        TypeError: a layer that is not one of jaxrnn's own, or parameters of another layer.
        ValueError: a core that jaxrnn has no cell for; a layer of another kind, activation or reset than the core.

    >>> import jax, jaxrnn, jaxrnn.interop
    >>> cell = jaxrnn.LSTM(3, 5)
    >>> weights = jaxrnn.interop.to_haiku("LSTM", cell, cell.init(jax.random.key(0)))
    >>> {module: {name: array.shape for name, array in leaves.items()} for module, leaves in weights.items()}
    {'lstm/linear': {'w': (8, 20), 'b': (20,)}}
    """
    check_choice("core", core, tuple(CORES))
    check_layers("layer", {"layer": layer}, "a haiku core")
    check_params(layer, params)
    kind, options, default = CORES[core]
    if type(layer) is not kind or any(getattr(layer, trait) != value for trait, value in options.items()):
        having = "".join(f" with {trait}={value!r}" for trait, value in options.items())
        raise ValueError(f"layer must be a jaxrnn.{kind.__name__}{having} for an hk.{core}, got {layer}")
    ((_, (U, W, *biases)),) = directions_of(layer, params)
    b = biases[0] if biases else np.zeros(len(W), W.dtype)
    weights: dict[str, dict[str, np.ndarray]] = {}
    for place, array in _scatter(core, U, W, b).items():
        module, leaf = f"{default if name is None else name}/{place}".rsplit("/", 1)
        if place != OPTIONAL or double_bias:
            weights.setdefault(module, {})[leaf] = np.ascontiguousarray(array)
    return weights


def gather(core: str, arrays: Mapping[str, Any], numpy: types.ModuleType) -> list[Array]:
    """Returns U, W and the biases, which add up, of the arrays of one core, by names such as "linear/w" below its own.

    Args:
        core: the name of its class.
        arrays: its parameters.
        numpy: NumPy, or `jax.numpy` for traced arrays.
    """
    if core == "VanillaRNN":
        biases = [arrays[name] for name in ("linear/b", OPTIONAL) if name in arrays]
        return [arrays["linear/w"].T, arrays["linear_1/w"].T, *biases]
    if core == "GRU":
        return [_from_zra(arrays[name].T, numpy) for name in ("w_i", "w_h", "b")]
    (i, g, f, o), rows = numpy.split(arrays["linear/b"], 4), _exchange(arrays["linear/w"].T, numpy)
    return [rows[:, : -len(f)], rows[:, -len(f) :], numpy.concatenate([i, f + 1, g, o])]


def _scatter(core: str, U: np.ndarray, W: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays of one core: the inverse of `gather`."""
    if core == "VanillaRNN":
        return {"linear/w": U.T, "linear/b": b, "linear_1/w": W.T, OPTIONAL: np.zeros_like(b)}
    if core == "GRU":
        return {"w_i": _to_zra(U).T, "w_h": _to_zra(W).T, "b": _to_zra(b)}
    (i, f, g, o), rows = np.split(b, 4), np.concatenate([U, W], -1)
    return {"linear/w": _exchange(rows, np).T, "linear/b": np.concatenate([i, g, f - 1, o])}


def _shapes(core: str, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of a core, as its first weight gives them."""
    first = arrays.get("w_i" if core == "GRU" else "linear/w", np.zeros((0, 0)))
    rows, columns = first.shape if first.ndim == 2 else (0, 0)
    if core == "GRU":
        H = columns // 3
        return {"w_i": (rows, 3 * H), "w_h": (H, 3 * H), "b": (3 * H,)}
    if core == "LSTM":
        return {"linear/w": (max(rows, columns // 4 + 1), columns // 4 * 4), "linear/b": (columns // 4 * 4,)}
    shapes: dict[str, tuple[int, ...]] = {"linear/w": (rows, columns), "linear/b": (columns,)}
    shapes["linear_1/w"] = (columns, columns)
    return shapes | ({OPTIONAL: (columns,)} if OPTIONAL in arrays else {})


def _from_zra(rows: Any, numpy: types.ModuleType) -> Any:
    """Returns rows of haiku's gates z, r, a as those of r, z, n, of which z is 1 - z there."""
    z, r, a = numpy.split(rows, 3)
    return numpy.concatenate([r, -z, a])


def _to_zra(rows: np.ndarray) -> np.ndarray:
    """Returns rows of r, z, n as those of haiku's gates: the inverse of `_from_zra`."""
    r, z, n = np.split(rows, 3)
    return np.concatenate([-z, r, n])


def _exchange(rows: Any, numpy: types.ModuleType) -> Any:
    """Exchanges the rows of the gates f and g: i, g, f, o to i, f, g, o, and back."""
    i, g, f, o = numpy.split(rows, 4)
    return numpy.concatenate([i, f, g, o])
