"""The options of a gradient: which go together, and what plan they make."""

from __future__ import annotations

import dataclasses
import functools

import jax
from chex import Array, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.arguments import check_float, check_inputs, check_positive, check_scale, dtype_to_compute_in
from jaxrnn.gradients.plan import Plan, decide
from jaxrnn.gradients.truncation import Truncation, check_truncation
from jaxrnn.gradients.window import Window
from jaxrnn.layer.prepared import ScanOptions, as_recompute
from jaxrnn.layer.segments import check_segment
from jaxrnn.network.network import Network, network_shapes

ONE_WAY = "needs a reverse scan over all layers: no jaxrnn.Window, no bidirectional layers"


@dataclasses.dataclass(frozen=True)
class GradientOptions:
    """Holds the options of `jaxrnn.value_and_grad`, which documents them."""

    segment: int | str = "auto"
    recompute: bool | str = False
    truncate: Truncation | None = None
    memory_budget: int | None = None
    clip: float | None = None
    compute_dtype: DTypeLike | None = None
    return_lags: bool = False
    return_flow: bool = False

    def checked(self, net: Network) -> GradientOptions:
        """Returns the options; raises unless they are known, go together, and go with the network."""
        if not isinstance(net, Network):
            raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
        self._check_plan()
        if net.bidirectional and (self.truncate is not None or self.memory_budget is not None):
            raise ValueError(
                "truncate and memory_budget need a network without bidirectional layers, which see all of T"
            )
        if self.return_lags and not isinstance(self.truncate, Window):
            raise ValueError("return_lags needs truncate=jaxrnn.Window(k)")
        if self.return_flow and self._not_one_way(net):
            raise ValueError(f"return_flow {ONE_WAY}")
        if self.compute_dtype is not None:
            check_float("compute_dtype", self.compute_dtype)
        if self.clip is not None:
            check_scale("clip", self.clip)
            if self.clip == 0:
                raise ValueError("clip must be greater than 0: nothing would be carried back")
            if self._not_one_way(net):
                raise ValueError(f"clip {ONE_WAY}")
        return self

    def check_call(self, net: Network, key: PRNGKey | None, vanishing: float | Array | None) -> None:
        """Raises unless the arguments of a call go with the options."""
        if key is None and (net.dropout or net.recurrent_dropout):
            raise ValueError(
                "key must be a jax.random.key, got None, and the network has dropout; to differentiate it with nothing "
                "left out, dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)"
            )
        if vanishing is not None and self._not_one_way(net):
            raise ValueError(f"vanishing {ONE_WAY}")

    def of_scans(self) -> ScanOptions:
        """Returns what the options say to each layer."""
        return ScanOptions(recompute=as_recompute(self.recompute), return_norms=self.return_flow, clip=self.clip)

    def plan(self, net: Network, inputs: Array, dtype: DTypeLike) -> Plan:
        """Makes the plan of a call."""
        T, recompute = inputs.shape[0], as_recompute(self.recompute)
        steps = T if self.truncate is None else self.truncate.kept_steps(T)
        segment = T if isinstance(self.truncate, Window) else self.segment
        made = decide(
            net, inputs, dtype, segment=segment, recompute=recompute, memory_budget=self.memory_budget, steps=steps
        )
        if isinstance(self.truncate, Window):
            return dataclasses.replace(made, loop_steps=T + min(self.truncate.k, T - 1) + 1)
        return made

    def _not_one_way(self, net: Network) -> bool:
        return isinstance(self.truncate, Window) or net.bidirectional

    def _check_plan(self) -> None:
        check_segment(self.segment)
        recompute = as_recompute(self.recompute)
        check_truncation(self.truncate)
        chosen = self.segment != "auto" or recompute != "none"
        if self.memory_budget is not None:
            check_positive("memory_budget", self.memory_budget)
            if chosen:
                raise ValueError(
                    "memory_budget chooses segment and recompute by itself: leave them out, or leave it out"
                )
        if isinstance(self.truncate, Window) and (chosen or self.memory_budget is not None):
            raise ValueError(
                "truncate=Window takes all of T at once, by lags: it has no segments, and nothing to recompute"
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
    if net.bidirectional:
        raise ValueError("plan must have a network without bidirectional layers, which are taken one after the other")
    options = GradientOptions(segment, recompute, truncate, memory_budget, compute_dtype=compute_dtype).checked(net)
    inputs = jax.eval_shape(functools.partial(check_inputs, size=net.layers[0].inputs), inputs)
    dtype = dtype_to_compute_in(compute_dtype, network_shapes(net), inputs)
    return options.plan(net, inputs, dtype)
