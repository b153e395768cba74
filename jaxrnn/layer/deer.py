"""A forward pass parallel in time: all states at once, by Newton iterations, with the derivative of the exact one."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxrnn.arguments import cast_like, check_positive
from jaxrnn.cells.base import Cell, Local, Params, State, StepResiduals, hidden_of
from jaxrnn.layer.associative import flatten, jacobians, solve, unflatten
from jaxrnn.layer.bptt import reverse_segment
from jaxrnn.layer.forward_mode import reverse_mode_only
from jaxrnn.layer.masking import Adjoint, Flags, adjoint_step, enter, leave
from jaxrnn.layer.prepared import Backward, PreparedCell, ScanOptions, check_backward
from jaxrnn.layer.scan import Residuals, forward_segment, previous_states
from jaxrnn.layer.sharding import layer_spec, vary_alike, with_automatic_axes
from jaxrnn.layer.unroll import LayerCall, check_call, prepare_call


class Convergence(NamedTuple):
    """Says how the iterations ended."""

    iterations: Array  # how many were taken
    residual: Array  # max |s_t - f(s_{t-1}, x_t)| that they reached
    converged: Array  # whether that is within the tolerance; where not, the sequential scan has taken over


class NewtonOptions(NamedTuple):
    """Says what is iterated, and for how long."""

    diagonal: bool
    damping: float
    tolerance: float
    iterations: int
    backward: Backward


def deer(
    cell: Cell,
    params: Params,
    inputs: Array,
    state: State | None = None,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: State | None = None,
    diagonal: bool = False,
    damping: float = 0.0,
    tolerance: float | None = None,
    iterations: int = 100,
    compute_dtype: DTypeLike | None = None,
    backward: Backward = "sequential",
) -> tuple[Array, State, Convergence]:
    """Computes the hidden states of one layer, all T at once: a twin of `jaxrnn.unroll` for accelerators and small H.

        s_t = f(s_{t-1}, x_t),  t = 1 .. T        is solved by        J_t = ds_t/ds_{t-1} at s_{t-1}^i

        s_t^{i+1} = f(s_{t-1}^i, x_t) + J_t (s_{t-1}^{i+1} - s_{t-1}^i)

    which is linear in s^{i+1}: log2(T) rounds of products of Jacobians instead of T steps. Near the solution every
    iteration doubles the digits that are right, and after T of them all are. The derivative does not go through the
    iterations: it is the reverse scan written by hand, exact at the states that they end with.

    It forms T B H^2 numbers, and does H times the arithmetic of the scan in every iteration. A chaotic network, whose
    Jacobians multiply to something large, does not converge in few. On a CPU the scan is faster in every case (2 cores,
    H = 16, T = 1,000: 0.12 ms, by 4 iterations 4.2 ms; `scripts/bench_long.py`).

    Args:
        cell, params, inputs, state, mask, reset, initial, compute_dtype: as for `jaxrnn.unroll`; not bidirectional.
        diagonal: quasi-Newton: of J_t only what a unit does to itself (of an LSTM with its s and m, 2 x 2 numbers), T B
            H of them; more iterations, each far cheaper. A cell without `own_operands` has all of J_t formed first.
        damping: from 0 to below 1: J_t is multiplied by 1 - damping, against iterates that run away.
        tolerance: for the largest |s_t - f(s_{t-1}, x_t)|; by default 100 times the precision of the dtype, and 1e-12
            at least.
        iterations: after how many the sequential scan takes over.
        backward: "sequential" or "associative", as for `jaxrnn.unroll`.

    Returns:
        The hidden states [T, *batch, H], the last state, and how it went: a `Convergence`.

    Raises:
        ValueError: as `jaxrnn.unroll`; a damping outside [0, 1), a tolerance that is not positive, iterations below 1.
        TypeError: as `jaxrnn.unroll`; a cell that is not a `jaxrnn.Cell`; with `diagonal` a state of parts of several
            sizes.

    Source: Lim et al. (2024), "Parallelizing non-linear sequential models over the sequence length" (DEER); for
    diagonal and damping Gonzalez et al. (2024), "Towards scalable and stable parallelization of nonlinear RNNs".

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> cell = jaxrnn.GRU(inputs=3, hidden=4)
    >>> params = cell.init(jax.random.key(0))
    >>> inputs = jax.random.normal(jax.random.key(1), (50, 2, 3))
    >>> hidden, final, how = jaxrnn.deer(cell, params, inputs)
    >>> bool(how.converged), bool(jnp.allclose(hidden, jaxrnn.unroll(cell, params, inputs)[0], atol=1e-4))
    (True, True)
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be a jaxrnn.Cell, got {cell if isinstance(cell, type) else type(cell).__name__}")
    check_positive("iterations", iterations)
    check_backward(backward)
    if not 0 <= damping < 1:
        raise ValueError(f"damping must lie in 0 .. 1, 1 excluded, got {damping}")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be positive, got {tolerance}")

    def run(params: Params, call: LayerCall) -> tuple[Array, State, Convergence]:
        call = check_call(cell, params, call, compute_dtype)
        enough = max(1e-12, 100 * float(jnp.finfo(hidden_of(call.state).dtype).eps)) if tolerance is None else tolerance
        options = NewtonOptions(diagonal, damping, enough, iterations, backward)
        params, call = vary_alike((params, call))
        params, xs, before, first = reverse_mode_only((params, call.inputs, call.state, call.initial))
        return _deer(cell, options, params, call._replace(inputs=xs, state=before, initial=first))

    def spread(_: Params, call: LayerCall) -> tuple[PartitionSpec, ...]:
        return *layer_spec(call.inputs), PartitionSpec()

    return with_automatic_axes(run, spread)(params, LayerCall(inputs, state, Flags(mask, reset), initial))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _deer(cell: Cell, options: NewtonOptions, params: Params, call: LayerCall) -> tuple[Array, State, Convergence]:
    return _forward(cell, options, params, call)[0]


def _forward(cell: Cell, options: NewtonOptions, params: Params, call: LayerCall) -> tuple[tuple, tuple]:
    layer = prepare_call(cell, ScanOptions(backward=options.backward), params, call)
    states, how = _solve(_Equations(layer, call, options))
    return (hidden_of(states), jax.tree.map(lambda leaf: leaf[-1], states), how), (params, call, states)


def _backward(
    cell: Cell, options: NewtonOptions, kept: tuple, cotangents: tuple[Array, State, Any]
) -> tuple[Params, LayerCall]:
    params, call, states = kept
    g, last, _ = cotangents
    layer = prepare_call(cell, ScanOptions(backward=options.backward), params, call)
    adjoint = Adjoint(last, jax.tree.map(jnp.zeros_like, call.initial))
    residuals = Residuals(call.state, states, None)
    found = reverse_segment(layer, call.inputs, call.flags, g, residuals, adjoint)
    constant: Any = None  # no gradient reaches mask and reset
    state, initial = found.adjoint
    return cast_like(found.grads, params), LayerCall(found.inputs, state, constant, initial)


_deer.defvjp(_forward, _backward)


class _Iterate(NamedTuple):
    states: Array  # s^i, [T, *batch, n]
    taken: Array  # f(s^i_{t-1}, x_t), [T, *batch, n]
    residual: Array
    number: Array


def _solve(equations: _Equations) -> tuple[State, Convergence]:
    """Iterates to the states after every step [T, *batch, ...]; falls back to the sequential scan."""
    layer, call, options = equations.layer, equations.call, equations.options

    def going_on(iterate: _Iterate) -> Array:
        # NaN is no convergence: hence not "greater than".
        return ~(iterate.residual <= options.tolerance) & (iterate.number < options.iterations)

    def iterate(now: _Iterate) -> _Iterate:
        return equations.at(equations.newton_step(now), now.number + 1)

    start = flatten(call.state)
    everywhere = jnp.broadcast_to(start, (call.inputs.shape[0], *start.shape))
    first = equations.at(equations.take(everywhere)[0], vary_alike(jnp.int32(0), start))  # every step taken from s_0
    last = lax.while_loop(going_on, iterate, first)
    converged = last.residual <= options.tolerance

    def sequential() -> State:
        return forward_segment(layer, call.state, call.inputs, call.flags)[1].states

    states = lax.cond(converged, lambda: equations.as_states(last.states), sequential)
    return states, Convergence(last.number, last.residual, converged)


class _Equations:
    """Holds the equations s_t = f(s_{t-1}, x_t) of one sequence, with states as flat numbers [T, *batch, n]."""

    def __init__(self, layer: PreparedCell, call: LayerCall, options: NewtonOptions) -> None:
        self.layer, self.call, self.options = layer, call, options
        self.projected = layer.cell.project(layer.operands, call.inputs)

    def as_states(self, numbers: Array) -> State:
        return unflatten(numbers, self.call.state)

    def previous(self, numbers: Array) -> Array:
        return flatten(previous_states(Residuals(self.call.state, self.as_states(numbers), None)))

    def take(self, previous: Array) -> tuple[Array, tuple[State, State, StepResiduals]]:
        """Computes f for all t at once, and what it is linearized from."""
        flags = self.call.flags
        before = enter(flags, self.call.initial, self.as_states(previous))
        after, residuals = self.layer.cell.step_with_residuals(self.layer.operands, before, self.projected)
        after = leave(flags, before, after)
        return flatten(after), (before, after, residuals)

    def at(self, numbers: Array, number: Array) -> _Iterate:
        # What has run away begins again at zero: infinities would never come back.
        numbers = jnp.where(jnp.isfinite(numbers), numbers, 0)
        taken, _ = self.take(self.previous(numbers))
        return _Iterate(numbers, taken, jnp.max(jnp.abs(numbers - taken)), number)

    def newton_step(self, now: _Iterate) -> Array:
        """Solves the linear recurrence for s^{i+1}."""
        previous, start = self.previous(now.states), flatten(self.call.state)
        _, linearized_at = self.take(previous)
        local = self.layer.cell.linearize(self.layer.operands, self.call.inputs, *linearized_at)
        shrink = 1 - self.options.damping
        if not self.options.diagonal:
            J = shrink * jacobians(self.layer, self.call.state, local, self.call.flags)
            return _solve_linear(J, now.taken - _times(J, previous), start)
        J = shrink * _own_jacobians(self.layer, self.call, local)  # [T, *batch, H, p, p]
        p = J.shape[-1]
        rest = _by_unit(now.taken, p) - _times(J, _by_unit(previous, p))
        return _by_part(_solve_linear(J, rest, _by_unit(start, p)))


def _solve_linear(J: Array, rest: Array, start: Array) -> Array:
    """Solves s_t = J_t s_{t-1} + rest_t for all t, from the s_0 given."""
    J, rest = solve(jnp.swapaxes(J, -1, -2), rest)
    return jnp.einsum("...i,t...ij->t...j", start, J) + rest


def _times(J: Array, numbers: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", J, numbers)


def _by_unit(numbers: Array, parts: int) -> Array:
    """Reshapes [..., p H] to [..., H, p]."""
    return jnp.swapaxes(numbers.reshape(*numbers.shape[:-1], parts, -1), -1, -2)


def _by_part(numbers: Array) -> Array:
    """Undoes `_by_unit`."""
    return jnp.swapaxes(numbers, -1, -2).reshape(*numbers.shape[:-2], -1)


def _own_jacobians(layer: PreparedCell, call: LayerCall, local: Local) -> Array:
    """Forms what every unit does to itself, [T, *batch, H, p, p], for a state of p parts."""
    parts = [leaf.shape[-1] for leaf in jax.tree.leaves(call.state)]
    if len(set(parts)) > 1:
        raise TypeError(f"diagonal needs a state whose parts are of one size, got sizes {parts}")
    own = layer.cell.own_operands(layer.operands)
    if own is None:
        J = jacobians(layer, call.state, local, call.flags)
        p, H = len(parts), parts[0]
        blocks = J.reshape(*J.shape[:-2], p, H, p, H)
        return jnp.moveaxis(jnp.diagonal(blocks, axis1=-3, axis2=-1), -1, -3)
    rows = [_own_row(layer._replace(operands=own), call, local, part) for part in range(len(parts))]
    return jnp.stack(rows, -2)


def _own_row(layer: PreparedCell, call: LayerCall, local: Local, part: int) -> Array:
    """Forms d(part of s_t)/d(all parts of s_{t-1}), unit by unit, [T, *batch, H, p]."""
    T = call.inputs.shape[0]
    leaves, structure = jax.tree.flatten(call.state)
    ones = [jnp.full((T, *leaf.shape), float(i == part), leaf.dtype) for i, leaf in enumerate(leaves)]
    adjoint = Adjoint(jax.tree.unflatten(structure, ones), None)
    before = adjoint_step(layer, adjoint, None, local, call.flags)[0].state
    return jnp.stack(jax.tree.leaves(before), -1)
