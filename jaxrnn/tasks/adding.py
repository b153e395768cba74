"""The adding problem."""

from __future__ import annotations

from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from jaxrnn.network.losses import squared_error
from jaxrnn.tasks.base import RECIPE, EndlessTask, Published, Sequences


class Adding(EndlessTask):
    """Poses the adding problem of `length` steps, two or more: two numbers of a long sequence are marked.

        y = x_i + x_j        i in the first half of the sequence, j in the second, x uniform in [0, 1)

    The nearer number is up to T/2 steps back, the other one at least T/2: it has to be held all that time.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 4; in this form Arjovsky, Shah &
    Bengio (2016), "Unitary evolution recurrent neural networks", section 4.2.

    >>> import jax, jaxrnn.tasks.adding
    >>> inputs, targets, *_ = jaxrnn.tasks.adding.Adding(3, length=10).draw(jax.random.key(0), 3)
    >>> bool(((inputs[..., 0] * inputs[..., 1]).sum(0) == targets[:, 0]).all()), inputs[..., 1].sum(0).tolist()
    (True, [2.0, 2.0, 2.0])
    """

    name = "adding"
    objective = staticmethod(squared_error)
    unit = "mean squared error"
    inputs, outputs = 2, 1
    last_step = True
    baselines: ClassVar = {"always one": 1 / 6}  # the variance of the sum of two uniform numbers
    recipe: ClassVar = RECIPE | {"hidden": 100, "activation": "relu", "initializer": "identity", "input_scale": 0.03}
    least_length = 2

    @property
    def published(self) -> list[Published]:
        figures = {"plain network": 0.177, "GRU": 5.3e-5}
        at_600 = [Published(figure, f"{name}, Bai et al. 2018") for name, figure in figures.items()]
        return at_600 if self.length == 600 else []

    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns inputs [T, B, 2], a number from 0 to 1 and whether it is marked, and targets [B, 1]."""
        T = self.length
        key_x, key_i, key_j = jax.random.split(key, 3)
        x = jax.random.uniform(key_x, (T, size))
        i = jax.random.randint(key_i, (size,), 0, T // 2)
        j = jax.random.randint(key_j, (size,), T // 2, T)
        t = jnp.arange(T)[:, None]
        marked = ((t == i) | (t == j)).astype(x.dtype)  # [T, B]
        return Sequences(jnp.stack([x, marked], -1), jnp.sum(x * marked, 0)[:, None])
