"""Copy memory: ten symbols are shown, and asked for again after a long pause."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import check_positive
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.sequences import Sequences, Task, endless

SYMBOLS, SHOWN = 8, 10
BLANK, DELIMITER = SYMBOLS, SYMBOLS + 1
TOKENS = SYMBOLS + 2  # of the inputs
CLASSES = SYMBOLS + 1  # of the targets: the symbols, and the blank


def baseline(pause: int) -> float:
    """Nats per step of a network without memory, which knows when to answer but not what: 10 log 8 / (T + 20)."""
    return SHOWN * math.log(SYMBOLS) / (pause + 2 * SHOWN)


def batch(key: Array, pause: int, size: int) -> Sequences:
    """A fresh batch.

        inputs    ten symbols of eight, T - 1 blanks, a delimiter, ten blanks
        targets   T + 10 blanks, the ten symbols

    Args:
        key: for the symbols.
        pause: T.
        size: B.

    Returns:
        Tokens [T + 20, B] below `TOKENS`, and targets [T + 20, B] below `CLASSES`.

    Raises:
        ValueError: a size below 1.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; in this form Arjovsky, Shah & Bengio (2016),
    "Unitary evolution recurrent neural networks", section 4.1.

    >>> import jax, jaxrnn.tasks.copy_memory
    >>> found = jaxrnn.tasks.copy_memory.batch(jax.random.key(0), 5, 3)
    >>> bool((found.inputs[:10] == found.targets[-10:]).all()), found.inputs[10:, 0].tolist()
    (True, [8, 8, 8, 8, 9, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8])
    """
    check_positive("pause", pause)
    check_positive("size", size)
    shown = jax.random.randint(key, (SHOWN, size), 0, SYMBOLS)
    blanks = jnp.full((pause + SHOWN, size), BLANK)
    inputs = jnp.concatenate([shown, blanks.at[pause - 1].set(DELIMITER)])
    return Sequences(inputs, jnp.concatenate([blanks, shown]))


def task(pause: int, size: int, seed: int = 0) -> Task:
    """Fresh sequences at every step, judged by a thousand others."""
    train, held_out = endless(lambda key, size: batch(key, pause, size), size, seed)
    return Task(
        name="copy",
        inputs=TOKENS,
        outputs=CLASSES,
        objective=softmax_cross_entropy,
        unit="nats per step",
        batch=train,
        validation=held_out,
        baselines={"without memory": baseline(pause)},
        tokens=True,
        classes=True,
    )
