"""The embedded Reber grammar: what stands at the beginning of a string decides what stands before its end."""

from __future__ import annotations

import functools
from typing import ClassVar, NamedTuple

import numpy as np

from jaxrnn.arguments import check_positive
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.tasks.base import Sequences, Task

SYMBOLS = "BTPSXVE"
# Reber's grammar: from each state the two symbols that may follow, and the state that each leads to.
GRAMMAR = {
    1: (("T", 2), ("P", 3)),
    2: (("S", 2), ("X", 4)),
    3: (("T", 3), ("V", 5)),
    4: (("X", 3), ("S", 6)),
    5: (("P", 4), ("V", 6)),
}
LAST = 6
LENGTH = 40  # steps of a batch to train on; one string in some thousands is longer


class Strings(NamedTuple):
    """Strings as tokens, and what may follow every symbol of them."""

    sequences: Sequences
    allowed: np.ndarray  # booleans [T, B, 7]: the symbols that may come next
    decision: np.ndarray  # [B], the step whose next symbol only the beginning tells


def batch(seed: int, size: int) -> Strings:
    """Draws a batch, the task being to tell the next symbol.

        B, then T or P, a string of Reber's grammar (B .. E), then the same T or P again, then E

    Args:
        seed: for the strings.
        size: B.

    Returns:
        Tokens [T, B] of all symbols but the last, the next ones as targets, and a mask over what is padding.

    Raises:
        ValueError: a size below 1.

    Source: Reber (1967), "Implicit learning of artificial grammars"; Hochreiter & Schmidhuber (1997), "Long short-term
    memory", experiment 1.

    >>> import jaxrnn.tasks.reber as reber
    >>> found = reber.batch(0, 2)
    >>> [reber.SYMBOLS[token] for token in found.sequences.inputs[:2, 0]][0]
    'B'
    """
    check_positive("size", size)
    random = np.random.default_rng(seed)
    strings = [_string(random) for _ in range(size)]
    lengths = np.array([len(symbols) - 1 for symbols, _ in strings])
    T = lengths.max()
    inputs, targets = np.zeros((2, T, size), np.int32)
    allowed = np.zeros((T, size, len(SYMBOLS)), bool)
    for b, (symbols, following) in enumerate(strings):
        tokens = list(map(SYMBOLS.index, symbols))
        inputs[: lengths[b], b], targets[: lengths[b], b] = tokens[:-1], tokens[1:]
        for t, several in enumerate(following):
            allowed[t, b, list(map(SYMBOLS.index, several))] = True
    mask = np.arange(T)[:, None] < lengths
    return Strings(Sequences(inputs, targets, mask=mask), allowed, lengths - 2)


def baseline(strings: Strings) -> float:
    """Computes the nats per symbol of one who knows the grammar and not the beginning: the least without memory."""
    choices = strings.allowed.sum(-1)  # [T, B]
    choices[strings.decision, np.arange(choices.shape[1])] = 2  # T or P: only the beginning tells which
    mask = strings.sequences.mask
    return float(np.log(np.where(mask, choices, 1)).sum() / mask.sum())


def _string(random: np.random.Generator) -> tuple[str, list[str]]:
    """Draws one string, and returns for each of its symbols but the last those that may follow."""
    frame = "TP"[random.integers(2)]
    symbols, following, state = "B" + frame + "B", ["TP", "B"], 1
    while state != LAST:
        arcs = GRAMMAR[state]
        following.append("".join(symbol for symbol, _ in arcs))
        symbol, state = arcs[random.integers(2)]
        symbols += symbol
    return symbols + "E" + frame + "E", [*following, "E", frame, "E"]


class EmbeddedReber(Task):
    """Draws fresh strings at every step, judged by a thousand others."""

    name = "reber"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats per symbol"
    inputs = outputs = len(SYMBOLS)
    tokens = classes = True
    recipe: ClassVar = {"hidden": 64, "input_scale": 1.0, "recurrent_scale": 1.0, "steps": 2000}

    @property
    def baselines(self) -> dict[str, float]:
        return {"the grammar, without the beginning": baseline(self._held_out)}

    @functools.cached_property
    def _held_out(self) -> Strings:
        return batch(2**31 + self.seed, 1000)

    def batch(self, step: int) -> Sequences:
        """Returns strings of one length, so that the step compiles once: strings that are longer are rare."""
        found = batch(self.seed * 10**6 + step, self.batch_size).sequences
        padding = [(0, max(0, LENGTH - len(found.inputs))), (0, 0)]
        return Sequences(*(np.pad(array[:LENGTH], padding) for array in (found.inputs, found.targets, found.mask)))

    def validation(self) -> list[Sequences]:
        return [self._held_out.sequences]
