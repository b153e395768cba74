"""Temporal order."""

from __future__ import annotations

import math
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.base import EndlessTask, Published, Sequences

DISTRACTORS, RELEVANT = 4, 2  # tokens 0 .. 3 are distractors, 4 and 5 the symbols that count


class TemporalOrder(EndlessTask):
    """Poses temporal order in sequences of `length` steps, T, ten or more: the class is which symbol came first.

        class = 2 a + b        the symbol a at a random step of T/10 .. 2T/10, the symbol b at one of 4T/10 .. 5T/10

    All other steps hold one of four distractors, and the answer is asked for at the last step.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 6a; in this form Pascanu, Mikolov &
    Bengio (2013), "On the difficulty of training recurrent neural networks", section 4.1.

    >>> import jax, jaxrnn.tasks.temporal_order
    >>> found = jaxrnn.tasks.temporal_order.TemporalOrder(3, length=50).draw(jax.random.key(0), 3)
    >>> found.inputs.shape, (found.inputs >= 4).sum(0).tolist()
    ((50, 3), [2, 2, 2])
    """

    name = "order"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats"
    inputs, outputs = DISTRACTORS + RELEVANT, RELEVANT**2
    last_step = tokens = classes = True
    baselines: ClassVar = {"chance": math.log(outputs)}  # three of four answers are wrong
    # Without the regulariser it is not learned: 74 % wrong where with it all is right (scripts/results/reproduced.md).
    recipe: ClassVar = EndlessTask.recipe | {
        "length": 50,
        "vanishing": 1.0,
        "vanishing_steps": 1000.0,
        "steps": 10_000,
        "every": 1000,
    }
    least_length = 10

    @property
    def published(self) -> list[Published]:
        return [Published(0.0, "plain network with clipping and a regulariser, Pascanu et al. 2013", wrong=True)]

    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns tokens [T, B] and classes [B]."""
        T = self.length
        keys = jax.random.split(key, 4)
        tokens = jax.random.randint(keys[0], (T, size), 0, DISTRACTORS)
        symbols = jax.random.randint(keys[1], (2, size), 0, RELEVANT)
        first = jax.random.randint(keys[2], (size,), T // 10, 2 * T // 10)
        second = jax.random.randint(keys[3], (size,), 4 * T // 10, 5 * T // 10)
        t = jnp.arange(T)[:, None]
        inputs = jnp.where(t == first, DISTRACTORS + symbols[0], tokens)
        inputs = jnp.where(t == second, DISTRACTORS + symbols[1], inputs)
        return Sequences(inputs, RELEVANT * symbols[0] + symbols[1])
