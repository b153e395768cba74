"""Tuning: it takes the fastest of what it tries, and says what it tried."""

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import Problem

import jaxrnn
from jaxrnn.gradients.tune import _Rounds

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def clock(monkeypatch):
    """Makes calls take as long as a function of (options, devices) says, and compiles nothing."""

    def install(seconds):
        monkeypatch.setattr(_Rounds, "_compile", compile_nothing)
        monkeypatch.setattr(
            _Rounds, "_turns", lambda self, numbers: [seconds(*self.trials[number][:2]) for number in numbers]
        )

    def compile_nothing(self, options, devices):
        self.trials.append(jaxrnn.gradients.tune.Trial(options, devices, 0.0, 0, 0.0))
        return len(self.trials) - 1

    return install


def test_what_it_finds_computes_the_same():
    problem = Problem(jaxrnn.LSTM, T=12, batch=(8,), masked=True)
    given = problem.arguments()
    tuned = jaxrnn.tune(problem.net, *given, seconds=0.01)
    one = jaxrnn.value_and_grad(problem.net)
    found = jaxrnn.value_and_grad(problem.net, **tuned.options)
    found = found if tuned.devices == 1 else jaxrnn.data_parallel(found)
    assert relative_error(found(*given), one(*given)) < 1e-12
    assert {len(trial.options) for trial in tuned.trials} >= {0, 1}
    assert all(trial.seconds > 0 and trial.bytes > 0 for trial in tuned.trials)
    assert {trial.devices for trial in tuned.trials} == {1, 4}


def test_it_takes_the_fastest_of_each_kind(clock):
    gains = {"segment": {5: 0.8, 20: 0.9}, "unroll": {4: 0.7, 2: 0.99}, "recompute": {"gates": 2.0}}

    def seconds(options, devices):
        product = 1.0 if devices == 1 else 0.5
        for name, value in options.items():
            product *= gains[name].get(value, 1.5)
        return product

    clock(seconds)
    problem = Problem(jaxrnn.GRU, T=20, batch=(8,))
    tuned = jaxrnn.tune(problem.net, *problem.arguments()[:3])
    assert (tuned.options, tuned.devices) == ({"segment": 5, "unroll": 4}, 4)
    assert min(trial.seconds for trial in tuned.trials) == pytest.approx(0.5 * 0.8 * 0.7)
    lines = str(tuned).splitlines()
    assert len(lines) == len(tuned.trials) + 1
    assert [line for line in lines if line.endswith("<-")] == [line for line in lines if "unroll=4  " in line][-1:]


def test_what_gains_little_is_left_out(clock):
    clock(lambda options, devices: 0.98 if options or devices > 1 else 1.0)
    problem = Problem(jaxrnn.Elman, T=20, batch=(8,))
    tuned = jaxrnn.tune(problem.net, *problem.arguments()[:3])
    assert (tuned.options, tuned.devices) == ({}, 1)
    assert not any("recompute" in trial.options for trial in tuned.trials)  # an Elman cell has no gates


def test_what_is_given_is_not_tried(clock):
    clock(lambda options, devices: 1.0)
    problem = Problem(jaxrnn.LSTM, T=20, both_ways=True)
    given = problem.arguments()[:3]
    tuned = jaxrnn.tune(problem.net, *given, options={"unroll": 2, "compute_dtype": jnp.bfloat16})
    assert [dict(trial.options) for trial in tuned.trials] == [{}]


@pytest.mark.parametrize("options", [{"truncate": jaxrnn.Window(3)}, {"memory_budget": 10**7}], ids=str)
def test_what_decides_on_segments_and_gates_itself_is_let(options):
    problem = Problem(jaxrnn.LSTM, batch=(8,))
    given = jax.device_put(problem.arguments()[:3], jax.devices()[0])
    tuned = jaxrnn.tune(problem.net, *given, seconds=0.01, options=options)
    assert {name for trial in tuned.trials for name in trial.options} == {"unroll"}
    assert {trial.devices for trial in tuned.trials} == {1, 4}


def test_wrong_arguments_are_errors_of_the_function():
    problem = Problem()
    given = problem.arguments()[:3]
    with pytest.raises(ValueError, match="seconds"):
        jaxrnn.tune(problem.net, *given, seconds=-1)
    with pytest.raises(ValueError, match="segment"):
        jaxrnn.tune(problem.net, *given, options={"segment": 0})
    with pytest.raises(TypeError, match="net"):
        jaxrnn.tune(None, *given)
