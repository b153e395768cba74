"""The command, as a user calls it."""

import json

import pytest
from click.testing import CliRunner

from jaxrnn import cli
from jaxrnn.network.network import Network


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("peter piper picked a peck of pickled peppers\n" * 100)
    return path


SMALL = ["--hidden", 16, "--batch", 4, "--chunk", 16, "--steps", 20, "--every", 10]


def test_train_then_sample(call, data, tmp_path):
    result = call("train", "--data", data, *SMALL)
    assert result.exit_code == 0, result.output
    for words in ("uniform", "unigram", "bz2", "this network", "A sample", "runs/data"):
        assert words in result.output
    run = tmp_path / "runs" / "data"
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "sample.txt").read_text()) == 600
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "validation_loss" in m] == [10, 20]
    assert all(m["seconds"] > 0 for m in metrics)

    written = [call("sample", run, "--prompt", "peter", "--length", 30, "--seed", seed) for seed in (1, 1, 2)]
    assert [result.exit_code for result in written] == [0, 0, 0]
    assert written[0].output == written[1].output != written[2].output
    assert written[0].output.startswith("peter")
    assert len(written[0].output) == 5 + 30 + 1


def test_a_second_run_gets_a_folder_of_its_own(call, data, tmp_path):
    for _ in range(2):
        assert call("train", "--data", data, *SMALL).exit_code == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"data", "data-2"}


def test_a_run_is_kept_unless_overwritten_and_resumed_when_finished(call, data, tmp_path):
    assert call("train", "--data", data, "--out", "run", *SMALL).exit_code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    refused = call("train", "--data", data, "--out", "run", *SMALL)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    resumed = call("train", "--resume", "--out", "run")
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert call("train", "--data", data, "--out", "run", "--overwrite", *SMALL).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "missing.txt"], "no file or folder 'missing.txt'"),
        (["train", "--data", "empty.txt"], "0 characters"),
        (["train", "--data", "binary"], "not UTF-8"),
        (["train", "--data", "folder"], "no file of UTF-8 text"),
        (["train", "--data", "data.txt", "--chunk", "5000"], "chunk x batch"),
        (["train", "--data", "data.txt", "--hidden", "0"], "hidden must be at least 1"),
        (["train", "--data", "data.txt", "--rate", "nan"], "rate must be positive"),
        (["train", "--resume"], "--out"),
        (["train", "--resume", "--out", "folder"], "not the folder of a run"),
        (["train", "--resume", "--out", "folder", "--hidden", "3"], "leave out --hidden"),
        (["train", "--resume", "--overwrite", "--out", "folder"], "exclude each other"),
        (["train", "--data", "data.txt", "--out", "folder"], "not the folder of a run"),
        (["train", "--data", "data.txt", "--out", "data.txt"], "not the folder of a run"),
        (["sample", "folder"], "not the folder of a run"),
        (["check", "--hidden", "0"], "hidden must be at least 1"),
        (["check", "--segment", "0"], "segment must be at least 1"),
        (["check", "--layers", "0"], "layers"),
    ],
)
def test_bad_input_is_told_in_a_line_or_two_with_exit_code_2(call, data, tmp_path, arguments, message):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "picture.png").write_bytes(b"\x89PNG\xff")
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) <= 2
    assert "Traceback" not in result.output


def test_check_passes_in_both_dtypes(call):
    for dtype in ("float32", "float64"):
        result = call("check", "--dtype", dtype, "--hidden", 8, "--inputs", 5, "--outputs", 6, "--steps", 9)
        assert result.exit_code == 0, result.output
        assert result.output.count("passed") == 5


def test_check_fails_with_exit_code_1_when_the_adjoint_is_wrong(call, monkeypatch):
    right = cli.jaxrnn.Elman.step_adjoint

    def wrong(self, operands, adjoint, local):
        return right(self, operands._replace(W=operands.W_T), adjoint, local)

    monkeypatch.setattr(cli.jaxrnn.Elman, "step_adjoint", wrong)
    result = call("check", "--hidden", 8, "--inputs", 5, "--outputs", 6, "--steps", 9)
    assert result.exit_code == 1
    assert "FAILED" in result.output


def test_the_differences_hold_autodiff_itself_to_account(call, monkeypatch):
    """If the loss and its gradient by hand agreed on a wrong derivative, only the differences could tell."""
    right = Network.loss

    def wrong(self, *arguments, **options):
        return right(self, *arguments, **options) * 1.001

    monkeypatch.setattr(Network, "loss", wrong)
    assert call("check", "--hidden", 8, "--inputs", 5, "--outputs", 6, "--steps", 9).exit_code == 1


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["check"]])
def test_help_names_every_option(call, command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    options = cli.main.commands[command[0]].params if command else []
    for option in options:
        if option.opts[0].startswith("--"):
            assert option.opts[0] in result.output


@pytest.mark.parametrize("task", ["adding", "copy", "order", "reber"])
def test_every_task_is_trained(call, task, tmp_path):
    small = ["--length", 20, "--hidden", 8, "--batch", 4, "--steps", 12, "--every", 6]
    result = call("train", "--task", task, "--out", "run", *small)
    assert result.exit_code == 0, result.output
    assert "to beat" in result.output
    assert "this network" in result.output
    for name in ("learning_curve.png", "examples.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["settings"]["task"] == task
    refused = call("sample", "run")
    assert refused.exit_code == 2
    assert "was not trained on text" in refused.output


def test_the_training_kit_from_the_command_line(call):
    kit = ["--cell", "elman", "--initializer", "sparse", "--vanishing", 0.5, "--vanishing-steps", 10, "--noise", 0.01]
    kit += ["--decay", 0.01, "--average", 0.9, "--accumulate", 2, "--patience", 1, "--dropout", 0.1]
    small = ["--length", 20, "--hidden", 20, "--batch", 4, "--steps", 12, "--every", 4]
    result = call("train", "--task", "adding", "--activation", "tanh", "--out", "run", *small, *kit)
    assert result.exit_code == 0, result.output
    again = call("train", "--resume", "--out", "run")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "chorales"], "chorales need a .mat or .npz file"),
        (["--task", "chorales", "--data", "none.mat"], "there is no file"),
        (["--task", "adding", "--data", "x.txt"], "makes its own"),
        (["--task", "order", "--length", 5], "steps must be 10 at least"),
        (["--task", "copy", "--cell", "gru", "--vanishing", 1.0, "--steps", 1], "vanishing needs layers"),
        (["--task", "adding", "--flow", 5, "--gradient", "autodiff"], 'need gradient="bptt"'),
    ],
    ids=str,
)
def test_wrong_tasks(call, arguments, message):
    result = call("train", "--out", "run", *arguments)
    assert result.exit_code == 2
    assert message in result.output
