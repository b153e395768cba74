"""Data files from strangers: what a header claims is held against what is there, before memory is asked for."""

import io
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from scipy.io import savemat

from jaxrnn.tasks import chorales, file_sizes


def refused(path, message):
    """Raises unless the file is refused with the message, and little memory was asked for."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            chorales.load(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def archive(path, source, **members):
    """Writes an .npz file in which some members are other bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, members.get(info.filename.removesuffix(".npy"), old.read(info)))
    return path


def header(shape, dtype="|u1"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue()


@pytest.mark.parametrize("shape", [(10**9, 88), (2**62, 88), (-5, 88), (17, 88)])
def test_an_npz_file_that_claims_more_than_it_has(files, tmp_path, shape):
    path = archive(tmp_path / "bad.npz", files[0] / "rolls.npz", train=header(shape) + bytes(16 * 88))
    refused(path, r"train\.npy claims|cannot be read")


def test_an_npz_file_that_inflates_to_more_than_anyone_sings(files, tmp_path, monkeypatch):
    monkeypatch.setattr(file_sizes, "MOST", 20_000)
    path = archive(tmp_path / "bad.npz", files[0] / "rolls.npz", train=header((300, 88)) + bytes(300 * 88))
    refused(path, "more than 20,000 bytes")


@pytest.mark.parametrize("compress", [False, True])
def test_a_mat_file_is_read_whichever_way_it_was_saved(files, tmp_path, compress):
    _, parts = files
    cells = {f"{part}data": np.empty((1, len(found)), object) for part, found in parts.items()}
    for part, found in parts.items():
        cells[f"{part}data"][0, :] = found
    savemat(tmp_path / "rolls.mat", cells | {"else": {"a": 1.0}}, do_compression=compress)
    for part, found in zip(chorales.PARTS, chorales.load(tmp_path / "rolls.mat"), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(parts[part], found, strict=True))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (struct.pack("<2i", 5, 88), struct.pack("<2i", 2**30, 88)),  # a roll
        (struct.pack("<2i", 1, 3), struct.pack("<2i", 2**20, 3)),  # an array of them
        (struct.pack("<2i", 5, 88), struct.pack("<2i", -5, 88)),
        (struct.pack("<2I", 2, 440), struct.pack("<2I", 2, 2**31)),  # the bytes of a roll
    ],
)
def test_a_mat_file_that_claims_more_than_it_has(files, tmp_path, old, new):
    content = (files[0] / "rolls.mat").read_bytes()
    assert old in content
    (tmp_path / "bad.mat").write_bytes(content.replace(old, new, 1))
    refused(tmp_path / "bad.mat", r"claims .* bytes or entries")


def test_a_mat_file_that_inflates_to_more_than_anyone_sings(files, tmp_path, monkeypatch):
    monkeypatch.setattr(file_sizes, "MOST", 20_000)
    savemat(tmp_path / "bomb.mat", {"traindata": np.zeros((300, 88), np.uint8)}, do_compression=True)
    refused(tmp_path / "bomb.mat", "more than 20,000 bytes")


@pytest.mark.parametrize("content", [b"\0" * 200, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(500)])
def test_other_versions_of_mat_files_are_told(tmp_path, content):
    (tmp_path / "other.mat").write_bytes(content)
    refused(tmp_path / "other.mat", "no header of MATLAB 5 to 7")


def test_arrays_within_arrays_without_end(files, tmp_path):
    """A file whose cells hold cells hold cells: told, and not followed until the stack is full."""
    element = b""
    for _ in range(20_000):
        element = struct.pack("<2I", 14, len(element) + 48) + struct.pack(
            "<4I2I2i2I", 6, 8, 1, 0, 5, 8, 1, 1, 1, 0
        ) + element  # fmt: skip
    content = (files[0] / "rolls.mat").read_bytes()[:128] + element
    (tmp_path / "deep.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a \.mat file|must have the arrays"):
        chorales.load(tmp_path / "deep.mat")


@pytest.mark.parametrize("name", ["rolls.mat", "packed.mat", "rolls.npz"])
def test_damaged_files_are_read_or_refused(files, tmp_path, name):
    """Single bytes changed at random, which mostly hit sizes and values: never another error, never much memory."""
    content = (files[0] / name.replace("packed", "rolls")).read_bytes()
    if name == "packed.mat":
        from scipy.io import loadmat

        kept = {key: value for key, value in loadmat(files[0] / "rolls.mat").items() if key[0] != "_"}
        savemat(tmp_path / "packed.mat", kept, do_compression=True)
        content = (tmp_path / "packed.mat").read_bytes()
    draw, refusals = random.Random(0), 0
    tracemalloc.start()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 4])):
            damaged[draw.randrange(len(content))] = draw.randrange(256)
        path = tmp_path / f"damaged{(files[0] / name).suffix}"
        path.write_bytes(damaged[: draw.choice([len(content)] * 3 + [draw.randrange(len(content))])])
        try:
            chorales.load(path)
        except ValueError:
            refusals += 1
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert refusals > 50
