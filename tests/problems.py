"""Random networks and data to go with them: the one builder of problems for all tests of the engine.

Everything is drawn by NumPy, so that nothing is compiled for it, and every value is a float32 number in any dtype, so
that dtypes compare.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from user_cells import Glider

import jaxrnn


def log_cosh(outputs, targets):
    """A user's objective: a plain function, without a gradient of its own."""
    return jnp.sum(jnp.log(jnp.cosh(outputs - targets)), -1)


OBJECTIVES = {
    "labels": jaxrnn.softmax_cross_entropy,
    "probabilities": jaxrnn.softmax_cross_entropy,
    "sigmoid": jaxrnn.sigmoid_cross_entropy,
    "squared": jaxrnn.squared_error,
    "user": log_cosh,
}
CELLS = {
    "Elman": jaxrnn.Elman,
    "relu": functools.partial(jaxrnn.Elman, activation="relu"),
    "GRU": jaxrnn.GRU,
    "GRU before": functools.partial(jaxrnn.GRU, reset="before"),
    "LSTM": jaxrnn.LSTM,
    "user": Glider,
}
KEY = jax.random.key(7)
# What most grids of options choose from, by the names of `Problem`.
CHOICES = {
    "both_ways": (False, True),
    "tokens": (False, True),
    "weighted": (False, True),
    "stateful": (False, True),
    "masked": (False, True),
    "reset": (False, True),
    "dropout": (0.0, 0.3),
    "recurrent_dropout": (0.0, 0.4),
}


class Arguments(NamedTuple):
    """What `net.loss` and the function of `jaxrnn.value_and_grad` take, in their order."""

    params: Any
    inputs: Any  # [T, *batch, D], or tokens [T, *batch]
    targets: Any  # [T, *batch, ...], of a network with `last_step` [*batch, ...]
    weights: Any  # [T, *batch], or None; likewise
    state: Any  # of every layer, or None
    mask: Any  # [T, *batch], or None
    reset: Any  # [T, *batch], or None
    key: Any  # where the network has dropout, or None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network and the shape and kind of its data. Sizes are in the letters of the library.

        problem = Problem(jaxrnn.GRU, depth=2, masked=True)
        E, grads = jaxrnn.value_and_grad(problem.net)(*problem.arguments())

    Fields:
        Cell: a function of (inputs, hidden) that gives a cell.
        depth: how many layers.
        hidden: H of every layer, where they are not all alike.
        both_ways: whether each layer is a `jaxrnn.Bidirectional` of two such cells.
        merge: how its directions are joined.
        objective: one of `OBJECTIVES`.
        weighted, stateful, masked, reset: whether weights, a state, a mask and resets are given.
        dropout, recurrent_dropout, residual, last_step, learn_state: as for `jaxrnn.Network`.
        fresh: whether parameters are those of `net.init`, and not normal numbers.
        seed: of parameters and data.
    """

    Cell: Callable = jaxrnn.Elman
    depth: int = 1
    T: int = 9
    batch: tuple = (3,)
    D: int = 4
    H: int = 5
    V: int = 6
    hidden: tuple | None = None
    both_ways: bool = False
    merge: str = "concatenate"
    bias: bool = True  # of cells that have one, and of the readout
    objective: str = "labels"
    tokens: bool = False
    weighted: bool = False
    stateful: bool = False
    masked: bool = False
    reset: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    residual: bool = False
    last_step: bool = False
    learn_state: bool = False
    fresh: bool = False
    seed: int = 0

    @functools.cached_property
    def net(self):
        layers, below = [], self.D
        for hidden in self.hidden or (self.H,) * self.depth:
            cell = self.Cell(below, hidden) if self.bias else self.Cell(below, hidden, bias=False)
            layers.append(jaxrnn.Bidirectional(cell, cell, self.merge) if self.both_ways else cell)
            below = layers[-1].outputs
        options = ("dropout", "recurrent_dropout", "residual", "last_step", "learn_state")
        return jaxrnn.Network(
            tuple(layers),
            jaxrnn.Readout(below, self.V, self.bias),
            OBJECTIVES[self.objective],
            **{name: getattr(self, name) for name in options},
        )

    def params(self, dtype=jnp.float64):
        """Draws normal numbers: unlike the orthogonal W of `init`, such a W does not commute with its transpose."""
        if self.fresh:
            return self.net.init(jax.random.key(self.seed), dtype)
        random = np.random.default_rng(self.seed)
        return jax.tree.map(lambda leaf: normal(random, leaf.shape, dtype, leaf.shape[-1] ** -0.5), shapes(self.net)[0])

    def arguments(self, dtype=jnp.float64):
        random = np.random.default_rng(self.seed + 1)
        steps = (self.T, *self.batch)
        read = self.batch if self.last_step else steps
        inputs = jnp.asarray(random.integers(0, self.D, steps)) if self.tokens else None
        if self.objective == "labels":
            targets = jnp.asarray(random.integers(0, self.V, read))
        else:
            targets = jnp.abs(normal(random, (*read, self.V), dtype, 1 / self.V))
        if self.objective == "probabilities":
            shares = targets.astype(jnp.float32)
            targets = (shares / shares.sum(-1, keepdims=True)).astype(dtype)
        # Of one sign: a loss that all but cancels would show the rounding of its terms, 1e-10 of itself.
        weights = jnp.abs(normal(random, read, dtype))
        state = jax.tree.map(lambda leaf: normal(random, (*self.batch, *leaf.shape), dtype), shapes(self.net)[1])
        mask, reset = jnp.asarray(random.random(steps) < 0.6), jnp.asarray(random.random(steps) < 0.3)
        return Arguments(
            self.params(dtype),
            normal(random, (*steps, self.D), dtype) if inputs is None else inputs,
            targets,
            weights if self.weighted else None,
            state if self.stateful else None,
            mask if self.masked else None,
            reset if self.reset else None,
            KEY if self.dropout or self.recurrent_dropout else None,
        )

    def layer(self, dtype=jnp.float64):
        """Returns the lowest layer, and its parameters, inputs and state (or None): what `jaxrnn.unroll` takes."""
        given = self.arguments(dtype)
        return self.net.layers[0], given.params.layers[0], given.inputs, given.state and given.state[0]

    def flags(self):
        """Returns mask and reset by name."""
        given = self.arguments()
        return {"mask": given.mask, "reset": given.reset}


@functools.lru_cache(maxsize=256)
def shapes(net):
    """Returns the shapes of the parameters, and of the state of one sequence."""
    return jax.eval_shape(lambda: (net.init(KEY), net.initial_state()))


@functools.lru_cache(maxsize=256)
def autodiff(problem):
    """Returns `((E, final), grads)` by `jax.grad` of the plain scan, in float64, computed once for each problem."""
    run = jax.value_and_grad(lambda *a: problem.net.loss(*a, return_state=True), has_aux=True)
    return jax.jit(run)(*problem.arguments())


def normal(random, shape, dtype=jnp.float64, scale=1.0):
    """Draws normal numbers that float32 holds."""
    return jnp.asarray((scale * random.normal(size=shape)).astype(np.float32).astype(dtype))
