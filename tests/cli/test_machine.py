"""Where the command runs: devices, processes, what is refused; two processes that train together, and one that dies."""

import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxrnn.cli import machine
from jaxrnn.training import devices as training_devices
from jaxrnn.training import experiment
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings

ONE = {"hidden": 16, "batch": 4, "chunk": 16, "steps": 50, "every": 25}


@pytest.fixture
def four(monkeypatch):
    """Makes this process say that it has four devices; a mesh is their number."""
    monkeypatch.setattr(training_devices, "devices_of_a_process", lambda: 4)
    monkeypatch.setattr(training_devices, "make_mesh", lambda count: count)


LARGE = {"cell": "lstm", "hidden": 128}


@pytest.mark.parametrize(
    ("asked", "settings", "chosen", "why"),
    [
        (None, {"batch": 64} | LARGE, 4, "4 of 4 CPU cores, 16 sequences on each (all there are)"),
        (None, {"batch": 63} | LARGE, 3, "3 of 4 CPU cores, 21 sequences on each (a batch of 63 divides by no more)"),
        (None, {"batch": 4, "hidden": 16}, None, "1 of 4 CPU cores, 4 sequences on each (which is faster"),
        (2, {"batch": 4, "hidden": 16}, 2, "2 of 4 CPU cores, 2 sequences on each (as --devices says)"),
        (1, {"batch": 64} | LARGE, None, "1 of 4 CPU cores, 64 sequences on each (as --devices says)"),
    ],
)
def test_what_is_chosen_and_why(four, asked, settings, chosen, why):
    mesh, words = machine.choose_devices(asked, Settings(**settings), 65)
    assert mesh == chosen
    assert why in words


@pytest.mark.parametrize(
    ("asked", "message"), [(5, "--devices must be 1 to 4.*got 5"), (0, "got 0"), (3, "--batch 32 .*3")]
)
def test_devices_that_cannot_be(four, asked, message):
    with pytest.raises(ValueError, match=message):
        machine.choose_devices(asked, Settings(), 65)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "127.0.0.1:1"], "give all three"),
        (["--processes", 2, "--process", 0], "give all three"),
        (["--distributed", "--process", 0], "leave out --coordinator"),
        (["--coordinator", "127.0.0.1:1", "--processes", 2, "--process", 2], "--process must be 0 to 1"),
        (["--devices", 1000], "--devices must be 1 to"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_told_in_a_line(call, data, options, message):
    result = call("train", "--data", data, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data):
    """Returns the folder of 50 steps on one device."""
    now = experiment.build(Settings(data=str(data), **ONE))
    run = Run.create(tmp_path_factory.mktemp("runs") / "straight", experiment.record(now))
    now.train(run, now.initial_state())
    return run.path


def start(folder, *arguments):
    """Starts two processes that train together, one core each; returns them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    together = ["--coordinator", address, "--processes", 2, "--devices", 1, "--out", folder]
    commands = [[sys.executable, "-m", "jaxrnn", "train", *arguments, *together, "--process", i] for i in range(2)]
    return [
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]


def options(data, **settings):
    given = {"data": data, **ONE, **settings}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def assert_same_curve(folder, expected):
    rows, straight = (Run.open(path).metrics() for path in (folder, expected))
    for name in ("loss", "validation_loss"):
        ours, theirs = ([(row["step"], row[name]) for row in found if name in row] for found in (rows, straight))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def assert_same_params(folder, expected):
    (_, params), (_, params_straight) = (experiment.load_best(Run.open(path)) for path in (folder, expected))
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(params_straight), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_processes_train_as_one_does(tmp_path, data, straight):
    first, second = start(tmp_path / "run", *options(data))
    (out, err), (silent, _) = first.communicate(timeout=300), second.communicate(timeout=60)
    assert first.returncode == second.returncode == 0, err
    assert "Devices: 2 processes, each with 1 of" in out
    assert "this network" in out
    # What the library of the collectives says itself is no word of ours.
    assert [line for line in silent.splitlines() if not line.startswith("[Gloo]")] == []
    assert (tmp_path / "run" / "learning_curve.png").exists()
    assert_same_curve(tmp_path / "run", straight)
    assert_same_params(tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_and_resume_goes_on(call, tmp_path, data, victim):
    settings = {"steps": 1000, "every": 100}
    now = experiment.build(Settings(data=str(data), **ONE | settings))
    straight = Run.create(tmp_path / "straight", experiment.record(now))
    now.train(straight, now.initial_state())
    processes = start(tmp_path / "run", *options(data, **settings))
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 200,' in metrics.read_text()):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[victim].kill()
    killed, other = time.monotonic(), processes[1 - victim]
    _, err = other.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert other.returncode not in (0, None)
    if victim == 1:
        assert "jaxrnn: another process has ended" in err
        assert "--resume" in err
    resumed = call("train", "--resume", "--out", tmp_path / "run", "--devices", 1)
    assert resumed.exit_code == 0, resumed.output
    assert_same_curve(tmp_path / "run", straight.path)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_a_lock_keeps_others_out(tmp_path, data):
    settings, folder = options(data, steps=1_000_000, every=100), tmp_path / "run"
    processes = start(folder, *settings)
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    others = start(folder, *settings, "--resume=auto")
    for other in others:
        err = other.communicate(timeout=100)[1]
        assert other.returncode == 2
        assert f"is being written by process {processes[0].pid} on" in err
    processes[1].send_signal(signal.SIGTERM)
    out = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    last = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert f"Interrupted after step {last}; saved" in out[0]


@pytest.mark.slow
def test_a_signal_before_the_training_ends_a_process_of_several(tmp_path, data):
    """The library by which they find one another takes SIGTERM for its own."""
    processes, folder = start(tmp_path / "run", *options(data, steps=1_000_000)), tmp_path / "run"
    while not (folder / "settings.json").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    _, err = processes[1].communicate(timeout=30)
    processes[0].kill()
    processes[0].communicate()
    assert processes[1].returncode == 143
    assert "jaxrnn: ended by SIGTERM; what was saved stands\n" in err
