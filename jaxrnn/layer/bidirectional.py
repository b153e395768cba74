"""A layer that reads the sequence both ways: a cell forward in time, a cell backward, and what they say merged."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array, PRNGKey
from jax.typing import DTypeLike

from jaxrnn.arguments import check_choice, check_key
from jaxrnn.cells.base import Cell, Params, State
from jaxrnn.printing import as_text, expression


class BidirectionalParams(NamedTuple):
    """Holds the parameters of a bidirectional layer."""

    forward: Params
    backward: Params

    def __repr__(self) -> str:
        return as_text(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Bidirectional:
    """Runs two cells over the same inputs, one in each direction of time.

        s_t  = step(s_{t-1}, x_t),  t = 1 .. T           s~_t = step~(s~_{t+1}, x_t),  t = T .. 1
        output_t = (s_t, s~_t)   or   s_t + s~_t

    A mask holds each direction's state where there is no step, so the backward direction sets out from each sequence's
    own end. A reset at t parts step t from t - 1, for the backward direction too: it begins anew at t - 1.

    The output at t depends on the whole sequence: not for predicting what comes next, nor for streams. The state to go
    on from is a pair; the backward one is that after the first step.

    Args:
        forward: the cell that runs forward in time.
        backward: the one that runs backward; it must have the same inputs and hidden.
        merge: "concatenate" (2H outputs) or "sum" (H outputs).

    Raises:
        TypeError: forward or backward is not a `jaxrnn.Cell`.
        ValueError: sizes that differ, an unknown merge.

    Source: Schuster & Paliwal (1997), "Bidirectional recurrent neural networks".

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> layer = jaxrnn.Bidirectional(jaxrnn.GRU(3, 5), jaxrnn.GRU(3, 5))
    >>> params = layer.init(jax.random.key(0))
    >>> jaxrnn.unroll(layer, params, jnp.ones((7, 2, 3)))[0].shape
    (7, 2, 10)
    """

    forward: Cell
    backward: Cell
    merge: Literal["concatenate", "sum"] = "concatenate"

    def __post_init__(self) -> None:
        check_choice("merge", self.merge, ("concatenate", "sum"))
        for name, cell in (("forward", self.forward), ("backward", self.backward)):
            if not isinstance(cell, Cell):
                raise TypeError(f"{name} must be a jaxrnn.Cell, got {type(cell).__name__}")
        ahead, back = ((cell.inputs, cell.hidden) for cell in (self.forward, self.backward))
        if ahead != back:
            raise ValueError(f"forward and backward must have the same inputs and hidden, got {ahead} and {back}")

    def __repr__(self) -> str:
        return expression(self)

    @property
    def inputs(self) -> int:
        """Counts the input features, D."""
        return self.forward.inputs

    @property
    def hidden(self) -> int:
        """Counts the hidden units of each direction, H."""
        return self.forward.hidden

    @property
    def outputs(self) -> int:
        """Counts what the layer above sees: 2H, or H where the two are summed."""
        return self.hidden * (2 if self.merge == "concatenate" else 1)

    def init(self, key: PRNGKey, dtype: DTypeLike = jnp.float32) -> BidirectionalParams:
        """Draws fresh parameters of both cells."""
        check_key(key)
        forward, backward = jax.random.split(key)
        return BidirectionalParams(self.forward.init(forward, dtype), self.backward.init(backward, dtype))

    def initial_state(self, batch: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> tuple[State, State]:
        """Makes s_0 of the forward cell and s~_{T+1} of the backward one."""
        return self.forward.initial_state(batch, dtype), self.backward.initial_state(batch, dtype)

    def join(self, forward: Array, backward: Array) -> Array:
        """Merges the hidden states of both [..., H] into the outputs [..., 2H] or [..., H]."""
        return jnp.concatenate([forward, backward], -1) if self.merge == "concatenate" else forward + backward

    def split(self, g: Array) -> tuple[Array, Array]:
        """Returns what the outputs [..., 2H] or [..., H] ask of the hidden states of both: the adjoint of `join`."""
        forward, backward = jnp.split(g, 2, -1) if self.merge == "concatenate" else (g, g)
        return forward, backward


Layer = Cell | Bidirectional
