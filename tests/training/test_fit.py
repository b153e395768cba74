"""The training loop on steps that need no network: logs, validations, saves, early stopping, and stops on the way."""

import json
import math

import jax.numpy as jnp
import pytest

from jaxrnn.training.fit import Metrics, Progress, fit
from jaxrnn.training.step import TrainState

START = TrainState(params=0, optimizer_state=None, network_state=(), step=0, key=None)


def step(train, batch):
    """Returns the number of the step as its loss, and as the parameters."""
    done = train.step + 1
    return train._replace(step=done, params=done), {"loss": jnp.float32(done), "flow": jnp.full((1, 2), done)}


def run(steps=20, start=START, **options):
    seen, saved = [], []
    found = fit(
        start, step, int, steps, log=seen.append, save=lambda train, progress: saved.append(train.step), **options
    )
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


def test_few_steps_are_in_flight(monkeypatch):
    """A step is dispatched when all but four of those before it are done."""
    waited = []
    monkeypatch.setattr("jaxrnn.training.fit.jax.block_until_ready", lambda metrics: waited.extend(metrics))
    run(9, log_every=100)
    assert [float(metrics["loss"]) for metrics in waited] == [1, 2, 3, 4, 5]


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


@pytest.mark.parametrize("at", [3, 4, 6, 7, 9, 20])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(at):
    """Wherever it stops: the same logs, the same validations, the same end, also of patience."""
    figures = {4: 3.0, 8: 2.0, 12: 2.5, 16: 2.4, 20: 1.0}
    options = {"log_every": 3, "every": 4, "patience": 2, "validate": lambda params: Metrics(figures[params], None)}
    straight = run(20, **options)
    assert straight[0].train.step == 16
    seen, saved, asked = [], [], iter(range(1, 30))
    outcome = fit(
        START, step, int, 20, log=seen.append, save=lambda *kept: saved.append(kept), stop=lambda: next(asked) == at,
        **options,
    )  # fmt: skip
    train, progress = saved[-1]
    assert outcome.interrupted == (at < 16)
    assert outcome.train == train
    assert train.step == min(at, 16)
    assert len(progress.pending) == train.step % 3
    again = run(20, train, progress=Progress(**json.loads(json.dumps(progress._asdict()))), **options)
    assert seen + again[1] == straight[1]
    assert again[0] == straight[0]


def test_it_is_asked_once_a_step_and_a_finished_training_is_not_interrupted():
    asked = []
    outcome, _, saved = run(6, every=4, stop=lambda: asked.append(1) or len(asked) == 6)
    assert not outcome.interrupted
    assert saved == [4, 6]
    assert len(asked) == 6


def test_a_validation_that_is_no_number_is_no_improvement():
    figures = iter([math.nan, 2.0, math.nan, math.nan])
    outcome, *_ = run(50, every=5, patience=2, on_nan="skip", validate=lambda params: Metrics(next(figures), None))
    assert outcome.train.step == 20
