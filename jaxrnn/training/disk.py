"""Files and folders that are there whole or not at all, sums that tell damage, and a lock that keeps others out."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import socket
from typing import Any

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
LOCK = ".lock"
BESIDE, REMOVED = ".tmp", ".old"  # what is not yet there, and what is no longer: a crash may leave either


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that holds all of the text, or what it held before: written beside, synced, and renamed."""
    beside = path.with_name(path.name + BESIDE)
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        sync(beside)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # of a full disk, half a file would keep what little there is
        raise
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or what a folder says of its files, is on the disk and not only in memory."""
    try:
        descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # not every system syncs folders, or lets them be opened
            raise


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a folder, by which it is gone for whoever looks, and returns what is left to delete."""
    aside = path.with_name(path.name + REMOVED)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    return aside


def seal(folder: pathlib.Path) -> None:
    """Writes the sums of all files of a folder into it, and syncs everything there."""
    lines = [f"{digest}  {name}\n" for name, digest in _sums(folder).items()]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
    # All at once, so that the disk has to wait once and not for each.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(sync, [folder, *folder.rglob("*")]))


def find_damage(folder: pathlib.Path) -> str | None:
    """Returns what is wrong with a sealed folder, in words; None where every file is as it was when it was sealed.

    Files beside them whose names begin with a dot, which file systems and desktops leave, are not looked at.
    """
    if not folder.is_dir():
        return "it is missing"
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        kept = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        found = _sums(folder)
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read" if isinstance(error, ValueError) else str(error)
    strange = {name for name in found.keys() - kept.keys() if not pathlib.PurePath(name).name.startswith(".")}
    for what, names in (("is missing", kept.keys() - found.keys()), (f"is not in {SUMS}", strange)):
        if names:
            return f"{min(names)} {what}"
    if not kept:
        return f"{SUMS} is empty"
    return next((f"{name} has changed" for name, digest in kept.items() if found[name] != digest), None)


def _sums(folder: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a folder but the sums themselves, by its path in there."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != SUMS:
            with open(path, "rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def lock(folder: pathlib.Path) -> Any:
    """Locks a folder against other writers, until `release()` of what is returned, or the end of the process.

    The kernel holds the lock, and lets go of that of a process that has died. Who holds it stands in the file.

    Raises:
        ValueError: another one writes there; its process and host are told.
    """
    import filelock

    path = folder / LOCK
    held = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        held.acquire()
    except filelock.Timeout:
        who = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
        raise ValueError(f"{str(folder)!r} is being written by {who}: wait for it, or choose another --out") from None
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    return held
