"""A network: layers of cells, a readout, an objective; and the gradient of its loss, segment by segment of time."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import scan
from jaxrnn.arguments import (
    Array,
    accumulation_dtype,
    as_array,
    batch_shape,
    cast,
    cast_like,
    check_like,
    float_dtype,
    is_integer,
)
from jaxrnn.bptt import layer_bytes, reverse_segment, unroll
from jaxrnn.breaks import Adjoint, Breaks, blank
from jaxrnn.cell import Cell, Params, State, hidden_of
from jaxrnn.losses import value_and_gradient
from jaxrnn.readout import Readout, ReadoutParams
from jaxrnn.segments import each, scan_segments, segment_length, split


class NetworkParams(NamedTuple):
    """Parameters of a network."""

    layers: tuple[Params, ...]
    readout: ReadoutParams


@dataclasses.dataclass(frozen=True)
class Network:
    """Layers of cells, each fed the hidden states of the one below, a readout, and an objective.

        E = sum_t w_t E_t        E_t = objective(O_t, y_t)        w_t = 1/(number of unmasked steps) unless given

    Args:
        layers: the cells, bottom first; each layer's `inputs` is the `hidden` of the one below.
        readout: from the top layer's hidden state to the outputs.
        objective: `jaxrnn.softmax_cross_entropy`, `sigmoid_cross_entropy`, `squared_error`, or any jax function of
            outputs [..., V] and targets to E_t [...].

    Raises:
        ValueError: no layers, or sizes that do not follow on from one another.
        TypeError: a layer that is not a `jaxrnn.Cell`, or a readout that is not a `jaxrnn.Readout`.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 128),), jaxrnn.Readout(128, 65), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> outputs, final = net.apply(params, jnp.zeros((100, 32), int))
    >>> outputs.shape, final[0].shape
    ((100, 32, 65), (32, 128))
    """

    layers: tuple[Cell, ...]
    readout: Readout
    objective: Callable[[Array, Array], Array]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, (tuple, list)):
            raise TypeError(f"layers must be a tuple of jaxrnn.Cell, got {type(self.layers).__name__}")
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not isinstance(layer, Cell):
                raise TypeError(f"layers must be jaxrnn.Cell, got {type(layer).__name__}")
        if not isinstance(self.readout, Readout):
            raise TypeError(f"readout must be a jaxrnn.Readout, got {type(self.readout).__name__}")
        if not callable(self.objective):
            raise TypeError(f"objective must be a function of outputs and targets, got {self.objective!r}")
        if not self.layers:
            raise ValueError("layers must hold at least one cell, got none")
        above = [*(layer.inputs for layer in self.layers[1:]), self.readout.hidden]
        for i, (layer, size) in enumerate(zip(self.layers, above, strict=True)):
            if layer.hidden != size:
                raise ValueError(
                    f"layers[{i}] has {layer.hidden} hidden units, but what stands above it expects {size}"
                )

    def init(self, key: Array, dtype: Any = jnp.float32) -> NetworkParams:
        """Fresh parameters: `params.layers[i].U`, `params.readout.V`, ..."""
        *keys, last = jax.random.split(key, len(self.layers) + 1)
        layers = tuple(cell.init(key, dtype) for cell, key in zip(self.layers, keys, strict=True))
        return NetworkParams(layers, self.readout.init(last, dtype))

    def initial_state(self, batch: tuple[int, ...] = (), dtype: Any = jnp.float32) -> tuple[State, ...]:
        """s_0 of every layer for a batch."""
        return tuple(cell.initial_state(batch, dtype) for cell in self.layers)

    def apply(
        self,
        params: NetworkParams,
        inputs: Array,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        *,
        gradient: str = "bptt",
    ) -> tuple[Array, tuple[State, ...]]:
        """The outputs of every step, and the state to go on from.

        Args:
            params: as `init` gives them.
            inputs: floats [T, *batch, D] or integer tokens [T, *batch].
            state: one state per layer, zeros by default; the returned one continues the sequence.
            mask, reset: booleans [T, *batch], for every layer alike, see `jaxrnn.unroll`. A masked step's outputs are
                those of the state held over it; the returned state is that after each sequence's last real step.
            gradient: how a derivative through it is taken, see `jaxrnn.unroll`.

        Returns:
            O_t [T, *batch, V], and a tuple of one state per layer.

        Raises:
            ValueError, TypeError: as `jaxrnn.unroll`.
        """
        _check_params(self, params)
        state = _one_per_layer(self, state)
        final = []
        hidden = inputs
        for cell, layer, start in zip(self.layers, params.layers, state, strict=True):
            hidden, last = unroll(cell, layer, hidden, start, mask=mask, reset=reset, gradient=gradient)
            final.append(last)
        return self.readout.apply(cast(params.readout, hidden.dtype), hidden), tuple(final)

    def loss(
        self,
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        *,
        gradient: str = "autodiff",
        return_state: bool = False,
    ) -> Any:
        """E = sum_t w_t E_t by a pure forward pass: its `jax.value_and_grad` is the twin of `jaxrnn.value_and_grad`.

        Args and errors are those of `jaxrnn.value_and_grad`; with `return_state`, returns `(E, final)`.
        """
        params, inputs, targets, weights, state, breaks = _check(
            self, params, inputs, targets, weights, state, mask, reset
        )
        outputs, final = self.apply(params, inputs, state, *breaks, gradient=gradient)
        errors = blank(breaks.mask, self.objective(outputs, targets))  # [T, *batch]
        E = jnp.sum(weights * errors, dtype=accumulation_dtype(outputs.dtype))
        return (E, final) if return_state else E


def value_and_grad(
    net: Network, segment: int | str = "auto", *, return_state: bool = False
) -> Callable[..., tuple[Any, NetworkParams]]:
    """The loss of a network and its gradient by BPTT, written by hand: the twin of `jax.value_and_grad(net.loss)`.

        forward:  keep the states s_1 .. s_T of every layer
        reverse, a segment of K steps at a time, the last one first:
            O_t = V s_t + c       e_t = w_t dE_t/dO_t       g_t = V^T e_t
            layers from the top:  delta_t = (1 - s_t^2) * (g_t + W^T delta_{t+1});   the layer below: g_t = U^T delta_t
            gradients += one product per weight over the segment

    Logits exist for one segment at a time, so memory is the states' and little more. The function returned is pure and
    not jitted: jit it, or the training step around it. Batches belong in the inputs' own axes, not in `jax.vmap`, which
    would give (correctly, and more slowly) one gradient per example.

    Args:
        net: the network.
        segment: K >= 1, or "auto" for the length that fits the cache; no result depends on it but for rounding.
        return_state: whether to return the final state as well.

    Returns:
        A function `(params, inputs, targets, weights=None, state=None, mask=None, reset=None) -> (E, grads)`, or, with
        `return_state`, `-> ((E, final), grads)`:

        params: as `net.init` gives them; grads have the same structure, shapes and dtypes.
        inputs: floats [T, *batch, D] or integer tokens [T, *batch]; any number of batch axes.
        targets: what the objective takes: integer labels [T, *batch] or floats [T, *batch, V].
        weights: w_t, [T, *batch], used as they are; by default every unmasked step counts alike and they sum to one.
        state: one state per layer to go on from, zeros by default. It is a constant: no gradient reaches back past it.
        mask: booleans [T, *batch]; where False every layer's state is held, the step has no loss, and what stands in
            inputs, targets and weights is of no consequence. See `jaxrnn.lengths_to_mask`.
        reset: booleans [T, *batch]; where True every layer's state before the step is its initial one.

    Raises:
        TypeError: net is not a Network; arguments of the wrong kind.
        ValueError: a segment below 1; from the function returned, shapes that do not fit, tokens or labels out of
            range (outside jit; inside it they give NaN), T = 0.

    Source: Werbos (1990), "Backpropagation through time: what it does and how to do it".

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 128),), jaxrnn.Readout(128, 65), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> tokens = jax.random.randint(jax.random.key(1), (101, 32), 0, 65)
    >>> loss, grads = jax.jit(jaxrnn.value_and_grad(net))(params, tokens[:-1], tokens[1:])
    >>> grads.layers[0].W.shape
    (128, 128)
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    segment_length(segment, 1, 1, 1)

    def loss_and_gradient(
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> tuple[Any, NetworkParams]:
        given = params
        params, inputs, targets, weights, state, breaks = _check(
            net, params, inputs, targets, weights, state, mask, reset
        )
        steps, K = inputs.shape[0], _segment(net, segment, inputs, state)
        sweep = _Sweep(net, params, _initial(net, inputs, state, breaks))
        final, traces = scan_segments(sweep.forward, state, split((inputs, breaks), steps, K))
        xs = each(lambda cut, trace: (*cut, trace), split((inputs, breaks, targets, weights), steps, K), traces)
        (E, grads, _), _ = scan_segments(sweep.backward, sweep.zeros(final), xs, reverse=True)
        return ((E, final) if return_state else E), cast_like(grads, given)

    return loss_and_gradient


class _Sweep:
    """The two passes over one segment of all layers."""

    def __init__(self, net: Network, params: NetworkParams, initial: tuple[State | None, ...]) -> None:
        self.net, self.params, self.initial = net, params, initial
        self.operands = tuple(cell.prepare(layer) for cell, layer in zip(net.layers, params.layers, strict=True))

    def forward(self, state: tuple[State, ...], x: tuple[Array, Breaks]) -> tuple[tuple[State, ...], tuple]:
        """Layers from the bottom: the final state, and the trace of every layer."""
        final, traces = [], []
        hidden, breaks = x
        for cell, operands, start, initial in zip(self.net.layers, self.operands, state, self.initial, strict=True):
            trace, last = scan.trace_cell(cell, operands, hidden, start, breaks, initial)
            hidden = hidden_of(trace.states)
            final.append(last)
            traces.append(trace)
        return tuple(final), tuple(traces)

    def zeros(self, final: tuple[State, ...]) -> tuple:
        """What the reverse pass carries, before it starts: E, the gradients, the adjoint of each layer's state."""
        dtype = accumulation_dtype(float_dtype(self.params))
        grads = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), self.params)
        adjoints = jax.tree.map(jnp.zeros_like, tuple(map(Adjoint, final, self.initial)))
        return jnp.zeros((), dtype), grads, adjoints

    def backward(self, carry: tuple, x: tuple) -> tuple[tuple, None]:
        """Readout, objective, and layers from the top: adds the segment's loss and gradients to the carry."""
        E, grads, adjoints = carry
        inputs, breaks, targets, weights, traces = x
        segment_E, g, readout = self._readout(hidden_of(traces[-1].states), targets, weights, breaks)
        adjoint_list, layers = list(adjoints), list(self.params.layers)
        for i in reversed(range(len(layers))):
            below = inputs if i == 0 else hidden_of(traces[i - 1].states)
            layer = self.net.layers[i], self.params.layers[i], self.operands[i]
            adjoint_list[i], layers[i], dx = reverse_segment(
                *layer, below, traces[i], breaks, self.initial[i], g, adjoint_list[i]
            )
            g = g if dx is None else dx
        grads = jax.tree.map(jnp.add, grads, NetworkParams(tuple(layers), readout))
        return (E + segment_E, grads, tuple(adjoint_list)), None

    def _readout(
        self, hidden: Array, targets: Array, weights: Array, breaks: Breaks
    ) -> tuple[Array, Array, ReadoutParams]:
        """sum_t w_t E_t, g_t, and the readout's gradients. The only place where logits exist, [K, *batch, V]."""
        outputs = self.net.readout.apply(self.params.readout, hidden)
        errors, e = blank(breaks.mask, value_and_gradient(self.net.objective, outputs, targets))
        g, grads = self.net.readout.adjoint(self.params.readout, hidden, weights[..., None] * e)
        return jnp.sum(weights * errors, dtype=accumulation_dtype(errors.dtype)), g, grads


def _segment(net: Network, segment: int | str, inputs: Array, state: tuple[State, ...]) -> int:
    """K from what one step of all layers, the logits and their gradient occupy."""
    rows = math.prod(batch_shape(inputs))
    features = [1 if is_integer(inputs) else net.layers[0].inputs, *(cell.inputs for cell in net.layers[1:])]
    layers = sum(layer_bytes(rows * D, start) for D, start in zip(features, state, strict=True))
    logits = 2 * rows * net.readout.outputs * float_dtype(state).itemsize
    return segment_length(segment, inputs.shape[0], rows, layers + logits)


def _initial(net: Network, inputs: Array, state: tuple[State, ...], breaks: Breaks) -> tuple[State | None, ...]:
    batch, dtype = batch_shape(inputs), float_dtype(state)
    return tuple(scan.initial_of(cell, breaks, batch, dtype) for cell in net.layers)


def _check(
    net: Network, params: NetworkParams, inputs: Any, targets: Any, weights: Any, state: Any, mask: Any, reset: Any
) -> tuple:
    """The arguments of a loss, checked, in one dtype, and blank where masked."""
    _check_params(net, params)
    inputs, breaks = scan.check_sequence(inputs, net.layers[0].inputs, mask, reset)
    steps = inputs.shape[:1] + batch_shape(inputs)
    targets = _targets(targets, steps, breaks)
    dtype = float_dtype(params, inputs)
    state = tuple(
        scan.check_state(cell, start, steps[1:], dtype, f"state[{i}]")
        for i, (cell, start) in enumerate(zip(net.layers, _one_per_layer(net, state), strict=True))
    )
    _check_objective(net, targets, jax.ShapeDtypeStruct((*steps, net.readout.outputs), dtype))
    weights = _loss_weights(weights, steps, breaks, dtype)
    return cast(params, dtype), cast(inputs, dtype), targets, weights, state, breaks


def _targets(targets: Any, steps: tuple[int, ...], breaks: Breaks) -> Array:
    targets = as_array("targets", targets)
    if breaks.mask is not None and targets.shape[: len(steps)] != steps:
        raise ValueError(f"targets must begin with [T, *batch] = {steps}, as the mask does, got shape {targets.shape}")
    return blank(breaks.mask, targets)


def _check_params(net: Network, params: NetworkParams) -> None:
    cause = "they must come from the init of this network"
    if not isinstance(params, NetworkParams) or len(params.layers) != len(net.layers):
        count, came = len(net.layers), type(params).__name__
        raise TypeError(f"params must be NetworkParams with {count} layers, got {came}; {cause}")
    for i, (cell, layer) in enumerate(zip(net.layers, params.layers, strict=True)):
        scan.check_params(cell, layer, f"params.layers[{i}]")
    check_like("params.readout", params.readout, _readout_shapes(net.readout), cause)


@functools.lru_cache(maxsize=256)
def _readout_shapes(readout: Readout) -> ReadoutParams:
    return jax.eval_shape(readout.init, jax.random.key(0))


def _one_per_layer(net: Network, state: Any) -> tuple[Any, ...]:
    if state is None:
        return (None,) * len(net.layers)
    if not isinstance(state, tuple) or len(state) != len(net.layers):
        raise TypeError(f"state must be a tuple of {len(net.layers)} states, one per layer, got {type(state).__name__}")
    return state


def _check_objective(net: Network, targets: Array, outputs: Any) -> None:
    # The targets stay outside the abstract evaluation, so that the objective can still read their values.
    errors = jax.eval_shape(lambda outputs: net.objective(outputs, targets), outputs)
    shape = getattr(errors, "shape", None)
    if shape != outputs.shape[:-1]:
        raise ValueError(
            f"objective must give one error per step, {outputs.shape[:-1]}, got {errors if shape is None else shape}; "
            f"sum over the outputs only, not over time or batch"
        )


def _loss_weights(weights: Any, steps: tuple[int, ...], breaks: Breaks, dtype: Any) -> Array:
    """w_t [T, *batch]: as given, or alike for all steps that are there; zero for the others."""
    if weights is not None:
        weights = as_array("weights", weights)
        if weights.shape != steps:
            raise ValueError(f"weights must be one per step, {steps}, got {weights.shape}; nothing is broadcast")
        return blank(breaks.mask, weights.astype(dtype))
    if breaks.mask is None:
        return jnp.full(steps, 1 / math.prod(steps), dtype)
    count = jnp.sum(breaks.mask, dtype=accumulation_dtype(dtype))
    return jnp.where(breaks.mask, 1 / jnp.maximum(count, 1), 0).astype(dtype)
