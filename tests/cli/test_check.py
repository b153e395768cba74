"""`jaxrnn check`: passes what is right, and fails what is wrong."""

import dataclasses

import pytest

from jaxrnn import cli
from jaxrnn.gradients.check import check
from jaxrnn.gradients.whole import whole
from jaxrnn.layer import bptt, masking
from jaxrnn.network.network import Network

SIZES = ["--hidden", 8, "--inputs", 5, "--outputs", 6, "--steps", 9]


def test_check_passes(call):
    result = call("check", *SIZES)
    assert result.exit_code == 0, result.output
    assert result.output.count("passed") == 5


EVERY_OPTION = [
    ["--cell", "gru", "--mask", "--reset", "--recompute", "gates", "--objective", "sigmoid"],
    ["--cell", "lstm", "--bidirectional", "--layers", 2, "--mask", "--reset", "--recompute", "states"],
    ["--cell", "gru-before", "--truncate", "window", 3, "--mask", "--no-bias"],
    ["--cell", "elman", "--truncate", "carried", 4, "--reset", "--tokens", "--devices", 2],
    ["--cell", "lstm", "--truncate", "tail", 4, "--mask", "--reset", "--segment", 3],
]


@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda options: " ".join(map(str, options)))
def test_every_option(call, options):
    result = call("check", "--dtype", "float64", *SIZES, *options)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.output
    assert ("no RTRL" in result.output) == bool({"--truncate", "--bidirectional"} & set(options))
    assert ("masked" in result.output) == ("--mask" in options)
    assert ("with resets" in result.output) == ("--reset" in options)


WRONG_WAYS = {
    "a reset that lets the adjoint through": (
        (masking, "_leave_reset", lambda flags, before, initial: masking.Adjoint(before, initial)),
        ["--reset"],
    ),
    "a mask that lets deltas through": ((bptt, "blank", lambda mask, tree: tree), ["--mask", "--cell", "lstm"]),
    "chunks of one step more": (
        (cli.jaxrnn.Carried, "kept_steps", lambda self, steps: self.k + 1),
        ["--truncate", "carried", 4],
    ),
    "a tail of all": (
        (cli.jaxrnn.Tail, "gradient", lambda self, *arguments: whole(*arguments)),
        ["--truncate", "tail", 4],
    ),
}


@pytest.mark.parametrize(("patch", "options"), WRONG_WAYS.values(), ids=WRONG_WAYS)
def test_what_an_option_does_wrong_is_found(call, monkeypatch, patch, options):
    monkeypatch.setattr(*patch)
    result = call("check", "--dtype", "float64", *SIZES, *options)
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.output


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
        (["--cell", "gru", "--activation", "relu"], "--activation is for an Elman cell, not for gru"),
        (["--truncate", "carried", 0], "k must be at least 1"),
        (["--truncate", "carried", 3, "--bidirectional"], "without bidirectional layers"),
        (["--truncate", "window", 3, "--recompute", "gates"], "it has no segments"),
        (["--devices", 9], "devices must be 1 to"),
        (["--devices", 2, "--batch", 7], "a batch of 7 sequences cannot be spread over 2 devices"),
    ],
)
def test_bad_input_is_told_in_a_line_with_exit_code_2(call, arguments, message):
    result = call("check", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) <= 2


@pytest.mark.parametrize("options", [["--cell", "rnn"], ["--truncate", 3], ["--truncate", "all", 3], ["--recompute"]])
def test_unknown_choices_are_told_with_what_there_is(call, options):
    result = call("check", *options)
    assert result.exit_code == 2
    assert options[0] in result.output


def test_the_library_checks_a_network_with_one_answer():
    net = cli.jaxrnn.Network((cli.jaxrnn.GRU(3, 4),), cli.jaxrnn.Readout(4, 5), cli.jaxrnn.softmax_cross_entropy)
    assert check(dataclasses.replace(net, last_step=True), steps=5, batch=2).passed
