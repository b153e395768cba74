"""Loops over the steps of LSTM layers that are arranged in another way: what `gated_step.py` tries beside other steps.

Each function makes of a network its whole loss and gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from gated_cells import after, factors
from jax import lax

import jaxrnn
from jaxrnn.cells.lstm import LSTMParams, LSTMState
from jaxrnn.gradients.plan import decide
from jaxrnn.layer.bptt import linearize_segment, scan_adjoints
from jaxrnn.layer.masking import Adjoint, Flags
from jaxrnn.layer.prepared import prepare_cell
from jaxrnn.layer.scan import forward_segment
from jaxrnn.network.batch import LossSteps
from jaxrnn.network.losses import Loss

FLAGS = Flags(None, None)


def units_first(net: jaxrnn.Network) -> Callable:
    """Returns loss and gradient of an LSTM network whose states are [H, B]: gates are rows, one after the other."""

    def value_and_grad(params: Any, inputs: jax.Array, targets: jax.Array) -> tuple:
        (U, W, b), (V, c) = params.layers[0], params.readout
        (_, B, _), H = inputs.shape, W.shape[1]
        halves = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5], W.dtype), H)[:, None]

        def gates(t: jax.Array) -> tuple:
            i, f, g, o = jnp.split(t, 4, -2)
            return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5

        def step(state: Any, z: jax.Array) -> Any:
            s, m = state
            t = jnp.tanh(halves * (W @ s + z))
            i, f, g, o = gates(t)
            m = f * m + i * g
            s = o * jnp.tanh(m)
            return (s, m), (s, m, t)

        zeros = jnp.zeros((H, B), W.dtype)
        projected = jnp.einsum("gd,tbd->tgb", U, inputs) + b[:, None]
        s, m, t = lax.scan(step, (zeros, zeros), projected)[1]
        readout = lambda V, c, s: jnp.mean(net.objective(jnp.einsum("thb,vh->tbv", s, V) + c, targets))  # noqa: E731
        E, (dV, dc, g_s) = jax.value_and_grad(readout, (0, 1, 2))(V, c, s)
        before_s, before_m = (jnp.concatenate([zeros[None], states[:-1]]) for states in (s, m))
        i, f, g, o = gates(t)
        tanh_m = jnp.tanh(m)
        pieces = [g * i * (1 - i), before_m * f * (1 - f), i * (1 - g * g), tanh_m * o * (1 - o)]

        def back(adjoint: Any, x: Any) -> Any:
            (a, dm), (g_s, f, to_memory, factors) = adjoint, x
            a = a + g_s
            dm = dm + a * to_memory
            delta = jnp.concatenate([dm, dm, dm, a]) * factors
            return (W.T @ delta, dm * f), delta

        xs = g_s, f, o * (1 - tanh_m * tanh_m), jnp.concatenate(pieces, -2)
        delta = lax.scan(back, (zeros, zeros), xs, reverse=True)[1]
        dU, dW = jnp.einsum("tgb,tbd->gd", delta, inputs), jnp.einsum("tgb,thb->gh", delta, before_s)
        layer = LSTMParams(dU, dW, delta.sum((0, 2)))
        return E, params._replace(layers=(layer,), readout=params.readout._replace(V=dV, c=dc))

    return value_and_grad


def products_beside_loops(net: jaxrnn.Network) -> Callable:
    """Returns loss and gradient whose weight products of a segment wait for the reverse loop of the segment before it.

    Neither needs the other, so that a runtime may take both at once.
    """

    def value_and_grad(params: Any, inputs: jax.Array, targets: jax.Array) -> tuple:
        cell: Any = net.layers[0]
        T, B, _ = inputs.shape
        most = min(decide(net, inputs, inputs.dtype).lengths[0], -(-T // 2))
        K = next(K for K in range(most, 0, -1) if T % K == 0)
        layer = prepare_cell(cell, params.layers[0], inputs.dtype)
        loss = Loss(net.readout, net.objective, params.readout)
        weights = jnp.full((K, B), 1 / (T * B), inputs.dtype)
        cut = lambda tree: jax.tree.map(lambda x: x.reshape(-1, K, *x.shape[1:]), tree)  # noqa: E731

        def forward(state: Any, inputs: jax.Array) -> tuple[Any, Any]:
            hidden, residuals, state = forward_segment(layer, state, inputs, FLAGS, "none")
            return state, (hidden, residuals)

        def loop(adjoint: Adjoint, x: tuple) -> tuple:
            inputs, targets, (hidden, residuals) = x
            E, g, dreadout = loss.backward(hidden, LossSteps(targets, weights, None))
            previous, local = linearize_segment(layer, inputs, FLAGS, residuals)
            adjoint, deltas, _ = scan_adjoints(layer, FLAGS, g, local, adjoint)
            return adjoint, (E, dreadout), (inputs, cell.recurrent_inputs(previous, local), deltas)

        def products(waiting: tuple) -> Any:
            return cell.weight_grads(layer.params, layer.operands, *waiting)

        def back(carry: tuple, x: tuple) -> tuple:
            adjoint, of_readout, grads, waiting = carry
            adjoint, more, next_waiting = loop(adjoint, x)
            of_readout, grads = jax.tree.map(jnp.add, (of_readout, grads), (more, products(waiting)))
            return (adjoint, of_readout, grads, next_waiting), None

        start = cell.initial_state((B,), inputs.dtype)
        _, kept = lax.scan(forward, start, cut(inputs))
        xs = *cut((inputs, targets)), kept
        first = loop(Adjoint(jax.tree.map(jnp.zeros_like, start), None), jax.tree.map(lambda x: x[-1], xs))
        carry = *first[:2], jax.tree.map(jnp.zeros_like, layer.params), first[2]
        before = jax.tree.map(lambda x: x[:-1], xs)
        (_, (E, readout), grads, waiting), _ = lax.scan(back, carry, before, reverse=True)
        grads = jax.tree.map(jnp.add, grads, products(waiting))
        return E, params._replace(layers=(grads,), readout=readout)

    return value_and_grad


class TwoStates(NamedTuple):
    """Holds the states of two layers; the hidden state of the upper one comes first."""

    s: jax.Array
    m: jax.Array
    lower_s: jax.Array
    lower_m: jax.Array

    @property
    def upper(self) -> LSTMState:
        """Returns the state of the upper layer."""
        return LSTMState(self.s, self.m)

    @property
    def lower(self) -> LSTMState:
        """Returns the state of the lower layer."""
        return LSTMState(self.lower_s, self.lower_m)


class TwoOperands(NamedTuple):
    """Holds the operands of two layers, and U and W of the upper one side by side, [4H, 2H]."""

    lower: Any
    upper: Any
    UW: jax.Array
    UW_T: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class TwoLSTMs(jaxrnn.Cell):
    """Takes two LSTM layers in one loop: a step of the lower one, then that of the upper one."""

    below: jaxrnn.LSTM
    above: jaxrnn.LSTM

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> tuple:
        """Draws the parameters of both."""
        return self.below.init(key, dtype), self.above.init(key, dtype)

    def initial_state(self, batch: tuple[int, ...] = (), dtype: Any = jnp.float32) -> TwoStates:
        """Makes zeros."""
        return TwoStates(*self.above.initial_state(batch, dtype), *self.below.initial_state(batch, dtype))

    def prepare(self, params: Any) -> TwoOperands:
        """Lays U and W of the upper layer side by side."""
        lower, upper = params
        UW = jnp.concatenate([upper.U, upper.W], 1)
        return TwoOperands(self.below.prepare(lower), self.above.prepare(upper), UW, lax.optimization_barrier(UW.T))

    def project(self, operands: TwoOperands, inputs: jax.Array) -> jax.Array:
        """Computes U x_t + b of the lower layer."""
        return self.below.project(operands.lower, inputs)

    def step(self, operands: TwoOperands, state: TwoStates, projected: jax.Array) -> TwoStates:
        """Takes the step of both."""
        return self.step_with_residuals(operands, state, projected)[0]

    def step_with_residuals(self, operands: TwoOperands, state: TwoStates, projected: jax.Array) -> tuple:
        """Takes the step of both; the upper one multiplies by U and W at once."""
        lower, t_lower = self.below.step_with_residuals(operands.lower, state.lower, projected)
        z = jnp.concatenate([lower.s, state.s], -1) @ operands.UW_T + operands.upper.b
        upper, t_upper = after(self.above, z, state.m)
        return TwoStates(*upper, *lower), (t_lower, t_upper)

    def linearize(
        self, operands: TwoOperands, inputs: jax.Array, previous: TwoStates, states: TwoStates, residuals: tuple
    ) -> tuple:
        """Computes the factors of both."""
        lower = self.below.linearize(operands.lower, inputs, previous.lower, states.lower, residuals[0])
        upper = self.above.linearize(operands.upper, inputs, previous.upper, states.upper, residuals[1])
        return lower, upper, states.lower_s

    def step_adjoint(self, operands: TwoOperands, adjoint: TwoStates, local: tuple) -> tuple:
        """Takes the adjoint back through the upper layer, then the lower one."""
        (f, to_memory, factors), H = local[1], self.hidden
        dm = adjoint.m + adjoint.s * to_memory
        delta = jnp.concatenate([dm, dm, dm, adjoint.s], -1) * factors
        asked = delta @ operands.UW  # of s_t below, and of s_{t-1}
        lower = LSTMState(adjoint.lower_s + asked[..., :H], adjoint.lower_m)
        lower, delta_lower = self.below.step_adjoint(operands.lower, lower, local[0])
        return TwoStates(asked[..., H:], dm * f, *lower), (delta_lower, delta)

    def recurrent_inputs(self, previous: TwoStates, local: tuple) -> tuple:
        """Returns the states before the step, and the hidden state of the lower layer after it."""
        return previous, local[2]

    def weight_grads(self, params: Any, operands: TwoOperands, inputs: jax.Array, previous: Any, deltas: Any) -> Any:
        """Sums the gradients of both."""
        before, lower_s = previous
        lower = self.below.weight_grads(params[0], operands.lower, inputs, before.lower, deltas[0])
        return lower, self.above.weight_grads(params[1], operands.upper, lower_s, before.upper, deltas[1])

    def input_grads(self, params: Any, inputs: jax.Array, previous: Any, deltas: Any) -> jax.Array:
        """Computes what is asked of the inputs."""
        return self.below.input_grads(params[0], inputs, previous[0].lower, deltas[0])


def one_loop(net: jaxrnn.Network) -> Callable:
    """Returns loss and gradient of two LSTM layers that take their steps in one loop."""
    below, above = cast("list[jaxrnn.LSTM]", net.layers)
    both = jaxrnn.Network((TwoLSTMs(below.inputs, above.hidden, below, above),), net.readout, net.objective)

    def value_and_grad(params: Any, inputs: jax.Array, targets: jax.Array) -> tuple:
        E, grads = jaxrnn.value_and_grad(both)(params._replace(layers=(params.layers,)), inputs, targets)
        return E, grads._replace(layers=grads.layers[0])

    return value_and_grad


def one_product(net: jaxrnn.Network) -> Callable:
    """Returns loss and gradient of two LSTM layers in one loop, the upper one a step behind, with one product for both.

        (z^1_t, z^2_{t-1}) = (s^1_{t-1}, s^2_{t-2}) [W^1^T, U^2^T; 0, W^2^T]

    The product is a third larger than those it stands for, for its block of zeros, and there are half as many calls.
    """

    def value_and_grad(params: Any, inputs: jax.Array, targets: jax.Array) -> tuple:
        (U, W, b), upper = params.layers
        (T, B, _), H = inputs.shape, W.shape[1]
        both = jnp.block([[W, jnp.zeros_like(W)], [upper.U, upper.W]])  # [8H, 2H]
        both_T = lax.optimization_barrier(both.T)
        halves = jnp.repeat(jnp.array(2 * [0.5, 0.5, 1, 0.5], W.dtype), H)
        zeros = jnp.zeros((B, 2 * H), W.dtype)  # both layers
        z = jnp.pad(inputs @ U.T + b, ((0, 1), (0, 0), (0, 0)))
        z = jnp.concatenate([z, jnp.broadcast_to(upper.b, z.shape)], -1)  # [T + 1, B, 8H]

        def gates(t: jax.Array) -> tuple:
            i, f, g, o = (
                jnp.concatenate(pair, -1) for pair in zip(*(jnp.split(t, 8, -1)[n:][:4] for n in (0, 4)), strict=True)
            )
            return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5

        def step(state: tuple, x: tuple) -> tuple[Any, Any]:
            (s, m), (z, alive) = state, x
            t = jnp.tanh(halves * (s @ both_T + z))
            i, f, g, o = gates(t)
            m = (f * m + i * g) * alive
            s = o * jnp.tanh(m)
            return (s, m), (s, m, t)

        is_upper = jnp.arange(2 * H) >= H
        alive = jnp.ones((T + 1, 2 * H), W.dtype).at[0].set(~is_upper)  # the upper layer has no step before the first
        s, m, t = lax.scan(step, (zeros, zeros), (z, alive[:, None]))[1]
        loss = Loss(net.readout, net.objective, params.readout)
        weights = jnp.full((T, B), 1 / (T * B), W.dtype)
        E, g_s, readout = loss.backward(s[1:, :, H:], LossSteps(targets, weights, None))
        g_s = jnp.concatenate([jnp.zeros_like(g_s), g_s], -1)
        g_s = jnp.pad(g_s, ((1, 0), (0, 0), (0, 0)))
        before_m = jnp.concatenate([zeros[None], m[:-1]])
        f, to_memory, by_gate = factors(gates(t), before_m, jnp.tanh(m))
        lives = jnp.ones((T + 1, 2 * H), W.dtype).at[T].set(is_upper).at[0].set(~is_upper)[:, None]

        def back(adjoint: tuple, x: tuple) -> tuple[Any, Any]:
            (a, dm), (g_s, f, to_memory, by_gate, alive) = adjoint, x
            a = a + g_s
            dm = dm + a * to_memory
            four = jnp.concatenate([dm, dm, dm, a], -1) * by_gate  # [B, 4 * 2H]: gate by gate, both layers
            pieces = jnp.split(four * jnp.tile(alive, 4), 8, -1)
            delta = jnp.concatenate(pieces[::2] + pieces[1::2], -1)  # layer by layer
            return (delta @ both, dm * f * alive), delta

        xs = g_s, f, to_memory, by_gate, lives
        delta = lax.scan(back, (zeros, zeros), xs, reverse=True)[1]
        lower, higher = delta[:T, :, : 4 * H], delta[1:, :, 4 * H :]
        sums = lambda delta, seen: jnp.einsum("tbg,tbh->gh", delta, seen)  # noqa: E731
        layers = (
            LSTMParams(sums(lower, inputs), sums(lower[1:], s[: T - 1, :, :H]), lower.sum((0, 1))),
            LSTMParams(sums(higher, s[:T, :, :H]), sums(higher[1:], s[1:T, :, H:]), higher.sum((0, 1))),
        )
        return E, params._replace(layers=layers, readout=readout)

    return value_and_grad
