"""Values as short text: what parameters and networks print as, and what messages say of them."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 100  # of a line; what is longer takes a line for each of its parts
BRIEF = 200  # characters of a value in a message


def as_text(value: Any, width: float = WIDTH) -> str:
    """Writes a value, say a pytree of parameters, by the dtypes and shapes of its arrays.

        ElmanParams(U: float32[128,65], W: float32[128,128], b=None)

    A colon stands before a dtype and a shape, an equals sign before a value: of a single number the value is written.
    It takes whatever a user's operations put into a pytree, tracers and deleted arrays included.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields, defaults = zip(value._fields, value, strict=True), getattr(value, "_field_defaults", {})
        left_out = {name for name, default in defaults.items() if default is None}
        parts = [_field(name, part, width) for name, part in fields if part is not None or name not in left_out]
        return _join(f"{type(value).__name__}(", parts, ")", width)
    if type(value) is dict:
        return _join("{", [f"{key!r}: {as_text(part, width)}" for key, part in value.items()], "}", width)
    if type(value) is list:
        return _join("[", [as_text(part, width) for part in value], "]", width)
    if type(value) is tuple:
        return _join("(", [as_text(part, width) for part in value], ",)" if len(value) == 1 else ")", width)
    return _dtype_and_shape(value) or _single(value, width)


def brief(value: Any) -> str:
    """Writes a value for a message, within a line."""
    return textwrap.shorten(as_text(value, math.inf), BRIEF, placeholder=" ...")


def expression(configuration: Any) -> str:
    """Writes a frozen dataclass as the expression that makes it, without what is as it is by default.

    LSTM(inputs=65, hidden=128)
    """
    shown = [field for field in dataclasses.fields(configuration) if field.repr]
    values = [(field.name, getattr(configuration, field.name), field.default) for field in shown]
    parts = [_field(name, value, WIDTH) for name, value, default in values if not _same(value, default)]
    return _join(f"{type(configuration).__name__}(", parts, ")", WIDTH)


def in_bytes(size: float) -> str:
    """Writes a number of bytes as people read it."""
    if size < 1000:
        return f"{size:,.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:,.1f} {unit}"
    return f"{size / 1000:,.0f} TB"


def _join(opening: str, parts: Sequence[str], closing: str, width: float) -> str:
    """Puts parts into brackets, in one line where they fit."""
    line = opening + ", ".join(parts) + closing
    if not parts or (len(line) <= width and "\n" not in line):
        return line
    lines = "".join(f"{part},\n" for part in parts)
    return f"{opening}\n{textwrap.indent(lines, '    ')}{closing.lstrip(',')}"


def _field(name: str, value: Any, width: float) -> str:
    return f"{name}{': ' if _dtype_and_shape(value) else '='}{as_text(value, width)}"


def _dtype_and_shape(value: Any) -> str | None:
    """Writes an array; of what is none, or is a single number that can be read, returns None."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None or _is_number(value):
        return None
    return f"{dtype}[{','.join(map(str, shape))}]"


def _is_number(value: Any) -> bool:
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)) or isinstance(value, jax.core.Tracer) or value.shape:
        return False
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        return False
    return not isinstance(value, jax.Array) or (value.is_fully_addressable and not value.is_deleted())


def _single(value: Any, width: float) -> str:
    if _is_number(value):
        return str(np.asarray(value)[()])
    name = getattr(value, "__name__", None)
    text = name if callable(value) and isinstance(name, str) else repr(value)
    if width < math.inf:
        return text
    return " ".join(re.sub(r"(?<=[([{])\n\s*|,\n\s*(?=[)\]}])", "", text).split("\n"))


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and value == default)
