"""A network: layers of cells, a readout, an objective, and what stands between them. Forward only."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from chex import Array, PRNGKey
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxrnn.arguments import (
    accumulation_dtype,
    cast,
    check_choice,
    check_float,
    check_key,
    check_rate,
    dtype_to_compute_in,
)
from jaxrnn.cells.base import Cell, Params, State
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.masking import Flags, blank
from jaxrnn.layer.prepared import FORWARD_IN_TIME
from jaxrnn.layer.scan import Residuals, check_steps
from jaxrnn.layer.sharding import layer_spec, with_automatic_axes
from jaxrnn.layer.unroll import LayerCall, unroll_layer
from jaxrnn.network.batch import (
    Batch,
    Call,
    Steps,
    check_loss,
    check_params,
    check_state,
    draw_dropout,
    read,
)
from jaxrnn.network.passes import Stack, forward, inputs_of, last_hidden
from jaxrnn.network.readout import Readout, ReadoutParams
from jaxrnn.printing import as_text, expression

Gradient: TypeAlias = Literal["bptt", "autodiff"]


class NetworkParams(NamedTuple):
    """Holds the parameters of a network."""

    layers: tuple[Params, ...]
    readout: ReadoutParams
    state: tuple[State, ...] | None = None  # s_0 of every layer, without batch axes, where it is learned

    def __repr__(self) -> str:
        return as_text(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Network:
    """Layers of cells, each fed the hidden states of the one below, a readout, and an objective.

        E = sum_t w_t E_t        E_t = objective(O_t, y_t)        w_t = 1/(number of unmasked steps) unless given

    Args:
        layers: the cells, or `jaxrnn.Bidirectional` pairs of them, bottom first; each layer's `inputs` is the `outputs`
            (for a cell: `hidden`) of the one below.
        readout: from what the top layer hands up to the outputs.
        objective: `jaxrnn.softmax_cross_entropy`, `sigmoid_cross_entropy`, `squared_error`, or any jax function of
            outputs [..., V] and targets to E_t [...].
        dropout: the share of units left out between layers, drawn anew for every step.
        recurrent_dropout: the share of units that the recurrent products of a layer do not see, drawn once for each
            sequence (variational dropout). Both are active in calls that are given a key.
        residual: whether every layer but the lowest adds what it was fed (before dropout) to what it hands up.
        last_step: sequence to one: only the last unmasked step of each sequence has an output and a loss, so outputs,
            targets and weights have no axis of time. The readout sees each direction's final hidden state.
        learn_state: whether s_0 of every layer is a parameter, `params.state`, alike for all sequences; it starts as
            the cell's own initial state. Resets begin from it too.

    Raises:
        ValueError: no layers, sizes that do not follow on from one another, a rate outside [0, 1), dropout or residual
            in a network of one layer, where there is no place for it.
        TypeError: a layer that is not a `jaxrnn.Cell` or `jaxrnn.Bidirectional`, a readout that is not a
            `jaxrnn.Readout`.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 128),), jaxrnn.Readout(128, 65), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> outputs, final = net.apply(params, jnp.zeros((100, 32), int))
    >>> outputs.shape, final[0].shape
    ((100, 32, 65), (32, 128))
    """

    layers: tuple[Layer, ...]
    readout: Readout
    objective: Callable[[Array, Array], Array]
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    residual: bool = False
    last_step: bool = False
    learn_state: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.layers, (tuple, list)):
            raise TypeError(f"layers must be a tuple of jaxrnn.Cell, got {type(self.layers).__name__}")
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers must be jaxrnn.Cell or jaxrnn.Bidirectional, got {type(layer).__name__}")
        if not isinstance(self.readout, Readout):
            raise TypeError(f"readout must be a jaxrnn.Readout, got {type(self.readout).__name__}")
        if not callable(self.objective):
            raise TypeError(f"objective must be a function of outputs and targets, got {self.objective!r}")
        _check_sizes(self)
        check_rate("dropout", self.dropout)
        check_rate("recurrent_dropout", self.recurrent_dropout)
        for name in ("dropout", "residual"):
            if getattr(self, name) and len(self.layers) == 1:
                raise ValueError(f"{name} needs two layers or more, between which it has its place; got one")

    def __repr__(self) -> str:
        return expression(self)

    @property
    def bidirectional(self) -> bool:
        """Tells whether any layer reads the sequence both ways."""
        return not all(isinstance(layer, Cell) for layer in self.layers)

    def init(self, key: PRNGKey, dtype: DTypeLike = jnp.float32) -> NetworkParams:
        """Draws fresh parameters: `params.layers[i].U`, `params.readout.V`, ..."""
        check_key(key)
        check_float("dtype", dtype)
        *keys, last = jax.random.split(key, len(self.layers) + 1)
        layers = tuple(layer.init(key, dtype) for layer, key in zip(self.layers, keys, strict=True))
        state = self.initial_state((), dtype) if self.learn_state else None
        return NetworkParams(layers, self.readout.init(last, dtype), state)

    def initial_state(self, batch: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> tuple[State, ...]:
        """Makes s_0 of every layer for a batch, as it is before anything is learned."""
        return tuple(layer.initial_state(batch, dtype) for layer in self.layers)

    def apply(
        self,
        params: NetworkParams,
        inputs: Array,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        *,
        key: PRNGKey | None = None,
        compute_dtype: DTypeLike | None = None,
        gradient: Gradient = "bptt",
    ) -> tuple[Array, tuple[State, ...]]:
        """Computes the outputs of every step, and the state to go on from.

        Args:
            params: as `init` gives them.
            inputs: floats [T, *batch, D] or integer tokens [T, *batch].
            state: one state per layer, the initial ones by default; the returned one continues the sequence.
            mask, reset: booleans [T, *batch], for every layer alike, see `jaxrnn.unroll`. A masked step's outputs are
                those of the state held over it; the returned state is that after each sequence's last real step.
            key: for dropout; without one, nothing is left out.
            compute_dtype: what states and products are held in, see `jaxrnn.unroll`.
            gradient: how a derivative through it is taken, see `jaxrnn.unroll`.

        Returns:
            O_t [T, *batch, V], in float32 at least (for a network with `last_step` the last ones only, [*batch, V]),
            and a tuple of one state per layer.

        Raises:
            ValueError, TypeError: as `jaxrnn.unroll`.
        """
        check_choice("gradient", gradient, ("bptt", "autodiff"))

        def run(params: NetworkParams, batch: Batch, state: Any, key: PRNGKey | None) -> tuple[Array, Any]:
            top, final = _unroll(self, params, check_call(self, params, batch, state, key, compute_dtype), gradient)
            return self.readout.apply(cast(params.readout, top.dtype), top), final

        def spread(_: NetworkParams, batch: Batch, *others: Any) -> tuple[PartitionSpec, PartitionSpec]:
            outputs, state = layer_spec(batch.inputs)
            return state if self.last_step else outputs, state

        return with_automatic_axes(run, spread)(params, Batch(inputs, mask=mask, reset=reset), state, key)

    def loss(
        self,
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        key: PRNGKey | None = None,
        *,
        compute_dtype: DTypeLike | None = None,
        gradient: Gradient = "autodiff",
        return_state: bool = False,
    ) -> Any:
        """Computes E = sum_t w_t E_t forward: its `jax.value_and_grad` is the twin of `jaxrnn.value_and_grad`.

        Args and errors are those of `jaxrnn.value_and_grad`, but that a network with dropout needs no key: without one
        nothing is left out. With `return_state`, returns `(E, final)`.
        """
        check_choice("gradient", gradient, ("bptt", "autodiff"))

        def run(params: NetworkParams, batch: Batch, state: Any, key: PRNGKey | None) -> tuple[Array, Any]:
            call = check_call(self, params, batch, state, key, compute_dtype)
            steps = check_loss(call, batch, self.objective, self.readout.outputs, self.last_step)
            top, final = _unroll(self, params, call, gradient)
            outputs = self.readout.apply(cast(params.readout, top.dtype), top)
            errors = blank(steps.there, self.objective(outputs, read(steps.targets, steps.there, outputs.dtype)))
            return jnp.sum(steps.weights * errors, dtype=accumulation_dtype(outputs.dtype)), final  # [T, *batch]

        def spread(_: NetworkParams, batch: Batch, *others: Any) -> tuple[PartitionSpec, PartitionSpec]:
            return PartitionSpec(), layer_spec(batch.inputs)[1]

        batch = Batch(inputs, targets, weights, mask, reset)
        E, final = with_automatic_axes(run, spread)(params, batch, state, key)
        return (E, final) if return_state else E


def check_call(
    net: Network,
    params: NetworkParams,
    batch: Batch,
    state: tuple[State, ...] | None,
    key: PRNGKey | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Call:
    """Returns the checked arguments of one call, without its loss; raises an error that names what is wrong."""
    if key is not None:
        check_key(key)
    check_params(net.layers, params, network_shapes(net))
    inputs, flags = check_steps(batch.inputs, net.layers[0].inputs, batch.mask, batch.reset)
    dtype = dtype_to_compute_in(compute_dtype, params, inputs)
    steps = Steps(inputs, flags, ())
    given = check_state(net.layers, state, steps.shape[1:], dtype)
    between, recurrent = draw_dropout(net.layers, (net.dropout, net.recurrent_dropout), key, steps.shape, dtype)
    return Call(steps._replace(dropout=between), given, recurrent, dtype)


@functools.lru_cache(maxsize=256)
def network_shapes(net: Network) -> NetworkParams:
    """Returns the shapes of the parameters."""
    return jax.eval_shape(net.init, jax.random.key(0))


def start_states(
    net: Network, call: Call, learned: tuple[State, ...] | None
) -> tuple[tuple[State, ...], tuple[State | None, ...]]:
    """Returns per layer the state before the first step, and the one that resets begin from (None without resets).

    Args:
        net, call: the network and its checked arguments.
        learned: `params.state`, without batch axes, or None.
    """
    initial = net.initial_state(call.steps.shape[1:], call.dtype)
    if learned is not None:
        # The cast comes last, so that autodiff too sums over the batch in the dtype of the parameters.
        initial = jax.tree.map(lambda s, like: jnp.broadcast_to(s, like.shape).astype(call.dtype), learned, initial)
    state = tuple(s_0 if s is None else s for s, s_0 in zip(call.state, initial, strict=True))
    return state, (None,) * len(net.layers) if call.steps.flags.reset is None else initial


def _unroll(net: Network, params: NetworkParams, call: Call, gradient: Gradient) -> tuple[Array, tuple[State, ...]]:
    """Runs all layers, each by `jaxrnn.unroll`: what the readout sees, and the last state of each layer."""
    state, initial = start_states(net, call, params.state)

    def take(parts: tuple, start: State, fed: Array, flags: Flags, _: object) -> tuple[Array, Residuals, State]:
        layer, layer_params, s_0, dropout_mask = parts
        arguments = LayerCall(fed, start, flags, s_0, dropout_mask)
        hidden, last = unroll_layer(layer, FORWARD_IN_TIME, gradient, layer_params, arguments)
        return hidden, Residuals(None, hidden, None), last

    layers = tuple(zip(net.layers, params.layers, initial, call.dropout, strict=True))
    stack = Stack(layers, call.dtype, net.dropout, net.residual)
    final, kept = forward(stack, "states", state, call.steps, take)
    top = last_hidden(net.layers, net.residual, final) if net.last_step else inputs_of(stack, call.steps, kept)[-1]
    return top, final


def _check_sizes(net: Network) -> None:
    if not net.layers:
        raise ValueError("layers must hold at least one cell, got none")
    above = [*(layer.inputs for layer in net.layers[1:]), net.readout.hidden]
    for i, (layer, size) in enumerate(zip(net.layers, above, strict=True)):
        if layer.outputs != size:
            raise ValueError(f"layers[{i}] has {layer.outputs} outputs, but what stands above it expects {size}")
    if net.residual and len({layer.outputs for layer in net.layers}) > 1:
        raise ValueError(f"residual needs layers of one size, got outputs {[layer.outputs for layer in net.layers]}")
