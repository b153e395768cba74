"""What a machine does to a person: folders that cannot be written, data that cannot be read, disks that are full."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxrnn.training.run_folder import Run

MODULE = [sys.executable, "-m", "jaxrnn"]


def told(result, *words):
    """Raises unless a command ended with exit code 2 and a line or two that have the words."""
    assert result.exit_code == 2, result.output
    said = result.output[result.output.rindex("jaxrnn: ") :].rstrip().splitlines()
    assert len(said) <= 2
    for word in words:
        assert word in "\n".join(said)
    assert "Traceback" not in result.output


@pytest.fixture
def run(trained, tmp_path):
    return pathlib.Path(shutil.copytree(trained[0], tmp_path / "run"))


OUT = {  # a folder that cannot be made, even by root, and what is said of it
    "file/below": "Not a directory",
    "/proc/jaxrnn/run": "No such file or directory",
    "n" * 300: "File name too long",
}


@pytest.mark.parametrize("out", OUT, ids=lambda out: out[:12])
@pytest.mark.parametrize("command", ["train", "train --overwrite", "train --resume", "flow"])
def test_a_folder_that_cannot_be_made(call, data, small, tmp_path, out, command):
    (tmp_path / "file").touch()
    name, *flags = command.split()
    arguments = {"train": ["--data", data, *small], "flow": ["--init", "--hidden", 4, "--steps", 20, "--batch", 1]}
    result = call(name, *flags, *([] if flags == ["--resume"] else arguments[name]), "--out", out)
    told(result, OUT[out] if flags != ["--resume"] or out[0] == "n" else "not the folder of a run")


def refuse_writing(monkeypatch, folder, code):
    """Lets no file below a folder be opened for writing: root is refused nothing by itself."""
    opened = open

    def refusing(file, mode="r", *arguments, **named):
        if set(mode) & set("wax+") and pathlib.Path(folder) in pathlib.Path(str(file)).absolute().parents:
            raise OSError(code, os.strerror(code), str(file))
        return opened(file, mode, *arguments, **named)

    monkeypatch.setattr("builtins.open", refusing)
    monkeypatch.setattr("io.open", refusing)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("command", ["train", "train --overwrite", "train --resume", "flow"])
def test_a_folder_that_cannot_be_written_to(call, data, small, run, monkeypatch, tmp_path, code, command):
    arguments = {
        "train": ["--data", data, "--out", tmp_path / "new", *small],
        "train --overwrite": ["--data", data, "--out", run, *small],
        "train --resume": ["--out", run],
        "flow": [run, "--steps", 20],
    }
    refuse_writing(monkeypatch, tmp_path, code)
    told(call(*command.split(), *arguments[command]), os.strerror(code), str(tmp_path))


@pytest.mark.parametrize("kind", ["a pipe", "a device", "below a file"])
@pytest.mark.parametrize("task", ["text", "chorales"])
def test_data_that_would_be_waited_for_are_refused(call, tmp_path, kind, task):
    os.mkfifo(tmp_path / "pipe.mat")
    (tmp_path / "file").touch()
    data = {"a pipe": "pipe.mat", "a device": "/dev/zero", "below a file": "file/below.mat"}[kind]
    told(call("train", "--task", task, "--data", data, "--out", "run"), "data")


def test_data_that_may_not_be_read(call, data, monkeypatch, tmp_path):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(pathlib.Path, "read_text", refuse)
    told(call("train", "--data", data, "--out", "run"), "Permission denied", str(data))


@pytest.mark.parametrize("command", ["sample", "flow", "train --resume --out"])
def test_a_run_that_leads_out_of_its_folder(call, run, tmp_path, command):
    (tmp_path / "precious").write_text("mine")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "precious")
    told(call(*command.split(), run), "is a link")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("command", ["sample", "flow", "train --resume --out"])
def test_checkpoints_that_are_cut_short(call, run, command):
    for file in run.glob("*/*/**/*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, 500)
    told(call(*command.split(), run))


def test_a_package_that_is_missing(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    told(call("train", "--task", "digits", "--out", "run"))


LIMITED = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\nfrom jaxrnn.cli import main; main()"
)


def test_a_limit_of_the_size_of_files(data, tmp_path):
    """The whole command, for what libraries print and log by themselves: a hundred lines."""
    sizes = ["--hidden", "64", "--batch", "4", "--chunk", "16", "--every", "2", "--steps", "4"]
    line = [sys.executable, "-c", LIMITED, "train", "--data", data, "--out", tmp_path / "run", *sizes]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "no room for a checkpoint" in done.stderr
    assert "20.0 kB at most (ulimit -f)" in done.stderr


def test_output_that_nobody_takes(run):
    """A pipe that is closed is no error; a device that is full is one, in a line."""
    closed = subprocess.run(f"{sys.executable} -m jaxrnn sample {run} --length 4000 | head -c 5", shell=True,
                            capture_output=True, text=True, timeout=120)  # fmt: skip
    assert len(closed.stdout) == 5
    assert "Traceback" not in closed.stderr
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MODULE, "sample", run, "--length", "40"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[0] == "jaxrnn: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_run_that_diverges_ends_with_exit_code_1_in_two_lines(call, data, tmp_path):
    result = call("train", "--data", data, "--out", "run", "--hidden", 8, "--batch", 4, "--chunk", 8, "--steps", 30,
                  "--activation", "relu", "--clip", 1e30, "--rate", 1e30, "--warmup", 0, "--every", 10)  # fmt: skip
    assert result.exit_code == 1
    said = result.output[result.output.index("jaxrnn: ") :].rstrip().splitlines()
    assert "went first" in said[0]
    assert "Try a lower --rate" in said[1]
    assert len(said) == 2
    with np.load(tmp_path / "run" / "not_finite.npz", allow_pickle=False) as kept:
        assert kept["inputs"].shape == (8, 4)
    assert Run.open(tmp_path / "run").metrics() == [] or "loss" in Run.open(tmp_path / "run").metrics()[0]
