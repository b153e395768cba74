"""Copy memory."""

from __future__ import annotations

import math
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.base import RECIPE, EndlessTask, Published, Sequences

SYMBOLS, SHOWN = 8, 10  # different symbols, and how many are shown
BLANK, DELIMITER = SYMBOLS, SYMBOLS + 1


class CopyMemory(EndlessTask):
    """Poses copy memory with a pause of `length` steps, T: what was shown is asked for after it.

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
    inputs, outputs = SYMBOLS + 2, SYMBOLS + 1  # the symbols and the blank, and among the inputs the delimiter
    tokens = classes = True
    # Elman networks get below "without memory" by a tenth at most, with other settings: scripts/results/reproduced.md.
    recipe: ClassVar = RECIPE | {"hidden": 128, "cell": "gru", "rate": 3e-3, "steps": 3000}
    length_is = "the steps of the pause"

    @property
    def baselines(self) -> dict[str, float]:
        """Returns the nats per step of one who knows when to answer but not what, 10 log 8 / (T + 20)."""
        return {"without memory": SHOWN * math.log(SYMBOLS) / (self.length + 2 * SHOWN)}

    @property
    def published(self) -> list[Published]:
        figures = {"plain network": 0.0202, "GRU": 0.0197}
        at_1000 = [Published(figure, f"{name}, Bai et al. 2018") for name, figure in figures.items()]
        return at_1000 if self.length == 1000 else []

    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns tokens and targets, both [T + 20, B]."""
        shown = jax.random.randint(key, (SHOWN, size), 0, SYMBOLS)
        blanks = jnp.full((self.length + SHOWN, size), BLANK)
        inputs = jnp.concatenate([shown, blanks.at[self.length - 1].set(DELIMITER)])
        return Sequences(inputs, jnp.concatenate([blanks, shown]))
