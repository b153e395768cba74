"""`jaxrnn train`: a task learned, with progress, checkpoints and pictures."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import jax
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxrnn.cells.initializers import RECURRENT
from jaxrnn.cli.group import console
from jaxrnn.flow import plots
from jaxrnn.tasks import pictures as task_plots
from jaxrnn.tasks import text
from jaxrnn.training import experiment
from jaxrnn.training.experiment import CELLS, RECIPES, TASKS, Experiment, Settings
from jaxrnn.training.runs import Run

DEFAULT = Settings()


def setting(name: str, help: str, **options: Any) -> Callable:
    """An option for a field of `Settings`: left out, it is what the task's recipe says."""
    default = getattr(DEFAULT, name)
    kind = options.pop("type", str if default is None else type(default))
    shown = "" if default in (None, 0, "") else f"  [default for text: {default}]"
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, help=help + shown, **options)


@click.command(short_help="Learn a text, or another task.")
@click.option("--task", type=click.Choice(TASKS), default="text", show_default=True)
@setting(
    "data", "Of text a UTF-8 file or folder [default: Python's language reference]; of chorales a .mat or .npz file."
)
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="Folder of the run.  [default: new, in runs/]")
@setting("length", "Steps of a sequence of adding and order, of the pause of copy.")
@setting("cell", "The recurrence.", type=click.Choice(list(CELLS)))
@setting("hidden", "Hidden units of a layer.")
@setting("layers", "Layers of cells.")
@setting("activation", "Of an Elman cell.", type=click.Choice(["tanh", "relu"]))
@setting("initializer", "Of an Elman cell's W.", type=click.Choice(RECURRENT))
@setting("input_scale", "Standard deviation of the fresh U x_t of an Elman cell.")
@setting("recurrent_scale", "Largest eigenvalue of an Elman cell's fresh W.")
@setting("batch", "Sequences, or streams of text, side by side.")
@setting("chunk", "Steps of BPTT where sequences are longer; the state is carried on.")
@setting("steps", "Training steps.")
@setting("rate", "Highest rate of Adam.")
@setting("warmup", "Steps of rising rate, before the cosine.")
@setting("clip", "Global norm that gradients are clipped to.")
@setting("decay", "Weight decay.")
@setting("noise", "Standard deviation of noise on the weights.")
@setting("dropout", "Between layers and on the recurrent path.")
@setting("vanishing", "Weight of the vanishing-gradient regulariser, of Elman cells.")
@setting("vanishing_steps", "Steps after which that weight has halved.")
@setting("average", "Decay of an exponential average of the parameters, say 0.999.")
@setting("accumulate", "Batches whose gradients make one step.")
@setting("patience", "Stop after so many validations without an improvement.")
@setting("gradient", "How it is computed.", type=click.Choice(["bptt", "autodiff"]))
@setting("every", "Steps between validations and saves.")
@setting("flow", "Steps between records of the gradient flow.")
@setting("seed", "For everything random.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with the settings it has.")
@click.option("--overwrite", is_flag=True, help="Delete the run in --out first.")
def train(out: pathlib.Path | None, resume: bool, overwrite: bool, task: str, **options: Any) -> None:
    """Train a network to tell the next character of a text, or at another --task.

    Without options: Python's own language reference (0.46 million characters), a minute and a half on two cores. Every
    task has a recipe of its own, and an option given takes its place.

    At the end come the validation figure beside what there is to beat, a learning curve, and what suits the task: a
    sample of text, a piano roll, examples. All of it stays in the folder of the run. Ctrl-C saves, and --resume goes on
    from there, bit for bit.
    """
    if resume:
        run, now = _resumed(out, overwrite)
    else:
        given = {name: value for name, value in options.items() if value is not None}
        now = experiment.build(Settings(**{"task": task, **RECIPES[task], **given}))
        run = Run.create(out or _new_folder(now), experiment.record(now), overwrite)
    console.print(_describe(now, run))
    state = run.restore(jax.eval_shape(now.initial)) if resume else now.initial()
    run.forget_after(int(state.step))
    with Bar(now, int(state.step)) as show:
        outcome = now.fit(state, run, _logger(run, show))
    if outcome.interrupted:
        console.print(f"Interrupted after step {int(outcome.train.step)}; saved in {run.path}. To go on:")
        console.print(f"  jaxrnn train --resume --out {run.path}")
        sys.exit(130)
    _conclude(now, run)


def _resumed(out: pathlib.Path | None, overwrite: bool) -> tuple[Run, Experiment]:
    if out is None:
        raise ValueError("--resume needs --out with the folder of the run")
    if overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    names = [field.name for field in dataclasses.fields(Settings)]
    given = [f"--{name.replace('_', '-')}" for name in names if context.get_parameter_source(name) is typed]
    if given:
        raise ValueError(f"--resume takes the settings of the run; leave out {', '.join(given)}")
    run = Run.open(out)
    return run, experiment.reopen(run)


def _new_folder(now: Experiment) -> pathlib.Path:
    """The first folder of its name in runs/ that does not exist."""
    data, task = now.settings.data, now.settings.task
    name = pathlib.Path(data).expanduser().resolve().stem if data else {"text": "topics"}.get(task, task)
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(path for path in (pathlib.Path("runs") / n for n in names) if not path.exists())


def _describe(now: Experiment, run: Run) -> str:
    settings, size = now.settings, sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(now.initial).params))
    kind = type(now.net.layers[0]).__name__
    of_cell = f"{settings.hidden}, {settings.activation}" if settings.cell == "elman" else f"{settings.hidden}"
    lines = [
        *_describe_data(now),
        f"Network: {settings.layers} x {kind}({of_cell}), {size:,} parameters, gradient by {settings.gradient}",
        f"Folder: {run.path}",
    ]
    return "\n".join(lines)


def _describe_data(now: Experiment) -> list[str]:
    content = now.text
    if content is None:
        batch = now.task.batch(0)
        to_beat = ", ".join(f"{name} {error:.4f}" for name, error in now.task.baselines.items())
        return [
            f"Task: {now.task.name}, inputs {list(batch.inputs.shape)}",
            f"  in {now.task.unit}; to beat: {to_beat}",
        ]
    return [
        f"Text: {content.source}",
        f"  {len(content.train):,} characters to train on, {len(content.validation):,} to validate, "
        f"{len(content.vocabulary) - 1} different, {content.unseen} of the validation part never seen in training",
    ]


class Bar:
    """The live bar of a training, as a context that gives the function to feed with metrics."""

    def __init__(self, now: Experiment, done: int) -> None:
        self.now, self.done, self.start = now, done, time.perf_counter()
        columns = [
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("training", total=now.settings.steps, completed=done, figures="compiling")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self.bar.__enter__()
        return self.show

    def __exit__(self, *arguments: Any) -> None:
        self.bar.__exit__(*arguments)

    def show(self, metrics: dict[str, Any]) -> None:
        """Move the bar for a training metric; print a line for a validation."""
        step, elapsed = metrics["step"], time.perf_counter() - self.start
        if "loss" in metrics:
            speed = (step - self.done) / elapsed
            self.bar.update(self.task, completed=step, figures=f"{self._error(metrics['loss'])}  {speed:,.1f} steps/s")
        elif "validation_loss" in metrics:
            wrong = metrics.get("validation_wrong")
            shares = "" if wrong is None else f", {wrong:.2%} wrong"
            figures = self._error(metrics["validation_loss"]) + shares
            self.bar.console.print(f"step {step:>6}  validation {figures}  ({elapsed:.0f} s)")

    def _error(self, error: float) -> str:
        figures = f"{error:.4f} {self.now.task.unit}"
        return figures if self.now.text is None else f"{figures}, {error / math.log(2):.4f} bits"


def _logger(run: Run, show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    before = max((metrics["seconds"] for metrics in run.metrics()), default=0.0)
    start = time.perf_counter()

    def log(metrics: dict[str, Any]) -> None:
        run.log({**metrics, "seconds": round(before + time.perf_counter() - start, 3)})
        show(metrics)

    return log


def _conclude(now: Experiment, run: Run) -> None:
    """The table and the pictures of a finished run."""
    step, loss = run.validation()
    net, params = experiment.trained(run)
    _table(now, step, loss, net, params)
    written = ["learning_curve.png", "metrics.jsonl", "settings.json", "best/", "latest/"]
    curve = plots.learning_curve(run.metrics(), now.task.baselines, now.task.unit)
    curve.savefig(run.path / "learning_curve.png", dpi=150)
    if now.text is not None:
        sampled = "".join(
            text.sample(net, params, now.text.vocabulary, length=600, temperature=0.8, seed=now.settings.seed)
        )
        (run.path / "sample.txt").write_text(sampled, encoding="utf-8")
        console.print("A sample, at temperature 0.8:\n")
        console.print(sampled, markup=False)
        written.insert(1, "sample.txt")
    else:
        task_plots.examples(now.task, net, params, now.settings.seed).savefig(run.path / "examples.png", dpi=150)
        written.insert(1, "examples.png")
    seconds = max(metrics["seconds"] for metrics in run.metrics())
    console.print(f"\nTrained in {seconds:.0f} s. Curve, metrics, checkpoints and examples are in {run.path}/:")
    console.print("  " + "  ".join(written))
    if now.text is not None:
        console.print(f"  jaxrnn sample {run.path} --prompt 'The '")


def _table(now: Experiment, step: int, loss: float, net: Any, params: Any) -> None:
    """The validation figure, and that of the test part where there is one, beside what there was to beat."""
    errors = {**now.task.baselines, f"this network (step {step})": loss}
    wrong = experiment.train.evaluate(net, params, now.task.validation(), now.task.classes).wrong
    if now.task.test is not None:
        errors["this network, test part"] = experiment.train.evaluate(net, params, now.task.test()).loss
    table = Table("validation", now.task.unit, *(["bits/char"] if now.text is not None else []))
    for name, error in errors.items():
        table.add_row(name, f"{error:.4f}", *([f"{error / math.log(2):.3f}"] if now.text is not None else []))
    console.print(table)
    if wrong is not None:
        console.print(f"Wrong answers: {wrong:.2%}")
