"""Handwritten digits, pixel by pixel: 64 steps of one number each, and the digit is asked for at the end."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxrnn.arguments import check_positive
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.sequences import Sequences, Task

STEPS, CLASSES, TEST = 64, 10, 360
BASELINE = math.log(CLASSES)  # nats, by chance; nine of ten answers are wrong


class Digits(NamedTuple):
    """The data set, time-major."""

    train: Sequences  # inputs [64, 1437, 1] from 0 to 1, targets [1437]
    test: Sequences  # inputs [64, 360, 1], targets [360]


def load(permutation: int | None = None) -> Digits:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn; the last 360, of other writers, are the test part.

    Args:
        permutation: None for the pixels row by row, or a seed: the order is then shuffled, the same for all digits, so
            that what belongs together stands far apart.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; the extra `digits` has it.

    Source: Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits"; the task, on larger digits, is that
    of Le, Jaitly & Hinton (2015), "A simple way to initialize recurrent networks of rectified linear units".
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('digits needs scikit-learn: pip install ".[digits]"') from error
    data = load_digits()
    order = np.arange(STEPS) if permutation is None else np.random.default_rng(permutation).permutation(STEPS)
    pixels = (data.data[:, order].T[..., None] / 16).astype(np.float32)  # [64, 1797, 1]
    labels = data.target.astype(np.int32)
    return Digits(Sequences(pixels[:, :-TEST], labels[:-TEST]), Sequences(pixels[:, -TEST:], labels[-TEST:]))


def task(size: int, seed: int = 0, permutation: int | None = None) -> Task:
    """A new order of the training part in every epoch, the last digits of each left out that do not fill a batch."""
    digits = load(permutation)
    count = digits.train.targets.shape[0]
    check_positive("size", size)
    if size > count:
        raise ValueError(f"size must not be more than the {count} digits there are, got {size}")

    def batch(step: int) -> Sequences:
        epoch, index = divmod(step, count // size)
        order = np.random.default_rng([seed, epoch]).permutation(count)[index * size : (index + 1) * size]
        return Sequences(digits.train.inputs[:, order], digits.train.targets[order])

    return Task(
        name="digits" if permutation is None else "permuted digits",
        inputs=1,
        outputs=CLASSES,
        objective=softmax_cross_entropy,
        unit="nats",
        batch=batch,
        validation=lambda: [digits.test],
        baselines={"chance": BASELINE},
        last_step=True,
        classes=True,
    )
