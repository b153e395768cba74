"""ONNX files: their RNN, GRU and LSTM operators in JAX, to run and to train on, and networks written as such files.

    model = jaxrnn.interop.onnx.load("model.onnx")
    outputs = model(inputs)                        as onnxruntime gives them
    net, params = model.net, model.params          to train on
    jaxrnn.interop.onnx.save(net, params, "trained.onnx")

`onnx` must be installed (the extra `onnx`); nothing is run by it, and `onnxruntime` is not needed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxrnn.interop.extras import installed_by

with installed_by("onnx", "onnx"):
    import onnx

from jaxrnn.arguments import as_array
from jaxrnn.interop.layers import check_layers
from jaxrnn.interop.onnx_graph import Graph, read
from jaxrnn.interop.onnx_layers import INPUTS, KINDS, Recurrent, from_node, run
from jaxrnn.interop.onnx_network import network_of
from jaxrnn.interop.onnx_operators import check_supported, evaluate
from jaxrnn.interop.onnx_save import Options, model_of
from jaxrnn.network.batch import check_params
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.network.network import Network, NetworkParams, network_shapes

FLOATS = (np.float16, np.float32, np.float64)
MOST_BYTES = 2**31 - 2**20  # of weights: a file of protobuf is below 2 GiB as a whole


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Computes what an ONNX graph does, as a pure function of JAX; made by `load`.

    Called with the graph's inputs in their order, it returns its outputs in theirs, as a tuple. It works under
    `jax.jit`, `jax.grad` with respect to the inputs, and `jax.vmap`; the weights are constants of it.

    Fields:
        graph, layers: what was read, and the layers of its recurrent operators by the names of their outputs.
        objective: that of `net`.
    """

    graph: Graph
    layers: Mapping[tuple[str, ...], Recurrent]
    objective: Callable[[Array, Array], Array]

    def __repr__(self) -> str:
        return f"Model(inputs={self.inputs}, outputs={self.outputs})"

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Computes the outputs; raises a ValueError or TypeError that names the input that does not fit."""
        values: dict[str, Any] = {**self.graph.constants, **self._checked(inputs)}
        for node in self.graph.nodes:
            given = [values.get(name) for name in node.inputs]
            if node.operator in KINDS:
                of_call = dict(zip(INPUTS, given, strict=False))
                states = (of_call.get(name) for name in ("sequence_lens", "initial_h", "initial_c"))
                made = run(self.layers[node.outputs], of_call["X"], *states)
            else:
                made = evaluate(node, given)
            values.update(zip(node.outputs, made, strict=False))
        return tuple(jnp.asarray(values[name]) for name in self.outputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names the inputs."""
        return tuple(self.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names the outputs."""
        return self.graph.outputs

    @property
    def net(self) -> Network:
        """Returns the network that the graph computes; raises a ValueError that names what no network has.

        It takes time-major inputs, or tokens where the graph makes one-hot vectors of them, a state where the graph
        has one as an input, and in the place of lengths a mask, see `jaxrnn.lengths_to_mask`. Its outputs are those of
        the readout, before a Softmax or Sigmoid; without a readout, the hidden states, by a readout that changes
        nothing.
        """
        return self._network[0]

    @property
    def params(self) -> NetworkParams:
        """Returns the parameters of `net`, NumPy arrays in the dtypes of the file."""
        return self._network[1]

    @functools.cached_property
    def _network(self) -> tuple[Network, NetworkParams]:
        return network_of(self.graph, self.layers, self.objective)

    def _checked(self, inputs: tuple[Array, ...]) -> dict[str, Array]:
        """Returns the inputs of a call by name; raises unless they fit their declarations."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"inputs must be {', '.join(self.inputs)}, in this order, got {len(inputs)} arrays")
        values = {}
        for (name, (dtype, shape)), value in zip(self.graph.inputs.items(), inputs, strict=True):
            array = values[name] = as_array(name, value)
            if jnp.issubdtype(array.dtype, jnp.floating) != jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(f"{name} must be {dtype}, as the model says, got dtype {array.dtype}")
            fits = len(shape) == array.ndim and all(
                isinstance(size, str) or size in (axis, None) for size, axis in zip(shape, array.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"{name} must have shape {shape}, as the model says, got {array.shape}")
        return values


def load(
    source: str | os.PathLike[str] | onnx.ModelProto,
    objective: Callable[[Array, Array], Array] = softmax_cross_entropy,
) -> Model:
    """Reads an ONNX model whose layers are RNN, GRU and LSTM operators.

    They may be of any direction, with `sequence_lens`, initial states, both forms of `linear_before_reset` (0 is
    `jaxrnn.GRU(..., reset="before")`) and both of `layout`. Around them may stand what reshapes, joins and selects, and
    a readout; the error for another operator lists those that are known. Opsets 13 to 28 are read.

    Args:
        source: a file, with what it keeps in other files of its folder; or a model in memory.
        objective: for the network that `.net` is: a file does not tell it.

    Returns:
        A function of the model's inputs in their order, to its outputs in theirs; its `.net` and `.params` are the
        network and parameters to train on.

    Raises:
        ValueError: no ONNX file, a damaged one, one of an older or newer opset, or with data outside of its folder;
            operators that are not supported, or recurrent ones with peepholes, clip, input_forget, other activations
            than the usual ones, or weights that depend on the inputs.
        FileNotFoundError: no file.

    >>> import pathlib, tempfile, jax, jax.numpy as jnp, jaxrnn
    >>> from jaxrnn.interop import onnx
    >>> net = jaxrnn.Network((jaxrnn.GRU(3, 5),), jaxrnn.Readout(5, 2), jaxrnn.softmax_cross_entropy)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(net, net.init(jax.random.key(0)), pathlib.Path(folder) / "net.onnx")
    ...     model = onnx.load(pathlib.Path(folder) / "net.onnx")
    >>> (outputs,) = model(jnp.ones((7, 4, 3)))
    >>> outputs.shape, model.net == net
    ((7, 4, 2), True)
    """
    graph = read(source)
    layers = {}
    for node in graph.nodes:
        if node.operator in KINDS:
            layers[node.outputs] = from_node(node, graph.constants)
        else:
            check_supported(node)
    return Model(_without_weights(graph), layers, objective)


def save(
    net: Network,
    params: NetworkParams,
    path: str | os.PathLike[str],
    *,
    tokens: bool = False,
    lengths: bool = False,
    state: bool = False,
    time_major: bool = True,
) -> None:
    """Writes a network to an ONNX file (opset 22), whose outputs are those of `net.apply`.

    Layers become RNN, GRU and LSTM operators and the readout a Gemm, in a form that onnxruntime runs; steps T and batch
    B are of any size. Tokens become one-hot vectors (OneHot), so that U stays the operator's W: with a vocabulary much
    larger than H that product is most of the time. Nothing is left out by dropout, as in a call without a key, and
    neither its rates nor the objective are in the file.

    Args:
        net: layers of Elman, GRU and LSTM cells, of one direction or two.
        params: its parameters, of one dtype.
        path: the file; an existing one is overwritten.
        tokens: whether inputs are tokens, int64 [T, B], and not floats [T, B, D].
        lengths: whether there is an input `lengths`, int32 [B], of 1 to T steps. Behind the end of a sequence outputs
            are those of hidden states of zero.
        state: whether there are inputs `state_0_h` (and, of an LSTM, `state_0_c`) and so on for every layer, and
            outputs `final_0_h` and so on to go on from, [directions, B, H]. A learned initial state is then not in
            the file.
        time_major: whether time is the first axis of inputs and outputs, or the second, by Transpose operators: what
            `layout=1` of the operators would do, onnxruntime does not run.

    Raises:
        TypeError: a net that is not a `jaxrnn.Network`, a layer that is not one of jaxrnn's own, parameters of another
            network.
        ValueError: parameters of several dtypes or of one that is not float16, float32 or float64; directions of
            different kind, activation, bias or reset; weights of 2 GiB and more.

    >>> import pathlib, tempfile, jax, jaxrnn
    >>> from jaxrnn.interop import onnx
    >>> net = jaxrnn.Network((jaxrnn.LSTM(3, 5),), jaxrnn.Readout(5, 2), jaxrnn.softmax_cross_entropy)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(net, net.init(jax.random.key(0)), pathlib.Path(folder) / "net.onnx", lengths=True, state=True)
    ...     onnx.load(pathlib.Path(folder) / "net.onnx")
    Model(inputs=('inputs', 'lengths', 'state_0_h', 'state_0_c'), outputs=('outputs', 'final_0_h', 'final_0_c'))
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    for i, layer in enumerate(net.layers):
        check_layers(f"layers[{i}]", {f"layers[{i}]": layer}, "the directions of an operator of ONNX")
    check_params(net.layers, params, network_shapes(net))
    leaves = jax.tree.leaves(params)
    dtypes = {np.dtype(leaf.dtype) for leaf in leaves}
    if len(dtypes) > 1 or not dtypes <= set(map(np.dtype, FLOATS)):
        came = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"params must be of one dtype, float16, float32 or float64, got {came}")
    if sum(leaf.nbytes for leaf in leaves) > MOST_BYTES:
        raise ValueError("params must be below 2 GiB, which is the most that an ONNX file holds")
    model = model_of(net, params, Options(tokens, lengths, state, time_major))
    pathlib.Path(path).write_bytes(model.SerializeToString())


def _without_weights(graph: Graph) -> Graph:
    """Drops the constants that nothing needs once the layers have their weights: half of what a model occupies."""
    needed = set(graph.outputs)
    for node in graph.nodes:
        needed |= set(node.inputs[:1] + node.inputs[4:] if node.operator in KINDS else node.inputs)
    return graph._replace(constants={name: array for name, array in graph.constants.items() if name in needed})
