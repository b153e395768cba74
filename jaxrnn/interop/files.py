"""Reading and writing of safetensors files, which many libraries share."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import types
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import check_memory
from jaxrnn.interop.extras import installed_by
from jaxrnn.interop.layers import as_numpy, check_names, check_shape

DTYPES: dict[str, Any] = {  # as a file of safetensors names them
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}

SUM = "jaxrnn.sha256"  # in the metadata of a file


def save(path: str | os.PathLike[str], params: chex.ArrayTree) -> None:
    """Writes a pytree of arrays to a file of safetensors, which other libraries read as well.

    Names are paths, such as "layers.0.U" and "readout.V" for the parameters of a `jaxrnn.Network`; the arrays of a dict
    such as that of `to_torch` keep their names. A None is left out. The file has a sum of all of it, by
    which `load` tells damage.

    Args:
        path: the file; an existing one is overwritten.
        params: the pytree.

    Raises:
        TypeError: a leaf that is not an array, or of a dtype that a file cannot hold.
        ValueError: two leaves of one name, or a leaf named "__metadata__".
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
        arrays[name] = as_numpy(f"params {name!r}", leaf)
        if arrays[name].dtype not in known:
            raise TypeError(f"params {name!r} must be {', '.join(map(str, known))}, got dtype {arrays[name].dtype}")
    write = _safetensors().numpy.save
    pathlib.Path(path).write_bytes(write(arrays, {SUM: _sum(write(arrays))}))


def load(path: str | os.PathLike[str], like: chex.ArrayTree | None = None) -> Any:
    """Reads a file of safetensors.

    Args:
        path: the file, written by `save` or by another library.
        like: a pytree of arrays, or of their shapes such as `jax.eval_shape(net.init, key)`, with the structure wanted.

    Returns:
        name -> NumPy array (for example for `from_torch`), or a pytree with the structure of `like`; dtypes as in the
        file.

    Raises:
        ValueError: no file, or one that cannot be read; not a file of safetensors, or a damaged one that `save` wrote,
            or a dtype that NumPy does not have; with `like`, tensors that are missing, unknown, or of other
            shapes.
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
    check_names(f"the tensors in {str(path)!r}", arrays, leaves, cause)
    for name, leaf in leaves.items():
        check_shape(f"{name!r} in {str(path)!r}", arrays[name], tuple(leaf.shape), cause)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])


def _leaves(name: str, tree: chex.ArrayTree) -> dict[str, chex.Array]:
    """Returns the arrays of a pytree by their paths, such as "layers.0.U"."""
    found: dict[str, chex.Array] = {}
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
    """Returns all tensors of a file, without safetensors' own functions for NumPy, which do not know bfloat16."""
    safetensors = _safetensors()
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    check_memory(f"the content of {str(path)!r}", pathlib.Path(path).stat().st_size)
    try:
        content = pathlib.Path(path).read_bytes()
        tensors = dict(safetensors.deserialize(content))
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise ValueError(f"{str(path)!r} must be a file of safetensors, but cannot be read as one: {error}") from error
    kept = (_header(content).get("__metadata__") or {}).get(SUM)
    if kept is not None and kept != _sum(content):
        raise ValueError(f"{str(path)!r} is damaged: its tensors are not those that were saved")
    for name, tensor in tensors.items():
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{name!r} in {str(path)!r} must be {', '.join(DTYPES)}, got dtype {tensor['dtype']}")
        array = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]])
        tensors[name] = array.reshape(tensor["shape"])
    return tensors


def _header(content: bytes) -> dict[str, Any]:
    """Returns what a file says of its tensors, whose numbers come after it."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _sum(content: bytes) -> str:
    """Returns the SHA-256 of what a file says of its tensors and of their numbers, its metadata left out."""
    tensors = {name: tensor for name, tensor in _header(content).items() if name != "__metadata__"}
    found = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    found.update(memoryview(content)[8 + int.from_bytes(content[:8], "little") :])
    return found.hexdigest()


def _safetensors() -> types.ModuleType:
    """Imports safetensors, which is optional; raises with the command that installs it."""
    with installed_by("files", "safetensors"):
        import safetensors
        import safetensors.numpy
    return safetensors
