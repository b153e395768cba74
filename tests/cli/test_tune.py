"""`jaxrnn tune`: measures, says what it found, and keeps it where every "auto" reads it."""

import errno
import importlib
import json
import math
import os

import pytest

from jaxrnn.gradients.calibrate import Timings
from jaxrnn.layer import machine
from jaxrnn.layer.machine import MB, Limits

tune = importlib.import_module("jaxrnn.cli.tune")  # `jaxrnn.cli.tune` is the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns the folder that is the user's for caches, and lets networks take what a machine of small caches takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seconds = {64: 4.0, 32: 3.0, 16: 2.0, 8: 1.5, 4: 1.0}
    made = lambda problem, seconds_given: Timings(str(problem), 64, 256, MB, seconds)
    monkeypatch.setattr(tune, "measure", made)
    yield tmp_path / "cache" / "jaxrnn"
    machine._limits_of.cache_clear()


def test_what_is_measured_is_kept_and_decides(call, folder):
    result = call("tune")
    assert result.exit_code == 0, result.output
    (path,) = folder.iterdir()
    assert str(path) in result.output
    assert machine.device_name() in result.output
    assert "auto after takes x 1.00 of the best K at the median, x 1.00 at most" in result.output
    machine._limits_of.cache_clear()
    found = machine.limits()
    assert 4 * MB <= found.cache_bytes < 6 * MB
    facts = json.loads(path.read_text())
    assert facts["milliseconds"]
    assert facts["jax"]
    assert facts["date"]
    call("tune")
    assert len(list(folder.iterdir())) == 1


def test_it_is_forgotten(call, folder):
    call("tune")
    result = call("tune", "--forget")
    assert result.exit_code == 0
    assert "Deleted" in result.output
    assert list(folder.iterdir()) == []
    machine._limits_of.cache_clear()
    assert machine.limits() == machine.default_limits("cpu", machine.USUAL_CACHE)
    assert "nothing to delete" in call("tune", "--forget").output


def test_what_a_busy_machine_says_is_not_kept(call, folder, monkeypatch):
    quiet = tune.measure
    monkeypatch.setattr(tune, "measure", lambda *given: quiet(*given)._replace(disturbed=2.5))
    result = call("tune")
    assert result.exit_code == 1
    assert "Nothing is kept: a usual call took 2.5 times as long as" in result.output
    assert list(folder.iterdir()) == []


def test_little_time_measures_fewer_networks(call, folder):
    assert "4 of" in call("tune", "--seconds", 1e-9).output


def test_a_network_is_really_measured(call, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "PROBLEMS", [tune.PROBLEMS[0]._replace(T=8, B=2, D=3, H=8, V=5)])
    monkeypatch.setattr(tune, "BUSY", math.inf)  # the machine of a test may be
    result = call("tune", "--seconds", 0.1)
    assert result.exit_code == 0, result.output
    assert "Elman 8,2,3,8,5" in result.output
    machine._limits_of.cache_clear()
    assert isinstance(machine.read_measured(machine.measured_file()), Limits)


@pytest.mark.parametrize("seconds", [0, -1, "nan", "inf"])
def test_wrong_seconds_are_told_in_a_line(call, folder, seconds):
    result = call("tune", "--seconds", seconds)
    assert result.exit_code == 2
    assert "--seconds must be positive" in result.output
    assert len(result.output.splitlines()) == 1
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_told_in_a_line(call, folder, tmp_path):
    (tmp_path / "cache").touch()
    result = call("tune")
    assert result.exit_code == 2
    assert "Not a directory" in result.output or "File exists" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(call, folder, monkeypatch):
    def refuse(dir):  # root is refused nothing by itself
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tune.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tune, "measure", None)
    result = call("tune")
    assert result.exit_code == 2
    assert result.output == f"jaxrnn: {str(folder)!r}: Read-only file system\n"


def test_a_user_without_a_home_is_told_what_to_set(call, monkeypatch):
    monkeypatch.setattr(machine, "cache_folder", lambda: exec('raise RuntimeError("no home")'))
    result = call("tune")
    assert result.exit_code == 2
    assert "set XDG_CACHE_HOME" in result.output
