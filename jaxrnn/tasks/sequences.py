"""One batch of sequences, as tasks give them and training takes them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Sequences(NamedTuple):
    """Holds one batch of sequences."""

    inputs: Any  # [T, B, D], or tokens [T, B]
    targets: Any  # [T, B, ...]; of a task with one answer for a sequence [B, ...]
    mask: Any = None  # [T, B], False where a sequence has ended; None where all are of one length
    reset: Any = None  # [T, B], True where another sequence begins
    fresh: Any = True  # whether the state carried from the batch before is dropped
