"""What a cell is: the recurrence of one layer as pure functions, and what the two passes over time ask of it."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.arguments import check_positive
from jaxrnn.printing import expression

# Each cell has NamedTuples of its own for these, which a common type would hide from the reader of its file.
State: TypeAlias = Any  # an array [*batch, H], or a NamedTuple of arrays whose first field is the hidden state
Params: TypeAlias = Any  # a NamedTuple of arrays
Operands: TypeAlias = Any  # what `Cell.prepare` makes of the parameters
StepResiduals: TypeAlias = Any  # what `Cell.step_with_residuals` hands on to `Cell.linearize`
Local: TypeAlias = Any  # what `Cell.linearize` hands on to `Cell.step_adjoint`
Deltas: TypeAlias = Any  # what `Cell.step_adjoint` hands on to `Cell.weight_grads`


@dataclasses.dataclass(frozen=True, repr=False)
class Cell(abc.ABC):
    """Defines one recurrence s_t = f(s_{t-1}, x_t): configuration in fields, parameters in arguments.

    To write a cell, subclass it as a frozen dataclass (so that equal cells compile once) and give `init` and `step`;
    the adjoint then comes from `jax.vjp` of the step, correct and slower. To make it fast, move out of `step` what does
    not depend on the state (`project`), and give the four functions of the adjoint (`linearize`, `step_adjoint`,
    `weight_grads`, `input_grads`) by hand.

    The forward pass calls, for a segment of K steps:

        operands  = prepare(params)                                       once, outside every loop
        projected = project(operands, inputs)                             once per segment, [K, *batch, ...]
        s_t, residuals_t = step_with_residuals(operands, s_{t-1}, projected_t)      the loop

    and the reverse pass, with the adjoint of s_t, dE/ds_t = g_t + (what came back from step t + 1):

        local     = linearize(operands, inputs, previous, states, residuals)    once per segment
        dE/ds_{t-1}, delta_t = step_adjoint(operands, dE/ds_t, local_t)         the loop, backwards
        previous  = recurrent_inputs(previous, local)                           once per segment, as the next two
        dE/dparams = weight_grads(params, operands, inputs, previous, deltas)   a sum over the steps of the segment
        dE/dinputs = input_grads(params, inputs, previous, deltas)              [K, *batch, D]

    Here `previous` holds s_{t-1} and `states` s_t for every t of the segment. Each cell decides what its delta_t is:
    for a cell with an adjoint by hand dE/dz_t, by default dE/ds_t. All but `prepare` must take any number of batch
    axes. A cell that wants dropout on its recurrent path gives `with_dropout` as well.

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

    def __repr__(self) -> str:
        return expression(self)

    @abc.abstractmethod
    def init(self, key: PRNGKey, dtype: DTypeLike = jnp.float32) -> Params:
        """Draws fresh parameters."""

    @property
    def outputs(self) -> int:
        """Counts the units that the layer above sees: H."""
        return self.hidden

    def initial_state(self, batch: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> State:
        """Makes s_0 for a batch: zeros [*batch, H]."""
        return jnp.zeros((*batch, self.hidden), dtype)

    def prepare(self, params: Params) -> Operands:
        """Lays the parameters out as the loops multiply by them; by default as they are."""
        return params

    def with_dropout(self, operands: Operands, dropout_mask: Array) -> Operands:
        """Returns operands whose recurrent products, and they alone, see dropout_mask * s_{t-1} for s_{t-1}.

        The mask is 0 or 1/(1 - rate), [*batch, H], one for each sequence, the same at every step.
        """
        raise TypeError(f"recurrent dropout needs a cell with a method with_dropout, which {self} does not have")

    def project(self, operands: Operands, inputs: Array) -> ArrayTree:
        """Computes the part of the step that does not depend on the state, for a whole segment; by default nothing."""
        return inputs

    @abc.abstractmethod
    def step(self, operands: Operands, state: State, projected: ArrayTree) -> State:
        """Computes s_t from s_{t-1}."""

    def step_with_residuals(
        self, operands: Operands, state: State, projected: ArrayTree
    ) -> tuple[State, StepResiduals]:
        """Computes s_t, and what `linearize` can use of the step; by default nothing."""
        return self.step(operands, state, projected), ()

    def linearize(
        self, operands: Operands, inputs: Array, previous: State, states: State, residuals: StepResiduals
    ) -> Local:
        """Computes what `step_adjoint` needs of every step; by default it collects the arguments of the step."""
        return previous, self.project(operands, inputs)

    def step_adjoint(self, operands: Operands, adjoint: State, local: Local) -> tuple[State, Deltas]:
        """Computes dE/ds_{t-1} and delta_t from dE/ds_t; by default by `jax.vjp` of the step."""
        previous, projected = local
        _, pullback = jax.vjp(lambda state: self.step(operands, state, projected), previous)
        return pullback(adjoint)[0], adjoint

    def recurrent_inputs(self, previous: State, local: Local) -> ArrayTree:
        """Returns what the recurrent weights multiply at every step; by default s_{t-1} itself.

        It is what `weight_grads`, `input_grads` and `weight_factors` get as `previous`. The deltas are no place for it:
        they are linear in dE/ds_t, and some callers add those of several errors up first.
        """
        return previous

    def weight_grads(
        self, params: Params, operands: Operands, inputs: Array, previous: State, deltas: Deltas
    ) -> Params:
        """Sums dE/dparams over a segment; by default by one `jax.vjp` over all its steps side by side.

        This is the *immediate* derivative, `previous` held constant: the way through s_{t-1} is in the deltas already.
        """
        _, pullback = jax.vjp(lambda params: self._steps(params, inputs, previous), params)
        return pullback(deltas)[0]

    def input_grads(self, params: Params, inputs: Array, previous: State, deltas: Deltas) -> Array:
        """Computes dE/dx_t of every step of a segment; by default by one `jax.vjp` over all its steps side by side."""
        _, pullback = jax.vjp(lambda inputs: self._steps(params, inputs, previous), inputs)
        return pullback(deltas)[0]

    def weight_factors(self, operands: Operands, inputs: Array, previous: State, deltas: Deltas) -> Params | None:
        """Pairs for each weight the delta_t and x_t whose outer products its gradient sums; by default None.

        With them `jaxrnn.flow` computes norms of single terms without forming the terms. The x of a bias is None;
        tokens [K, *batch] stand for their one-hot vectors.
        """
        return None

    def with_penalty(self, operands: Operands, previous: State, deltas: Deltas, coefficients: Array) -> State:
        """Changes s_{t-1} so that `weight_grads` adds the gradient of the vanishing-gradient regulariser.

        The coefficients are its weight times c_t of `jaxrnn.layer.penalty.omega`, [K, *batch].
        """
        raise TypeError(
            f"vanishing needs layers with a method with_penalty, such as jaxrnn.Elman, which {self} does not have"
        )

    def own_operands(self, operands: Operands, weight: float = 1.0) -> Operands | None:
        """Keeps the diagonal of every recurrent weight only, times a number: each unit sees itself; by default None.

        With a weight of 0 the recurrent weights are gone. What is left is the way that a state takes through no weight
        at all, as through the gates of a GRU or LSTM.
        """
        return None

    def gates(self, residuals: StepResiduals) -> dict[str, Array]:
        """Names the gates among the residuals, each [..., H] from 0 (shut) to 1 (open); by default there are none."""
        return {}

    def _steps(self, params: Params, inputs: Array, previous: State) -> State:
        operands = self.prepare(params)
        return jax.vmap(functools.partial(self.step, operands))(previous, self.project(operands, inputs))


def hidden_of(state: State) -> Array:
    """Returns the hidden state s_t, which the layer above and the readout see of a state."""
    return state[0] if isinstance(state, tuple) else state


def add_to_hidden(adjoint: State, g: Array) -> State:
    """Adds what is asked of the hidden state to the adjoint of a state."""
    return type(adjoint)(adjoint[0] + g, *adjoint[1:]) if isinstance(adjoint, tuple) else adjoint + g
