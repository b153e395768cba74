"""`jaxrnn train`: what it writes, what it refuses, and every task and option of the kit."""

import json
import shutil
import sys

import numpy as np
import pytest

from jaxrnn import cli
from jaxrnn.tasks.adding import Adding
from jaxrnn.tasks.temporal_order import TemporalOrder
from jaxrnn.training.experiment import load_best
from jaxrnn.training.run_folder import Run

train = sys.modules["jaxrnn.cli.train"]  # the room has the command under this name


def test_train(trained):
    run, result = trained
    assert result.exit_code == 0, result.output
    for words in ("uniform", "unigram", "bz2", "this network", "bits per character", "A sample", "runs/data"):
        assert words in result.output
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "sample.txt").read_text()) == 600
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "validation_loss" in m] == [10, 20]
    assert all(m["seconds"] > 0 for m in metrics)


def test_the_flow_of_training_is_recorded(trained):
    history = [row for row in Run.open(trained[0]).metrics() if "flow" in row]
    assert [row["step"] for row in history] == [5, 10, 15, 20]
    assert np.shape(history[0]["flow"]) == (1, 16)
    assert np.all(np.array(history[0]["flow"]) > 0)


def test_a_run_is_kept_unless_overwritten_and_resumed_when_finished(call, trained, data, small, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    refused = call("train", "--data", data, "--out", "run", *small)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    resumed = call("train", "--resume", "--out", "run")
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert call("train", "--data", data, "--out", "run", "--overwrite", *small[:-4], "--steps", 1).exit_code == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() != before


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
    ],
)
def test_bad_input_is_told_in_a_line_or_two_with_exit_code_2(call, data, tmp_path, arguments, message):
    shutil.copy(data, tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "picture.png").write_bytes(b"\x89PNG\xff")
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) <= 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["check"], ["flow"]])
def test_help_names_every_option(call, command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    options = cli.main.commands[command[0]].params if command else []
    for option in options:
        if option.opts[0].startswith("--"):
            assert option.opts[0] in result.output


def check_folder(run, result, task):
    assert result.exit_code == 0, result.output
    assert "to beat" in result.output
    assert "this network" in result.output
    for name in ("learning_curve.png", "examples.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "settings.json").read_text())["settings"]["task"] == task


@pytest.mark.parametrize("task", ["copy", "order", "reber"])
def test_every_task_is_trained(call, task, tmp_path):
    (tmp_path / "runs" / task).mkdir(parents=True)  # so that the run gets another folder
    small = ["--hidden", 8, "--batch", 4, "--steps", 2, "--every", 2, *(["--length", 20] * (task != "reber"))]
    result, run = call("train", "--task", task, *small), tmp_path / "runs" / f"{task}-2"
    check_folder(run, result, task)
    for refused in (call("sample", run), call("flow", run)):
        assert refused.exit_code == 2
        assert "was" in refused.output
        assert "trained on" in refused.output
    known = "Published: 0.00% wrong (plain network with clipping and a regulariser, Pascanu et al. 2013); here"
    assert (known if task == "order" else "No published figure is known for these data.") in " ".join(
        result.output.split()
    )


def test_how_far_a_published_figure_is():
    task = Adding(4, length=600)
    assert train._published(task, 0.1765, None) == [
        "Published: 0.177 mean squared error (plain network, Bai et al. 2018); here 0.1765, 0.0005 below",
        "Published: 5.3e-05 mean squared error (GRU, Bai et al. 2018); here 0.1765, 0.1764 above",
    ]
    assert train._published(TemporalOrder(4), 0.1, 0.0)[0].endswith("here 0.00%, the same")


def test_the_gru_that_resets_before_its_product(call, tmp_path):
    small = ["--length", 20, "--hidden", 8, "--batch", 4, "--steps", 4, "--every", 2]
    result = call("train", "--task", "adding", "--cell", "gru-before", "--out", "run", *small)
    check_folder(tmp_path / "run", result, "adding")
    assert "1 x GRU(8, reset before)" in result.output
    assert load_best(Run.open(tmp_path / "run"))[0].layers[0].reset == "before"
    again = call("train", "--resume", "--out", "run")
    assert again.exit_code == 0, again.output


def test_the_training_kit_from_the_command_line(call, tmp_path):
    kit = ["--cell", "elman", "--initializer", "sparse", "--vanishing", 0.5, "--vanishing-steps", 10, "--noise", 0.01]
    kit += ["--decay", 0.01, "--average", 0.9, "--accumulate", 2, "--patience", 1, "--dropout", 0.1]
    small = ["--length", 20, "--hidden", 16, "--batch", 4, "--steps", 4, "--every", 2]
    result = call("train", "--task", "adding", "--activation", "tanh", "--out", "run", *small, *kit)
    check_folder(tmp_path / "run", result, "adding")
    again = call("train", "--resume", "--out", "run")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "chorales"], "chorales need a .mat file of piano rolls"),
        (["--task", "chorales", "--data", "none.mat"], "there is no file"),
        (["--task", "adding", "--data", "x.txt"], "makes its own"),
        (["--task", "order", "--length", 5], "length must be 10 at least"),
        (["--task", "text", "--length", 5], "--length is for"),
        (["--cell", "lstm", "--activation", "relu"], "--activation is for Elman cells"),
        (["--task", "copy", "--cell", "gru", "--vanishing", 1.0, "--steps", 1], "vanishing needs layers"),
        (["--task", "adding", "--flow", 5, "--gradient", "autodiff"], 'need gradient="bptt"'),
    ],
    ids=str,
)
def test_wrong_tasks(call, arguments, message):
    result = call("train", "--out", "run", "--hidden", 8, "--batch", 4, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def metrics_of(run):
    rows = Run.open(run).metrics()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_one_line_begins_a_run_and_goes_on_with_it(call, trained, data, small, tmp_path):
    line = ["train", "--data", data, "--flow", 5, *small, "--out", "run", "--resume=auto"]
    for _ in range(2):
        result = call(*line)
        assert result.exit_code == 0, result.output
        assert metrics_of(tmp_path / "run") == metrics_of(trained[0])
    other = call(*line, "--hidden", 17, "--seed", 1)
    assert other.exit_code == 2
    assert "other settings: leave out --hidden, --seed" in other.output


def test_a_run_goes_on_with_data_that_have_moved(call, data, small, tmp_path):
    (tmp_path / "old.txt").write_bytes(data.read_bytes())
    assert call("train", "--data", "old.txt", "--out", "run", *small).exit_code == 0
    (tmp_path / "old.txt").rename(tmp_path / "new.txt")
    (tmp_path / "other.txt").write_text("other " * 200)
    for options, message in (
        ([], "old.txt' is no longer there: train --resume --data says where it is now"),
        (["--data", "other.txt"], "other.txt has changed since the run began"),
        (["--data", "none.txt"], "there is no file or folder"),
        (["--data", "new.txt", "--hidden", 3], "leave out --hidden"),
    ):
        refused = call("train", "--resume", "--out", "run", *options)
        assert refused.exit_code == 2
        assert message in refused.output
        assert Run.open(tmp_path / "run").record["settings"]["data"] == str(tmp_path / "old.txt")
    for options in (["--data", "new.txt"], []):
        again = call("train", "--resume", "--out", "run", *options)
        assert again.exit_code == 0, again.output
        assert Run.open(tmp_path / "run").record["settings"]["data"] == str(tmp_path / "new.txt")


def test_a_run_without_a_checkpoint_begins_at_its_first_step(call, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5, "lo')
    result = call("train", "--resume", "--out", "run")
    assert result.exit_code == 0, result.output
    assert metrics_of(tmp_path / "run") == metrics_of(trained[0])


def test_a_run_of_patience_that_has_ended_does_not_train_on(call, data, small, tmp_path):
    patient = ["--every", 2, "--steps", 60, "--patience", 1, "--rate", 0.5, "--warmup", 0]
    assert call("train", "--data", data, "--out", "run", *small[:6], *patient).exit_code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"step": 60,' not in before
    assert call("train", "--resume", "--out", "run").exit_code == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
