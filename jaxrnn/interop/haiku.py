"""`hk.dynamic_unroll` of haiku's cores, with the reverse scan written by hand: one changed line.

    from jaxrnn.interop.haiku import dynamic_unroll
    outputs, state = dynamic_unroll(core, inputs, core.initial_state(B))        for hk.dynamic_unroll(...)

Parameters are created, named and kept by haiku. Each core is read as the jaxrnn cell that computes the same:

    hk.VanillaRNN    Elman with relu    U = linear.w^T        W = linear_1.w^T        b = linear.b + linear_1.b
    hk.LSTM          LSTM               (U, W) = linear.w^T, its columns of x and of h; b = linear.b, + 1 in the rows
                                        of f; haiku's order of gates is i, g, f, o
"""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import as_array, float_dtype, is_integer
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.interop.haiku_weights import CORES, check_core, gather
from jaxrnn.interop.whole_state import unroll_whole_states
from jaxrnn.layer.unroll import unroll as jaxrnn_unroll


def dynamic_unroll(
    core: hk.RNNCore,
    input_sequence: Array,
    initial_state: Any,
    time_major: bool = True,
    reverse: bool = False,
    return_all_states: bool = False,
    unroll: int = 1,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, Any]:
    """Computes the outputs of a core over time as `hk.dynamic_unroll` does, within `hk.transform`.

    Args:
        core: an `hk.VanillaRNN` or an `hk.LSTM`.
        input_sequence: [T, D] or [T, B, D]; [B, T, D] where not `time_major`.
        initial_state: the state before the first step, such as `core.initial_state(B)`.
        time_major: whether time is the first axis of inputs and outputs, or the second.
        reverse: whether time runs backwards; outputs keep their places.
        return_all_states: whether the states of all steps are returned, and not only the last one.
        unroll: without effect.
        mask: booleans [T, B], or [B, T] where not `time_major`; where False the state is held.
        reset: booleans alike; where True the state before the step is that of `core.initial_state`.

    Returns:
        The outputs, laid out as the inputs, and the last state, or the states of all steps.

    Raises:
        TypeError: a core of a class that is not haiku's own; and as for `jaxrnn.unroll`.
        ValueError: a core that jaxrnn has no cell for; and as for `jaxrnn.unroll`.

    >>> import haiku as hk, jax, jax.numpy as jnp
    >>> from jaxrnn.interop.haiku import dynamic_unroll
    >>> def apply(x):
    ...     core = hk.LSTM(4)
    ...     return dynamic_unroll(core, x, core.initial_state(2))
    >>> init, run = hk.without_apply_rng(hk.transform(apply))
    >>> x = jnp.ones((5, 2, 3))
    >>> run(init(jax.random.key(0), x), x)[0].shape
    (5, 2, 4)
    """
    kind = _kind(core)
    inputs = as_array("input_sequence", input_sequence)
    if not time_major:
        inputs, mask, reset = (_exchange_axes(array) for array in (inputs, mask, reset))
    cell, params = as_jaxrnn(core, kind, inputs[0], initial_state)
    inputs = inputs.astype(float_dtype(params)) if is_integer(inputs) else inputs
    batch = inputs.shape[1:-1]
    start = None if reset is None else _from_state(core.initial_state(batch[0] if batch else None))
    options: dict[str, Any] = {"mask": mask, "reset": reset, "initial": start, "reverse": reverse}
    run = unroll_whole_states if return_all_states else jaxrnn_unroll
    states, final = run(cell, params, inputs, _from_state(initial_state), **options)
    found = hidden_of(states), _to_state(states if return_all_states else final)
    if time_major:
        return found
    outputs, state = found
    return _exchange_axes(outputs), jax.tree.map(_exchange_axes, state) if return_all_states else state


def as_jaxrnn(core: hk.RNNCore, kind: str, x: Array, state: Any) -> tuple[Cell, Params]:
    """Returns the jaxrnn cell that computes what a core does, and its parameters, which haiku creates where it must.

    The core takes one step, of which only the parameters are used, as all custom getters leave them.
    """
    arrays: dict[str, Array] = {}

    def record(following: Any, value: Array, context: hk.GetterContext) -> Array:
        value = following(value)
        arrays[context.full_name.removeprefix(f"{core.module_name}/")] = value
        return value

    with hk.custom_getter(record):
        core(x, state)
    U, W, b = gather(kind, arrays, jnp)
    if CORES[kind] is Elman:
        return Elman(U.shape[1], core.hidden_size, activation="relu"), ElmanParams(U, W, b)
    return LSTM(U.shape[1], core.hidden_size), LSTMParams(U, W, b)


def _kind(core: hk.RNNCore) -> str:
    """Returns the name of the core's class; raises unless jaxrnn has a cell that computes the same."""
    kind = type(core).__name__
    if type(core) is not getattr(hk, kind, None):
        raise TypeError(f"core must be an hk.{' or an hk.'.join(CORES)}, itself and no subclass, got {kind}")
    check_core(kind)
    return kind


def _from_state(state: Any) -> State:
    return LSTMState(*map(jnp.asarray, state)) if isinstance(state, hk.LSTMState) else state


def _to_state(state: State) -> Any:
    return hk.LSTMState(*state) if isinstance(state, LSTMState) else state


def _exchange_axes(array: Array | None) -> Array | None:
    return None if array is None else jnp.swapaxes(array, 0, 1)
