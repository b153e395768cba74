"""Copy memory: ten symbols are shown, and asked for again after a long pause."""

from __future__ import annotations

import math
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.base import EndlessTask
from jaxrnn.tasks.sequences import Sequences

SYMBOLS, SHOWN = 8, 10
BLANK, DELIMITER = SYMBOLS, SYMBOLS + 1
TOKENS = SYMBOLS + 2  # of the inputs
CLASSES = SYMBOLS + 1  # of the targets: the symbols, and the blank


class CopyMemory(EndlessTask):
    """Poses copy memory with a pause of `length` steps, T.

        inputs    ten symbols of eight, T - 1 blanks, a delimiter, ten blanks
        targets   T + 10 blanks, the ten symbols

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; in this form Arjovsky, Shah & Bengio (2016),
    "Unitary evolution recurrent neural networks", section 4.1.

    >>> import jax, jaxrnn.tasks.copy_memory
    >>> found = jaxrnn.tasks.copy_memory.CopyMemory(3, length=5).draw(jax.random.key(0), 3)
    >>> bool((found.inputs[:10] == found.targets[-10:]).all()), found.inputs[10:, 0].tolist()
    (True, [8, 8, 8, 8, 9, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8])
    """

    name = "copy"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats per step"
    inputs, outputs = TOKENS, CLASSES
    tokens = classes = True
    recipe: ClassVar = {"hidden": 128, "input_scale": 1.0, "recurrent_scale": 1.0, "batch": 64, "rate": 1e-3,
                        "steps": 4000}  # fmt: skip
    length_is = "the steps of the pause"

    @property
    def baselines(self) -> dict[str, float]:
        """Returns the nats per step of one who knows when to answer but not what, 10 log 8 / (T + 20)."""
        return {"without memory": SHOWN * math.log(SYMBOLS) / (self.length + 2 * SHOWN)}

    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns tokens [T + 20, B] below `TOKENS`, and targets [T + 20, B] below `CLASSES`."""
        shown = jax.random.randint(key, (SHOWN, size), 0, SYMBOLS)
        blanks = jnp.full((self.length + SHOWN, size), BLANK)
        inputs = jnp.concatenate([shown, blanks.at[self.length - 1].set(DELIMITER)])
        return Sequences(inputs, jnp.concatenate([blanks, shown]))
