"""The gradient of a network's loss by BPTT: `value_and_grad`, which of its options go together, and their plan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array, PRNGKey
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxrnn.arguments import (
    as_array,
    cast_like,
    check_float,
    check_inputs,
    check_positive,
    check_scale,
    dtype_to_compute_in,
)
from jaxrnn.cells.base import State
from jaxrnn.gradients.parallel import BatchGradient
from jaxrnn.gradients.plan import Plan, decide
from jaxrnn.gradients.truncation import Truncation, Window
from jaxrnn.gradients.whole import whole
from jaxrnn.layer.prepared import ScanOptions, as_recompute
from jaxrnn.layer.segments import check_segment
from jaxrnn.layer.sharding import sum_over_shards
from jaxrnn.network.batch import Batch, Call
from jaxrnn.network.network import Network, NetworkParams, network_shapes
from jaxrnn.network.setup import checked, set_up

ONE_WAY = "needs a reverse scan over all layers: no jaxrnn.Window, no bidirectional layers"


@dataclasses.dataclass(frozen=True)
class _ValueAndGrad(BatchGradient):
    """Computes loss and gradients as `value_and_grad` documents it; raises unless the options go together."""

    net: Network
    segment: int | str = "auto"
    recompute: bool | str = False
    truncate: Truncation | None = None
    memory_budget: int | None = None
    clip: float | None = None
    unroll: int = 1
    compute_dtype: DTypeLike | None = None
    return_state: bool = False
    return_lags: bool = False
    return_flow: bool = False

    def __post_init__(self) -> None:
        net, truncate, budget = self.net, self.truncate, self.memory_budget
        if not isinstance(net, Network):
            raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
        check_segment(self.segment)
        chosen = self.segment != "auto" or as_recompute(self.recompute) != "none"
        if truncate is not None and not isinstance(truncate, Truncation):
            raise TypeError(
                f"truncate must be a jaxrnn.Carried, Window or Tail, got {truncate!r}; these are different gradients, "
                f"and a number does not say which"
            )
        if budget is not None:
            check_positive("memory_budget", budget)
        check_positive("unroll", self.unroll)
        if self.compute_dtype is not None:
            check_float("compute_dtype", self.compute_dtype)
        if self.clip is not None:
            check_scale("clip", self.clip)
        mistakes = {
            "memory_budget chooses segment and recompute by itself: leave them out, or leave it out": budget and chosen,
            "truncate=Window takes all of T at once, by lags: it has no segments, and nothing to recompute": (
                self.windowed and (chosen or budget)
            ),
            "truncate and memory_budget need a network without bidirectional layers, which see all of T": (
                net.bidirectional and (truncate or budget)
            ),
            "return_lags needs truncate=jaxrnn.Window(k)": self.return_lags and not self.windowed,
            f"return_flow {ONE_WAY}": self.return_flow and not self.one_way,
            "clip must be greater than 0: nothing would be carried back": self.clip == 0,
            f"clip {ONE_WAY}": self.clip and not self.one_way,
        }
        for message, made in mistakes.items():
            if made:
                raise ValueError(message)

    @property
    def windowed(self) -> bool:
        """Tells whether the gradient is taken by lags."""
        return isinstance(self.truncate, Window)

    @property
    def one_way(self) -> bool:
        """Tells whether the gradient is taken by one reverse scan over all layers."""
        return not self.windowed and not self.net.bidirectional

    def check(
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
        vanishing: float | Array | None = None,
    ) -> Call:
        """Returns the arguments of a call, checked; `value_and_grad` documents them."""
        if key is None and (self.net.dropout or self.net.recurrent_dropout):
            raise ValueError(
                "key must be a jax.random.key, got None, and the network has dropout; to differentiate it with nothing "
                "left out, dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)"
            )
        if vanishing is not None and not self.one_way:
            raise ValueError(f"vanishing {ONE_WAY}")
        batch = Batch(inputs, as_array("targets", targets), weights, mask, reset)
        call = checked(self.net, params, batch, state, key, self.compute_dtype)
        if vanishing is None:
            return call
        return dataclasses.replace(call, vanishing=vanishing / jnp.maximum(call.real_steps(), 1))

    def compute(self, params: NetworkParams, call: Call, axes: tuple[str, ...] = ()) -> tuple[Any, NetworkParams]:
        """Computes loss and gradients, and what else is to be returned."""
        scans = ScanOptions(
            recompute=as_recompute(self.recompute),
            return_norms=self.return_flow,
            clip=self.clip,
            unroll=self.unroll,
        )
        setup = set_up(self.net, params, call, scans, axes)
        gradient = whole if self.truncate is None else self.truncate.gradient
        found = gradient(setup, self.plan(call.steps.inputs, call.dtype), setup.state, setup.zeros, setup.steps)
        grads = found.sums.grads._replace(state=setup.learned_grads(found.sums.adjoints))
        squares = jax.tree.map(jnp.square, found.norms) if axes else None
        E, grads, squares = setup.total((found.sums.E, grads, squares))
        norms = jax.tree.map(jnp.sqrt, squares) if axes else found.norms
        extras = (found.final,) * self.return_state + (found.lags,) * self.return_lags + (norms,) * self.return_flow
        return ((E, *extras) if extras else E), cast_like(sum_over_shards(grads, params), params)

    def spread(self, batch: PartitionSpec) -> Any:
        """Returns how the value is spread: the final state as the batch is, all else everywhere."""
        extras = (batch,) * self.return_state + (PartitionSpec(),) * (self.return_lags + self.return_flow)
        return (PartitionSpec(), *extras) if extras else PartitionSpec()

    def plan(self, inputs: Array, dtype: DTypeLike) -> Plan:
        """Makes the plan of a call."""
        T, recompute = inputs.shape[0], as_recompute(self.recompute)
        steps = T if self.truncate is None else self.truncate.kept_steps(T)
        segment = T if self.windowed else self.segment
        made = decide(
            self.net, inputs, dtype, segment=segment, recompute=recompute, memory_budget=self.memory_budget, steps=steps
        )
        if isinstance(self.truncate, Window):
            return dataclasses.replace(made, loop_steps=T + min(self.truncate.k, T - 1) + 1)
        return made


def value_and_grad(
    net: Network,
    segment: int | str = "auto",
    recompute: bool | str = False,
    truncate: Truncation | None = None,
    *,
    memory_budget: int | None = None,
    clip: float | None = None,
    unroll: int = 1,
    compute_dtype: DTypeLike | None = None,
    return_state: bool = False,
    return_lags: bool = False,
    return_flow: bool = False,
) -> Callable[..., tuple[Any, NetworkParams]]:
    """Computes the loss of a network and its gradient by BPTT by hand: the twin of `jax.value_and_grad(net.loss)`.

        forward:  keep the states s_1 .. s_T of every layer
        reverse, a segment of K steps at a time, the last one first:
            O_t = V s_t + c       e_t = w_t dE_t/dO_t       g_t = V^T e_t
            layers from the top:  delta_t = (1 - s_t^2) * (g_t + W^T delta_{t+1});   the layer below: g_t = U^T delta_t
            gradients += one product per weight over the segment

    Logits exist for one segment at a time, so memory is the states' and little more. (A network with bidirectional
    layers goes backwards layer by layer instead, each of them in segments: g_t then exists for the whole sequence.) The
    function returned is pure and not jitted: jit it, or the training step around it. Batches belong in the inputs' own
    axes, not in `jax.vmap`, which would give (correctly, and more slowly) one gradient per example.

    Args:
        net: the network.
        segment: K >= 1, or "auto" for the length that fits the caches of the machine, or is fastest by what the command
            `jaxrnn tune` measured there; no result depends on it but for rounding.
        recompute: what the reverse pass computes again instead of keeping it. "none" (or False): nothing. "gates": what
            gated cells keep besides their states, by one product per segment. "states" (or True): the states too, by
            one more forward pass, from those at the edges of segments; "auto" segments then have about sqrt(T) steps,
            and memory grows like it. On 2 cores with AVX-512 "gates" takes 0.94 to 1.6 times the time of gated cells,
            "states" 1.05 to 2.4 times (`scripts/bench.py`; LSTM, T,B,D,H,V = 128,64,128,256,128: 57 MB, 27 MB at 0.94
            times the time, and 12 MB at 1.05).
        truncate: None for the whole gradient, or one of three estimates of it: `jaxrnn.Carried(k)`, `jaxrnn.Window(k)`,
            `jaxrnn.Tail(k)`.
        memory_budget: bytes of temporary memory: segment and recompute are then chosen to fit it, the fastest first.
            `jaxrnn.plan` says what is chosen.
        clip: the largest norm that dE/ds_t of one sequence and layer may have: at every step on the way back a longer
            one is shortened to it. What is returned is then no longer the gradient of E, but cannot explode. In units
            of E: with the default weights the share of one step of one sequence is of the order of 1/(T B).
        unroll: how many steps one turn of a compiled loop takes: less overhead for a longer compilation, where a turn
            costs much (on the CPUs that were tried it does not). No result depends on it but for rounding;
            `jaxrnn.tune` tries it.
        compute_dtype: what states and products are held in, say `jnp.bfloat16`; by default what parameters and inputs
            promote to. Parameters keep their dtype and so do their gradients, which are summed, like the loss, in
            float32 at least. How accelerators multiply float32 is JAX's to say, `jax.default_matmul_precision`, which
            every product here follows, forward and back. By default JAX takes the fastest: TF32 on GPUs that have it,
            one bfloat16 pass on TPUs; "highest" is float32 on GPUs and six passes on TPUs (`jax.lax.Precision`).
        return_state: whether to return the final state as well.
        return_lags: for a `Window`, whether to return how many lags were used, the size of the last against lag 0, and
            a bound for what was left out of any entry of dE/dW and dE/db, under the condition that further lags shrink
            no slower than the last ones did.
        return_flow: whether to return what the reverse scan carries: for every layer the norms |delta_t| and |dE/ds_t|,
            [T] each, over units and batch together. Where they shrink from the end to the beginning the gradient
            vanishes. See `jaxrnn.flow` for more of it.

    Returns:
        A function `(params, inputs, targets, weights=None, state=None, mask=None, reset=None, key=None, *,
        vanishing=None) -> (E, grads)`, or, with `return_state`, `-> ((E, final), grads)`, with `return_lags`
        `-> ((E, lags), grads)`, with `return_flow` `-> ((E, flow), grads)`, with several of them in this order:

        params: as `net.init` gives them; grads have the same structure, shapes and dtypes.
        inputs: floats [T, *batch, D] or integer tokens [T, *batch]; any number of batch axes.
        targets: what the objective takes: integer labels [T, *batch] or floats [T, *batch, V]; for a network with
            `last_step` without the T.
        weights: w_t, [T, *batch] (with `last_step` [*batch]), used as they are; by default every unmasked step counts
            alike and they sum to one.
        state: one state per layer to go on from, the initial ones by default. It is a constant: no gradient reaches
            back past it.
        mask: booleans [T, *batch]; where False every layer's state is held, the step has no loss, and what stands in
            inputs, targets and weights is of no consequence. See `jaxrnn.lengths_to_mask`.
        reset: booleans [T, *batch]; where True every layer's state before the step is its initial one.
        key: for dropout, which a network that has it must be given.
        vanishing: the weight of the vanishing-gradient regulariser Omega of `jaxrnn.flow.vanishing_penalty`, whose
            gradient is then added to that of E (and E is returned without it); a number, or an array for a schedule.
            Elman layers only.

    Raises:
        TypeError: net is not a Network; a truncate that is a number; arguments of the wrong kind.
        ValueError: a segment below 1, an unknown recompute, options that exclude each other, a truncation or a budget
            for a network that reads both ways; from the function returned, shapes that do not fit, tokens or labels
            out of range (outside jit; inside it they give NaN), T = 0, dropout without a key, a budget that cannot be
            met.

    Source: Werbos (1990), "Backpropagation through time: what it does and how to do it"; Chen et al. (2016), "Training
    deep nets with sublinear memory cost", for recompute; the truncations name theirs.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 128),), jaxrnn.Readout(128, 65), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> tokens = jax.random.randint(jax.random.key(1), (101, 32), 0, 65)
    >>> loss, grads = jax.jit(jaxrnn.value_and_grad(net))(params, tokens[:-1], tokens[1:])
    >>> grads.layers[0].W.shape
    (128, 128)
    """
    return _ValueAndGrad(
        net,
        segment,
        recompute,
        truncate,
        memory_budget,
        clip,
        unroll,
        compute_dtype,
        return_state,
        return_lags,
        return_flow,
    )


def plan(
    net: Network,
    inputs: Array,
    *,
    segment: int | str = "auto",
    recompute: bool | str = False,
    truncate: Truncation | None = None,
    memory_budget: int | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Plan:
    """Says what `jaxrnn.value_and_grad` with these options would do, without computing anything. Print it to read it.

    Where "auto" cuts depends on the default device, so this starts JAX, as a first array does: of several processes,
    each calls `jax.distributed.initialize` before.

    Args:
        net: the network.
        inputs: [T, *batch, D] or integers [T, *batch], or their `jax.ShapeDtypeStruct`.
        segment, recompute, truncate, memory_budget, compute_dtype: as in `jaxrnn.value_and_grad`.

    Raises:
        ValueError, TypeError: as `jaxrnn.value_and_grad`; a bidirectional layer.

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 64),), jaxrnn.Readout(64, 65), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.ShapeDtypeStruct((1_000_000, 1), "int32")
    >>> jaxrnn.plan(net, tokens, memory_budget=20_000_000).recompute
    'states'
    """
    function = _ValueAndGrad(net, segment, recompute, truncate, memory_budget, compute_dtype=compute_dtype)
    if net.bidirectional:
        raise ValueError("net must have no bidirectional layers for a plan, which are taken one after the other")
    inputs = jax.eval_shape(functools.partial(check_inputs, size=net.layers[0].inputs), inputs)
    dtype = dtype_to_compute_in(compute_dtype, network_shapes(net), inputs)
    return function.plan(inputs, dtype)
