"""The state dicts of torch.nn.RNN, GRU and LSTM."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn.cells.base import Params
from jaxrnn.interop.layers import (
    GATES,
    as_floats,
    assemble,
    cells_of,
    check_activation,
    check_alike,
    check_names,
    check_shape,
    directions_of,
    rows_of,
)
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.scan import check_params

FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def from_torch(
    tensors: Mapping[str, Any], activation: str = "tanh", prefix: str = ""
) -> tuple[tuple[Layer, ...], tuple[Params, ...]]:
    """Layers and their parameters from the state dict of a torch.nn.RNN, GRU or LSTM.

        U = weight_ih       W = weight_hh       b = bias_ih + bias_hh       (GRU, rows of n: b = bias_ih, d = bias_hh)

    Args:
        tensors: name -> array, or what `np.asarray` makes one of: `weight_ih_l0` [G H, D], `weight_hh_l0` [G H, H],
            `bias_ih_l0` and `bias_hh_l0` [G H] (or neither), `_l1` and so on for the layers above, each of them with
            `_reverse` behind it for the backward direction. G, and so the kind of module, is told by the shapes.
        activation: "tanh" or "relu", the nonlinearity of a torch.nn.RNN, which its weights do not tell.
        prefix: what the names begin with in the state dict of a larger module, say "rnn."; all others are left alone.

    Returns:
        The layers of a `jaxrnn.Network`, and for its `params.layers` NumPy arrays in the dtypes that came.

    Raises:
        TypeError: tensors is no mapping, or holds what is no array of floats.
        ValueError: names missing or unknown, shapes that do not fit, a projection (`proj_size`), an unknown activation,
            or one for a module that has no choice of it.

    >>> import numpy as np, jaxrnn.interop
    >>> tensors = {"rnn.weight_ih_l0": np.ones((15, 3)), "rnn.weight_hh_l0": np.ones((15, 5)), "head.bias": np.ones(2)}
    >>> layers, params = jaxrnn.interop.from_torch(tensors, prefix="rnn.")
    >>> type(layers[0]).__name__, layers[0].inputs, layers[0].hidden, layers[0].bias
    ('GRU', 3, 5, False)
    """
    found, names = _torch_tensors(tensors, prefix)
    arrays = {name: as_floats(f"tensors[{prefix + name!r}]", value) for name, value in found.items()}
    D, (kind, H) = np.atleast_2d(arrays["weight_ih_l0"]).shape[1], _kind_and_size(arrays["weight_hh_l0"])
    check_activation(kind, activation)
    layers, params = [], []
    for directions in names:
        for name in itertools.chain(*directions):
            shape = (GATES[kind] * H, *([D] if "weight_ih" in name else [H] if "weight_hh" in name else []))
            check_shape(f"tensors[{prefix + name!r}]", arrays[name], shape, "is it of the same module as the others?")
        layer, layer_params = assemble(kind, activation, [[arrays[name] for name in group] for group in directions])
        layers.append(layer)
        params.append(layer_params)
        D = layer.outputs
    return tuple(layers), tuple(params)


def to_torch(layers: Sequence[Layer], params: Sequence[Params]) -> dict[str, np.ndarray]:
    """The state dict of the torch.nn.RNN, GRU or LSTM that computes what the layers do: the inverse of `from_torch`.

        weight_ih = U       weight_hh = W       bias_ih = b       bias_hh = 0       (GRU: bias_hh = (0, 0, d))

    For a module of the same sizes, `num_layers`, `bias`, `bidirectional` and `nonlinearity`:
    `module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})`. Dropout between layers
    is the module's; residual paths, recurrent dropout and a learned initial state it does not have.

    Args:
        layers: as in a `jaxrnn.Network`.
        params: the parameters of each, such as `params.layers`.

    Returns:
        name -> array, as `from_torch` takes them, in the dtypes of the parameters.

    Raises:
        TypeError: layers that are not a sequence of jaxrnn's own, parameters that are not theirs.
        ValueError: what one torch module cannot express: layers or directions of several kinds, sizes, activations, or
            with bias and without; bidirectional layers among others, or summed.

    >>> import jax, jaxrnn, jaxrnn.interop
    >>> cell = jaxrnn.LSTM(3, 5)
    >>> tensors = jaxrnn.interop.to_torch([cell], [cell.init(jax.random.key(0))])
    >>> {name: array.shape for name, array in tensors.items()}
    {'weight_ih_l0': (20, 3), 'weight_hh_l0': (20, 5), 'bias_ih_l0': (20,), 'bias_hh_l0': (20,)}
    """
    _check_torch_layers(layers, params)
    tensors: dict[str, np.ndarray] = {}
    for i, (layer, layer_params) in enumerate(zip(layers, params, strict=True)):
        check_params(layer, layer_params, f"params[{i}]")
        for suffix, cell, cell_params in directions_of(layer, layer_params):
            tensors |= zip((f"{field}_l{i}{suffix}" for field in FIELDS), rows_of(cell, cell_params), strict=False)
    return tensors


def _torch_tensors(tensors: Any, prefix: str) -> tuple[dict[str, Any], list[list[list[str]]]]:
    """The tensors by their names without the prefix, and these names by layer and direction."""
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise TypeError(f"tensors must map names to arrays, as module.state_dict() does, got {type(tensors).__name__}")
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if "weight_hr_l0" in found:
        raise ValueError("tensors must have no projection, got weight_hr_l0: jaxrnn has nothing like torch's proj_size")
    depth = max(1, next(i for i in itertools.count() if f"weight_ih_l{i}" not in found))
    suffixes = ("", "_reverse") if "weight_ih_l0_reverse" in found else ("",)
    fields = FIELDS if "bias_ih_l0" in found else FIELDS[:2]
    names = [[[f"{field}_l{i}{suffix}" for field in fields] for suffix in suffixes] for i in range(depth)]
    cause = (
        f"does prefix={prefix!r} say all that stands before weight_ih_l0 in the names of one torch.nn.RNN, GRU or LSTM?"
    )
    check_names("tensors", found, [name for directions in names for name in itertools.chain(*directions)], cause)
    return found, names


def _kind_and_size(W: np.ndarray) -> tuple[Any, int]:
    """What the shape of the recurrent weights [G H, H] tells."""
    for kind, gates in GATES.items():
        if W.ndim == 2 and W.shape[0] == gates * W.shape[1]:
            return kind, W.shape[1]
    raise ValueError(f"weight_hh_l0 must be [H, H], [3H, H] or [4H, H], as of an RNN, GRU or LSTM, got shape {W.shape}")


def _check_torch_layers(layers: Any, params: Any) -> None:
    """Raise unless there are layers that one torch module can express, and as many parameters."""
    if not isinstance(layers, (tuple, list)) or not isinstance(params, (tuple, list)):
        came = f"{type(layers).__name__} and {type(params).__name__}"
        raise TypeError(f"layers and params must be tuples with one entry per layer, got {came}")
    if not layers or len(layers) != len(params):
        came = f"{len(layers)} and {len(params)}"
        raise ValueError(f"layers and params must have one entry per layer, as params.layers has, got {came}")
    cells = [cells_of(f"layers[{i}]", layer) for i, layer in enumerate(layers)]
    check_alike("layers", list(itertools.chain(*cells)), "the layers and directions of a torch module")
    ways = {layer.merge if isinstance(layer, Bidirectional) else "none" for layer in layers}
    if ways not in ({"none"}, {"concatenate"}):
        ways_text = ", ".join(sorted(ways))
        raise ValueError(f'layers must have one merge, none or "concatenate", as torch modules have, got {ways_text}')
    for i, (below, above) in enumerate(itertools.pairwise(layers)):
        if below.outputs != above.inputs:
            raise ValueError(f"layers[{i}] has {below.outputs} outputs, but layers[{i + 1}] expects {above.inputs}")
