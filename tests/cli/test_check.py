"""`jaxrnn check`: passes what is right, and fails what is wrong."""

import dataclasses

import pytest

from jaxrnn import cli
from jaxrnn.gradients.check import check
from jaxrnn.network.network import Network

SIZES = ["--hidden", 8, "--inputs", 5, "--outputs", 6, "--steps", 9]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_check_passes(call, dtype):
    result = call("check", "--dtype", dtype, *SIZES)
    assert result.exit_code == 0, result.output
    assert result.output.count("passed") == 5


def test_check_fails_with_exit_code_1_when_the_adjoint_is_wrong(call, monkeypatch):
    right = cli.jaxrnn.Elman.step_adjoint

    def wrong(self, operands, adjoint, local):
        return right(self, operands._replace(W=operands.W_T), adjoint, local)

    monkeypatch.setattr(cli.jaxrnn.Elman, "step_adjoint", wrong)
    result = call("check", *SIZES)
    assert result.exit_code == 1
    assert "FAILED" in result.output


def test_the_differences_hold_autodiff_itself_to_account(call, monkeypatch):
    """If the loss and its gradient by hand agreed on a wrong derivative, only the differences could tell."""
    right = Network.loss

    def wrong(self, *arguments, **options):
        return right(self, *arguments, **options) * 1.001

    monkeypatch.setattr(Network, "loss", wrong)
    assert call("check", *SIZES).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "hidden must be at least 1"),
        (["--segment", "0"], "segment must be at least 1"),
        (["--layers", "0"], "layers"),
    ],
)
def test_bad_input_is_told_in_a_line_with_exit_code_2(call, arguments, message):
    result = call("check", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) <= 2


def test_the_library_checks_a_network_with_one_answer():
    net = cli.jaxrnn.Network((cli.jaxrnn.GRU(3, 4),), cli.jaxrnn.Readout(4, 5), cli.jaxrnn.softmax_cross_entropy)
    assert check(dataclasses.replace(net, last_step=True), steps=5, batch=2).passed
