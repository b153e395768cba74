"""What several processes that train together do as one: decide, and stop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

LONGEST = 2048  # bytes of an error message that are handed on


def on_first(act: Callable[[], int]) -> int:
    """Calls a function in the first process; gives all of them the number that it returned, or its error.

    Raises:
        ValueError, OSError: what the function raised; in the other processes a ValueError with the same words.
    """
    if jax.process_count() == 1:
        return act()
    number, error = 0, None
    if jax.process_index() == 0:
        try:
            number = act()
        except (ValueError, OSError) as caught:
            error = caught
    words = np.zeros(LONGEST, np.uint8)
    if error is not None:
        said = (str(error) or type(error).__name__).encode()[:LONGEST]
        words[: len(said)] = np.frombuffer(said, np.uint8)
    number, words = multihost_utils.broadcast_one_to_all((np.int32(number), words))
    if error is not None:
        raise error
    if np.any(words):
        raise ValueError(bytes(words).rstrip(b"\0").decode(errors="replace"))
    return int(number)


def largest_of_all(number: int) -> int:
    """Returns the largest of the numbers of all processes, which ask together."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
