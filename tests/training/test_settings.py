"""Settings: every one is explained and checked, and recipes are settings."""

import dataclasses

import pytest

from jaxrnn.tasks import TASKS
from jaxrnn.training.settings import OF_ELMAN, Settings, recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"rate": -1.0}, "rate must be positive"),
        ({"clip": float("nan")}, "clip must be positive"),
        ({"vanishing_steps": 0.0}, "vanishing_steps must be greater than 0"),
        ({"warmup": -1}, "warmup must be finite and not negative"),
        ({"average": 1.0}, "average must be in"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"noise": float("inf")}, "noise must be finite"),
        ({"cell": "rnn"}, "cell must be one of 'elman', 'gru', 'gru-before', 'lstm'"),
        ({"task": "chess"}, "task must be one of 'text'"),
        ({"gradient": "none"}, "gradient must be one of"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_every_setting_is_explained():
    assert all(field.metadata["help"].endswith(".") for field in dataclasses.fields(Settings))


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_is_the_settings_that_suit_a_task(name):
    suited = recipe(name, seed=7)
    assert (suited.task, suited.seed) == (name, 7)
    of_others = () if suited.cell == "elman" else OF_ELMAN
    expected = {key: value for key, value in TASKS[name].recipe.items() if key not in of_others}
    assert {key: getattr(suited, key) for key in expected} == expected


def test_what_is_for_elman_cells_is_no_setting_of_others():
    assert recipe("adding", cell="gru").activation == "tanh"
    for change in ({"activation": "relu"}, {"input_scale": 0.1, "initializer": "identity"}):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in OF_ELMAN if name in change)
        with pytest.raises(ValueError, match=f"{names} is for Elman cells, and --cell is lstm: leave it out"):
            recipe("text", cell="lstm", **change)
        assert recipe("copy", cell="elman", **change)
        with pytest.raises(ValueError, match="--cell is gru"):
            recipe("copy", **change)


def test_a_length_is_for_tasks_that_have_one():
    assert recipe("copy", length=7).length == 7
    with pytest.raises(ValueError, match=r"--length is for adding .*; --task text has none: leave it out"):
        recipe("text", length=7)


@pytest.mark.parametrize("change", [{"cell": "gru"}, {"gradient": "autodiff"}])
def test_the_regulariser_of_a_recipe_goes_where_nothing_can_carry_it(change):
    assert recipe("order").vanishing > 0
    assert recipe("order", **change).vanishing == 0
    assert recipe("order", vanishing=0.5, **change).vanishing == 0.5
