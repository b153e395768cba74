"""What a cell is: the recurrence of one layer as pure functions, and what the two passes over time ask of it."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.arguments import Array, check_positive

State = Any  # an array [*batch, H], or a NamedTuple of arrays whose first field is the hidden state
Params = Any  # a NamedTuple of arrays


@dataclasses.dataclass(frozen=True)
class Cell(abc.ABC):
    """One recurrence s_t = f(s_{t-1}, x_t): configuration in fields, parameters in arguments, nothing else.

    To write a cell, subclass it as a frozen dataclass (so that equal cells compile once) and give `init` and `step`;
    the adjoint then comes from `jax.vjp` of the step, correct and slower. To make it fast, move out of `step` what does
    not need the state (`project`), and give the four functions of the adjoint (`linearize`, `step_adjoint`,
    `weight_grads`, `input_grads`) by hand.

    The forward pass calls, for a segment of K steps:

        operands  = prepare(params)                                   once, outside every loop
        projected = project(operands, inputs)                         once per segment, [K, *batch, ...]
        s_t       = step(operands, s_{t-1}, projected_t)              the loop

    or, where a reverse pass follows, in the place of the step

        s_t, kept_t = advance(operands, s_{t-1}, projected_t)         the loop

    and the reverse pass, with the adjoint of s_t, dE/ds_t = g_t + (what came back from step t + 1):

        local     = linearize(operands, inputs, previous, states, kept)         once per segment
        dE/ds_{t-1}, delta_t = step_adjoint(operands, dE/ds_t, local_t)         the loop, backwards
        dE/dparams = weight_grads(params, operands, inputs, previous, deltas)   once per segment: a sum over its steps
        dE/dinputs = input_grads(params, inputs, previous, deltas)              once per segment, [K, *batch, D]

    Here `previous` holds s_{t-1} and `states` s_t for every t of the segment. What delta_t is, is the cell's own
    affair: for a cell by hand dE/dz_t, by default dE/ds_t. All but `prepare` must take any number of batch axes.
    A cell that wants dropout on its recurrent path gives `with_dropout` as well.

    Fields:
        inputs: D, the number of input features, or of tokens.
        hidden: H, the number of hidden units.

    >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
    >>> @dataclasses.dataclass(frozen=True)
    ... class Leaky(jaxrnn.Cell):
    ...     rate: float = 0.5
    ...     def init(self, key, dtype=jnp.float32):
    ...         return jax.random.normal(key, (self.hidden, self.inputs), dtype)
    ...     def step(self, U, state, x):
    ...         return (1 - self.rate) * state + self.rate * jnp.tanh(x @ U.T)
    >>> cell = Leaky(inputs=3, hidden=4)
    >>> states, final = jaxrnn.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 3)))
    >>> states.shape, final.shape
    ((7, 4), (4,))
    """

    inputs: int
    hidden: int

    def __post_init__(self) -> None:
        check_positive("inputs", self.inputs)
        check_positive("hidden", self.hidden)

    @abc.abstractmethod
    def init(self, key: Array, dtype: Any = jnp.float32) -> Params:
        """Fresh parameters."""

    @property
    def outputs(self) -> int:
        """What the layer above sees of this one: H."""
        return self.hidden

    def initial_state(self, batch: tuple[int, ...] = (), dtype: Any = jnp.float32) -> State:
        """s_0 for a batch: zeros [*batch, H]."""
        return jnp.zeros((*batch, self.hidden), dtype)

    def prepare(self, params: Params) -> Any:
        """The parameters in the layout that the loops multiply by: by default as they are."""
        return params

    def with_dropout(self, operands: Any, keep: Array) -> Any:
        """The operands with which the recurrent products, and they alone, see keep * s_{t-1} for s_{t-1}.

        Args:
            operands: as `prepare` gives them.
            keep: 0 or 1/(1 - rate), [*batch, H], one for each sequence, the same at every step.
        """
        raise TypeError(f"recurrent dropout needs a cell with a method with_dropout, which {self} has not")

    def project(self, operands: Any, inputs: Array) -> Any:
        """What of the step does not need the state, for a whole segment: by default the inputs themselves."""
        return inputs

    @abc.abstractmethod
    def step(self, operands: Any, state: State, projected: Any) -> State:
        """s_t from s_{t-1}."""

    def advance(self, operands: Any, state: State, projected: Any) -> tuple[State, Any]:
        """s_t from s_{t-1}, and what of the step is worth keeping for `linearize`: by default nothing."""
        return self.step(operands, state, projected), ()

    def linearize(self, operands: Any, inputs: Array, previous: State, states: State, kept: Any) -> Any:
        """What `step_adjoint` needs of every step: by default what the step itself was given."""
        return previous, self.project(operands, inputs)

    def step_adjoint(self, operands: Any, adjoint: State, local: Any) -> tuple[State, Any]:
        """dE/ds_{t-1} and delta_t from dE/ds_t: by default `jax.vjp` of the step."""
        previous, projected = local
        _, pullback = jax.vjp(lambda state: self.step(operands, state, projected), previous)
        return pullback(adjoint)[0], adjoint

    def weight_grads(self, params: Params, operands: Any, inputs: Array, previous: State, deltas: Any) -> Params:
        """dE/dparams summed over a segment: by default one `jax.vjp` over all its steps side by side.

        This is the *immediate* derivative, `previous` held constant: the way through s_{t-1} is in the deltas already.
        """
        _, pullback = jax.vjp(lambda params: self._steps(params, inputs, previous), params)
        return pullback(deltas)[0]

    def input_grads(self, params: Params, inputs: Array, previous: State, deltas: Any) -> Array:
        """dE/dx_t of every step of a segment: by default one `jax.vjp` over all its steps side by side."""
        _, pullback = jax.vjp(lambda inputs: self._steps(params, inputs, previous), inputs)
        return pullback(deltas)[0]

    def weight_factors(self, operands: Any, inputs: Array, previous: State, deltas: Any) -> Params | None:
        """For each weight the pair (delta, x) of which its gradient is the sum of outer products, delta_t x_t^T.

        By default not known. Where it is, `jaxrnn.flow` has norms of single terms without forming them. The x of a bias
        is None; tokens [K, *batch] stand for their one-hot vectors.
        """
        return None

    def with_penalty(self, operands: Any, previous: State, deltas: Any, coefficients: Array) -> State:
        """s_{t-1} so changed that `weight_grads` adds the gradient of the vanishing-gradient regulariser.

        Args:
            operands, previous, deltas: as for `weight_grads`.
            coefficients: its weight times c_t of `jaxrnn.layer.penalty.omega`, [K, *batch].
        """
        raise TypeError(
            f"vanishing needs layers with a method with_penalty, such as jaxrnn.Elman, which {self} has not"
        )

    def own_operands(self, operands: Any, weight: float = 1.0) -> Any:
        """The operands with the diagonal only of every recurrent weight, times a number: units see but themselves.

        By default not known. With a weight of 0 the recurrent weights are gone, and what is left is the way that a
        state takes through no weight at all, as through the gates of a GRU or LSTM.
        """
        return None

    def gates(self, kept: Any) -> dict[str, Array]:
        """The gates among what `advance` kept, by name, each [..., H] from 0 (shut) to 1 (open): by default none."""
        return {}

    def _steps(self, params: Params, inputs: Array, previous: State) -> State:
        operands = self.prepare(params)
        return jax.vmap(functools.partial(self.step, operands))(previous, self.project(operands, inputs))


def hidden_of(state: State) -> Array:
    """The hidden state s_t: what the layer above and the readout see of a state."""
    return state[0] if isinstance(state, tuple) else state


def add_to_hidden(adjoint: State, g: Array) -> State:
    """The adjoint of a state, with what is asked of its hidden part added."""
    return type(adjoint)(adjoint[0] + g, *adjoint[1:]) if isinstance(adjoint, tuple) else adjoint + g
