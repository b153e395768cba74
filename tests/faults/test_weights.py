"""Damaged files of safetensors: read, or refused by name, and little memory is asked for."""

import json
import random
import tracemalloc

import numpy as np
import pytest

from jaxrnn import interop

pytest.importorskip("safetensors")


def claiming(**tensor):
    """Returns a file of eight bytes of data, whose header claims what is given."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        claiming(shape=[2**40]),
        claiming(shape=[2**62, 4]),
        claiming(shape=[2**40], data_offsets=[0, 2**42]),
        claiming(data_offsets=[8, 16]),
        claiming(data_offsets=[-8, 0]),
        claiming(shape=[-2]),
        claiming(shape=[1], data_offsets=[0, 4]),
        (2**40).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little"),
        b"[" * 10_000,
        len(b"[" * 10_000).to_bytes(8, "little") + b"[" * 10_000,
    ],
)
def test_headers_that_claim_what_is_not_there(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        interop.load(tmp_path / "bad.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_file_larger_than_memory_is_not_read(tmp_path, monkeypatch):
    interop.save(tmp_path / "large.safetensors", {"a": np.ones(1000)})
    monkeypatch.setattr("jaxrnn.arguments._memory", lambda: 5000)
    with pytest.raises(ValueError, match=r"large.safetensors' would take 8.2 kB at least, .* has 5.0 kB of memory"):
        interop.load(tmp_path / "large.safetensors")


def outcome(path, expected):
    """Returns what came of a damage: read as it was, refused, or read as something else."""
    try:
        found = interop.load(path)
    except ValueError as error:
        return "noticed" if "net.safetensors" in str(error) else "lost"
    same = found.keys() == expected.keys()
    return "survived" if same and all(np.array_equal(found[name], expected[name]) for name in found) else "lost"


def test_single_damages(tmp_path, table):
    """Bytes changed, files cut: refused, or in the sum's own name and the spaces, where nothing comes of it."""
    path, draw = tmp_path / "net.safetensors", random.Random(0)
    arrays = {"U": np.ones((3, 2), np.float32), "b": np.zeros(3, np.int64), "s": np.ones(())}
    interop.save(path, arrays)
    content, fault = path.read_bytes(), "a safetensors file damaged"
    for _ in range(400):
        damaged, at = bytearray(content), draw.randrange(len(content))
        damaged[at] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([len(content)] * 3 + [draw.randrange(len(content))])])
        table.add(fault, outcome(path, arrays), at=at)
    assert table.lost(fault) == 0
    assert table.counts[fault]["noticed"] > 300


def test_numbers_of_other_libraries_are_read_as_they_are(tmp_path):
    """Their files have no sum, and may have metadata of another kind, or none."""
    content = claiming()
    for metadata in (b"", b'"__metadata__": {}, ', b'"__metadata__": {"format": "pt"}, '):
        header = content[8:-8].replace(b"{", b"{" + metadata, 1)
        (tmp_path / "net.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        assert interop.load(tmp_path / "net.safetensors")["a"].tolist() == [0, 0]
