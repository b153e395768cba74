"""The scan of equinox's `GRUCell` and `LSTMCell`, with the reverse scan written by hand: one changed line.

    from jaxrnn.interop.equinox import scan
    states, final = scan(cell, xs)        for jax.lax.scan(lambda state, x: ..., zeros, xs)

The cell stays equinox's: weight_ih, weight_hh, bias and bias_n are U, W, b and d as they are, so `eqx.filter_grad` with
respect to a model that holds the cell finds its gradients in their places.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.interop.extras import installed_by

with installed_by("equinox", "equinox"):
    import equinox as eqx

from jaxrnn.arguments import as_array, float_dtype, is_integer
from jaxrnn.cells.base import Cell, Params, State
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.interop.layers import check_reset_after
from jaxrnn.layer.scan import check_params
from jaxrnn.layer.unroll import unroll


def scan(
    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell,
    inputs: Array,
    state: Any = None,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: Any = None,
    reverse: bool = False,
    recompute: bool | str = False,
) -> tuple[Array, Any]:
    """Computes the hidden states of a cell of equinox over time, as a `lax.scan` of the cell would.

        before_t = initial where reset_t, else h_{t-1}
        h_t      = cell(x_t, before_t) where mask_t, else before_t        t = 1 .. T

    A batch may be mapped over, `jax.vmap(lambda x: scan(cell, x)[0])(batch)` for a batch [B, T, D], or given as axes of
    the inputs between time and features.

    Args:
        cell: an `eqx.nn.GRUCell` or an `eqx.nn.LSTMCell`.
        inputs: [T, D], or [T, *batch, D].
        state: the state before the first step as the cell takes it, [*batch, H] or a pair (h, c); zeros by default.
        mask: booleans [T, *batch]; where False the state is held.
        reset: booleans [T, *batch]; where True the state before the step is the initial one.
        initial: the state that resets begin from; zeros by default.
        reverse: whether time runs backwards; the hidden states keep their places.
        recompute: as for `jaxrnn.unroll`: less memory for more time.

    Returns:
        The hidden states [T, *batch, H], and the last state as the cell returns it.

    Raises:
        TypeError: another cell; and as for `jaxrnn.unroll`.
        ValueError: as for `jaxrnn.unroll`.

    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from jaxrnn.interop.equinox import scan
    >>> cell = eqx.nn.GRUCell(3, 4, key=jax.random.key(0))
    >>> jax.vmap(lambda x: scan(cell, x)[0])(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    """
    ours, params = from_equinox(cell)
    inputs = as_array("inputs", inputs)
    inputs = inputs.astype(float_dtype(params)) if is_integer(inputs) else inputs
    state, initial = (_from_state(ours, given) for given in (state, initial))
    options: dict[str, Any] = {
        "mask": mask,
        "reset": reset,
        "initial": initial,
        "reverse": reverse,
        "recompute": recompute,
    }
    hidden, final = unroll(ours, params, inputs, state, **options)
    return hidden, tuple(final) if isinstance(ours, LSTM) else final


def from_equinox(cell: eqx.nn.GRUCell | eqx.nn.LSTMCell) -> tuple[Cell, Params]:
    """Returns the jaxrnn cell that computes what a cell of equinox does, and its parameters, which are equinox's own.

    Raises:
        TypeError: another cell.

    >>> import equinox as eqx, jax
    >>> from jaxrnn.interop.equinox import from_equinox
    >>> from_equinox(eqx.nn.LSTMCell(3, 4, key=jax.random.key(0)))[1].W.shape
    (16, 4)
    """
    bias = getattr(cell, "use_bias", True)
    if type(cell) is eqx.nn.GRUCell:
        gru = GRU(cell.input_size, cell.hidden_size, bias=bias)
        return gru, GRUParams(cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)
    if type(cell) is eqx.nn.LSTMCell:
        lstm = LSTM(cell.input_size, cell.hidden_size, bias=bias)
        return lstm, LSTMParams(cell.weight_ih, cell.weight_hh, cell.bias)
    raise TypeError(f"cell must be an eqx.nn.GRUCell or an eqx.nn.LSTMCell, got {type(cell).__name__}")


def to_equinox(cell: Cell, params: Params) -> eqx.nn.GRUCell | eqx.nn.LSTMCell:
    """Returns the cell of equinox that computes the same: the inverse of `from_equinox`.

    Args:
        cell: a GRU or LSTM cell.
        params: its parameters.

    Raises:
        TypeError: a cell that equinox does not have, such as an Elman cell; parameters of another cell.
        ValueError: a GRU that resets before the product.

    >>> import jax, jaxrnn
    >>> from jaxrnn.interop.equinox import to_equinox
    >>> cell = jaxrnn.GRU(3, 5)
    >>> to_equinox(cell, cell.init(jax.random.key(0))).weight_hh.shape
    (15, 5)
    """
    if not isinstance(cell, GRU | LSTM):
        raise TypeError(f"cell must be a GRU or LSTM cell, the two that equinox has, got {cell}")
    check_reset_after("cell", [cell], "equinox's GRUCell")
    check_params(cell, params)
    kind = eqx.nn.GRUCell if isinstance(cell, GRU) else eqx.nn.LSTMCell
    # The shapes of a module are enough, as all of its arrays are replaced.
    make = functools.partial(kind, cell.inputs, cell.hidden, cell.bias)
    empty = eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))
    names = ("weight_ih", "weight_hh", "bias", "bias_n")[: len(params)]
    fields = [(name, value) for name, value in zip(names, params, strict=True) if value is not None]
    arrays = [value for _, value in fields]
    return eqx.tree_at(lambda module: [getattr(module, name) for name, _ in fields], empty, arrays)


def _from_state(cell: Cell, state: Any) -> State:
    if state is None or not isinstance(cell, LSTM):
        return state
    if not isinstance(state, tuple | list) or len(state) != 2:
        raise TypeError(f"state of an eqx.nn.LSTMCell must be a pair (h, c), got {type(state).__name__}")
    return LSTMState(*map(jnp.asarray, state))
