"""Arrays of other libraries as NumPy arrays, and the checks of their names and shapes."""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike


def as_numpy(name: str, value: ArrayLike) -> np.ndarray:
    """Returns a NumPy copy of the array, row by row in memory: a file of safetensors takes the bytes as they lie."""
    try:
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        cause = "a torch tensor must be detached, on the CPU, and not in bfloat16"
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}; {cause}") from error


def as_floats(name: str, value: ArrayLike) -> np.ndarray:
    """Returns a NumPy copy of an array of floats, row by row in memory; raises where the dtype is another."""
    array = as_numpy(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def check_names(name: str, found: Collection[str], expected: Collection[str], cause: str) -> None:
    """Raises unless the names found are those expected."""
    missing = [each for each in expected if each not in found]
    unknown = [each for each in found if each not in expected]
    if missing or unknown:
        lists = (", ".join([*names[:8], *["..."] * (len(names) > 8)]) or "none" for names in (missing, unknown))
        raise ValueError("{} do not fit: missing {}; unknown {}; {}".format(name, *lists, cause))


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...], cause: str) -> None:
    """Raises unless the array has the shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}; {cause}")
