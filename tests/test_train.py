"""Training: the step, the loop, the folder of a run, and going on bit for bit."""

import json
import os
import signal
from typing import NamedTuple

import chex
import jax
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import experiment, train
from jaxrnn.experiment import Settings
from jaxrnn.runs import Run

NET = jaxrnn.Network((jaxrnn.Elman(7, 12),), jaxrnn.Readout(12, 7), jaxrnn.softmax_cross_entropy)
SMALL = Settings(hidden=16, batch=4, chunk=16, steps=40, every=10, warmup=4)


class Batch(NamedTuple):
    inputs: jax.Array
    targets: jax.Array
    fresh: bool = False


def batches(step):
    tokens = jax.random.randint(jax.random.fold_in(jax.random.key(9), step), (12, 3), 0, 7)
    return Batch(tokens[:-1], tokens[1:], fresh=step % 4 == 0)


def run_steps(gradient, steps=30):
    optimizer = train.adam(1e-2, steps, warmup=5)
    losses = []
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    step = train.make_step(NET, optimizer, gradient=gradient)
    train.fit(state, step, batches, steps, log=lambda metrics: losses.append(metrics["loss"]), log_every=1)
    return losses


def test_by_hand_and_by_autodiff_give_the_same_curve():
    by_hand, by_autodiff = run_steps("bptt"), run_steps("autodiff")
    assert by_hand[-1] != by_hand[0]
    np.testing.assert_allclose(by_hand, by_autodiff, rtol=2e-5)


def test_the_step_is_optax_on_the_gradient_of_the_carried_state():
    optimizer = optax.sgd(0.1)
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    first, second = batches(0), batches(1)
    step = train.make_step(NET, optimizer)
    expected = state.params
    carried = None
    for batch in (first, second):
        _, carried_next = NET.apply(expected, batch.inputs, carried)
        grads = jax.grad(NET.loss)(expected, batch.inputs, batch.targets, state=carried)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
        carried = carried_next
    expected, carried = jax.device_get((expected, carried))
    for batch in (first, second):
        state, _ = step(state, batch.inputs, batch.targets, False)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state.state, carried, rtol=1e-4, atol=1e-5)


def test_a_fresh_batch_drops_the_carried_state():
    step = train.make_step(NET, optax.sgd(0.0))
    losses = []
    for fresh in (True, False):
        state = train.initial(NET, optax.sgd(0.0), 3, jax.random.key(1))
        state = state._replace(state=(state.state[0] + 0.9,))
        losses.append(float(step(state, *batches(0)[:2], fresh)[1]["loss"]))
    state = train.initial(NET, optax.sgd(0.0), 3, jax.random.key(1))
    assert losses[0] == pytest.approx(float(NET.loss(state.params, *batches(0)[:2])), rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_a_step_compiles_once():
    chex.clear_trace_counter()
    optimizer = train.adam(1e-2, 10)
    step = train.make_step(NET, optimizer)
    step = jax.jit(chex.assert_max_traces(step.__wrapped__, n=1), donate_argnums=0)
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    for i in range(4):
        batch = batches(i)
        state, _ = step(state, batch.inputs, batch.targets, batch.fresh)


def test_clipping_bounds_the_update_and_the_norm_is_reported():
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    before = jax.device_get(state.params)
    state, metrics = train.make_step(NET, optimizer)(state, *batches(0))
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, state.params, before))
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)
    assert float(metrics["gradient_norm"]) > 1e-2


def test_a_loss_that_is_not_finite_stops_the_training():
    optimizer = optax.sgd(float("inf"))
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    with pytest.raises(FloatingPointError, match="lower the rate"):
        train.fit(state, train.make_step(NET, optimizer), batches, 20, log_every=2)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("she sells sea shells by the sea shore; " * 100)
    return str(path)


def trained(folder, data, interrupt_at=None, settings=SMALL):
    """Train in a folder, from its last checkpoint if it has one, perhaps with a Ctrl-C on the way."""
    if (folder / "settings.json").exists():
        run = Run.open(folder)
        now = experiment.reopen(run)
        state = run.restore(jax.eval_shape(now.initial))
        run.forget_after(int(state.step))
    else:
        now = experiment.build(Settings(**{**settings.__dict__, "data": data}))
        run = Run.create(folder, experiment.record(now))
        state = now.initial()

    def log(metrics):
        run.log(metrics)
        if interrupt_at is not None and metrics["step"] == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    return run, now.fit(state, run, log)


@pytest.mark.parametrize("interrupt_at", [10, 25])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, data, interrupt_at):
    _, straight = trained(tmp_path / "straight", data)
    run, stopped = trained(tmp_path / "stopped", data, interrupt_at)
    assert stopped.interrupted
    assert int(stopped.train.step) < 40
    run, resumed = trained(tmp_path / "stopped", data)
    assert not resumed.interrupted
    one, other = (jax.tree.map(np.asarray, o.train._replace(key=0)) for o in (straight, resumed))
    chex.assert_trees_all_equal(one, other)
    losses = [m["validation_loss"] for m in run.metrics() if "validation_loss" in m]
    assert losses == [m["validation_loss"] for m in Run.open(tmp_path / "straight").metrics() if "validation_loss" in m]


def test_the_handler_of_ctrl_c_is_put_back(tmp_path, data):
    before = signal.getsignal(signal.SIGINT)
    trained(tmp_path / "run", data, interrupt_at=25)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_learns_and_best_is_the_least_validation_loss(tmp_path, data):
    run, _ = trained(tmp_path / "run", data)
    losses = {m["step"]: m["validation_loss"] for m in run.metrics() if "validation_loss" in m}
    assert list(losses) == [10, 20, 30, 40]
    assert losses[40] < losses[10] - 0.1
    step, loss = run.validation()
    assert loss == losses[step] == min(losses.values())
    now = experiment.reopen(run)
    net, params, vocabulary = experiment.trained(run)
    assert now.validate(params) == pytest.approx(loss, rel=1e-6)
    assert vocabulary == now.text.vocabulary
    assert net == now.net


def test_best_is_kept_when_later_steps_are_worse(tmp_path):
    run = Run.create(tmp_path / "run", {})
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0)]:
        run.log({"step": step, "validation_loss": loss})
        run.save({"value": np.float32(step)}, step)
    like = {"value": jax.ShapeDtypeStruct((), np.float32)}
    assert float(run.restore(like, "best")["value"]) == 2
    assert float(run.restore(like)["value"]) == 3


def test_a_run_is_not_resumed_on_other_data(tmp_path, data):
    run, _ = trained(tmp_path / "run", data, interrupt_at=10)
    with open(data, "a") as file:
        file.write("and more")
    with pytest.raises(ValueError, match="has changed since the run began"):
        experiment.reopen(run)


def test_folders_are_not_overwritten_unless_asked(tmp_path):
    run = Run.create(tmp_path / "run", {"one": 1})
    with pytest.raises(ValueError, match="--overwrite"):
        Run.create(tmp_path / "run", {})
    assert json.loads((run.path / "settings.json").read_text()) == {"one": 1}
    assert Run.create(tmp_path / "run", {"two": 2}, overwrite=True).settings == {"two": 2}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    with pytest.raises(ValueError, match="not the folder of a run"):
        Run.create(tmp_path / "other", {}, overwrite=True)
    assert (tmp_path / "other" / "precious").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hidden": 0}, "hidden"), ({"rate": -1.0}, "rate"), ({"clip": float("nan")}, "clip"), ({"warmup": -1}, "warmup")],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)
