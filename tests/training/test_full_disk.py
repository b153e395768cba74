"""A full disk: told with what is missing, before anything is written, and the last checkpoint stands."""

import errno
import os
import resource
import shutil
import types

import numpy as np
import pytest

from jaxrnn.training import disk, experiment, full_disk
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings


@pytest.fixture
def halfway(tmp_path):
    """Returns a function that trains, and changes the machine before the second of two saves."""

    def train(change):
        now = experiment.build(Settings(task="adding", length=10, hidden=64, batch=2, steps=4, every=2))
        run = Run.create(tmp_path / "run", experiment.record(now))
        with pytest.raises(OSError, match="no room for a checkpoint") as caught:
            now.train(run, now.initial_state(), lambda metrics: change() if "loss" in metrics else None)
        assert int(now.state_of(run).step) == 2
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(run.path)
        return caught.value.strerror

    return train


def test_a_disk_that_is_full(halfway, monkeypatch):
    def fill():
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=50_000))

    told = halfway(fill)
    assert "183.8 kB: 50.0 kB are free, 133.8 kB are missing; the one before stands" in told


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run.create(tmp_path / "run", {}) as run:
        run.save({"a": np.ones(3)}, 1)
        monkeypatch.setattr(disk, "seal", fail)
        with pytest.raises(OSError, match="No space"):
            run.save({"a": np.ones(3)}, 2)
        assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["1"]


# Writes that end after the save that failed find no loop to tell.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_of_the_size_of_files(halfway):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        told = halfway(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "a file may have 4.0 kB at most (ulimit -f)" in told


def chained(error):
    try:
        try:
            raise error
        except OSError as cause:
            raise ValueError("a checkpoint cannot be written") from cause
    except ValueError as found:
        return found


@pytest.mark.parametrize("code", full_disk.FULL)
def test_what_a_full_disk_looks_like(code, tmp_path):
    error = OSError(code, os.strerror(code))
    words = [
        error,
        chained(error),
        ValueError(f"RESOURCE_EXHAUSTED: Failed writing [OS error {code}: {os.strerror(code)}]"),
    ]
    for found in [*words, ExceptionGroup("several", [ValueError("else"), chained(error)])]:
        assert full_disk.is_full(found)
        with pytest.raises(OSError, match=r"were free; is there a quota\?"), full_disk.room_for(np.ones(3), tmp_path):
            raise found


def test_other_errors_are_what_they_are(tmp_path):
    for error in (ValueError("shapes differ"), OSError(errno.EACCES, "Permission denied")):
        assert not full_disk.is_full(error)
        with pytest.raises(type(error), match=str(error.args[-1])), full_disk.room_for(np.ones(3), tmp_path):
            raise error
