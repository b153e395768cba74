"""Temporal order: two symbols stand somewhere among distractors, and the class is which came first."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import check_positive
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.sequences import Sequences, Task, endless

DISTRACTORS, RELEVANT = 4, 2
TOKENS = DISTRACTORS + RELEVANT  # 0 .. 3 are distractors, 4 and 5 the symbols that count
CLASSES = RELEVANT**2
BASELINE = math.log(CLASSES)  # nats, by chance; three of four answers are wrong


def batch(key: Array, steps: int, size: int) -> Sequences:
    """A fresh batch.

        class = 2 a + b        the symbol a at a random step of T/10 .. 2T/10, the symbol b at one of 4T/10 .. 5T/10

    All other steps hold one of four distractors, and the answer is asked for at the last step: for
    `jaxrnn.Network(..., jaxrnn.softmax_cross_entropy, last_step=True)`.

    Args:
        key: for symbols and places.
        steps: T, 10 or more.
        size: B.

    Returns:
        Tokens [T, B] below `TOKENS`, and classes [B] below `CLASSES`.

    Raises:
        ValueError: a size below 1, fewer than ten steps.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 6a; in this form Pascanu, Mikolov &
    Bengio (2013), "On the difficulty of training recurrent neural networks", section 4.1.

    >>> import jax, jaxrnn.tasks.temporal_order
    >>> found = jaxrnn.tasks.temporal_order.batch(jax.random.key(0), 50, 3)
    >>> found.inputs.shape, (found.inputs >= 4).sum(0).tolist()
    ((50, 3), [2, 2, 2])
    """
    check_positive("steps", steps)
    check_positive("size", size)
    if steps < 10:
        raise ValueError(f"steps must be 10 at least, for the places of both symbols, got {steps}")
    keys = jax.random.split(key, 4)
    tokens = jax.random.randint(keys[0], (steps, size), 0, DISTRACTORS)
    symbols = jax.random.randint(keys[1], (2, size), 0, RELEVANT)
    first = jax.random.randint(keys[2], (size,), steps // 10, 2 * steps // 10)
    second = jax.random.randint(keys[3], (size,), 4 * steps // 10, 5 * steps // 10)
    t = jnp.arange(steps)[:, None]
    inputs = jnp.where(t == first, DISTRACTORS + symbols[0], tokens)
    inputs = jnp.where(t == second, DISTRACTORS + symbols[1], inputs)
    return Sequences(inputs, RELEVANT * symbols[0] + symbols[1])


def task(steps: int, size: int, seed: int = 0) -> Task:
    """Fresh sequences at every step, judged by a thousand others."""
    train, held_out = endless(lambda key, size: batch(key, steps, size), size, seed)
    return Task(
        name="temporal order",
        inputs=TOKENS,
        outputs=CLASSES,
        objective=softmax_cross_entropy,
        unit="nats",
        batch=train,
        validation=held_out,
        baselines={"chance": BASELINE},
        last_step=True,
        tokens=True,
        classes=True,
    )
