"""A network and its parameters as a table."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from chex import ArrayTree

from jaxrnn.network.batch import check_params
from jaxrnn.network.network import Network, NetworkParams, network_shapes
from jaxrnn.printing import as_text


class Part(NamedTuple):
    """Holds a layer, the readout, or the learned state, and the arrays that it has: name to shape and dtype."""

    name: str  # where it is in the parameters, such as "layers[0]"
    what: str  # the expression that makes it
    arrays: dict[str, jax.ShapeDtypeStruct]  # by their names within it, such as "U" or "forward.U"

    @property
    def size(self) -> int:
        """Counts the numbers in its arrays."""
        return sum(array.size for array in self.arrays.values())

    @property
    def nbytes(self) -> int:
        """Counts the bytes of its arrays."""
        return sum(array.size * array.dtype.itemsize for array in self.arrays.values())


class Summary(NamedTuple):
    """Holds the parts of a network; printed, it is a table."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Counts all parameters."""
        return sum(part.size for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Counts the bytes of all parameters."""
        return sum(part.nbytes for part in self.parts)

    def __repr__(self) -> str:
        rows = [("", "", "parameters", "bytes")]
        for part in self.parts:
            rows.append((part.name, part.what, f"{part.size:,}", f"{part.nbytes:,}"))
            for name, array in part.arrays.items():
                rows.append((f"  {name}", as_text(array), f"{array.size:,}", f"{array.size * array.dtype.itemsize:,}"))
        rows.append(("in all", "", f"{self.size:,}", f"{self.nbytes:,}"))
        a, b, c, d = (max(map(len, column)) for column in zip(*rows, strict=True))  # the widths
        return "\n".join(f"{name:{a}}  {what:{b}}  {size:>{c}}  {nbytes:>{d}}" for name, what, size, nbytes in rows)


def summary(net: Network, params: NetworkParams | None = None) -> Summary:
    """Lists the layers of a network, what each of them is, and its parameters: shapes, numbers and bytes.

    Args:
        net: the network.
        params: as `net.init` gives them, or their shapes, as `jax.eval_shape(net.init, key)` gives these; by default
            the latter, in float32.

    Returns:
        A `Summary`: printed, a table; its `size` and `nbytes` are those of all parameters, its `parts` the rows.

    Raises:
        TypeError, ValueError: net is not a Network, params of another network.

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.LSTM(3, 5),), jaxrnn.Readout(5, 2), jaxrnn.squared_error)
    >>> jaxrnn.summary(net, net.init(jax.random.key(0)))
                                             parameters  bytes
    layers[0]  LSTM(inputs=3, hidden=5)             180    720
      U        float32[20,3]                         60    240
      W        float32[20,5]                        100    400
      b        float32[20]                           20     80
    readout    Readout(hidden=5, outputs=2)          12     48
      V        float32[2,5]                          10     40
      c        float32[2]                             2      8
    in all                                          192    768
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    shapes = network_shapes(net)
    params = shapes if params is None else params
    check_params(net.layers, params, shapes)
    layers = enumerate(zip(net.layers, params.layers, strict=True))
    parts = [_part(f"layers[{i}]", as_text(layer, math.inf), own) for i, (layer, own) in layers]
    parts.append(_part("readout", as_text(net.readout), params.readout))
    if params.state is not None:
        parts.append(_part("state", "learned", params.state))
    return Summary(tuple(parts))


def _part(name: str, what: str, tree: ArrayTree) -> Part:
    arrays = {
        jax.tree_util.keystr(path).lstrip("."): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    return Part(name, what, arrays)
