"""A full disk, told in a line that says how much room is missing."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import shutil
from collections.abc import Iterator

import chex

from jaxrnn.layer.memory import nbytes
from jaxrnn.printing import in_bytes

BESIDES = 2**17  # bytes that a checkpoint takes besides its arrays
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries of other languages write of these, of which no number is left.
WORDS = ("ENOSPC", "EDQUOT", "EFBIG", "No space left", "Disk quota exceeded", "File too large", "file size limit")


@contextlib.contextmanager
def room_for(tree: chex.ArrayTree, folder: pathlib.Path) -> Iterator[None]:
    """Raises an OSError that says how much is missing where a pytree, saved within, finds no room in a folder.

    It is looked for before anything is written, which would take what room there is and leave half a checkpoint.
    """
    size, free = nbytes(tree) + BESIDES, shutil.disk_usage(folder).free
    if free < size:
        raise _no_room(folder, size, f"{in_bytes(free)} are free, {in_bytes(size - free)} are missing")
    try:
        yield
    except Exception as error:  # of many kinds, and a hundred lines long
        if not is_full(error):
            raise
        raise _no_room(folder, size, _limit() or f"{in_bytes(free)} were free; is there a quota?") from error


def is_full(error: BaseException | None) -> bool:
    """Tells whether an error, or one that it came of, is that of a disk, a quota or a file that is full."""
    if error is None:
        return False
    found = isinstance(error, OSError) and error.errno in FULL
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    causes = (error.__cause__, error.__context__, *inner)
    return found or any(word in str(error) for word in WORDS) or any(map(is_full, causes))


def _no_room(folder: pathlib.Path, size: int, why: str) -> OSError:
    words = f"no room for a checkpoint of {in_bytes(size)}: {why}; the one before stands, for --resume"
    return OSError(errno.ENOSPC, words, str(folder))


def _limit() -> str | None:
    """Returns what limits the size of a file in this process, in words; None where nothing does."""
    with contextlib.suppress(ImportError):  # elsewhere there is no such limit
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            return f"a file may have {in_bytes(limit)} at most (ulimit -f)"
    return None
