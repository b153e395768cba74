"""Weights in and out of other libraries, as plain NumPy arrays: PyTorch, Keras, and files of safetensors.

Neither PyTorch nor Keras is imported: arrays come and go under the names, or in the order, that they have there, and
all that come back are copies. Every direction of every layer is

    jaxrnn     U [G H, D]         W [G H, H]                b [G H], and for the GRU d [H]
    torch      weight_ih = U      weight_hh = W             bias_ih = b, bias_hh = 0            GRU: bias_hh = (0, 0, d)
    Keras      kernel = U^T       recurrent_kernel = W^T    bias = b                            GRU: bias = (b; 0, 0, d)

where G is 1 for Elman, 4 for the LSTM (rows i, f, g, o), 3 for the GRU (rows r, z, n, in Keras z, r, n). Of two biases
only the sum counts, but for n in a GRU, where the reset stands between them: coming in, they are summed. So the way
from jaxrnn to torch or Keras and back is exact, bit for bit, and so is every round trip after the first from there.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import check_choice
from jaxrnn.bidirectional import Bidirectional, BidirectionalParams, Layer
from jaxrnn.cell import Cell, Params
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams
from jaxrnn.scan import check_params

GATES: dict[Any, int] = {Elman: 1, GRU: 3, LSTM: 4}
PARAMS: dict[Any, Any] = {Elman: ElmanParams, GRU: GRUParams, LSTM: LSTMParams}
KERAS: dict[str, Any] = {"SimpleRNN": Elman, "GRU": GRU, "LSTM": LSTM}
FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # as torch names them
DTYPES = {  # as a file of safetensors names them
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}


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
    arrays = {name: _floats(f"tensors[{prefix + name!r}]", value) for name, value in found.items()}
    D, (kind, H) = np.atleast_2d(arrays["weight_ih_l0"]).shape[1], _kind_and_size(arrays["weight_hh_l0"])
    _check_activation(kind, activation)
    layers, params = [], []
    for directions in names:
        for name in itertools.chain(*directions):
            shape = (GATES[kind] * H, *([D] if "weight_ih" in name else [H] if "weight_hh" in name else []))
            _check_shape(f"tensors[{prefix + name!r}]", arrays[name], shape, "is it of the same module as the others?")
        layer, layer_params = _layer(kind, activation, [[arrays[name] for name in group] for group in directions])
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
        for suffix, cell, cell_params in _directions(layer, layer_params):
            tensors |= zip((f"{field}_l{i}{suffix}" for field in FIELDS), _rows(cell, cell_params), strict=False)
    return tensors


def from_keras(
    kind: str, weights: Sequence[Any], activation: str = "tanh", merge: str = "concatenate"
) -> tuple[Layer, Params]:
    """A layer and its parameters from the `get_weights()` of a Keras SimpleRNN, GRU or LSTM, or a Bidirectional of one.

        U = kernel^T       W = recurrent_kernel^T       b = bias
        GRU: b = bias[0] + bias[1], but in the rows of n b = bias[0], d = bias[1]

    The activations must be Keras's defaults, tanh and sigmoid (but for `activation`): weights do not tell. Nor does a
    GRU without bias tell `reset_after=False`, a recurrence that jaxrnn does not have: it would be taken for True.

    Args:
        kind: "SimpleRNN", "GRU" or "LSTM".
        weights: kernel [D, G H], recurrent_kernel [H, G H] and, unless `use_bias=False`, the bias: [H] of a SimpleRNN,
            [4H] of an LSTM, [2, 3H] of a GRU. Of a Bidirectional those of the forward layer, then of the backward one.
        activation: "tanh" or "relu", of a SimpleRNN.
        merge: of a Bidirectional, "concatenate" for Keras's `merge_mode="concat"`, or "sum".

    Returns:
        A cell or a `jaxrnn.Bidirectional`, and its parameters, NumPy arrays in the dtypes that came.

    Raises:
        TypeError: weights that are not a list of arrays of floats.
        ValueError: an unknown kind, activation or merge, or one that has no place; a number of arrays or shapes that do
            not fit; a GRU with `reset_after=False`.

    >>> import numpy as np, jaxrnn.interop
    >>> weights = [np.ones((3, 15)), np.ones((5, 15)), np.ones((2, 15))]
    >>> layer, params = jaxrnn.interop.from_keras("GRU", weights)
    >>> layer.inputs, layer.hidden, float(params.b[0]), float(params.b[-1]), float(params.d[-1])
    (3, 5, 2.0, 1.0, 1.0)
    """
    check_choice("kind", kind, tuple(KERAS))
    check_choice("merge", merge, ("concatenate", "sum"))
    _check_activation(KERAS[kind], activation)
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights must be the list that get_weights() gives, got {type(weights).__name__}")
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(
            f"weights must be 2 or 3 arrays, or twice that if bidirectional, got {len(weights)}: one layer's?"
        )
    count = len(weights) // 2 if len(weights) > 3 else len(weights)
    if count == len(weights) and merge != "concatenate":
        raise ValueError(f"merge is for a Bidirectional, of 4 or 6 arrays; got merge={merge!r} and {count} arrays")
    arrays = [_floats(f"weights[{i}]", value) for i, value in enumerate(weights)]
    directions = [_rows_of_keras(KERAS[kind], arrays[i : i + count], i) for i in range(0, len(arrays), count)]
    return _layer(KERAS[kind], activation, directions, merge)


def to_keras(layer: Layer, params: Params) -> list[np.ndarray]:
    """The arrays for `set_weights` of the Keras layer that computes what this one does: the inverse of `from_keras`.

        kernel = U^T       recurrent_kernel = W^T       bias = b       (GRU: bias[0] = b, bias[1] = (0, 0, d))

    Args:
        layer: an Elman, GRU or LSTM cell, or a `jaxrnn.Bidirectional` of two that are alike.
        params: its parameters.

    Returns:
        kernel [D, G H], recurrent_kernel [H, G H] and bias as `from_keras` takes them, of both directions in turn.

    Raises:
        TypeError: a layer that is not one of jaxrnn's own, parameters that are not its own.
        ValueError: directions of different kind, activation or bias.

    >>> import jax, jaxrnn, jaxrnn.interop
    >>> cell = jaxrnn.GRU(3, 5)
    >>> [array.shape for array in jaxrnn.interop.to_keras(cell, cell.init(jax.random.key(0)))]
    [(3, 15), (5, 15), (2, 15)]
    """
    _check_alike("layer", _cells("layer", layer), "the directions of a Keras layer")
    check_params(layer, params)
    arrays = []
    for _, cell, cell_params in _directions(layer, params):
        rows = _rows(cell, cell_params)
        U, W, *biases = map(_exchange, rows) if type(cell) is GRU else rows
        arrays += [U.T, W.T, *([np.stack(biases)] if biases and type(cell) is GRU else biases[:1])]
    return arrays


def save(path: str | os.PathLike[str], params: Any) -> None:
    """Write a pytree of arrays to a file of safetensors, which other libraries read as well.

    Names are paths, such as "layers.0.U" and "readout.V" for the parameters of a `jaxrnn.Network`; the arrays of a dict
    keep the names they have in it, as those of `to_torch` should. A None is left out.

    Args:
        path: the file; one that is there is overwritten.
        params: the pytree.

    Raises:
        TypeError: a leaf that is no array, or of a dtype that a file cannot hold.
        ValueError: two leaves of one name, or one by the name "__metadata__".
        ImportError: safetensors is not installed.

    >>> import pathlib, tempfile, jax, jaxrnn, jaxrnn.interop
    >>> params = jaxrnn.GRU(3, 5).init(jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxrnn.interop.save(pathlib.Path(folder) / "gru.safetensors", params)
    ...     sorted(jaxrnn.interop.load(pathlib.Path(folder) / "gru.safetensors"))
    ['U', 'W', 'b', 'd']
    """
    known = [np.dtype(dtype) for dtype in DTYPES.values()]
    arrays = {}
    for name, leaf in _leaves("params", params).items():
        arrays[name] = _array(f"params {name!r}", leaf)
        if arrays[name].dtype not in known:
            raise TypeError(f"params {name!r} must be {', '.join(map(str, known))}, got dtype {arrays[name].dtype}")
    pathlib.Path(path).write_bytes(_safetensors().numpy.save(arrays))


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read a file of safetensors.

    Args:
        path: the file, written by `save` or by another library.
        like: a pytree of arrays, or of their shapes such as `jax.eval_shape(net.init, key)`, with the structure wanted.

    Returns:
        name -> NumPy array (for `from_torch`, say), or with `like` the pytree of its structure; dtypes as in the file.

    Raises:
        ValueError: no file of safetensors, a dtype that NumPy does not have; with `like`, tensors that are missing,
            superfluous, or of other shapes.
        TypeError: a leaf of `like` without a shape.
        ImportError: safetensors is not installed.

    >>> import pathlib, tempfile, jax, jaxrnn, jaxrnn.interop
    >>> net = jaxrnn.Network((jaxrnn.Elman(3, 5),), jaxrnn.Readout(5, 2), jaxrnn.squared_error)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxrnn.interop.save(pathlib.Path(folder) / "net.safetensors", net.init(jax.random.key(0)))
    ...     shapes = jax.eval_shape(net.init, jax.random.key(0))
    ...     jaxrnn.interop.load(pathlib.Path(folder) / "net.safetensors", shapes).readout.V.shape
    (2, 5)
    """
    arrays = _read(path)
    if like is None:
        return arrays
    leaves = _leaves("like", like)
    cause = "was it saved from another network?"
    _check_names(f"the tensors in {str(path)!r}", arrays, leaves, cause)
    for name, leaf in leaves.items():
        _check_shape(f"{name!r} in {str(path)!r}", arrays[name], tuple(leaf.shape), cause)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])


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
    _check_names("tensors", found, [name for directions in names for name in itertools.chain(*directions)], cause)
    return found, names


def _rows_of_keras(kind: Any, arrays: list[np.ndarray], first: int) -> list[np.ndarray]:
    """U, W and the biases of one direction, from the arrays of which the first is weights[first]."""
    (D, H), gates = (array.shape[0] if array.ndim else 0 for array in arrays[:2]), GATES[kind]
    if kind is GRU and arrays[-1].shape == (3 * H,):
        raise ValueError(
            f"weights[{first + 2}] must be {(2, 3 * H)}, the biases of a GRU with reset_after=True, got {(3 * H,)}, as "
            f"with reset_after=False: to reset before the product is another recurrence, which jaxrnn does not have"
        )
    shapes = [(D, gates * H), (H, gates * H), (2, 3 * H) if kind is GRU else (gates * H,)]
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=False), first):
        _check_shape(f"weights[{i}]", array, shape, f"are they the weights of one {kind.__name__} layer?")
    U, W, *bias = arrays
    rows = [U.T, W.T, *(itertools.chain(*bias) if kind is GRU else bias)]
    return list(map(_exchange, rows)) if kind is GRU else rows


def _exchange(rows: np.ndarray) -> np.ndarray:
    """From the rows r, z, n to the rows z, r, n, and back."""
    first, second, third = np.split(rows, 3)
    return np.concatenate([second, first, third])


def _layer(kind: Any, activation: str, directions: list, merge: str = "concatenate") -> tuple[Layer, Params]:
    """The layer, and its parameters, from the rows of one direction or two."""
    cells = [_cell(kind, activation, *rows) for rows in directions]
    if len(cells) == 1:
        return cells[0]
    (forward, forward_params), (backward, backward_params) = cells
    return Bidirectional(forward, backward, merge), BidirectionalParams(forward_params, backward_params)


def _cell(kind: Any, activation: str, U: Any, W: Any, b: Any = None, b_hh: Any = None) -> tuple[Cell, Params]:
    """A cell and its parameters from U, W and one bias, or two of which the second acts inside the reset of a GRU."""
    H = W.shape[1]
    if b_hh is not None:
        total = np.where(b_hh == 0, b, b + b_hh)  # not b + 0, which would make 0 of -0
        b = total if kind is not GRU else np.concatenate([total[: 2 * H], b[2 * H :]])
    d = (None if b_hh is None else b_hh[2 * H :],) if kind is GRU else ()
    options = {"activation": activation} if kind is Elman else {}
    return kind(U.shape[1], H, bias=b is not None, **options), PARAMS[kind](U, W, b, *d)


def _rows(cell: Any, params: Params) -> list[np.ndarray]:
    """U, W and, if there is a bias, the two of torch: the inverse of `_cell`."""
    U, W, *biases = (_array("params", leaf) for leaf in params if leaf is not None)
    if not biases:
        return [U, W]
    b, *d = biases
    return [U, W, b, np.concatenate([np.zeros_like(b[: 2 * cell.hidden]), *d]) if d else np.zeros_like(b)]


def _cells(name: str, layer: Any) -> list[Any]:
    """The cells of a layer; raise unless they are jaxrnn's own."""
    cells = [layer.forward, layer.backward] if isinstance(layer, Bidirectional) else [layer]
    for cell in cells:
        if type(cell) not in GATES:
            raise TypeError(f"{name} must be an Elman, GRU or LSTM cell or a Bidirectional of two, got {cell!r}")
    return cells


def _directions(layer: Any, params: Params) -> list[tuple[str, Any, Params]]:
    """What torch's names end with, the cell, and its parameters."""
    if isinstance(layer, Cell):
        return [("", layer, params)]
    return [("", layer.forward, params.forward), ("_reverse", layer.backward, params.backward)]


def _array(name: str, value: Any) -> np.ndarray:
    """A copy in NumPy's hands, row by row in memory: a file of safetensors takes the bytes as they lie."""
    try:
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        cause = "a torch tensor must be detached, on the CPU, and not in bfloat16"
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}; {cause}") from error


def _floats(name: str, value: Any) -> np.ndarray:
    array = _array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def _kind_and_size(W: np.ndarray) -> tuple[Any, int]:
    """What the shape of the recurrent weights [G H, H] tells."""
    for kind, gates in GATES.items():
        if W.ndim == 2 and W.shape[0] == gates * W.shape[1]:
            return kind, W.shape[1]
    raise ValueError(f"weight_hh_l0 must be [H, H], [3H, H] or [4H, H], as of an RNN, GRU or LSTM, got shape {W.shape}")


def _check_activation(kind: Any, activation: str) -> None:
    check_choice("activation", activation, ("tanh", "relu"))
    if kind is not Elman and activation != "tanh":
        raise ValueError(
            f"activation is for a plain recurrent layer, got {activation!r} with weights of {kind.__name__}"
        )


def _check_names(name: str, found: Any, expected: Any, cause: str) -> None:
    missing, unknown = ([n for n in these if n not in those] for these, those in ((expected, found), (found, expected)))
    if missing or unknown:
        lists = (", ".join([*names[:8], *["..."] * (len(names) > 8)]) or "none" for names in (missing, unknown))
        raise ValueError("{} do not fit: missing {}; unknown {}; {}".format(name, *lists, cause))


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...], cause: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}; {cause}")


def _check_alike(name: str, cells: list[Any], whose: str) -> None:
    """Raise unless cells differ in nothing but their inputs and what they are initialised with."""
    for trait in ("kind", "hidden", "bias", "activation"):
        found = [type(cell).__name__ if trait == "kind" else getattr(cell, trait, None) for cell in cells]
        if len(set(found)) > 1:
            raise ValueError(f"{name} must have one {trait}, as {whose} do, got {', '.join(map(str, found))}")


def _check_torch_layers(layers: Any, params: Any) -> None:
    """Raise unless there are layers that one torch module can express, and as many parameters."""
    if not isinstance(layers, (tuple, list)) or not isinstance(params, (tuple, list)):
        came = f"{type(layers).__name__} and {type(params).__name__}"
        raise TypeError(f"layers and params must be tuples with one entry per layer, got {came}")
    if not layers or len(layers) != len(params):
        came = f"{len(layers)} and {len(params)}"
        raise ValueError(f"layers and params must have one entry per layer, as params.layers has, got {came}")
    cells = [_cells(f"layers[{i}]", layer) for i, layer in enumerate(layers)]
    _check_alike("layers", list(itertools.chain(*cells)), "the layers and directions of a torch module")
    ways = {layer.merge if isinstance(layer, Bidirectional) else "none" for layer in layers}
    if ways not in ({"none"}, {"concatenate"}):
        ways_text = ", ".join(sorted(ways))
        raise ValueError(f'layers must have one merge, none or "concatenate", as torch modules have, got {ways_text}')
    for i, (below, above) in enumerate(itertools.pairwise(layers)):
        if below.outputs != above.inputs:
            raise ValueError(f"layers[{i}] has {below.outputs} outputs, but layers[{i + 1}] expects {above.inputs}")


def _leaves(name: str, tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by their paths, such as "layers.0.U"."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        place = jax.tree_util.keystr(path, simple=True, separator=".")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name} must be a pytree of arrays, got {type(leaf).__name__} at {place!r}")
        if place in found or place == "__metadata__":
            cause = "the name is reserved" if place == "__metadata__" else "two leaves have this name"
            raise ValueError(f"{name} must have a name of its own for every array, got {place!r}: {cause}")
        found[place] = leaf
    return found


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a file, without safetensors' own functions for NumPy, which do not know bfloat16."""
    safetensors = _safetensors()
    try:
        tensors = dict(safetensors.deserialize(pathlib.Path(path).read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{str(path)!r} must be a file of safetensors, but cannot be read as one: {error}") from error
    for name, tensor in tensors.items():
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{name!r} in {str(path)!r} must be {', '.join(DTYPES)}, got dtype {tensor['dtype']}")
        array = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]])
        tensors[name] = array.reshape(tensor["shape"])
    return tensors


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("jaxrnn.interop.save and load need safetensors: pip install safetensors") from error
    return safetensors
