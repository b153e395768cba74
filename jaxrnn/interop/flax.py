"""`nnx.RNN` and `nnx.Bidirectional` of flax, with the reverse scan written by hand: one changed line.

    import jaxrnn.interop.flax
    rnn = jaxrnn.interop.flax.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))        for nnx.RNN(...)

The module holds flax's own cell, so its parameters, their paths and their fresh values are those of flax; only the loop
over time is jaxrnn's. Each cell is read as the jaxrnn cell that computes the same:

    SimpleCell                       Elman    U = dense_i.kernel^T    W = dense_h.kernel^T (+ 1 if residual)
    GRUCell                          GRU      likewise, d = 0
    LSTMCell, OptimizedLSTMCell      LSTM     likewise; the carry is (m, s), which flax calls (c, h)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.interop.extras import installed_by

with installed_by("flax", "flax"):
    from flax import nnx
    from flax.nnx.nn import dtypes
    from flax.nnx.nn.recurrent import flip_sequences

from jaxrnn.arguments import as_array, float_dtype, is_integer
from jaxrnn.cells.base import Cell, Params, State, hidden_of
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM, LSTMState
from jaxrnn.interop.flax_weights import NNX, gather
from jaxrnn.interop.whole_state import unroll_whole_states
from jaxrnn.layer.masking import Flags, backward_flags
from jaxrnn.layer.prepared import as_recompute
from jaxrnn.layer.unroll import unroll

CELLS = {getattr(nnx, name): names for name, names in NNX.items()}
TANH, RELU, SIGMOID = (jnp.tanh, jax.nn.tanh, jax.lax.tanh), (jax.nn.relu,), (jax.nn.sigmoid,)


class RNN(nnx.RNN):
    """Runs a cell of flax over sequences as `nnx.RNN` does, with masks and resets besides.

    Args:
        cell: an `nnx.SimpleCell`, `nnx.GRUCell`, `nnx.LSTMCell` or `nnx.OptimizedLSTMCell` with the functions that they
            have by default; a SimpleCell may have `relu`, and `residual`.
        recompute: what the reverse scan computes again instead of keeping it, as for `jaxrnn.unroll`: "gates" for less
            memory, "states" for the least.
        options: those of `nnx.RNN`: `time_major`, `return_carry`, `reverse`, `keep_order`, `rngs`. `unroll` and
            `broadcast_rngs` change nothing, as the cells draw nothing at random; `state_axes` is refused.

    Raises:
        TypeError: a cell of another class.
        ValueError: a cell with another function, or with layers that were replaced; `state_axes`; an unknown recompute.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxrnn.interop.flax import RNN
    >>> rnn = RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((2, 5, 3)), mask=jnp.ones((2, 5), bool)).shape
    (2, 5, 4)
    """

    def __init__(self, cell: nnx.RNNCellBase, *, recompute: bool | str = "none", **options: Any) -> None:
        _check_cell(cell)
        self.recompute = as_recompute(recompute)
        if options.get("state_axes") is not None:
            raise ValueError("state_axes must be None: every step has the same parameters, and there is no other state")
        super().__init__(cell, **options)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Any:
        """Computes the outputs of all steps, and the carry if asked: what `nnx.RNN` computes.

        Args:
            inputs: floats [*batch, T, D], or [T, *batch, D] if `time_major`.
            initial_carry: the carry before the first step; by default what the cell's `initialize_carry` makes.
            seq_lengths: integers [B]; as in flax the carry is that of each sequence's last step, and the steps after it
                are computed like any other. To hold the state over them, give a `mask`.
            return_carry, time_major, reverse, keep_order: None for what the constructor was told.
            rngs: for `initialize_carry`.
            mask: booleans [*batch, T], or [T, *batch] if `time_major`; where False the state is held.
            reset: booleans alike; where True the state before the step is that of `initialize_carry`. In reverse, that
                is the step after in time.

        Returns:
            The outputs, laid out as the inputs; with `return_carry` the carry first, an LSTM's as (c, h).

        Raises:
            TypeError, ValueError: as for `jaxrnn.unroll`; a `dtype` of the cell that is not the one that inputs and
                parameters promote to.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        cell, params = as_jaxrnn(self.cell)
        inputs = as_array("inputs", inputs)
        time_axis = 0 if time_major else inputs.ndim - 2
        fresh = self._fresh_carry(inputs, time_axis, rngs, initial_carry is None or reset is not None)
        inputs = inputs.astype(float_dtype(params)) if is_integer(inputs) else inputs
        carry = fresh if initial_carry is None else initial_carry
        _check_dtype(self.cell, inputs, params)
        # As in flax, a padded sequence is turned around in its own steps, and its padding in itself.
        turn = functools.partial(_flip, lengths=seq_lengths, batch_axes=inputs.ndim - 2, time_major=time_major)
        flipped = reverse and seq_lengths is not None
        inputs, mask, reset = map(turn, (inputs, mask, reset)) if flipped else (inputs, mask, reset)

        run = unroll_whole_states if seq_lengths is not None and return_carry else unroll
        states, final = run(
            cell,
            params,
            inputs,
            _from_carry(cell, carry),
            mask=mask,
            reset=reset,
            initial=None if reset is None else _from_carry(cell, fresh),
            reverse=reverse and not flipped,
            time_major=time_major,
            recompute=self.recompute,
        )
        outputs = hidden_of(states)
        if reverse and keep_order == flipped:  # what was turned is to be turned back, or what was not is to be
            outputs = turn(outputs)
        if not return_carry:
            return outputs
        return _to_carry(cell, final if seq_lengths is None else _last(states, seq_lengths, time_axis)), outputs

    def _fresh_carry(self, inputs: Array, time_axis: int, rngs: Any, wanted: bool) -> Any:
        """Makes the carry of the cell, as flax does, and as often; None where it is not wanted."""
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
        return self.cell.initialize_carry(shape, rngs) if wanted else None


class Bidirectional(nnx.Bidirectional):
    """Runs two `RNN`s over the same inputs, one in each direction, as `nnx.Bidirectional` does; masks besides.

    Args:
        forward_rnn, backward_rnn: an `RNN` each.
        options: those of `nnx.Bidirectional`: `merge_fn`, `time_major`, `return_carry`, `rngs`.

    Raises:
        TypeError: a forward_rnn or backward_rnn that is not an `RNN` of this module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxrnn.interop.flax import RNN, Bidirectional
    >>> layer = Bidirectional(*(RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(seed))) for seed in (0, 1)))
    >>> layer(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)
    """

    def __init__(self, forward_rnn: RNN, backward_rnn: RNN, **options: Any) -> None:
        for name, rnn in (("forward_rnn", forward_rnn), ("backward_rnn", backward_rnn)):
            if not isinstance(rnn, RNN):
                raise TypeError(f"{name} must be a jaxrnn.interop.flax.RNN, got {type(rnn).__name__}")
        super().__init__(forward_rnn, backward_rnn, **options)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: tuple[Any, Any] | None = None,
        rngs: Any = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Any:
        """Computes the merged outputs of both directions, and both carries if asked: what `nnx.Bidirectional` computes.

        Args:
            inputs, seq_lengths, return_carry, time_major, rngs, mask: as for an `RNN`. With a mask, each direction
                holds its state over the padding, so the backward one sets out from each sequence's own end.
            initial_carry: a pair of carries.
            reverse, keep_order: without effect, as in flax.
            reset: where True a step is parted from the one before, for both directions.

        Returns:
            The outputs; with `return_carry` the pair of carries first.
        """
        time_major = self.time_major if time_major is None else time_major
        return_carry = self.return_carry if return_carry is None else return_carry
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        carries = (None, None) if initial_carry is None else initial_carry
        parted = (reset, None if reset is None else _before_next(reset, 0 if time_major else reset.ndim - 1))
        rnns: tuple[Any, Any] = self.forward_rnn, self.backward_rnn
        found: list[Any] = [
            rnn(
                inputs,
                initial_carry=carry,
                rngs=rngs,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=True,
                mask=mask,
                reset=reset,
            )
            for rnn, carry, reverse, reset in zip(rnns, carries, (False, True), parted, strict=True)
        ]
        if not return_carry:
            return self.merge_fn(*found)
        carries, outputs = zip(*found, strict=True)
        return carries, self.merge_fn(*outputs)


def as_jaxrnn(cell: Any) -> tuple[Cell, Params]:
    """Returns the jaxrnn cell that computes what a cell of flax does, and its parameters, made of flax's."""
    _check_cell(cell)
    names = CELLS[type(cell)]
    weights = {
        layer: {leaf: getattr(getattr(cell, layer), leaf)[...] for leaf in leaves}
        for layer, leaves in names.leaves.items()
    }
    U, W, b = gather(names, weights, jnp)
    if names.kind is Elman:
        W = W + jnp.eye(len(W), dtype=W.dtype) if cell.residual else W
        activation = "relu" if cell.activation_fn in RELU else "tanh"
        elman = Elman(cell.in_features, cell.hidden_features, activation)
        return elman, elman.params_type(U, W, b)
    ours = names.kind(cell.in_features, cell.hidden_features)
    d = (jnp.zeros(cell.hidden_features, b.dtype),) if names.kind is GRU else ()
    return ours, ours.params_type(U, W, b, *d)


def _check_cell(cell: Any) -> None:
    """Raises unless jaxrnn has a cell that computes the same."""
    if type(cell) not in CELLS:
        known = ", ".join(f"nnx.{each.__name__}" for each in CELLS)
        raise TypeError(f"cell must be one of {known}, itself and no subclass, got {type(cell).__name__}")
    simple = type(cell) is nnx.SimpleCell
    allowed: dict[str, Any] = {
        "activation_fn": (TANH, RELU) if simple else (TANH,),
        "promote_dtype": ((dtypes.promote_dtype,),),
    }
    allowed |= {} if simple else {"gate_fn": (SIGMOID,)}
    for name, choices in allowed.items():
        if not any(getattr(cell, name) in same for same in choices):
            expected = " or ".join(same[0].__name__ for same in choices)
            raise ValueError(f"{name} of an nnx.{type(cell).__name__} must be {expected}, got {getattr(cell, name)!r}")
    for layer in CELLS[type(cell)].leaves:
        if type(getattr(cell, layer)) is not nnx.Linear:
            raise ValueError(f"cell.{layer} must be an nnx.Linear, got {type(getattr(cell, layer)).__name__}")


def _check_dtype(cell: Any, inputs: Array, params: Params) -> None:
    """Raises if the cell is to compute in another dtype than inputs and parameters have."""
    dtype = float_dtype(params, inputs)
    if cell.dtype is not None and jnp.dtype(cell.dtype) != dtype:
        raise ValueError(
            f"dtype of the cell must be None or {dtype}, which inputs and parameters promote to, got "
            f"{jnp.dtype(cell.dtype)}: flax casts what goes into each product, and sums and carries in another dtype; "
            f"cast the inputs, or make the cell with dtype and param_dtype alike"
        )


def _from_carry(cell: Cell, carry: Any) -> State:
    """Returns the state that a carry of flax is; an LSTM's is (c, h)."""
    if not isinstance(cell, LSTM):
        return carry
    m, s = carry
    return LSTMState(s, m)


def _to_carry(cell: Cell, state: State) -> Any:
    return (state.m, state.s) if isinstance(cell, LSTM) else state


def _last(states: State, lengths: Array, time_axis: int) -> State:
    """Returns the states [*batch, H] at each sequence's last step; of a sequence of no steps, at step T."""
    # With signs and 32 bits: of uint8 the step before the first would be step 255.
    steps = jnp.expand_dims(jnp.asarray(lengths, jnp.int32), (time_axis, -1)) - 1
    return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, steps, time_axis).squeeze(time_axis), states)


def _flip(array: Any, lengths: Array | None, batch_axes: int, time_major: bool) -> Array | None:
    """Turns sequences around in time, each within its length; None stays."""
    return None if array is None else flip_sequences(jnp.asarray(array), lengths, batch_axes, time_major)


def _before_next(reset: Array, time_axis: int) -> Array:
    """Returns resets of the backward direction: what parts step t from t - 1 comes, for it, before step t - 1."""
    time_first = Flags(None, jnp.moveaxis(jnp.asarray(reset), time_axis, 0))
    before: Any = backward_flags(time_first).reset
    return jnp.moveaxis(before, 0, time_axis)
