"""A forward pass parallel in time: all states at once, by Newton iterations, with the derivative of the exact one."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.arguments import Array, cast, cast_like, check_choice, check_positive, is_integer
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.layer import scan
from jaxrnn.layer.associative import flatten, jacobians, solve, unflatten
from jaxrnn.layer.bptt import Unrolled, Way, reverse_segment
from jaxrnn.layer.forward_mode import reverse_mode_only
from jaxrnn.layer.masking import Adjoint, Breaks, enter, enter_adjoint, leave
from jaxrnn.layer.scan import Sequence, Trace, previous_states
from jaxrnn.layer.unroll import check_layer


class Convergence(NamedTuple):
    """How the iterations ended."""

    iterations: Array  # how many were taken
    residual: Array  # max |s_t - f(s_{t-1}, x_t)| that they reached
    converged: Array  # whether that is within the tolerance; where not, the sequential scan has taken over


class Newton(NamedTuple):
    """What is iterated, and for how long."""

    diagonal: bool
    damping: float
    tolerance: float
    iterations: int
    backward: str


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
    compute_dtype: Any = None,
    backward: str = "sequential",
) -> tuple[Array, State, Convergence]:
    """The hidden states of one layer, all T at once: the twin of `jaxrnn.unroll`, for accelerators and small H.

        s_t = f(s_{t-1}, x_t),  t = 1 .. T        is solved by        J_t = ds_t/ds_{t-1} at s_{t-1}^i

        s_t^{i+1} = f(s_{t-1}^i, x_t) + J_t (s_{t-1}^{i+1} - s_{t-1}^i)

    which is linear in s^{i+1}: log2(T) rounds of products of Jacobians instead of T steps. Near the solution every
    iteration doubles the digits that are right, and after T of them all are. The derivative does not go through the
    iterations: it is the reverse scan written by hand, exact at the states that they end with.

    It forms T B H^2 numbers, and does H times the arithmetic of the scan in every iteration. A chaotic network, whose
    Jacobians multiply to something large, does not converge in few. On a CPU the scan is faster in every case.

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
    check_choice("backward", backward, ("sequential", "associative"))
    if not 0 <= damping < 1:
        raise ValueError(f"damping must lie in 0 .. 1, 1 excluded, got {damping}")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    sequence = check_layer(cell, params, inputs, state, mask, reset, initial, None, compute_dtype)
    if tolerance is None:
        tolerance = max(1e-12, 100 * float(jnp.finfo(hidden_of(sequence.state).dtype).eps))
    newton = Newton(diagonal, damping, tolerance, iterations, backward)
    params, xs, before, first = reverse_mode_only((params, sequence.inputs, sequence.state, sequence.initial))
    return _deer(cell, newton, params, sequence._replace(inputs=xs, state=before, initial=first))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _deer(cell: Cell, newton: Newton, params: Params, sequence: Sequence) -> tuple[Array, State, Convergence]:
    states, how = _solve(cell, newton, params, sequence)
    return hidden_of(states), jax.tree.map(lambda leaf: leaf[-1], states), how


def _forward(cell: Cell, newton: Newton, params: Params, sequence: Sequence) -> tuple:
    states, how = _solve(cell, newton, params, sequence)
    return (hidden_of(states), jax.tree.map(lambda leaf: leaf[-1], states), how), (params, sequence, states)


def _backward(cell: Cell, newton: Newton, residuals: tuple, cotangents: tuple[Array, State, Any]) -> tuple:
    params, (inputs, state, breaks, initial, _), states = residuals
    g, last, _ = cotangents
    computed = cast(params, g.dtype)
    layer = Unrolled(cell, computed, cell.prepare(computed), initial, Way(backward=newton.backward))
    adjoint = Adjoint(last, jax.tree.map(jnp.zeros_like, initial))
    adjoint, grads, dx, _ = reverse_segment(layer, inputs, breaks, g, Trace(state, states, None), adjoint)
    constant: Any = None  # no gradient reaches mask and reset
    dinputs: Any = None if is_integer(inputs) else dx
    return cast_like(grads, params), Sequence(dinputs, adjoint.state, constant, adjoint.initial, constant)


_deer.defvjp(_forward, _backward)


class _Iterate(NamedTuple):
    states: Array  # s^i, [T, *batch, n]
    taken: Array  # f(s^i_{t-1}, x_t), [T, *batch, n]
    residual: Array
    number: Array


def _solve(cell: Cell, newton: Newton, params: Params, sequence: Sequence) -> tuple[State, Convergence]:
    """The states after every step [T, *batch, ...]."""
    inputs, state, breaks, initial, _ = sequence
    operands = cell.prepare(cast(params, hidden_of(state).dtype))
    problem = _Problem(cell, operands, sequence, newton)

    def going_on(iterate: _Iterate) -> Array:
        # NaN is no convergence: hence not "greater than".
        return ~(iterate.residual <= newton.tolerance) & (iterate.number < newton.iterations)

    def iterate(now: _Iterate) -> _Iterate:
        return problem.at(problem.step(now), now.number + 1)

    T = inputs.shape[0]
    everywhere = jnp.broadcast_to(flatten(state), (T, *flatten(state).shape))
    first = problem.at(problem.take(everywhere)[0], jnp.int32(0))  # every step taken from s_0
    last = lax.while_loop(going_on, iterate, first)
    converged = last.residual <= newton.tolerance

    def sequential() -> State:
        return scan.trace_cell(cell, operands, inputs, state, breaks, initial)[0].states

    states = lax.cond(converged, lambda: problem.as_states(last.states), sequential)
    return states, Convergence(last.number, last.residual, converged)


class _Problem:
    """The equations s_t = f(s_{t-1}, x_t) of one sequence, states as flat numbers [T, *batch, n]."""

    def __init__(self, cell: Cell, operands: Any, sequence: Sequence, newton: Newton) -> None:
        self.cell, self.operands, self.sequence, self.newton = cell, operands, sequence, newton
        self.projected = cell.project(operands, sequence.inputs)

    def as_states(self, numbers: Array) -> State:
        return unflatten(numbers, self.sequence.state)

    def previous(self, numbers: Array) -> Array:
        return flatten(previous_states(Trace(self.sequence.state, self.as_states(numbers), None)))

    def take(self, previous: Array) -> tuple[Array, tuple[State, State, Any]]:
        """f for all t at once, and what it is linearized from."""
        breaks = self.sequence.breaks
        before = enter(breaks, self.sequence.initial, self.as_states(previous))
        after, kept = self.cell.advance(self.operands, before, self.projected)
        after = leave(breaks, before, after)
        return flatten(after), (before, after, kept)

    def at(self, numbers: Array, number: Array) -> _Iterate:
        # What has run away begins again at zero: infinities would never come back.
        numbers = jnp.where(jnp.isfinite(numbers), numbers, 0)
        taken, _ = self.take(self.previous(numbers))
        return _Iterate(numbers, taken, jnp.max(jnp.abs(numbers - taken)), number)

    def step(self, now: _Iterate) -> Array:
        """s^{i+1}: the linear recurrence solved."""
        previous = self.previous(now.states)
        _, (before, after, kept) = self.take(previous)
        local = self.cell.linearize(self.operands, self.sequence.inputs, before, after, kept)
        shrink = 1 - self.newton.damping
        if self.newton.diagonal:
            J = shrink * _own_jacobians(self.cell, self.operands, self.sequence, local)  # [T, *batch, H, p, p]
            size = J.shape[-1]
            rest = _by_unit(now.taken, size) - _times(J, _by_unit(previous, size))
            J, rest = solve(jnp.swapaxes(J, -1, -2), rest)
            start = _by_unit(flatten(self.sequence.state), size)
            return _by_part(jnp.einsum("...i,t...ij->t...j", start, J) + rest)
        J = shrink * jacobians(self.cell, self.operands, self.sequence.state, local, self.sequence.breaks)
        rest = now.taken - _times(J, previous)
        J, rest = solve(jnp.swapaxes(J, -1, -2), rest)
        return jnp.einsum("...i,t...ij->t...j", flatten(self.sequence.state), J) + rest


def _times(J: Array, numbers: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", J, numbers)


def _by_unit(numbers: Array, parts: int) -> Array:
    """[..., p H] as [..., H, p]."""
    return jnp.swapaxes(numbers.reshape(*numbers.shape[:-1], parts, -1), -1, -2)


def _by_part(numbers: Array) -> Array:
    """The inverse of `_by_unit`."""
    return jnp.swapaxes(numbers, -1, -2).reshape(*numbers.shape[:-2], -1)


def _own_jacobians(cell: Cell, operands: Any, sequence: Sequence, local: Any) -> Array:
    """What every unit does to itself, [T, *batch, H, p, p], for a state of p parts."""
    parts = [leaf.shape[-1] for leaf in jax.tree.leaves(sequence.state)]
    if len(set(parts)) > 1:
        raise TypeError(f"diagonal needs a state whose parts are of one size, got sizes {parts}")
    own = cell.own_operands(operands)
    if own is None:
        J = jacobians(cell, operands, sequence.state, local, sequence.breaks)
        p, H = len(parts), parts[0]
        blocks = J.reshape(*J.shape[:-2], p, H, p, H)
        return jnp.moveaxis(jnp.diagonal(blocks, axis1=-3, axis2=-1), -1, -3)
    rows = [_own_row(cell, own, sequence.state, local, sequence.breaks, part) for part in range(len(parts))]
    return jnp.stack(rows, -2)


def _own_row(cell: Cell, own: Any, state: State, local: Any, breaks: Breaks, part: int) -> Array:
    """d(part of s_t)/d(all parts of s_{t-1}), unit by unit, [T, *batch, H, p]."""
    T = jax.tree.leaves(local)[0].shape[0]
    leaves, structure = jax.tree.flatten(state)
    ones = [jnp.full((T, *leaf.shape), float(i == part), leaf.dtype) for i, leaf in enumerate(leaves)]
    after = jax.tree.unflatten(structure, ones)
    before = leave(breaks, after, cell.step_adjoint(own, after, local)[0])
    zeros = jax.tree.map(jnp.zeros_like, before)
    return jnp.stack(jax.tree.leaves(enter_adjoint(breaks, before, zeros).state), -1)
