"""The adding problem: of a long sequence of numbers two are marked, and their sum is asked for at the end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import check_positive
from jaxrnn.network.losses import squared_error
from jaxrnn.tasks.sequences import Sequences, Task, endless

BASELINE = 1 / 6  # mean squared error of always answering 1: the variance of the sum of two uniform numbers


def batch(key: Array, steps: int, size: int) -> Sequences:
    """A fresh batch.

        y = x_i + x_j        i in the first half of the sequence, j in the second, x uniform in [0, 1)

    The nearer number is up to T/2 steps back, the other one at least T/2: it has to be held all that time. Train a
    `jaxrnn.Network(..., jaxrnn.squared_error, last_step=True)` on it.

    Args:
        key: for the numbers and the marks.
        steps: T, 2 or more.
        size: B.

    Returns:
        Inputs [T, B, 2], a number from 0 to 1 and whether it is marked, and targets [B, 1].

    Raises:
        ValueError: a size below 1, fewer than two steps.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 4; in this form Arjovsky, Shah &
    Bengio (2016), "Unitary evolution recurrent neural networks", section 4.2.

    >>> import jax, jaxrnn.tasks.adding
    >>> inputs, targets, *_ = jaxrnn.tasks.adding.batch(jax.random.key(0), 10, 3)
    >>> bool(((inputs[..., 0] * inputs[..., 1]).sum(0) == targets[:, 0]).all()), inputs[..., 1].sum(0).tolist()
    (True, [2.0, 2.0, 2.0])
    """
    check_positive("steps", steps)
    check_positive("size", size)
    if steps < 2:
        raise ValueError(f"steps must be two at least, one for each number, got {steps}")
    key_x, key_i, key_j = jax.random.split(key, 3)
    x = jax.random.uniform(key_x, (steps, size))
    i = jax.random.randint(key_i, (size,), 0, steps // 2)
    j = jax.random.randint(key_j, (size,), steps // 2, steps)
    t = jnp.arange(steps)[:, None]
    marked = ((t == i) | (t == j)).astype(x.dtype)  # [T, B]
    return Sequences(jnp.stack([x, marked], -1), jnp.sum(x * marked, 0)[:, None])


def task(steps: int, size: int, seed: int = 0) -> Task:
    """Fresh sequences at every step, judged by a thousand others."""
    train, held_out = endless(lambda key, size: batch(key, steps, size), size, seed)
    return Task(
        name="adding",
        inputs=2,
        outputs=1,
        objective=squared_error,
        unit="mean squared error",
        batch=train,
        validation=held_out,
        baselines={"always one": BASELINE},
        last_step=True,
    )
