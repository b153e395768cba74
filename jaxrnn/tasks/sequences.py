"""What a task is: batches of sequences to learn from and to be judged by, and what there is to beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from chex import Array


class Sequences(NamedTuple):
    """One batch of sequences."""

    inputs: Any  # [T, B, D], or tokens [T, B]
    targets: Any  # [T, B, ...]; of a task with one answer for a sequence [B, ...]
    mask: Any = None  # [T, B], False where a sequence has ended; None where all are of one length
    reset: Any = None  # [T, B], True where another sequence begins
    fresh: Any = True  # whether the state carried from the batch before is dropped


def endless(
    make: Callable[[Array, int], Sequences], size: int, seed: int
) -> tuple[Callable[[int], Sequences], Callable[[], list[Sequences]]]:
    """Of sequences that are drawn by `make(key, size)`: a fresh batch for every step, and a thousand to validate."""
    key, key_validation = jax.random.split(jax.random.key(seed))
    held_out = [jax.random.fold_in(key_validation, i) for i in range(5)]
    return lambda step: make(jax.random.fold_in(key, step), size), lambda: [make(each, 200) for each in held_out]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task, with its sizes and its data."""

    name: str
    inputs: int  # D, features or tokens
    outputs: int  # V
    objective: Any
    unit: str  # of the error, in words
    batch: Callable[[int], Sequences]  # of a training step, counted from 0: a function of the position alone
    validation: Callable[[], Iterable[Sequences]]
    test: Callable[[], Iterable[Sequences]] | None = None  # where there is another part, never looked at in training
    baselines: dict[str, float] = dataclasses.field(default_factory=dict)  # errors by name, without a network
    last_step: bool = False  # one answer for a sequence
    tokens: bool = False
    classes: bool = False  # whether the answers are right or wrong
