"""Handwritten digits, pixel by pixel: 64 steps of one number each, and the digit is asked for at the end."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import numpy as np

from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.base import RECIPE, Sequences, Task

STEPS, CLASSES, TEST = 64, 10, 360


def load(permutation: int | None = None) -> tuple[Sequences, Sequences]:
    """Loads the 1,797 digits of 8 x 8 pixels that come with scikit-learn.

    Args:
        permutation: None for the pixels row by row, or a seed: the order is then shuffled, the same for all digits, so
            that what belongs together stands far apart.

    Returns:
        The training part, inputs [64, 1437, 1] from 0 to 1 and targets [1437]; and the last 360, of other writers.

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
    return Sequences(pixels[:, :-TEST], labels[:-TEST]), Sequences(pixels[:, -TEST:], labels[-TEST:])


class Digits(Task):
    """Shows the pixels row by row; in every epoch a new order, the last digits left out that do not fill a batch."""

    name = "digits"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats"
    inputs, outputs = 1, CLASSES
    last_step = classes = True
    baselines: ClassVar = {"chance": math.log(CLASSES)}  # nine of ten answers are wrong
    recipe: ClassVar = RECIPE | {"hidden": 128, "steps": 3000}
    permutation: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self._parts[0].targets.shape[0]
        if self.batch_size > count:
            raise ValueError(f"batch must not be more than the {count} digits there are, got {self.batch_size}")

    @functools.cached_property
    def _parts(self) -> tuple[Sequences, Sequences]:
        return load(self.permutation)

    def batch(self, step: int) -> Sequences:
        digits, size = self._parts[0], self.batch_size
        count = digits.targets.shape[0]
        epoch, index = divmod(step, count // size)
        order = np.random.default_rng([self.seed, epoch]).permutation(count)[index * size : (index + 1) * size]
        return Sequences(digits.inputs[:, order], digits.targets[order])

    def validation(self) -> list[Sequences]:
        return [self._parts[1]]


class PermutedDigits(Digits):
    """Shows the pixels in one order drawn at random."""

    name = "permuted-digits"
    permutation = 0
