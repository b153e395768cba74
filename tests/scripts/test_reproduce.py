"""The script of published figures: runs once, goes on where it stopped, and compares the two gradients."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PATH = pathlib.Path(__file__).parent.parent / "scripts" / "reproduce.py"


@pytest.fixture
def reproduce(monkeypatch):
    """The script as a module, with two experiments that take a second each."""
    spec = importlib.util.spec_from_file_location("reproduce", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce", module)
    spec.loader.exec_module(module)
    tiny = {"hidden": 8, "batch": 4, "length": 12, "steps": 12, "every": 6}
    experiments = {
        "order": module.Reproduction("order", "0 %", 0.01, "wrong", module.of_task("order", **tiny)),
        "adding": module.Reproduction("adding", "0.177", 100.0, "loss", module.of_task("adding", **tiny)),
        "music": module.Reproduction("music", "8.9", 8.6, "test", module.of_task("chorales", **tiny), "rolls.npz"),
    }
    monkeypatch.setattr(module, "REAL", module.EXPERIMENTS, raising=False)
    monkeypatch.setattr(module, "EXPERIMENTS", experiments)
    return module


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
    module.main()


def test_a_table_of_what_was_reached(reproduce, monkeypatch, capsys, tmp_path):
    call(reproduce, monkeypatch, "order", "adding", "--seeds", 2, "--out", tmp_path)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert "not reached" in rows[0]
    assert "2 seeds): reached" in rows[1]
    result = json.loads((tmp_path / "adding-1" / "result.json").read_text())
    assert result["loss"] > 0
    assert 0 < result["disagreement"] < 1e-4
    assert result["settings"]["seed"] == 1
    assert (tmp_path / "table.md").read_text().splitlines()[2:] == rows
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_run_again(reproduce, monkeypatch, capsys, tmp_path):
    call(reproduce, monkeypatch, "adding", "--seeds", 1, "--out", tmp_path)
    first = capsys.readouterr().out
    monkeypatch.setattr(reproduce.experiment, "build", None)  # nothing is built again
    call(reproduce, monkeypatch, "adding", "--seeds", 1, "--out", tmp_path)
    assert capsys.readouterr().out == first


def test_a_run_that_was_stopped_reaches_the_same_figure(reproduce, monkeypatch, capsys, tmp_path):
    """Stopped after its first checkpoint, it goes on from there bit for bit."""
    call(reproduce, monkeypatch, "adding", "--seeds", 1, "--out", tmp_path / "straight")
    fit, stopped = reproduce.experiment.Experiment.fit, []

    def interrupted(self, state, run, log):
        def stop(metrics):
            log(metrics)
            if not stopped and metrics["step"] == 6 and "validation_loss" in metrics:
                stopped.append(True)
                reproduce.train.signal.raise_signal(reproduce.train.signal.SIGINT)

        return fit(self, state, run, stop)

    monkeypatch.setattr(reproduce.experiment.Experiment, "fit", interrupted)
    arguments = "adding", "--seeds", 1, "--out", tmp_path / "stopped"
    with pytest.raises(SystemExit) as ended:
        call(reproduce, monkeypatch, *arguments)
    assert ended.value.code == 130
    call(reproduce, monkeypatch, *arguments)
    one, other = (
        json.loads((tmp_path / name / "adding-0" / "result.json").read_text()) for name in ("straight", "stopped")
    )
    assert one["loss"] == other["loss"]


def test_what_differs_is_told(reproduce, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(reproduce, "disagreement", lambda now: 0.5)
    with pytest.raises(SystemExit) as ended:
        call(reproduce, monkeypatch, "adding", "--seeds", 1, "--out", tmp_path)
    assert ended.value.code == 1
    assert "do not agree in adding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "there is no experiment none; there are order, adding, music"),
        (["adding", "--seeds", 0], "--seeds must be 1 or more"),
        (["music"], "music needs --data with a folder that holds rolls.npz"),
    ],
)
def test_wrong_use(reproduce, monkeypatch, capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as ended:
        call(reproduce, monkeypatch, *arguments, "--out", tmp_path)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_experiment_can_be_set_up(reproduce):
    """Its settings are valid, and its goal is one that chance does not reach."""
    for name, about in reproduce.REAL.items():
        settings = reproduce.Settings(**about.settings)
        assert about.figure in ("test", "loss", "wrong"), name
        assert (about.file is not None) == (settings.task in ("text", "chorales")), name
        if about.file is None and settings.task not in ("digits", "permuted-digits"):
            task = reproduce.experiment.build(settings).task
            chance = 0.5 if about.figure == "wrong" else max(task.baselines.values()) * 1.07
            assert about.goal < chance, name


@pytest.mark.slow
def test_quick(tmp_path):
    """All that needs no files, for 300 steps each: five minutes on two cores."""
    command = [sys.executable, str(PATH), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert np.all([float(row.split("|")[-2]) < 1e-3 for row in rows])
