"""`jaxrnn flow`: of a fresh network, of a run."""

import shutil
import types

import numpy as np
import pytest


def test_the_flow_of_a_fresh_network(call, tmp_path):
    result = call("flow", "--init", "--hidden", 16, "--scale", 0.5, "--steps", 40, "--batch", 2, "--out", "there")
    assert result.exit_code == 0, result.output
    assert "1 x Elman(16), at initialisation" in result.output
    assert "The gradient VANISHES" in result.output
    assert (tmp_path / "there" / "flow.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "there" / "flow.npz") as arrays:
        assert arrays["adjoints"].shape == (40, 40)
        assert arrays["lyapunov_exponents"].shape == (16,)
        assert {"terms", "profile", "delta_0", "singular_values"} <= set(arrays)


def test_what_a_gru_that_resets_before_is_called(call, monkeypatch):
    monkeypatch.setattr("jaxrnn.flow.diagnosis.diagnose", lambda *_, **__: types.SimpleNamespace(layer=0, arrays=dict))
    page = types.SimpleNamespace(savefig=lambda *_, **__: None)
    monkeypatch.setattr("jaxrnn.flow.plots.gradient_flow", lambda *_: page)
    result = call("flow", "--init", "--cell", "gru-before", "--hidden", 3, "--steps", 20, "--batch", 1)
    assert "1 x GRU(3, reset before), at initialisation" in result.output


def test_the_flow_of_a_run(call, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    result = call("flow", "run", "--steps", 30)
    assert result.exit_code == 0, result.output
    assert "run, best checkpoint, T = 30, B = 8, layer 0" in result.output
    assert (tmp_path / "run" / "flow.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the folder of a run, or --init, not both"),
        (("run", "--init"), "give the folder of a run, or --init, not both"),
        (("nowhere",), "is not the folder of a run"),
        (("nowhere", "--cell", "gru"), "leave out --cell"),
        (("--init", "--steps", 10), "20 steps at least"),
        (("--init", "--cell", "gru", "--scale", 0.5), "are for an Elman cell, not for gru"),
        (("--init", "--hidden", 0), "hidden"),
        (("--init", "--layer", 3), "layer must be one of the 1 layers"),
    ],
)
def test_wrong_use_of_the_command(call, arguments, message):
    result = call("flow", *arguments)
    assert result.exit_code == 2
    assert message in result.output
