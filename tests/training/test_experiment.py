"""Experiments: a text learned, stopped, and gone on with bit for bit."""

import os
import pathlib
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from jaxrnn.training import experiment
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings
from jaxrnn.training.signals import stop_on_signals


def train(folder, data, interrupt_at=None):
    """Trains in a folder, from its last checkpoint if it has one, perhaps with a Ctrl-C on the way."""
    if (folder / "settings.json").exists():
        run = Run.open(folder, writing=True)
        now = experiment.reopen(run)
    else:
        now = experiment.build(Settings(data=data, hidden=16, batch=4, chunk=16, steps=40, every=10, warmup=4))
        run = Run.create(folder, experiment.record(now))

    def interrupt(metrics):
        if metrics["step"] == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    with run, stop_on_signals() as stop:
        return run, now.train(run, now.state_of(run), interrupt, stop)


def without_seconds(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics()]


def validation_losses(run):
    return {m["step"]: m["validation_loss"] for m in run.metrics() if "validation_loss" in m}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text("she sells sea shells by the sea shore; " * 100)
    return str(path)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data):
    """Returns a run that nobody interrupted."""
    return train(tmp_path_factory.mktemp("runs") / "straight", data)


@pytest.mark.parametrize("interrupt_at", [10, 25])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, data, straight, interrupt_at):
    run, stopped = train(tmp_path / "stopped", data, interrupt_at)
    assert stopped.interrupted
    assert int(stopped.train.step) == interrupt_at
    run, resumed = train(tmp_path / "stopped", data)
    assert not resumed.interrupted
    one, other = (jax.tree.map(np.asarray, o.train._replace(key=0)) for o in (straight[1], resumed))
    chex.assert_trees_all_equal(one, other)
    assert without_seconds(run) == without_seconds(straight[0])


def test_training_learns_and_best_is_the_least_validation_loss(straight):
    run, _ = straight
    losses = validation_losses(run)
    assert list(losses) == [10, 20, 30, 40]
    assert losses[40] < losses[10] - 0.1
    step, loss = run.best_validation()
    assert loss == losses[step] == min(losses.values())
    now = experiment.reopen(run)
    net, params = experiment.load_best(run)
    assert now.validate(params).loss == pytest.approx(loss, rel=1e-6)
    assert now.test(params) is None
    assert run.record["vocabulary"] == now.task.vocabulary
    assert net == now.net


def test_a_run_is_not_resumed_on_other_data(tmp_path, data, straight):
    copy = tmp_path / "data.txt"
    shutil.copy(data, copy)
    now = experiment.build(Settings(data=str(copy)))
    run = Run.create(tmp_path / "run", experiment.record(now))
    assert experiment.reopen(run).settings == now.settings
    with open(copy, "a") as file:
        file.write("and more")
    with pytest.raises(ValueError, match="has changed since the run began"):
        experiment.reopen(run)
    assert experiment.reopen(run, str(data)).settings.data == str(data)
    text = pathlib.Path(data).read_text()
    copy.write_text(text.translate({code: code + 1 for code in range(ord("a"), ord("z") + 1)}))
    assert experiment.build(now.settings).task.fingerprint() == now.task.fingerprint()  # its tokens are the same
    with pytest.raises(ValueError, match="has changed since the run began"):
        experiment.reopen(run)


def test_a_run_of_another_version_is_told(tmp_path):
    with pytest.raises(ValueError, match="was made by another version of jaxrnn"):
        experiment.settings_of(Run(tmp_path, {"settings": {"colour": "blue"}}))
