"""Training: the step, the loop, the folder of a run, and going on bit for bit."""

import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn.tasks.sequences import Sequences
from jaxrnn.training import experiment, train
from jaxrnn.training.experiment import Settings
from jaxrnn.training.runs import Run

NET = jaxrnn.Network((jaxrnn.Elman(7, 12),), jaxrnn.Readout(12, 7), jaxrnn.softmax_cross_entropy)
SMALL = Settings(hidden=16, batch=4, chunk=16, steps=40, every=10, warmup=4)


def batches(step):
    tokens = jax.random.randint(jax.random.fold_in(jax.random.key(9), step), (12, 3), 0, 7)
    return Sequences(tokens[:-1], tokens[1:], fresh=step % 4 == 0)


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
        state, _ = step(state, batch._replace(fresh=False))
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state.state, carried, rtol=1e-4, atol=1e-5)


def test_a_fresh_batch_drops_the_carried_state():
    step = train.make_step(NET, optax.sgd(0.0))
    losses = []
    for fresh in (True, False):
        state = train.initial(NET, optax.sgd(0.0), 3, jax.random.key(1))
        state = state._replace(state=(state.state[0] + 0.9,))
        losses.append(float(step(state, batches(0)._replace(fresh=fresh))[1]["loss"]))
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
        state, _ = step(state, batch)


def test_clipping_bounds_the_update_and_the_norm_is_reported():
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    before = jax.device_get(state.params)
    state, metrics = train.make_step(NET, optimizer)(state, batches(0))
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
    net, params = experiment.trained(run)
    assert now.validate(params).loss == pytest.approx(loss, rel=1e-6)
    assert run.settings["vocabulary"] == now.text.vocabulary
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


def masked_and_packed():
    """Two sequences in one row, the second cut short, as a batch; and the same two on their own."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 7, (2, 8, 1))
    mask, reset = np.ones((8, 1), bool), np.zeros((8, 1), bool)
    mask[6:], reset[3] = False, True
    return Sequences(x, y, mask, reset), [(x[:3], y[:3]), (x[3:6], y[3:6])]


def test_evaluation_counts_real_steps_only():
    params = NET.init(jax.random.key(0))
    batch, pieces = masked_and_packed()
    outputs = [NET.apply(params, x)[0] for x, _ in pieces]
    errors = np.concatenate([NET.objective(o, y) for o, (_, y) in zip(outputs, pieces, strict=True)])
    wrong = np.concatenate([o.argmax(-1) != y for o, (_, y) in zip(outputs, pieces, strict=True)])
    found = train.evaluate(NET, params, [batch, batch], classes=True)
    assert found.loss == pytest.approx(errors.mean(), rel=1e-5)
    assert found.wrong == pytest.approx(wrong.mean())
    assert train.evaluate(NET, params, [batch]).wrong is None
    with pytest.raises(ValueError, match="at least one batch"):
        train.evaluate(NET, params, [])


def test_a_step_on_masked_and_packed_sequences():
    batch, pieces = masked_and_packed()
    state = train.initial(NET, optax.sgd(1.0), 1, jax.random.key(1))
    before = jax.device_get(state.params)
    grads = [jax.grad(lambda p, x=x, y=y: NET.loss(p, x, y) / 2)(before) for x, y in pieces]
    state, _ = train.make_step(NET, optax.sgd(1.0))(state, batch)
    moved = jax.tree.map(lambda a, b: a - b, before, state.params)
    chex.assert_trees_all_close(moved, jax.tree.map(jnp.add, *grads), rtol=1e-4, atol=1e-6)


def test_the_average_of_parameters_follows_them():
    optimizer = train.averaged(optax.sgd(0.1), 0.9)
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    average = jax.device_get(state.params)
    for i in range(3):
        state, _ = train.make_step(NET, optimizer)(state, batches(i))
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, jax.device_get(state.params))
    chex.assert_trees_all_close(train.best_guess(state), average, rtol=1e-5)
    assert not np.allclose(train.best_guess(state).readout.V, state.params.readout.V)


def test_accumulated_gradients_make_one_step():
    one, two = (train.adam(1e-2, 10, warmup=0, accumulate=count) for count in (1, 2))
    state = train.initial(NET, two, 3, jax.random.key(1))
    params = [jax.device_get(state.params)]
    for _ in range(2):
        state, _ = train.make_step(NET, two)(state, batches(0)._replace(fresh=True))
        params.append(jax.device_get(state.params))
    chex.assert_trees_all_equal(params[0], params[1])
    single = train.initial(NET, one, 3, jax.random.key(1))
    single, _ = train.make_step(NET, one)(single, batches(0)._replace(fresh=True))
    chex.assert_trees_all_close(params[2], jax.device_get(single.params), rtol=1e-5)


def test_weight_noise_is_new_at_every_step_and_leaves_no_trace():
    still, noisy = train.make_step(NET, optax.sgd(0.0)), train.make_step(NET, optax.sgd(0.0), noise=0.1)
    state = train.initial(NET, optax.sgd(0.0), 3, jax.random.key(1))
    before = jax.device_get(state.params)
    losses = []
    for _ in range(3):
        state, metrics = noisy(state, batches(0))
        losses.append(float(metrics["loss"]))
    chex.assert_trees_all_equal(jax.device_get(state.params), before)
    assert len(set(losses)) == 3
    _, metrics = still(state, batches(0))
    assert abs(np.mean(losses) - float(metrics["loss"])) < 0.3


def test_weight_decay_shrinks():
    states = []
    for decay in (0.0, 0.5):
        optimizer = train.adam(1e-2, 10, warmup=0, decay=decay)
        state, _ = train.make_step(NET, optimizer)(train.initial(NET, optimizer, 3, jax.random.key(1)), batches(0))
        states.append(jax.device_get(state.params))
    start = train.initial(NET, optax.sgd(0.1), 3, jax.random.key(1)).params
    difference = jax.tree.map(lambda a, b: a - b, *states)
    rate = 1e-2 * 0.5 * (1 + np.cos(0))  # the cosine begins at the top
    chex.assert_trees_all_close(difference, jax.tree.map(lambda p: rate * 0.5 * p, start), rtol=2e-2, atol=1e-6)


def test_training_stops_when_nothing_gets_better():
    optimizer = optax.sgd(0.0)
    state = train.initial(NET, optimizer, 3, jax.random.key(1))
    figures = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    seen = []
    outcome = train.fit(
        state, train.make_step(NET, optimizer), batches, 50, every=5, patience=2, log=seen.append,
        validate=lambda params: train.Figures(next(figures), 0.5),
    )  # fmt: skip
    assert int(outcome.train.step) == 20
    assert [m["validation_loss"] for m in seen if "validation_loss" in m] == [3.0, 2.0, 2.5, 2.4]
    assert all(m["validation_wrong"] == 0.5 for m in seen if "validation_loss" in m)


def test_the_regulariser_and_clipping_of_the_step_are_those_of_the_gradient():
    state = train.initial(NET, optax.sgd(1.0), 3, jax.random.key(1))
    before, batch = jax.device_get(state.params), batches(0)._replace(fresh=True)
    step = train.make_step(NET, optax.sgd(1.0), clip=1e-3, vanishing=lambda step: 2.0 / (1 + step))
    state, _ = step(state, batch)
    _, grads = jaxrnn.value_and_grad(NET, clip=1e-3)(before, batch.inputs, batch.targets, vanishing=2.0)
    chex.assert_trees_all_close(jax.tree.map(lambda a, b: a - b, before, state.params), grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"flow": True}, {"clip": 1.0}, {"vanishing": float}])
def test_what_autodiff_cannot_do(options):
    with pytest.raises(ValueError, match="need gradient="):
        train.make_step(NET, optax.sgd(0.1), gradient="autodiff", **options)


@pytest.mark.parametrize("Cell", [jaxrnn.GRU, jaxrnn.LSTM])
def test_gated_networks_are_trained_and_state_is_donated(Cell):
    net = jaxrnn.Network((Cell(7, 12),), jaxrnn.Readout(12, 7), jaxrnn.softmax_cross_entropy)
    optimizer = train.averaged(train.adam(1e-2, 20, warmup=2), 0.9)
    losses = []
    train.fit(
        train.initial(net, optimizer, 3, jax.random.key(1)), train.make_step(net, optimizer),
        lambda step: batches(0)._replace(fresh=True), 20, log=lambda m: losses.append(m["loss"]), log_every=1,
    )  # fmt: skip
    assert losses[-1] < losses[0] - 0.1
