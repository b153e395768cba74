"""What single steps let through: saturated units and shut gates, and how far each step keeps the gradient's norm."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import check_above_zero
from jaxrnn.cells.base import State
from jaxrnn.cells.elman import Elman
from jaxrnn.flow.sequence import compiled, observe, take_back
from jaxrnn.layer.masking import blank
from jaxrnn.layer.penalty import omega
from jaxrnn.network.batch import Batch
from jaxrnn.network.network import Network, NetworkParams


class Saturation(NamedTuple):
    """Holds shares of one layer's units over all unmasked steps, between 0 and 1."""

    units: Array  # with |s_t| beyond the threshold; of a relu, at zero
    gates: dict[str, tuple[Array, Array]]  # by name: the share shut, the share open


@compiled("threshold")
def saturation(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    *,
    threshold: float = 0.99,
) -> tuple[Saturation, ...]:
    """Computes the share of units with |s_t| > 0.99, and of gates below 0.01 or above 0.99.

    Through a saturated tanh the gradient is multiplied by 1 - s_t^2 < 0.02, through a relu at zero by zero; a shut gate
    lets nothing through, and an open forget gate, or update gate of a GRU, all of it.

    Args:
        net, params, inputs, state, mask, reset: as for `jaxrnn.value_and_grad`.
        threshold: of |s_t|, and for gates its distance from one at either end.

    Returns:
        One `Saturation` for each layer.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers, a threshold outside
            (0.5, 1).

    >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.flow
    >>> net = jaxrnn.Network((jaxrnn.LSTM(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    >>> found = jaxrnn.flow.saturation(net, net.init(jax.random.key(0)), jnp.zeros((10, 3)))
    >>> float(found[0].units), sorted(found[0].gates)
    (0.0, ['forget', 'input', 'output'])
    """
    check_above_zero("threshold", threshold)
    if not 0.5 < threshold < 1:
        raise ValueError(f"threshold must lie between 0.5 and 1, got {threshold}")
    observed = observe(net, params, Batch(inputs, mask=mask, reset=reset), state)
    mask, count = observed.setup.steps.flags.mask, jnp.maximum(observed.setup.call.real_steps(), 1)

    def share(flags: Array) -> Array:
        return jnp.sum(blank(mask, flags)) / (count * flags.shape[-1])

    found = []
    for cell, residuals in zip(net.layers, observed.residuals, strict=True):
        relu = isinstance(cell, Elman) and cell.activation == "relu"
        units = share(residuals.hidden == 0 if relu else jnp.abs(residuals.hidden) > threshold)
        gates = {
            name: (share(gate < 1 - threshold), share(gate > threshold))
            for name, gate in cell.gates(residuals.of_steps).items()  # type: ignore[union-attr]
        }
        found.append(Saturation(units, gates))
    return tuple(found)


@compiled()
def vanishing_penalty(
    net: Network,
    params: NetworkParams,
    inputs: Array,
    targets: Array,
    weights: Array | None = None,
    state: tuple[State, ...] | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, ...]:
    """Computes Omega of every layer: zero where the gradient's norm stays as it is from step to step.

        Omega = mean_t (|dE/ds_t ds_t/ds_{t-1}| / |dE/ds_t| - 1)^2

    One where the gradient is lost within a step. Its gradient is added to that of E by
    `jaxrnn.value_and_grad(net)(..., vanishing=weight)`.

    Args:
        net, params, inputs, targets, weights, state, mask, reset: as for `jaxrnn.value_and_grad`.

    Raises:
        TypeError, ValueError: as for `jaxrnn.value_and_grad`; a network with bidirectional layers.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks", equation 9.

    >>> import jax, jaxrnn, jaxrnn.flow
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (13, 2), 0, 5)
    >>> (found,) = jaxrnn.flow.vanishing_penalty(net, net.init(jax.random.key(0)), tokens[:-1], tokens[1:])
    >>> 0 < float(found) < 1
    True
    """
    observed = observe(net, params, Batch(inputs, targets, weights, mask, reset), state)
    mask, count = observed.setup.steps.flags.mask, jnp.maximum(observed.setup.call.real_steps(), 1)
    sides = [found.step_adjoints for found in take_back(observed)]
    return tuple(jnp.sum(omega(side.after, side.before, mask)[0]) / count for side in sides)
