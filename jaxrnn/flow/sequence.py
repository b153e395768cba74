"""A whole sequence forward, with all that its reverse pass sees: what every view of the gradient begins with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
from chex import Array

from jaxrnn.cells.base import Local, State
from jaxrnn.layer.bptt import Reversed, linearize_segment
from jaxrnn.layer.prepared import ScanOptions
from jaxrnn.layer.scan import Residuals
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.network.passes import backward, forward, inputs_of
from jaxrnn.network.setup import Setup, Sums, checked, set_up

View = TypeVar("View", bound=Callable[..., Any])


def compiled(*options: str) -> Callable[[View], View]:
    """Compiles a view, once for equal networks and equal values of the options named, which are given by keyword."""

    def compile_view(view: View) -> View:
        run = jax.jit(view, static_argnames=("net", *options))

        @functools.wraps(view)
        def checked(*arguments: Any, **given: Any) -> Any:
            _check_network(arguments[0] if arguments else given.get("net"))
            for name, value in given.items():
                if name in options and not isinstance(value, Hashable):
                    raise TypeError(f"{name} must be a plain number, got {value!r} ({type(value).__name__})")
            return run(*arguments, **given)

        return checked  # type: ignore[return-value]

    return compile_view


def _check_network(net: object) -> None:
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")


class Linearized(NamedTuple):
    """Holds what the reverse pass sees of one layer, of all steps."""

    fed: Array  # [T, *batch, D]
    previous: State  # s_{t-1}, [T, *batch, H]
    local: Local


class Observed(NamedTuple):
    """Holds a network's forward pass over all T steps, and what its loss asks."""

    setup: Setup
    residuals: tuple[Residuals, ...]
    layers: tuple[Linearized, ...]
    sums: Sums  # with what the loss asks of the last states, where the last step alone has one
    g: Array | None  # what the loss asks of every hidden state, [T, *batch, H]; None where it asks nothing


def observe(net: Network, params: NetworkParams, batch: Batch, state: tuple[State, ...] | None) -> Observed:
    """Takes the forward pass of a network without dropout, and its loss, if the batch has targets.

    Raises:
        TypeError: net is not a Network; arguments of the wrong kind.
        ValueError: a network with bidirectional layers, whose states depend on both ends; shapes that do not fit.
    """
    _check_network(net)
    if net.bidirectional:
        raise ValueError("net must not have bidirectional layers: there, blame runs from both ends of a sequence")
    setup = set_up(net, params, checked(net, params, batch, state), ScanOptions(return_adjoints=True))
    final, residuals = forward(setup.stack, "none", setup.state, setup.steps)
    *fed, top = inputs_of(setup.stack, setup.steps, residuals)
    layers = tuple(
        Linearized(x, *linearize_segment(layer, x, setup.steps.flags, kept))
        for layer, x, kept in zip(setup.stack.layers, fed, residuals, strict=True)
    )
    sums, g = setup.ask_last(final, setup.zeros), None
    if setup.steps.loss is not None:
        E, g, readout = setup.loss.backward(top, setup.steps.loss)
        sums = sums._replace(E=E, grads=sums.grads._replace(readout=readout))
    return Observed(setup, residuals, layers, sums, g)


def take_back(observed: Observed) -> tuple[Reversed, ...]:
    """Takes all layers back through all steps at once: delta_t of every layer, and what was carried."""
    setup = observed.setup
    return backward(setup.stack, observed.sums.adjoints, setup.steps, observed.residuals, observed.g)[0]


def layer_index(net: Network, layer: int) -> int:
    """Returns the number of a layer counted from 0; raises unless it is there."""
    count = len(net.layers)
    if not -count <= layer < count:
        raise ValueError(f"layer must be one of the {count} layers, got {layer}")
    return layer % count
