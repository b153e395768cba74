"""Libraries that only some modules need: an error, where one is missing, that says what installs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def installed_by(extra: str, library: str) -> Iterator[None]:
    """Turns the error of an import of a library that is missing into one that names the extra of jaxrnn with it.

    >>> from jaxrnn.interop.extras import installed_by
    >>> with installed_by("flax", "flux"):
    ...     import flux
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: flux is not installed, which this needs: pip install "jaxrnn[flax]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise  # of something that the library itself needs
        words = f'{library} is not installed, which this needs: pip install "jaxrnn[{extra}]"'
        raise ModuleNotFoundError(words, name=error.name) from None
