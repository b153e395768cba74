"""Two writers of one folder: the second is refused, and changes nothing; the lock of a dead process is taken over."""

import os
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from jaxrnn import cli
from jaxrnn.training.run_folder import Run

HOLD = """
import pathlib, sys
from jaxrnn.training import disk
lock = disk.lock(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def locked(tmp_path):
    """Returns the folder of a run, and another process that writes there, or says so."""
    Run.create(tmp_path / "run", {"settings": {}}).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    yield tmp_path / "run", holder
    holder.kill()
    holder.communicate()


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(locked, table):
    folder, holder = locked
    before, who = snapshot(folder), f"process {holder.pid} on {socket.gethostname()}"
    for options in (["--resume"], ["--resume=auto"], ["--overwrite"]):
        result = CliRunner().invoke(cli.main, ["train", "--out", str(folder), *options])
        assert result.exit_code == 2
        assert who in result.output
        assert len(result.output.strip().splitlines()) == 1
        assert snapshot(folder) == before
        table.add("a second writer", "noticed", options=options)
    holder.kill()
    holder.wait()
    with Run.open(folder, writing=True):
        assert (folder / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    table.add("the lock of a dead process", "survived")


def test_a_lock_is_let_go_of(tmp_path):
    with (
        Run.create(tmp_path / "run", {}),
        pytest.raises(ValueError, match=f"is being written by process {os.getpid()}"),
    ):
        Run.open(tmp_path / "run", writing=True)
    Run.open(tmp_path / "run", writing=True).close()
    run = Run.open(tmp_path / "run")
    with pytest.raises(ValueError, match="was opened to read"):
        run.log({"step": 1, "seconds": 0.0})
    with pytest.raises(ValueError, match="was opened to read"):
        run.restore_latest({})
