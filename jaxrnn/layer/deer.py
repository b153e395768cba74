"""A forward pass parallel in time: all states at once, by Newton iterations, with the derivative of the exact one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxrnn.arguments import accumulation_dtype, cast, cast_like, check_above_zero, check_positive, check_rate
from jaxrnn.cells.base import Cell, Local, Params, State, StepResiduals, hidden_of
from jaxrnn.layer.associative import flatten, jacobians, solve, unflatten
from jaxrnn.layer.bptt import reverse_segment
from jaxrnn.layer.forward_mode import reverse_mode_only
from jaxrnn.layer.masking import Adjoint, Flags, enter, leave
from jaxrnn.layer.prepared import Backward, PreparedCell, ScanOptions, check_backward, current_precision
from jaxrnn.layer.scan import Residuals, forward_segment
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
    scan: ScanOptions


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
    """Computes the hidden states of one layer, all T at once: a twin of `jaxrnn.unroll` without a loop over time.

        s_t = f(s_{t-1}, x_t),  t = 1 .. T        is solved by        J_t = ds_t/ds_{t-1} at s_{t-1}^i

        s_t^{i+1} = f(s_{t-1}^i, x_t) + J_t (s_{t-1}^{i+1} - s_{t-1}^i)

    which is linear in s^{i+1}: log2(T) rounds of products of Jacobians instead of T steps. Near the solution every
    iteration doubles the digits that are right, and after T of them all are. The derivative does not go through the
    iterations: it is the reverse scan written by hand, exact at the states that they end with.

    The iterations are in float32 at least, and the states that they end with are rounded to the dtype asked for: within
    one of 16 bits they would end far from them. It forms T B H^2 numbers, and does H times the arithmetic of the scan
    in every iteration. A chaotic network, whose Jacobians multiply to something large, does not converge in few. It is
    meant for accelerators and small H, not measured there yet, and slower on every CPU tried (2 cores, H = 16,
    T = 1,000: the scan 0.12 ms, 4 iterations 4.2 ms; `scripts/bench_long.py`).

    Give a batch as axes of the inputs, not by `jax.vmap`: mapped, whether the iterations converged is a question for
    each sequence, and JAX answers both ways, so that the sequential scan runs as well, and is thrown away where it is
    not needed.

    Args:
        cell, params, inputs, state, mask, reset, initial, compute_dtype: as for `jaxrnn.unroll`; not bidirectional.
        diagonal: quasi-Newton: of J_t only what a unit does to itself (of an LSTM with its s and m, 2 x 2 numbers), T B
            H of them; more iterations, each far cheaper. A cell without `own_operands` has all of J_t formed first.
        damping: from 0 to below 1: J_t is multiplied by 1 - damping, against iterates that run away.
        tolerance: for the largest |s_t - f(s_{t-1}, x_t)|; by default 100 times the precision of the iterations,
            1e-5 in float32, and 1e-12 at least.
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
    check_rate("damping", damping)
    if tolerance is not None:
        check_above_zero("tolerance", tolerance)

    def run(params: Params, call: LayerCall) -> tuple[Array, State, Convergence]:
        call = check_call(cell, params, call, compute_dtype)
        precision = float(jnp.finfo(accumulation_dtype(hidden_of(call.state).dtype)).eps)
        enough = max(1e-12, 100 * precision) if tolerance is None else tolerance
        scan = ScanOptions(backward=backward, precision=current_precision())
        options = NewtonOptions(diagonal, damping, enough, iterations, scan)
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
    dtype = hidden_of(call.state).dtype
    wide = cast(call, accumulation_dtype(dtype))
    states, how = _solve(prepare_call(cell, options.scan, params, wide), wide, options)
    states = cast(states, dtype)
    return (hidden_of(states), jax.tree.map(lambda leaf: leaf[-1], states), how), (params, call, states)


def _backward(
    cell: Cell, options: NewtonOptions, kept: tuple, cotangents: tuple[Array, State, Any]
) -> tuple[Params, LayerCall]:
    params, call, states = kept
    g, last, _ = cotangents
    adjoint = Adjoint(last, jax.tree.map(jnp.zeros_like, call.initial))
    with options.scan.same_precision():
        layer = prepare_call(cell, options.scan, params, call)
        found = reverse_segment(layer, call.inputs, call.flags, g, Residuals(call.state, states, None), adjoint)
    constant: Any = None  # no gradient reaches mask and reset
    state, initial = found.adjoint
    return cast_like(found.grads, params), LayerCall(found.inputs, state, constant, initial)


_deer.defvjp(_forward, _backward)


def _solve(layer: PreparedCell, call: LayerCall, options: NewtonOptions) -> tuple[State, Convergence]:
    """Iterates to the states after every step [T, *batch, ...]; falls back to the sequential scan."""
    start = flatten(call.state)
    projected = layer.cell.project(layer.operands, call.inputs)

    def take(states: Array) -> tuple[Array, Array, tuple[State, State, StepResiduals]]:
        """Computes s_{t-1}, f(s_{t-1}, x_t) for all t at once, and what that is linearized from."""
        previous = lax.concatenate([start[None], states[:-1]], 0)
        before = enter(call.flags, call.initial, unflatten(previous, call.state))
        after, residuals = layer.cell.step_with_residuals(layer.operands, before, projected)
        after = leave(call.flags, before, after)
        return previous, flatten(after), (before, after, residuals)

    def at(states: Array, number: Array) -> tuple[Array, Array, Convergence]:
        # What has run away begins again at zero: infinities would never come back.
        states = jnp.where(jnp.isfinite(states), states, 0)
        taken = take(states)[1]
        residual = jnp.max(jnp.abs(states - taken))
        return states, taken, Convergence(number, residual, residual <= options.tolerance)  # NaN is no convergence

    def iterate(now: tuple[Array, Array, Convergence]) -> tuple[Array, Array, Convergence]:
        states, taken, how = now
        previous, _, linearized_at = take(states)
        local = layer.cell.linearize(layer.operands, call.inputs, *linearized_at)
        J = (1 - options.damping) * _jacobians(layer, call, local, options.diagonal)
        return at(_solve_linear(J, taken, previous, start), how.iterations + 1)

    def going_on(now: tuple[Array, Array, Convergence]) -> Array:
        return ~now[2].converged & (now[2].iterations < options.iterations)

    def sequential() -> State:
        return forward_segment(layer, call.state, call.inputs, call.flags)[1].states

    everywhere = jnp.broadcast_to(start, (call.inputs.shape[0], *start.shape))
    first = at(take(everywhere)[1], vary_alike(jnp.int32(0), start))  # every step taken from s_0
    states, _, how = lax.while_loop(going_on, iterate, first)
    return lax.cond(how.converged, lambda: unflatten(states, call.state), sequential), how


def _solve_linear(J: Array, taken: Array, previous: Array, start: Array) -> Array:
    """Solves s_t = taken_t + J_t (s_{t-1} - previous_t) for all t, from the s_0 given, for J [T, *batch, H, p, p]."""

    def by_unit(numbers: Array) -> Array:
        """Reshapes [..., p H] to [..., H, p]."""
        return jnp.swapaxes(numbers.reshape(*numbers.shape[:-1], J.shape[-1], -1), -1, -2)

    rest = by_unit(taken) - jnp.einsum("...ij,...j->...i", J, by_unit(previous))
    products, rest = solve(jnp.swapaxes(J, -1, -2), rest)
    solved = jnp.einsum("...i,t...ij->t...j", by_unit(start), products) + rest
    return jnp.swapaxes(solved, -1, -2).reshape(taken.shape)


def _jacobians(layer: PreparedCell, call: LayerCall, local: Local, diagonal: bool) -> Array:
    """Forms what every unit does to itself, [T, *batch, H, p, p], for a state of p parts; or J_t as a single unit."""
    if not diagonal:
        return jacobians(layer, call.state, local, call.flags)[..., None, :, :]
    parts = [leaf.shape[-1] for leaf in jax.tree.leaves(call.state)]
    if len(set(parts)) > 1:
        raise TypeError(f"diagonal needs a state whose parts are of one size, got sizes {parts}")
    p, H = len(parts), parts[0]
    own = layer.cell.own_operands(layer.operands)
    if own is None:
        J = jacobians(layer, call.state, local, call.flags)
        blocks = J.reshape(*J.shape[:-2], p, H, p, H)
        return jnp.moveaxis(jnp.diagonal(blocks, axis1=-3, axis2=-1), -1, -3)
    # As units reach but themselves, a sum over units is each one's own.
    all_units = jnp.repeat(jnp.eye(p), H, axis=-1)  # [p, p H]
    rows = jacobians(layer._replace(operands=own), call.state, local, call.flags, all_units)  # [T, *batch, p, p H]
    return jnp.moveaxis(rows.reshape(*rows.shape[:-1], p, H), -1, -3)
