"""A network: layers of cells, a readout, an objective, and what stands between them. Forward only."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.arguments import (
    Array,
    accumulation_dtype,
    as_array,
    batch_shape,
    cast,
    check_choice,
    check_like,
    check_rate,
    dtype_to_compute_in,
)
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.cells.dropout import draw, drop
from jaxrnn.layer import scan
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.bptt import ONWARD, Way
from jaxrnn.layer.masking import Breaks, blank
from jaxrnn.layer.scan import Sequence
from jaxrnn.layer.unroll import unroll_sequence
from jaxrnn.network.readout import Readout, ReadoutParams


class NetworkParams(NamedTuple):
    """Parameters of a network."""

    layers: tuple[Params, ...]
    readout: ReadoutParams
    state: tuple[State, ...] | None = None  # s_0 of every layer, without batch axes, where it is learned


@dataclasses.dataclass(frozen=True)
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

    @property
    def bidirectional(self) -> bool:
        """Whether any layer reads the sequence both ways."""
        return not all(isinstance(layer, Cell) for layer in self.layers)

    def init(self, key: Array, dtype: Any = jnp.float32) -> NetworkParams:
        """Fresh parameters: `params.layers[i].U`, `params.readout.V`, ..."""
        *keys, last = jax.random.split(key, len(self.layers) + 1)
        layers = tuple(layer.init(key, dtype) for layer, key in zip(self.layers, keys, strict=True))
        state = self.initial_state((), dtype) if self.learn_state else None
        return NetworkParams(layers, self.readout.init(last, dtype), state)

    def initial_state(self, batch: tuple[int, ...] = (), dtype: Any = jnp.float32) -> tuple[State, ...]:
        """s_0 of every layer for a batch, as it is before anything is learned."""
        return tuple(layer.initial_state(batch, dtype) for layer in self.layers)

    def stack(self, below: Array | None, hidden: Array) -> Array:
        """What a layer hands up: its hidden states, with what it was fed added where there are residual paths."""
        return below + hidden if self.residual and below is not None else hidden

    def hand_up(self, below: Array | None, hidden: Array, kept: Array | None) -> tuple[Array, Array]:
        """What a layer hands up, and what dropout leaves of it: what the layer above is fed."""
        top = self.stack(below, hidden)
        return top, drop(top, kept, self.dropout)

    def apply(
        self,
        params: NetworkParams,
        inputs: Array,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        *,
        key: Array | None = None,
        compute_dtype: Any = None,
        gradient: str = "bptt",
    ) -> tuple[Array, tuple[State, ...]]:
        """The outputs of every step, and the state to go on from.

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
        run = check_run(self, params, inputs, state, mask, reset, key, compute_dtype)
        top, final = unroll_layers(self, params, run, gradient)
        return self.readout.apply(cast(params.readout, top.dtype), top), final

    def loss(
        self,
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        state: tuple[State, ...] | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Array | None = None,
        *,
        compute_dtype: Any = None,
        gradient: str = "autodiff",
        return_state: bool = False,
    ) -> Any:
        """E = sum_t w_t E_t by a pure forward pass: its `jax.value_and_grad` is the twin of `jaxrnn.value_and_grad`.

        Args and errors are those of `jaxrnn.value_and_grad`, but that a network with dropout needs no key: without one
        nothing is left out. With `return_state`, returns `(E, final)`.
        """
        check_choice("gradient", gradient, ("bptt", "autodiff"))
        run = check_run(self, params, inputs, state, mask, reset, key, compute_dtype)
        targets, weights, there = check_targets(self, run, targets, weights)
        top, final = unroll_layers(self, params, run, gradient)
        outputs = self.readout.apply(cast(params.readout, top.dtype), top)
        errors = blank(there, self.objective(outputs, as_read(targets, there, outputs.dtype)))  # [T, *batch]
        E = jnp.sum(weights * errors, dtype=accumulation_dtype(outputs.dtype))
        return (E, final) if return_state else E


class Kept(NamedTuple):
    """What dropout leaves, drawn for one call; None where nothing is left out."""

    between: tuple[Array | None, ...]  # of what each layer hands up, booleans [T, *batch, outputs]; the top's is None
    recurrent: tuple[Any, ...]  # of each layer's s_{t-1}, [*batch, H]; a pair of them for a bidirectional layer


class Run(NamedTuple):
    """The arguments of a forward pass, checked."""

    inputs: Array  # [T, *batch, D] or [T, *batch], before `as_read`: a copy of the whole sequence is not made
    state: tuple[State | None, ...]  # per layer, as given
    breaks: Breaks  # [T, *batch]
    kept: Kept
    dtype: Any

    @property
    def steps(self) -> tuple[int, ...]:
        """[T, *batch]."""
        return self.inputs.shape[:1] + batch_shape(self.inputs)

    @property
    def count(self) -> Any:
        """How many steps are not masked, of all sequences together."""
        return math.prod(self.steps) if self.breaks.mask is None else jnp.sum(self.breaks.mask)


def starts(net: Network, run: Run, learned: Any) -> tuple[tuple[State, ...], tuple[State | None, ...]]:
    """Per layer the state it sets out from, and the one that resets begin from (None where there are none)."""
    initial = net.initial_state(run.steps[1:], run.dtype)
    if learned is not None:
        # The cast comes last, so that the gradient is summed over the batch in the dtype of the parameters.
        initial = jax.tree.map(lambda s, like: jnp.broadcast_to(s, like.shape).astype(run.dtype), learned, initial)
    state = tuple(s_0 if s is None else s for s, s_0 in zip(run.state, initial, strict=True))
    return state, (None,) * len(net.layers) if run.breaks.reset is None else initial


def unroll_layers(
    net: Network, params: NetworkParams, run: Run, gradient: str, way: Way = ONWARD
) -> tuple[Array, tuple[State, ...]]:
    """All layers one after the other: what the readout sees, and the final state of each layer."""
    state, initial = starts(net, run, params.state)
    top: Any = None
    fed, final = as_read(run.inputs, run.breaks.mask, run.dtype), []
    for i, layer in enumerate(net.layers):
        sequence = Sequence(fed, state[i], run.breaks, initial[i], run.kept.recurrent[i])
        hidden, last = unroll_sequence(layer, params.layers[i], sequence, way, gradient)
        top, fed = net.hand_up(top, hidden, run.kept.between[i])
        final.append(last)
    return (last_hidden(net, tuple(final)) if net.last_step else top), tuple(final)


def last_hidden(net: Network, final: tuple[State, ...]) -> Array:
    """What the readout sees of a sequence as a whole, [*batch, outputs]: the hidden states that layers end with."""
    top: Any = None
    for layer, last in zip(net.layers, final, strict=True):
        hidden = hidden_of(last) if isinstance(layer, Cell) else layer.join(*map(hidden_of, last))
        top = net.stack(top, hidden)
    return top


def check_run(
    net: Network,
    params: NetworkParams,
    inputs: Any,
    state: Any,
    mask: Any,
    reset: Any,
    key: Array | None,
    compute_dtype: Any,
) -> Run:
    """The arguments of a forward pass, or an error that names what is wrong with them."""
    _check_params(net, params)
    inputs, breaks = scan.check_sequence(inputs, net.layers[0].inputs, mask, reset)
    dtype = dtype_to_compute_in(compute_dtype, params, inputs)
    steps = inputs.shape[:1] + batch_shape(inputs)
    given = _check_state(net, state, steps[1:], dtype)
    return Run(inputs, given, breaks, _draw(net, key, steps, dtype), dtype)


def as_read(array: Array, there: Array | None, dtype: Any) -> Array:
    """Inputs or targets of some steps as the two passes read them: blank where masked, floats in a dtype."""
    array = blank(there, array)
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def check_targets(net: Network, run: Run, targets: Any, weights: Any) -> tuple[Array, Array, Array | None]:
    """Targets (before `as_read`), weights that are zero where there is no loss, and where there is one: None is all."""
    mask = run.breaks.mask
    steps, there = (run.steps[1:], None if mask is None else mask.any(0)) if net.last_step else (run.steps, mask)
    targets = as_array("targets", targets)
    if there is not None and targets.shape[: len(steps)] != steps:
        raise ValueError(f"targets must begin with {steps}, as what is not masked does, got shape {targets.shape}")
    dtype = accumulation_dtype(run.dtype)
    _check_objective(net, as_read(targets, there, dtype), jax.ShapeDtypeStruct((*steps, net.readout.outputs), dtype))
    return targets, _loss_weights(weights, steps, there, dtype), there


def _check_params(net: Network, params: NetworkParams) -> None:
    cause = "they must come from the init of this network"
    if not isinstance(params, NetworkParams) or len(params.layers) != len(net.layers):
        count, came = len(net.layers), type(params).__name__
        raise TypeError(f"params must be NetworkParams with {count} layers, got {came}; {cause}")
    for i, (layer, layer_params) in enumerate(zip(net.layers, params.layers, strict=True)):
        scan.check_params(layer, layer_params, f"params.layers[{i}]")
    expected = _shapes(net)
    check_like("params.readout", params.readout, expected.readout, cause)
    check_like("params.state", params.state, expected.state, cause)


@functools.lru_cache(maxsize=256)
def _shapes(net: Network) -> NetworkParams:
    return jax.eval_shape(net.init, jax.random.key(0))


def _check_state(net: Network, state: Any, batch: tuple[int, ...], dtype: Any) -> tuple[State | None, ...]:
    if state is None:
        return (None,) * len(net.layers)
    if not isinstance(state, tuple) or len(state) != len(net.layers):
        raise TypeError(f"state must be a tuple of {len(net.layers)} states, one per layer, got {type(state).__name__}")
    return tuple(
        scan.check_state(layer, start, None, batch, dtype, f"state[{i}]") if start is not None else None
        for i, (layer, start) in enumerate(zip(net.layers, state, strict=True))
    )


def _check_sizes(net: Network) -> None:
    if not net.layers:
        raise ValueError("layers must hold at least one cell, got none")
    above = [*(layer.inputs for layer in net.layers[1:]), net.readout.hidden]
    for i, (layer, size) in enumerate(zip(net.layers, above, strict=True)):
        if layer.outputs != size:
            raise ValueError(f"layers[{i}] has {layer.outputs} outputs, but what stands above it expects {size}")
    if net.residual and len({layer.outputs for layer in net.layers}) > 1:
        raise ValueError(f"residual needs layers of one size, got outputs {[layer.outputs for layer in net.layers]}")


def _draw(net: Network, key: Array | None, steps: tuple[int, ...], dtype: Any) -> Kept:
    """What dropout leaves in one call: nothing is left out without a key."""
    count = len(net.layers)
    between: list[Any] = [None] * count
    recurrent: list[Any] = [None] * count
    if key is None:
        return Kept(tuple(between), tuple(recurrent))
    keys = jax.random.split(key, (count, 2))
    for i, layer in enumerate(net.layers):
        if net.dropout and i < count - 1:
            between[i] = draw(keys[i, 0], net.dropout, (*steps, layer.outputs))
        if net.recurrent_dropout:
            both = (*(() if isinstance(layer, Cell) else (2,)), *steps[1:], layer.hidden)
            kept = draw(keys[i, 1], net.recurrent_dropout, both) / jnp.asarray(1 - net.recurrent_dropout, dtype)
            recurrent[i] = kept if isinstance(layer, Cell) else tuple(kept)
    return Kept(tuple(between), tuple(recurrent))


def _check_objective(net: Network, targets: Array, outputs: Any) -> None:
    # The targets stay outside the abstract evaluation, so that the objective can still read their values.
    errors = jax.eval_shape(lambda outputs: net.objective(outputs, targets), outputs)
    shape = getattr(errors, "shape", None)
    if shape != outputs.shape[:-1]:
        raise ValueError(
            f"objective must give one error per step, {outputs.shape[:-1]}, got {errors if shape is None else shape}; "
            f"sum over the outputs only, not over time or batch"
        )


def _loss_weights(weights: Any, steps: tuple[int, ...], there: Array | None, dtype: Any) -> Array:
    """w_t [T, *batch]: as given, or alike for all steps that are there; zero for the others."""
    if weights is not None:
        weights = as_array("weights", weights)
        if weights.shape != steps:
            raise ValueError(f"weights must be one per step, {steps}, got {weights.shape}; nothing is broadcast")
        return blank(there, weights.astype(dtype))
    if there is None:
        return jnp.full(steps, 1 / math.prod(steps), dtype)
    count = jnp.sum(there, dtype=dtype)
    return jnp.where(there, 1 / jnp.maximum(count, 1), 0)
