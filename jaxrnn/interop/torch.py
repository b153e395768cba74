"""Conversions from and to the state dicts of torch.nn.RNN, GRU and LSTM; from those of RNNCell, GRUCell, LSTMCell."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxrnn.cells.base import Params
from jaxrnn.interop.layers import (
    KINDS,
    as_floats,
    assemble,
    check_layers,
    check_names,
    check_reset_after,
    check_shape,
    directions_of,
)
from jaxrnn.layer.bidirectional import Bidirectional, Layer
from jaxrnn.layer.scan import check_params

FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
SUFFIXES = ("", "_reverse")  # of the directions


def from_torch(
    tensors: Mapping[str, ArrayLike], activation: Literal["tanh", "relu"] = "tanh", prefix: str = ""
) -> tuple[tuple[Layer, ...], tuple[Params, ...]]:
    """Returns layers and their parameters from the state dict of a torch.nn.RNN, GRU or LSTM, or of one step's cell.

        U = weight_ih       W = weight_hh       b = bias_ih + bias_hh       (GRU, rows of n: b = bias_ih, d = bias_hh)

    Args:
        tensors: name -> array, or what `np.asarray` turns into one: `weight_ih_l0` [G H, D], `weight_hh_l0` [G H, H],
            `bias_ih_l0` and `bias_hh_l0` [G H] (or neither), `_l1` and so on for the layers above, each of them with
            `_reverse` at its end for the backward direction. The shapes tell G, and so the kind of module. Of a
            torch.nn.RNNCell, GRUCell or LSTMCell the names have no `_l0`; it gives a single layer.
        activation: "tanh" or "relu", the nonlinearity of a torch.nn.RNN or RNNCell, which its weights do not tell.
        prefix: the start of the names in the state dict of a larger module, such as "rnn."; all others are ignored.

    Returns:
        The layers of a `jaxrnn.Network`, and for its `params.layers` NumPy arrays in the dtypes of the tensors.

    Raises:
        TypeError: tensors is not a mapping, or holds a value that is not an array of floats.
        ValueError: names missing or unknown, shapes that do not fit, a projection (`proj_size`), an unknown activation,
            or "relu" for a GRU or an LSTM.

    >>> import numpy as np, jaxrnn.interop
    >>> tensors = {"rnn.weight_ih_l0": np.ones((15, 3)), "rnn.weight_hh_l0": np.ones((15, 5)), "head.bias": np.ones(2)}
    >>> layers, params = jaxrnn.interop.from_torch(tensors, prefix="rnn.")
    >>> type(layers[0]).__name__, layers[0].inputs, layers[0].hidden, layers[0].bias
    ('GRU', 3, 5, False)
    """
    found, names = _torch_tensors(tensors, prefix)
    arrays = {name: as_floats(f"tensors[{prefix + name!r}]", value) for name, value in found.items()}
    of_U, of_W, *_ = names[0][0]
    W = arrays[of_W]
    kind = next((kind for kind in KINDS if W.ndim == 2 and W.shape[0] == kind.blocks * W.shape[1]), None)
    if kind is None:
        raise ValueError(f"{of_W} must be [H, H], [3H, H] or [4H, H], as of RNN, GRU, LSTM, got shape {W.shape}")
    D, H = np.atleast_2d(arrays[of_U]).shape[1], W.shape[1]
    layers: list[Layer] = []
    params: list[Params] = []
    for directions in names:
        for name in itertools.chain(*directions):
            shape = (kind.blocks * H, *([D] if "weight_ih" in name else [H] if "weight_hh" in name else []))
            check_shape(f"tensors[{prefix + name!r}]", arrays[name], shape, "is it of the same module as the others?")
        layer, layer_params = assemble(kind, activation, [[arrays[name] for name in group] for group in directions])
        layers, params, D = [*layers, layer], [*params, layer_params], layer.outputs
    return tuple(layers), tuple(params)


def to_torch(layers: Sequence[Layer], params: Sequence[Params]) -> dict[str, np.ndarray]:
    """Returns the state dict of the torch.nn.RNN, GRU or LSTM that computes the same: the inverse of `from_torch`.

        weight_ih = U       weight_hh = W       bias_ih = b       bias_hh = 0       (GRU: bias_hh = (0, 0, d))

    For a module of the same sizes, `num_layers`, `bias`, `bidirectional` and `nonlinearity`:
    `module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})`. Dropout between layers
    is an option of the module; residual paths, recurrent dropout and a learned initial state do not exist there.

    Args:
        layers: as in a `jaxrnn.Network`.
        params: the parameters of each layer, such as `params.layers`.

    Returns:
        name -> array, as `from_torch` takes them, in the dtypes of the parameters.

    Raises:
        TypeError: layers that are not a sequence of jaxrnn's own, or parameters of other layers.
        ValueError: layers that one torch module cannot express: of several kinds, sizes or activations, with bias and
            without, bidirectional and not, or bidirectional with a sum; a GRU that resets before the product.

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
        for suffix, (_, arrays) in zip(SUFFIXES, directions_of(layer, layer_params), strict=False):
            tensors |= zip((f"{field}_l{i}{suffix}" for field in FIELDS), arrays, strict=False)
    return tensors


def _torch_tensors(tensors: Mapping[str, ArrayLike], prefix: str) -> tuple[dict[str, ArrayLike], list[list[list[str]]]]:
    """Returns the tensors by their names without the prefix, and these names by layer and direction."""
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise TypeError(f"tensors must map names to arrays, as module.state_dict() does, got {type(tensors).__name__}")
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if "weight_hr_l0" in found:
        raise ValueError("tensors must have no projection, got weight_hr_l0: jaxrnn has nothing like torch's proj_size")
    names = _names_like(found)
    cause = (
        f"is prefix={prefix!r} all that stands before weight_ih_l0 in the names of one torch.nn.RNN, GRU or LSTM, or "
        f"before weight_ih in those of one RNNCell, GRUCell or LSTMCell?"
    )
    check_names("tensors", found, [name for directions in names for name in itertools.chain(*directions)], cause)
    return found, names


def _names_like(found: Collection[str]) -> list[list[list[str]]]:
    """Returns the names that a module of these weights must have, by layer and direction."""
    if "weight_ih" in found:  # of one step's cell
        return [[list(FIELDS if "bias_ih" in found else FIELDS[:2])]]
    depth = max(1, next(i for i in itertools.count() if f"weight_ih_l{i}" not in found))
    suffixes = SUFFIXES if "weight_ih_l0_reverse" in found else SUFFIXES[:1]
    fields = FIELDS if "bias_ih_l0" in found else FIELDS[:2]
    return [[[f"{field}_l{i}{suffix}" for field in fields] for suffix in suffixes] for i in range(depth)]


def _check_torch_layers(layers: Sequence[Layer], params: Sequence[Params]) -> None:
    """Raises unless one torch module can express the layers, and there are parameters for each."""
    if not isinstance(layers, (tuple, list)) or not isinstance(params, (tuple, list)):
        came = f"{type(layers).__name__} and {type(params).__name__}"
        raise TypeError(f"layers and params must be tuples with one entry per layer, got {came}")
    if not layers or len(layers) != len(params):
        came = f"{len(layers)} and {len(params)}"
        raise ValueError(f"layers and params must have one entry per layer, as params.layers has, got {came}")
    named = {f"layers[{i}]": layer for i, layer in enumerate(layers)}
    check_layers("layers", named, "the layers and directions of a torch module")
    check_reset_after("layers", layers, "torch's GRU")
    merges = {layer.merge if isinstance(layer, Bidirectional) else "none" for layer in layers}
    if merges not in ({"none"}, {"concatenate"}):
        came = ", ".join(sorted(merges))
        raise ValueError(f'layers must have one merge, none or "concatenate", as torch modules have, got {came}')
    for i, (below, above) in enumerate(itertools.pairwise(layers)):
        if below.outputs != above.inputs:
            raise ValueError(f"layers[{i}] has {below.outputs} outputs, but layers[{i + 1}] expects {above.inputs}")
