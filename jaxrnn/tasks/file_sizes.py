"""Sizes in the headers of data files, held against the bytes that are there, before anything is made of that size.

A header of a few bytes can claim arrays larger than any memory, and a compressed file can inflate to them. What is read
by NumPy and SciPy is looked through here first; values are left to them.

Source: MathWorks, "MAT-File Format", level 5; NumPy enhancement proposal 1, the format of .npy files.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator

import numpy as np

MOST = 2**30  # bytes that a file may have, and inflate to; collections of piano rolls have some millions
ORDERS = {b"IM": "<", b"MI": ">"}  # of the bytes, by the mark that ends the header of a .mat file
MATRIX, COMPRESSED = 14, 15  # types of its elements
CELLS, PLAIN = 1, (4, *range(6, 16))  # classes of its arrays: arrays of arrays; characters and numbers


def check_npz(archive: zipfile.ZipFile, names: Collection[str]) -> None:
    """Raises a ValueError where an array of an .npz file claims more than the file has, or the file is too large."""
    members = [info for info in archive.infolist() if info.filename.removesuffix(".npy") in names]
    _check_size(sum(info.file_size for info in members))
    for info in members:
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            _check_claim(info.filename, math.prod(shape) * dtype.itemsize, info.file_size - member.tell())


def check_mat(content: bytes, names: Collection[str]) -> None:
    """Raises a ValueError where an array of a .mat file (of MATLAB 5 to 7) claims more than the file has."""
    order = ORDERS.get(content[126:128])
    if order is None or content[124:126] not in (b"\0\1", b"\1\0"):
        raise ValueError("it has no header of MATLAB 5 to 7 (one of version 7.3 must be saved again with -v7)")
    left = MOST
    for kind, element in _elements(memoryview(content)[128:], order):
        if kind == COMPRESSED:
            inflated = _inflate(element, left)
            left -= len(inflated)
            for inner, array in _elements(memoryview(inflated), order):
                _check_array(inner, array, order, names)
        else:
            _check_array(kind, element, order, names)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields type and content of one element after another."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, padding = at + 8, -size % 8 if kind != COMPRESSED else 0
        if kind >> 16:  # four bytes at most, which stand in the tag itself
            kind, size, start, padding = kind & 0xFFFF, kind >> 16, at + 4, 0
            _check_claim("an element", size, 4)
        _check_claim("an element", size, len(data) - start)
        yield kind, data[start : start + size]
        at = max(start + size + padding, at + 8)


def _inflate(element: memoryview, most: int) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(element, most + 1)
    _check_size(len(inflated) + MOST - most)
    return inflated


def _check_array(kind: int, array: memoryview, order: str, names: Collection[str] | None) -> None:
    """Raises unless an array has the values that its sizes claim; names are those that will be read, None for all."""
    if kind != MATRIX or not array:
        return
    flags, sizes, name, *parts = _elements(array, order)
    if names is not None and bytes(name[1]).decode("latin-1") not in names:
        return
    count = math.prod(struct.unpack(f"{order}{len(sizes[1]) // 4}i", sizes[1]))
    of_class = struct.unpack_from(f"{order}I", flags[1])[0] & 0xFF
    if of_class == CELLS:
        _check_claim("an array of arrays", count, len(parts))
        for inner, cell in parts:
            _check_array(inner, cell, order, None)
    elif of_class in PLAIN:
        _check_claim("an array", count, len(parts[0][1]) if parts else 0)
    else:
        raise ValueError(f"it has an array of class {of_class}, and numbers are wanted")


def _check_size(size: int) -> None:
    if size > MOST:
        raise ValueError(f"its arrays have more than {MOST:,} bytes")


def _check_claim(name: str, claimed: int, there: int) -> None:
    if not 0 <= claimed <= there:
        raise ValueError(f"{name} claims {claimed:,} bytes or entries, and {there:,} are there")
