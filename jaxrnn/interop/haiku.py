"""`hk.dynamic_unroll` of haiku's cores, with the reverse scan written by hand: one changed line.

    from jaxrnn.interop.haiku import dynamic_unroll
    outputs, state = dynamic_unroll(core, inputs, core.initial_state(B))        for hk.dynamic_unroll(...)

Parameters are created, named and kept by haiku. Each core is read as the jaxrnn cell that computes the same:

    hk.VanillaRNN    Elman with relu    U = linear.w^T        W = linear_1.w^T        b = linear.b + linear_1.b
    hk.GRU           GRU that resets    U = w_i^T             W = w_h^T               b; haiku's order of gates is z,
                     before             r, a, and its z is 1 - z here, so the rows of z are negated
    hk.LSTM          LSTM               (U, W) = linear.w^T, its columns of x and of h; b = linear.b, + 1 in the rows
                                        of f; haiku's order of gates is i, g, f, o

A cell or network of jaxrnn within `hk.transform` has its parameters from `get_parameters`, because a parameter of haiku
is a single array.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array
from jax.typing import DTypeLike

from jaxrnn.interop.extras import installed_by

with installed_by("haiku", "haiku"):
    import haiku as hk

from jaxrnn.arguments import as_array, check_choice, float_dtype, is_integer
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.cells.lstm import LSTMState
from jaxrnn.interop.haiku_weights import CORES, gather
from jaxrnn.interop.whole_state import unroll_whole_states
from jaxrnn.layer.bidirectional import Layer
from jaxrnn.layer.unroll import unroll as jaxrnn_unroll
from jaxrnn.network.network import Network


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
        core: an `hk.VanillaRNN`, an `hk.GRU` or an `hk.LSTM`.
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
    cell, params = as_jaxrnn(core, kind, inputs[0] if time_major else inputs[:, 0], initial_state)
    inputs = inputs.astype(float_dtype(params)) if is_integer(inputs) else inputs
    batch = inputs.shape[1:-1] if time_major else inputs.shape[:1]
    start = None if reset is None else _from_state(core.initial_state(batch[0] if batch else None))
    options: dict[str, Any] = {"mask": mask, "reset": reset, "initial": start, "reverse": reverse}
    options["time_major"] = time_major
    run = unroll_whole_states if return_all_states else jaxrnn_unroll
    states, final = run(cell, params, inputs, _from_state(initial_state), **options)
    return hidden_of(states), _to_state(states if return_all_states else final)


def get_parameters(name: str, layer: Layer | Network, dtype: DTypeLike = jnp.float32) -> Params:
    """Returns the parameters of a layer or network of jaxrnn, as haiku makes and keeps them: within `hk.transform`.

    What `hk.get_parameter` is for one array, this is for all of them; each is a parameter of the module around it, such
    as "rnn.U". The fresh ones are those of `layer.init`.

    Args:
        name: what their names begin with.
        layer: a cell of jaxrnn's or of your own, a `jaxrnn.Bidirectional`, or a `jaxrnn.Network`.
        dtype: of fresh parameters.

    Raises:
        ValueError: parameters that were not made at `init`, or have other shapes.

    >>> import haiku as hk, jax, jax.numpy as jnp, jaxrnn
    >>> from jaxrnn.interop.haiku import get_parameters
    >>> def apply(x):
    ...     cell = jaxrnn.Elman(3, 4)
    ...     return jaxrnn.unroll(cell, get_parameters("rnn", cell), x)[0]
    >>> init, run = hk.without_apply_rng(hk.transform(apply))
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), jnp.ones((5, 2, 3))))
    {'~': {'rnn.U': (4, 3), 'rnn.W': (4, 4), 'rnn.b': (4,)}}
    """
    make = functools.partial(layer.init, dtype=dtype)
    fresh = make(hk.next_rng_key()) if hk.running_init() else jax.eval_shape(make, jax.random.key(0))

    def get(path: tuple, leaf: Array) -> Array:
        place = jax.tree_util.keystr((jax.tree_util.DictKey(name), *path), simple=True, separator=".")
        return hk.get_parameter(place, leaf.shape, leaf.dtype, init=lambda *_: leaf)

    return jax.tree.map_with_path(get, fresh)


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
    U, W, *biases = gather(kind, arrays, jnp)
    cell = CORES[kind].cell(U.shape[1], core.hidden_size)
    no_d = (None,) if kind == "GRU" else ()
    return cell, cell.params_type(U, W, sum(biases[1:], biases[0]), *no_d)


def _kind(core: hk.RNNCore) -> str:
    """Returns the name of the core's class; raises unless jaxrnn has a cell that computes the same."""
    kind = type(core).__name__
    if type(core) is not getattr(hk, kind, None):
        raise TypeError(f"core must be an hk.{' or an hk.'.join(CORES)}, itself and no subclass, got {kind}")
    check_choice("core", kind, tuple(CORES))
    return kind


def _from_state(state: Any) -> State:
    return LSTMState(*map(jnp.asarray, state)) if isinstance(state, hk.LSTMState) else state


def _to_state(state: State) -> Any:
    return hk.LSTMState(*state) if isinstance(state, LSTMState) else state
