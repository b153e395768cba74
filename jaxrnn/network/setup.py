"""The set-up of a gradient: a network and the arguments of one call, ready for both passes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree, PRNGKey
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.arguments import accumulation_dtype, cast
from jaxrnn.cells.base import State
from jaxrnn.layer.both_ways import prepare_layer
from jaxrnn.layer.bptt import zero_grads
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.prepared import FORWARD_IN_TIME, ScanOptions
from jaxrnn.layer.sharding import vary_alike
from jaxrnn.network.batch import Batch, Call, Steps, check_loss
from jaxrnn.network.losses import Loss
from jaxrnn.network.network import Network, NetworkParams, check_call, start_states
from jaxrnn.network.passes import Stack, ask_last, last_hidden, zero_adjoints


class Sums(NamedTuple):
    """Holds what the reverse pass carries from segment to segment."""

    E: Array
    grads: NetworkParams
    adjoints: tuple[Adjoint, ...]  # per layer


class Setup(NamedTuple):
    """Holds a network and the arguments of one call, ready for both passes."""

    net: Network
    stack: Stack
    loss: Loss
    call: Call
    state: tuple[State, ...]  # before the first step
    zeros: Sums  # before anything is summed
    axes: tuple[str, ...] = ()  # of the mesh of devices that the batch is spread over by `jaxrnn.data_parallel`

    @property
    def steps(self) -> Steps:
        """Returns what goes into the steps."""
        return self.call.steps

    def total(self, tree: ArrayTree) -> ArrayTree:
        """Sums over all parts of a batch that is spread over devices."""
        return lax.psum(tree, self.axes) if self.axes else tree

    def ask_last(self, final: tuple[State, ...], sums: Sums) -> Sums:
        """Adds the loss of a network whose only loss is at the end, and what it asks of the last states."""
        if self.call.last is None:
            return sums
        layers, residual = self.net.layers, self.net.residual
        E, g, readout = self.loss.backward(last_hidden(layers, residual, final), self.call.last)
        grads = sums.grads._replace(readout=readout)
        return Sums(sums.E + E, grads, ask_last(layers, residual, sums.adjoints, g))

    def learned_grads(self, adjoints: tuple[Adjoint, ...]) -> tuple[State, ...] | None:
        """Sums what reached the initial states, through the first step and through resets, if they are learned."""
        if not self.net.learn_state:
            return None
        found = []
        for adjoint, given, zeros in zip(adjoints, self.call.state, self.zeros.grads.state or (), strict=True):
            reached = [] if given is not None else [adjoint.state]
            reached += [] if adjoint.initial is None else [adjoint.initial]
            found.append(jax.tree.map(_sum_over_batch, zeros, *reached))
        return tuple(found)


def _sum_over_batch(zero: Array, *leaves: Array) -> Array:
    axes = tuple(range(leaves[0].ndim - zero.ndim)) if leaves else ()
    return sum((jnp.sum(leaf, axis=axes, dtype=zero.dtype) for leaf in leaves), zero)


def checked(
    net: Network,
    params: NetworkParams,
    batch: Batch,
    state: tuple[State, ...] | None = None,
    key: PRNGKey | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Call:
    """Checks the arguments of one call, and fills in what depends on the batch as a whole; no targets, no loss.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shapes that do not fit; see `jaxrnn.value_and_grad`.
    """
    call = check_call(net, params, batch, state, key, compute_dtype)
    if batch.targets is None:
        return call
    loss = check_loss(call, batch, net.objective, net.readout.outputs, net.last_step)
    if net.last_step:
        return dataclasses.replace(call, last=loss)
    return dataclasses.replace(call, steps=call.steps._replace(loss=loss))


def set_up(
    net: Network,
    params: NetworkParams,
    call: Call,
    options: ScanOptions = FORWARD_IN_TIME,
    axes: tuple[str, ...] = (),
) -> Setup:
    """Makes a network and the arguments of one call, or a device's part of them, ready for both passes."""
    params, call = vary_alike((params, call))
    before, initial = vary_alike(start_states(net, call, params.state), call)
    parts = zip(net.layers, params.layers, call.dropout, initial, strict=True)
    layers = tuple(prepare_layer(layer, own, call.dtype, mask, s_0, options) for layer, own, mask, s_0 in parts)
    E = vary_alike(jnp.zeros((), accumulation_dtype(call.dtype)), call)
    return Setup(
        net,
        Stack(layers, call.dtype, net.dropout, net.residual),
        Loss(net.readout, net.objective, cast(params.readout, call.dtype)),
        call,
        before,
        Sums(E, zero_grads(params, call.dtype), zero_adjoints(before, initial)),
        axes,
    )
