"""A loss that is not finite: where it began is found, the batch is kept, the last checkpoint stands; or steps skip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import Problem

import jaxrnn
from jaxrnn.tasks.base import Sequences
from jaxrnn.training import experiment, not_finite
from jaxrnn.training.fit import MOST_SKIPPED, NotFiniteError, fit
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings
from jaxrnn.training.step import GradientArguments, adam, initial_train_state, make_step, skip_not_finite

T, B = 9, 3


def arguments(problem, **changes):
    return GradientArguments(*problem.arguments(jnp.float32))._replace(**changes)


def large(problem, layer=None):
    """Returns parameters of which the first weights of a layer, or of the readout, are as large as float32 holds."""
    params = problem.params(jnp.float32)
    if layer is None:  # all units as large as they get, so that their sum is too
        params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 10) if leaf.ndim == 1 else leaf, params)
        return params._replace(readout=params.readout._replace(V=jnp.full_like(params.readout.V, 3e38)))
    layers = list(params.layers)
    layers[layer] = layers[layer]._replace(U=jnp.full_like(layers[layer].U, 3e38))
    return params._replace(layers=tuple(layers))


def without_a_number(problem):
    params = problem.params(jnp.float32)
    return params._replace(readout=params.readout._replace(c=params.readout.c.at[1].set(jnp.nan)))


def relu(inputs, hidden):
    return jaxrnn.Elman(inputs, hidden, activation="relu")


PLAIN = Problem(relu, depth=2, T=T, batch=(B,), objective="squared")
inputs = PLAIN.arguments(jnp.float32).inputs
FOUND = {
    "parameters": (PLAIN, {"params": without_a_number(PLAIN)}, "parameters", "the parameters", (None, None)),
    "inputs": (PLAIN, {"inputs": inputs.at[4, 2, 1].set(jnp.inf).at[6, 0].set(jnp.nan)}, "inputs", "the inputs",
               (4, 2)),
    "states below": (PLAIN, {"inputs": jnp.abs(inputs).at[:2].set(0) + 1e-3, "params": large(PLAIN, 0)}, "states",
                     "the states of layer 0", None),
    "states above": (PLAIN, {"params": large(PLAIN, 1)}, "states", "the states of layer 1", None),
    "outputs": (PLAIN, {"params": large(PLAIN)}, "outputs", "the outputs of the readout (logits)", None),
    "targets": (PLAIN, {"targets": PLAIN.arguments(jnp.float32).targets.at[3, 1].set(jnp.nan)}, "targets",
                "the targets", (3, 1)),
    "errors": (PLAIN, {"targets": PLAIN.arguments(jnp.float32).targets.at[8, 0].set(1e30)}, "errors", "the errors E_t",
               (8, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_went_first_is_found(case):
    problem, changes, quantity, name, place = FOUND[case]
    found = not_finite.find_origin(problem.net, arguments(problem, **changes))
    assert (found.quantity, found.name) == (quantity, name)
    if place is not None:
        assert (found.step, found.sequence) == place
    assert np.isfinite(found.largest)
    assert found.advice == not_finite.ADVICE[quantity]


def test_nothing_is_found_where_all_is_finite():
    assert not_finite.find_origin(PLAIN.net, arguments(PLAIN)) is None


def test_what_is_masked_is_not_looked_at():
    problem = dataclasses.replace(PLAIN, masked=True)
    given = arguments(problem)
    mask = given.mask.at[4, 2].set(False)
    assert not_finite.find_origin(problem.net, given._replace(mask=mask, inputs=inputs.at[4, 2].set(jnp.nan))) is None


def test_the_gradient_goes_first_where_the_way_back_explodes():
    """Every step back multiplies by 1e8, and the states are zero all the while: the square of 1e24 is too large."""
    net = jaxrnn.Network((jaxrnn.Elman(2, 2, bias=False),), jaxrnn.Readout(2, 2), jaxrnn.squared_error, last_step=True)
    params = net.init(jax.random.key(0))
    params = params._replace(layers=(params.layers[0]._replace(W=1e8 * jnp.eye(2)),))
    given = GradientArguments(params, jnp.zeros((6, 1, 2)), jnp.ones((1, 2)), None, None, None, None, None)
    found = not_finite.find_origin(net, given)
    assert (found.quantity, found.name, found.step) == ("gradient", "the gradient carried back through layer 0", 2)


@pytest.mark.parametrize(
    "options",
    [{"both_ways": True, "depth": 2}, {"last_step": True}, {"Cell": jaxrnn.LSTM, "tokens": True, "reset": True},
     {"dropout": 0.3, "depth": 2, "residual": True}, {"learn_state": True, "reset": True}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_network_is_looked_through(options):
    problem = Problem(T=T, batch=(B,), **options)
    assert not_finite.find_origin(problem.net, arguments(problem)) is None
    found = not_finite.find_origin(problem.net, arguments(problem, params=large(problem)))
    assert found.quantity in ("outputs", "errors", "gradient")


# In training.


def toy(rate=0.1, wrap=lambda optimizer: optimizer, **options):
    """Returns a step, a start, and the batch of a step, of which number 13 is not finite."""
    net = jaxrnn.Network((jaxrnn.Elman(2, 3),), jaxrnn.Readout(3, 2), jaxrnn.squared_error)
    optimizer = wrap(optax.sgd(rate))

    def batch(step, bad=(13,)):
        random = np.random.default_rng(step)
        x = random.normal(size=(4, 2, 2)).astype(np.float32)
        return Sequences(np.where(step + 1 in bad, np.nan, x), x, fresh=False)

    return make_step(net, optimizer, **options), initial_train_state(net, optimizer, 2, jax.random.key(0)), batch


@pytest.mark.parametrize("every", [7, 100])
def test_the_first_such_step_is_named_and_nothing_is_saved_after_it(every):
    step, start, batch = toy()
    saved = []
    with pytest.raises(NotFiniteError, match="the loss is nan at step 13") as caught:
        fit(start, step, batch, 40, every=every, save=lambda train, _: saved.append(int(train.step)))
    assert caught.value.step == 13
    assert saved == list(range(every, 13, every))


def test_a_gradient_that_is_not_finite_is_told_before_the_loss_is():
    def step(train, batch):
        done = train.step + 1
        metrics = {
            "loss": jnp.float32(1 if done < 6 else np.nan),
            "gradient_norm": jnp.float32(1 if done < 5 else np.inf),
        }
        return train._replace(step=done), metrics

    _, start, _ = toy()
    with pytest.raises(NotFiniteError, match="the gradient is not finite at step 5"):
        fit(start._replace(step=0), step, int, 20)


def test_a_validation_that_is_not_finite_is_told():
    from jaxrnn.training.fit import Metrics

    step, start, batch = toy()
    with pytest.raises(FloatingPointError, match="the validation loss is nan at step 5"):
        fit(start, step, batch, 10, every=5, validate=lambda params: Metrics(np.nan, None))


def test_a_step_may_be_skipped_with_its_state():
    """What follows is what it would be had the batch never been there."""
    step, start, batch = toy(wrap=skip_not_finite, on_nan="skip")
    seen = []
    outcome = fit(start, step, batch, 20, on_nan="skip", log=seen.append, log_every=10)
    assert [row.get("skipped") for row in seen] == [None, 1]
    assert all(np.isfinite(row["loss"]) for row in seen)
    step, start, batch = toy()
    without = fit(start, step, lambda i: batch(i if i < 12 else i + 1), 19).train
    for one, other in zip(*map(jax.tree.leaves, (outcome.train[:1], without[:1])), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(outcome.train.network_state[0], without.network_state[0])


def test_skipping_has_an_end():
    step, start, batch = toy(wrap=skip_not_finite, on_nan="skip")
    with pytest.raises(NotFiniteError, match=r"no gradient is finite any more from step 13 on"):
        fit(start, step, lambda i: batch(i, bad=range(13, 200)), 100, on_nan="skip")
    short = fit(*toy(wrap=skip_not_finite, on_nan="skip")[1::-1], lambda i: batch(i, range(13, 13 + MOST_SKIPPED)), 60,
                on_nan="skip")  # fmt: skip
    assert int(short.train.step) == 60


def test_several_processes_say_how_one_finds_it(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise NotFiniteError(7, "the loss is nan at step 7: lower the rate, or clip more")

    now = experiment.build(Settings(task="adding", length=10, hidden=4, batch=2))
    with Run.create(tmp_path / "run", experiment.record(now)) as run:
        monkeypatch.setattr(experiment, "fit", fails)
        with pytest.raises(FloatingPointError, match=r"at step 7: .*\n.* alone .* --resume --out .*run") as caught:
            now.train(run, now.initial_state())
        monkeypatch.undo()
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("every", [5, 100])
def test_a_run_says_where_it_went_wrong_and_keeps_the_batch(tmp_path, monkeypatch, every):
    """Both from a checkpoint on, and from the beginning; the reference is the state of the run itself."""
    settings = Settings(task="adding", length=10, hidden=4, batch=2, steps=40, every=every, activation="relu", warmup=0)
    now = experiment.build(settings)
    seen = {}

    class Task(type(now.task)):
        def batch(self, step):
            found = super().batch(step)
            return found._replace(inputs=found.inputs.at[3, 1, 0].set(jnp.nan)) if step == 12 else found

    now = now._replace(task=Task(2, length=10))
    run = Run.create(tmp_path / "run", experiment.record(now))
    find = not_finite.find_origin

    def watched(net, given):
        seen["params"] = jax.device_get(given.params)
        return find(net, given)

    monkeypatch.setattr(not_finite, "find_origin", watched)
    with pytest.raises(FloatingPointError) as caught:
        now.train(run, now.initial_state())
    told = str(caught.value).splitlines()
    assert "not finite at step 13: the inputs went first, at t = 3 of sequence 1" in told[0]
    assert "other data" in told[1]
    assert len(told) == 2
    with np.load(run.path / "not_finite.npz", allow_pickle=False) as kept:
        assert int(kept["step"]) == 13
        np.testing.assert_array_equal(kept["inputs"], now.task.batch(12).inputs)
        assert np.isnan(kept["inputs"][3, 1, 0])
    # The parameters it was found with are those that thirteen good steps less one lead to.
    state, step = now.initial_state(), now.make_step()
    for i in range(12):
        state, _ = step(state, now.task.batch(i))
    for one, other in zip(*map(jax.tree.leaves, (seen["params"], state.params)), strict=True):
        np.testing.assert_array_equal(one, other)
    if every == 5:
        assert int(now.state_of(run).step) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": float("nan")}, "rate must be positive"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"clip": "1"}, "clip must be a number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"warmup": float("inf")}, "warmup must be finite"),
        ({"decay": float("nan")}, "decay must be finite"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
    ],
)
def test_adam_takes_finite_numbers(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        adam(**{"rate": 0.1, "steps": 10} | change)
