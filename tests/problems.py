"""Random networks and data to go with them. Every value is a float32 number, in any dtype, so that dtypes compare."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network of Elman layers and the shape of its data: sizes in the letters of the library."""

    T: int = 7
    batch: tuple = (2,)
    D: int = 3
    H: tuple = (4,)  # one per layer
    V: int = 5
    activation: str = "tanh"
    bias: bool = True
    tokens: bool = False
    objective: str = "labels"
    weighted: bool = False
    stateful: bool = False
    seed: int = 0

    def network(self):
        sizes = zip((self.D, *self.H), self.H, strict=False)
        layers = tuple(jaxrnn.Elman(inputs, hidden, self.activation, self.bias) for inputs, hidden in sizes)
        return jaxrnn.Network(layers, jaxrnn.Readout(self.H[-1], self.V, self.bias), OBJECTIVES[self.objective])

    def params(self, dtype=jnp.float64):
        """Normal numbers: unlike the orthogonal W of `init`, such a W does not commute with its transpose."""
        random = np.random.default_rng(self.seed)
        shapes = jax.eval_shape(self.network().init, jax.random.key(0))
        return jax.tree.map(lambda leaf: _normal(random, leaf.shape, dtype, leaf.shape[-1] ** -0.5), shapes)

    def data(self, dtype=jnp.float64):
        """inputs, targets, weights (or None), state (or None)."""
        random = np.random.default_rng(self.seed + 1)
        steps = (self.T, *self.batch)
        if self.tokens:
            inputs = jnp.asarray(random.integers(0, self.D, steps))
        else:
            inputs = _normal(random, (*steps, self.D), dtype)
        if self.objective == "labels":
            targets = jnp.asarray(random.integers(0, self.V, steps))
        else:
            targets = jnp.abs(_normal(random, (*steps, self.V), dtype, 1 / self.V))
        weights = _normal(random, steps, dtype) if self.weighted else None
        state = tuple(_normal(random, (*self.batch, H), dtype) for H in self.H) if self.stateful else None
        return inputs, targets, weights, state


def _normal(random, shape, dtype, scale=1.0):
    return jnp.asarray((scale * random.normal(size=shape)).astype(np.float32), dtype)
