"""The script of published figures: runs once, goes on where it stopped, and compares the two gradients."""

import importlib.util
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

PATH = pathlib.Path(__file__).parents[2] / "scripts" / "reproduce.py"


@pytest.fixture(scope="module")
def reproduce():
    """Returns the script as a module, with experiments that take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("reproduce", PATH)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "reproduce", module)
        spec.loader.exec_module(module)
        tiny = {"hidden": 8, "batch": 4, "length": 12, "steps": 12, "every": 6}
        experiments = {
            "order": module.Reproduction("order", "0 %", 0.01, "error_rate", module.recipe("order", **tiny)),
            "adding": module.Reproduction("adding", "0.177", 100.0, "loss", module.recipe("adding", **tiny)),
            "music": module.Reproduction("music", "8.9", 8.6, "test", module.recipe("chorales", **tiny), "rolls.npz"),
        }
        patch.setattr(module, "REAL", module.EXPERIMENTS, raising=False)
        patch.setattr(module, "EXPERIMENTS", experiments)
        yield module


def call(module, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
        module.main()


@pytest.fixture(scope="module")
def folder(reproduce, tmp_path_factory):
    """Returns a folder in which two seeds of one experiment are finished."""
    folder = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "disagreement", lambda now: 2e-5)
        call(reproduce, "adding", "--seeds", 2, "--out", folder)
    return folder


def rows_of(printed):
    return [line for line in printed.splitlines() if line.startswith("| ")][1:]


def test_what_is_finished_is_in_the_table_and_not_run_again(reproduce, folder, monkeypatch, capsys):
    monkeypatch.setattr(reproduce.experiment, "build", None)  # nothing is built again
    call(reproduce, "adding", "--seeds", 2, "--out", folder)
    rows = rows_of(capsys.readouterr().out)
    assert "2 seeds): reached" in rows[0]
    result = json.loads((folder / "adding-1" / "result.json").read_text())
    assert result["loss"] > 0
    assert result["disagreement"] == 2e-5
    assert rows[0].endswith("| 2e-05 |")
    assert result["settings"]["seed"] == 1
    assert (folder / "table.md").read_text().splitlines()[2:] == rows
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_share_of_wrong_answers_is_not_reached(reproduce, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(reproduce, "disagreement", lambda now: 0.0)
    call(reproduce, "order", "--seeds", 1, "--out", tmp_path)
    (row,) = rows_of(capsys.readouterr().out)
    assert "%: not reached" in row


def test_a_run_that_was_stopped_reaches_the_same_figure(reproduce, folder, monkeypatch, tmp_path):
    """Stopped after its first checkpoint, it goes on from there bit for bit."""
    train = reproduce.Experiment.train

    def interrupted(self, run, state, stop):
        def interrupt(metrics):
            if metrics["step"] == 6 and "validation_loss" in metrics:
                signal.raise_signal(signal.SIGINT)

        return train(self, run, state, interrupt, stop)

    monkeypatch.setattr(reproduce, "disagreement", lambda now: 0.0)
    arguments = "adding", "--seeds", 1, "--out", tmp_path
    monkeypatch.setattr(reproduce.Experiment, "train", interrupted)
    with pytest.raises(SystemExit) as ended:
        call(reproduce, *arguments)
    assert ended.value.code == 130
    monkeypatch.setattr(reproduce.Experiment, "train", train)
    call(reproduce, *arguments)
    one, other = (json.loads((path / "adding-0" / "result.json").read_text()) for path in (folder, tmp_path))
    assert one["loss"] == other["loss"]


def test_the_gradients_agree_unless_the_one_by_hand_is_wrong(reproduce, monkeypatch):
    now = reproduce.experiment.build(reproduce.EXPERIMENTS["adding"].settings)
    assert reproduce.disagreement(now) < 1e-4
    right = jaxrnn.Elman.step_adjoint
    monkeypatch.setattr(jaxrnn.Elman, "step_adjoint", lambda *arguments: jax.tree.map(jnp.negative, right(*arguments)))
    assert reproduce.disagreement(now) > 1e-3


def test_what_differs_is_told(reproduce, folder, capsys, tmp_path):
    shutil.copytree(folder / "adding-0", tmp_path / "adding-0")
    result = tmp_path / "adding-0" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "disagreement": 0.5}))
    with pytest.raises(SystemExit) as ended:
        call(reproduce, "adding", "--seeds", 1, "--out", tmp_path)
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
def test_wrong_use(reproduce, capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as ended:
        call(reproduce, *arguments, "--out", tmp_path)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_experiment_can_be_set_up(reproduce):
    """Its settings are valid, and its goal is one that chance does not reach."""
    for name, about in reproduce.REAL.items():
        settings = about.settings
        assert about.figure in ("test", "loss", "error_rate"), name
        assert (about.file is not None) == (settings.task in ("text", "chorales")), name
        if about.file is None and settings.task not in ("digits", "permuted-digits"):
            task = reproduce.experiment.build(settings).task
            chance = 0.5 if about.figure == "error_rate" else max(task.baselines.values()) * 1.07
            assert about.goal < chance, name


@pytest.mark.slow
def test_quick(tmp_path):
    """All that needs no files, for 300 steps each: five minutes on two cores."""
    command = [sys.executable, str(PATH), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert np.all([float(row.split("|")[-2]) < 1e-3 for row in rows])
