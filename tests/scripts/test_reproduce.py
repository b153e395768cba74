"""The script of published figures: runs once, goes on where it stopped, tries settings, compares the two gradients."""

import dataclasses
import json
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from jaxrnn.training.settings import recipe

PATH = pathlib.Path(__file__).parents[2] / "scripts" / "reproduce.py"


@pytest.fixture(scope="module")
def reproduce():
    """Returns the script as a module, with rows that take a second each."""
    import reproduce as module
    from published import Reproduction

    tiny = {"hidden": 8, "batch": 4, "steps": 12, "every": 6}
    order, adding = recipe("order", length=24, **tiny), recipe("adding", length=24, **tiny)
    rows = {
        "order": Reproduction("order", "0 %", 0.01, "error_rate", 1, (order,)),
        "adding": Reproduction("adding", "0.177", 100.0, "loss", 2, (adding, dataclasses.replace(adding, rate=0.5))),
        "music": Reproduction("music", "8.9", 8.6, "test", 1, (recipe("chorales", **tiny),), "rolls.npz"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", rows)
        yield module


def start(module, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
        module.main()


def in_folder(folder):
    return "--out", folder, "--record", folder / "reproduced.json"


def records_of(folder):
    return json.loads((folder / "reproduced.json").read_text())


@pytest.fixture(scope="module")
def folder(reproduce, tmp_path_factory):
    """Returns a folder in which both seeds of one row are finished."""
    folder = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "disagreement", lambda *_, **__: 2e-5)
        start(reproduce, "adding", *in_folder(folder))
    return folder


def test_what_is_finished_is_recorded_and_not_run_again(reproduce, folder, monkeypatch):
    monkeypatch.setattr(reproduce.experiment, "build", None)  # nothing is built again
    start(reproduce, "adding", *in_folder(folder))
    first, second = records_of(folder)
    assert [reproduce.place(found) for found in (first, second)] == [(0, 0), (0, 1)]
    assert first["loss"] != second["loss"]
    assert first["disagreement"] == 2e-5
    assert first["steps"] == 12
    assert first["settings"]["length"] == 24
    assert "data" not in first["settings"]
    assert first["processor_seconds"] > 0
    assert "flow" not in first
    assert {"jax", "processor", "date", "seconds", "best_step"} <= set(first)


def test_of_a_goal_that_is_missed_the_flow_is_told(reproduce, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "disagreement", lambda *_, **__: 0.0)
    start(reproduce, "order", *in_folder(tmp_path))
    (found,) = records_of(tmp_path)
    assert found["error_rate"] > 0.01
    assert found["flow"][0].startswith("The gradient ")


def test_a_run_that_was_stopped_reaches_the_same_figure(reproduce, folder, monkeypatch, tmp_path):
    """Stopped after its first checkpoint, it goes on from there bit for bit."""
    train = reproduce.Experiment.train

    def interrupted(self, run, state, stop):
        def interrupt(metrics):
            if metrics["step"] == 6 and "validation_loss" in metrics:
                signal.raise_signal(signal.SIGTERM)

        return train(self, run, state, interrupt, stop)

    monkeypatch.setattr(reproduce, "disagreement", lambda *_, **__: 0.0)
    arguments = "adding", "--seeds", 1, *in_folder(tmp_path)
    monkeypatch.setattr(reproduce.Experiment, "train", interrupted)
    with pytest.raises(SystemExit) as ended:
        start(reproduce, *arguments)
    assert ended.value.code == 143
    before = float((tmp_path / "adding-0-0" / "processor_seconds").read_text())
    assert reproduce.read(tmp_path / "reproduced.json") == []
    monkeypatch.setattr(reproduce.Experiment, "train", train)
    start(reproduce, *arguments)
    (found,) = records_of(tmp_path)
    assert found["loss"] == records_of(folder)[0]["loss"]
    assert round(found["processor_seconds"], 1) >= round(before, 1)


def test_it_ends_after_some_minutes(reproduce, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reproduce, "disagreement", lambda *_, **__: 0.0)
    with pytest.raises(SystemExit) as ended:
        start(reproduce, "adding", "--minutes", 1e-9, *in_folder(tmp_path))
    assert ended.value.code == 0
    assert "the same command goes on from here" in capsys.readouterr().err
    assert reproduce.read(tmp_path / "reproduced.json") == []


def record(setting, seed, loss, test=None, disagreement=1e-6):
    return {"row": "row", "setting": setting, "seed": seed, "loss": loss, "test": test, "disagreement": disagreement}


def test_settings_are_tried_until_one_is_good_and_the_best_gets_the_other_seeds(reproduce, monkeypatch):
    about = reproduce.ROWS["adding"]._replace(goal=1.0, figure="test", tried=about_three(reproduce))
    monkeypatch.setitem(reproduce.ROWS, "row", about)
    found = []
    assert reproduce.next_run("row", found, 2) == (0, 0)
    found.append(record(0, 0, loss=2.0, test=3.0))
    assert reproduce.next_run("row", found, 2) == (1, 0)
    found.append(record(1, 0, loss=1.5, test=3.5))
    assert reproduce.best_setting("row", found) == 1  # the validation part decides, not the test part
    assert reproduce.next_run("row", [*found, record(2, 0, loss=0.9, test=0.9)], 2) == (2, 1)
    found.append(record(2, 0, loss=1.7, test=2.0))
    assert reproduce.next_run("row", found, 2) == (1, 1)
    assert reproduce.next_run("row", [*found, record(1, 1, loss=1.4, test=1.9)], 2) is None
    good = [record(0, 0, loss=0.5, test=0.5), record(0, 1, loss=1.5, test=1.5)]
    assert reproduce.next_run("row", good[:1], 2) == (0, 1)
    assert reproduce.next_run("row", good, 2) == (1, 0)
    wild = [record(0, 0, loss=0.5, test=0.5, disagreement=0.5)]
    assert reproduce.next_run("row", wild, 2) == (1, 0)
    assert reproduce.best_setting("row", [*wild, record(1, 0, loss=0.9)]) == 1
    chaotic = wild[0] | {"disagreement_float64": 0.1, "disagreement_together": 1e-9}
    assert reproduce.best_setting("row", [chaotic, record(1, 0, loss=0.9)]) == 0


def about_three(reproduce):
    return reproduce.ROWS["adding"].tried[:1] * 3


def test_the_gradients_agree_unless_the_one_by_hand_is_wrong(reproduce, monkeypatch):
    now = reproduce.experiment.build(reproduce.ROWS["adding"].tried[0])
    assert reproduce.disagreement(now) < 1e-4
    right = jaxrnn.Elman.step_adjoint
    monkeypatch.setattr(jaxrnn.Elman, "step_adjoint", lambda *arguments: jax.tree.map(jnp.negative, right(*arguments)))
    assert reproduce.disagreement(now) > 1e-3
    with jax.enable_x64(True):
        assert reproduce.disagreement(now, jnp.float64) > 1e-3
        assert reproduce.disagreement(now, jnp.float64, together=True) > 1e-3
    monkeypatch.setattr(jaxrnn.Elman, "step_adjoint", right)
    with jax.enable_x64(True):
        assert reproduce.disagreement(now, jnp.float64) < 1e-9
        assert reproduce.disagreement(now, jnp.float64, together=True) < 1e-9


def test_what_differs_is_told(reproduce, folder, tmp_path):
    path = tmp_path / "reproduced.json"
    path.write_text(json.dumps([found | {"disagreement": 0.5} for found in records_of(folder)]))
    with pytest.raises(SystemExit, match="do not agree in adding"):
        start(reproduce, "adding", "--record", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "there is no row none; there are order, adding, music"),
        (["adding", "--seeds", 0], "--seeds must be above 0"),
        (["adding", "--minutes", "nan"], "--minutes must be above 0"),
    ],
)
def test_wrong_use(reproduce, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        start(reproduce, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_files_are_asked_for(reproduce, tmp_path):
    with pytest.raises(SystemExit, match="music needs --data with a folder that holds rolls"):
        start(reproduce, "music", *in_folder(tmp_path))


@pytest.mark.slow
def test_quick(tmp_path):
    """All that needs no files, 20 steps each: three minutes on two cores."""
    command = [sys.executable, str(PATH), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=1800)
    found = records_of(tmp_path)
    assert len(found) >= 11
    assert all(each["disagreement"] < 1e-3 for each in found)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime < 2 * 180  # of two cores; other tests may have had a part of it
