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
    with pytest.raises(ValueError, match=r"large.safetensors' would take 8.1 kB at least, .* has 5.0 kB of memory"):
        interop.load(tmp_path / "large.safetensors")


def loaded(path):
    """Returns what a file holds, and what is said of one that cannot be read."""
    try:
        return interop.load(path), None
    except ValueError as error:
        return {}, str(error)


def test_single_damages(tmp_path):
    """Bytes changed, files cut: what is read has the shapes that the file says, and all else is a ValueError."""
    path, draw, ends = tmp_path / "net.safetensors", random.Random(0), {"read": 0, "refused": 0}
    interop.save(path, {"U": np.ones((3, 2), np.float32), "b": np.zeros(3, np.int64), "s": np.ones(())})
    content = path.read_bytes()
    for _ in range(400):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([len(content)] * 3 + [draw.randrange(len(content))])])
        read, refused = loaded(path)
        assert refused is None or "net.safetensors" in refused
        assert all(array.nbytes <= len(content) for array in read.values())
        ends["read" if refused is None else "refused"] += 1
    print(f"\n400 damaged files: {ends}")
    assert min(ends.values()) > 50
