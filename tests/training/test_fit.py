"""The training loop on steps that need no network: logs, validations, saves, early stopping, Ctrl-C."""

import math
import signal

import jax.numpy as jnp
import pytest

from jaxrnn.training.fit import Metrics, fit
from jaxrnn.training.step import TrainState

START = TrainState(params=0, optimizer_state=None, network_state=(), step=0, key=None)


def step(train, batch):
    """Returns the number of the step as its loss, and as the parameters."""
    done = train.step + 1
    return train._replace(step=done, params=done), {"loss": jnp.float32(done), "flow": jnp.full((1, 2), done)}


def run(steps=20, start=START, **options):
    seen, saved = [], []
    found = fit(start, step, int, steps, log=seen.append, save=lambda train: saved.append(train.step), **options)
    return found, seen, saved


def test_what_is_logged_and_saved():
    outcome, seen, saved = run(
        9, every=4, log_every=3, flow_every=5, validate=lambda params: Metrics(float(params), None)
    )
    assert outcome.train.step == 9
    assert not outcome.interrupted
    assert [(m["step"], m["loss"]) for m in seen if "loss" in m] == [(3, 2.0), (6, 5.0), (9, 8.0)]
    assert [m["step"] for m in seen if "validation_loss" in m] == [4, 8, 9]
    assert [m for m in seen if "flow" in m] == [{"step": 5, "flow": [[5.0, 5.0]]}]
    assert not any("validation_error_rate" in m for m in seen)
    assert saved == [4, 8, 9]
    assert run(9, START._replace(step=9))[1:] == ([], [])


def test_training_stops_when_nothing_gets_better():
    figures = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    outcome, seen, _ = run(50, every=5, patience=2, validate=lambda params: Metrics(next(figures), 0.5))
    assert outcome.train.step == 20
    assert [m["validation_loss"] for m in seen if "validation_loss" in m] == [3.0, 2.0, 2.5, 2.4]
    assert all(m["validation_error_rate"] == 0.5 for m in seen if "validation_loss" in m)


def test_a_loss_that_is_not_finite_stops_the_training():
    def diverging(train, batch):
        return step(train, batch)[0], {"loss": jnp.float32(1.0 if train.step < 5 else math.nan)}

    with pytest.raises(FloatingPointError, match="the loss is nan at step 6: lower the rate"):
        fit(START, diverging, int, 20, log_every=2)


@pytest.mark.parametrize("name", ["loss", "validation_loss"])
def test_ctrl_c_ends_the_training_saved_and_the_handler_is_put_back(name):
    """Wherever within a step it comes: here while the loop logs."""
    before, saved = signal.getsignal(signal.SIGINT), []

    def log(metrics):
        if metrics["step"] == 6 and name in metrics:
            signal.raise_signal(signal.SIGINT)

    outcome = fit(
        START, step, int, 20, log=log, log_every=3, every=6, validate=lambda params: Metrics(1.0, None),
        save=lambda train: saved.append(train.step),
    )  # fmt: skip
    assert outcome.interrupted
    assert outcome.train.step == 6
    assert saved == [6]
    outcome = fit(START, step, int, 20, log=log, log_every=3, every=5, save=lambda train: saved.append(train.step))
    assert saved[1:] == ([5, 6] if name == "loss" else [5, 10, 15, 20])
    assert signal.getsignal(signal.SIGINT) is before
