"""Tasks that never run out of sequences: the adding problem, copy memory, temporal order."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from jaxrnn.network.losses import softmax_cross_entropy, squared_error
from jaxrnn.tasks.base import RECIPE, Sequences, Task

HELD_OUT = (5, 200)  # batches of sequences that validate a task without a data set
SYMBOLS, SHOWN = 8, 10  # of copy memory: different symbols, and how many are shown
BLANK, DELIMITER = SYMBOLS, SYMBOLS + 1
DISTRACTORS, RELEVANT = 4, 2  # of temporal order: tokens 0 .. 3 are distractors, 4 and 5 the symbols that count


class EndlessTask(Task):
    """Draws its sequences: fresh ones at every step, and a thousand others that validate."""

    length_is = "the steps of a sequence"
    recipe: ClassVar = RECIPE | {"hidden": 100}

    @abc.abstractmethod
    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns `size` sequences that depend on the key alone."""

    def batch(self, step: int) -> Sequences:
        return self._draw(0, step, self.batch_size)._replace(fresh=True)

    def validation(self) -> list[Sequences]:
        batches, size = HELD_OUT
        return [self._draw(1, i, size)._replace(fresh=True) for i in range(batches)]

    @functools.cached_property
    def _draw(self) -> Callable[[int, int, int], Sequences]:
        keys = jax.random.split(jax.random.key(self.seed))  # one to train, one to validate
        draw = lambda part, index, size: self.draw(jax.random.fold_in(keys[part], index), size)  # noqa: E731
        return jax.jit(draw, static_argnums=2)


class Adding(EndlessTask):
    """Poses the adding problem of `length` steps, two or more: two numbers of a long sequence are marked.

        y = x_i + x_j        i in the first half of the sequence, j in the second, x uniform in [0, 1)

    The nearer number is up to T/2 steps back, the other one at least T/2: it has to be held all that time.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 4; in this form Arjovsky, Shah &
    Bengio (2016), "Unitary evolution recurrent neural networks", section 4.2.

    >>> import jax, jaxrnn.tasks.endless
    >>> inputs, targets, *_ = jaxrnn.tasks.endless.Adding(3, length=10).draw(jax.random.key(0), 3)
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


class CopyMemory(EndlessTask):
    """Poses copy memory with a pause of `length` steps, T: what was shown is asked for after it.

        inputs    ten symbols of eight, T - 1 blanks, a delimiter, ten blanks
        targets   T + 10 blanks, the ten symbols

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; in this form Arjovsky, Shah & Bengio (2016),
    "Unitary evolution recurrent neural networks", section 4.1.

    >>> import jax, jaxrnn.tasks.endless
    >>> found = jaxrnn.tasks.endless.CopyMemory(3, length=5).draw(jax.random.key(0), 3)
    >>> bool((found.inputs[:10] == found.targets[-10:]).all()), found.inputs[10:, 0].tolist()
    (True, [8, 8, 8, 8, 9, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8])
    """

    name = "copy"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats per step"
    inputs, outputs = SYMBOLS + 2, SYMBOLS + 1  # the symbols and the blank, and among the inputs the delimiter
    tokens = classes = True
    recipe: ClassVar = RECIPE | {"hidden": 128}
    length_is = "the steps of the pause"

    @property
    def baselines(self) -> dict[str, float]:
        """Returns the nats per step of one who knows when to answer but not what, 10 log 8 / (T + 20)."""
        return {"without memory": SHOWN * math.log(SYMBOLS) / (self.length + 2 * SHOWN)}

    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns tokens and targets, both [T + 20, B]."""
        shown = jax.random.randint(key, (SHOWN, size), 0, SYMBOLS)
        blanks = jnp.full((self.length + SHOWN, size), BLANK)
        inputs = jnp.concatenate([shown, blanks.at[self.length - 1].set(DELIMITER)])
        return Sequences(inputs, jnp.concatenate([blanks, shown]))


class TemporalOrder(EndlessTask):
    """Poses temporal order in sequences of `length` steps, T, ten or more: the class is which symbol came first.

        class = 2 a + b        the symbol a at a random step of T/10 .. 2T/10, the symbol b at one of 4T/10 .. 5T/10

    All other steps hold one of four distractors, and the answer is asked for at the last step.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 6a; in this form Pascanu, Mikolov &
    Bengio (2013), "On the difficulty of training recurrent neural networks", section 4.1.

    >>> import jax, jaxrnn.tasks.endless
    >>> found = jaxrnn.tasks.endless.TemporalOrder(3, length=50).draw(jax.random.key(0), 3)
    >>> found.inputs.shape, (found.inputs >= 4).sum(0).tolist()
    ((50, 3), [2, 2, 2])
    """

    name = "order"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats"
    inputs, outputs = DISTRACTORS + RELEVANT, RELEVANT**2
    last_step = tokens = classes = True
    baselines: ClassVar = {"chance": math.log(outputs)}  # three of four answers are wrong
    least_length = 10

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
