"""`jaxrnn train`: a task learned, with progress, checkpoints and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import jax
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxrnn.cli import machine
from jaxrnn.cli.group import PATH, console, open_run
from jaxrnn.tasks.base import Task
from jaxrnn.training import experiment
from jaxrnn.training.curve import learning_curve
from jaxrnn.training.fit import Log
from jaxrnn.training.processes import largest_of_all, on_first
from jaxrnn.training.run_folder import SETTINGS, Run
from jaxrnn.training.settings import Settings, recipe
from jaxrnn.training.signals import stop_on_signals

DEFAULT_TASK = Settings().task


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_settings(command: Callable) -> Callable:
    """Adds an option for every field of `Settings`; left out, it is what the task's recipe says."""
    for field in reversed(dataclasses.fields(Settings)):
        choices, default = field.metadata["choices"], field.default
        kind = click.Choice(choices) if choices else str if default is None else type(default)
        shown = f"  [default for {DEFAULT_TASK}: {default}]" if default else ""
        command = click.option(_flag(field.name), type=kind, help=field.metadata["help"] + shown)(command)
    return command


@click.command(short_help="Learn a text, or another task.")
@_with_settings
@click.option(
    "--devices",
    type=int,
    help="Spread every batch over so many accelerators or cores, of every process.  [default: all, or one; see above]",
)
@machine.with_processes
@click.option("--out", type=PATH, help="Make this the folder of the run.  [default: new, in runs/]")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="always",
    type=click.Choice(["always", "auto"]),
    metavar="[=auto]",
    help="Go on with the run in --out, with the settings it has; with =auto, begin it where there is none. --data "
    "says where its data are now.",
)
@click.option("--overwrite", is_flag=True, help="Delete the run in --out first.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End so long after a signal at the latest, saved or not.  [default: when saved]",
)
def train(
    out: pathlib.Path | None, resume: str | None, overwrite: bool, grace: float | None, devices: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Train a network to tell the next character of a text, or at another --task.

    Without options: Python's own language reference (0.46 million characters), on two cores a minute and a half with
    AVX-512 and up to five without. Every task has a recipe of its own, and an option given takes its place.

    At the end come the validation figure beside what there is to beat, how far published figures are, a learning curve,
    and what suits the task: a sample of text, a piano roll, examples. All of it stays in the folder of the run. Where a
    loss or a gradient is not finite it ends with exit code 1 and says where that began; --on-nan skip goes on without
    such steps.

    Ctrl-C, SIGTERM and SIGHUP save after the step under way, and end with exit code 130, 143 or 129; several processes
    save after 25 steps at most, and what is not training ends at once. --resume goes on from there, and from the last
    checkpoint after a crash, as if nothing had been: bit for bit on the same devices, and to rounding on others. A job
    that a scheduler may kill and start again is one line, with --out and --resume=auto.

    Every batch is spread over all accelerators, or over all cores of a CPU where that is faster than one device, whose
    large products XLA spreads over the cores by itself: where G H^2 B, with G = 1, 3 or 4 for elman, the GRUs and lstm,
    is 2^18 for every core at least, G H^2 is 2^19 at most, and V is 8 G H at most. The first line says what is used;
    --devices says otherwise.

    Several processes train one network with --distributed, or with --coordinator, --processes and --process, and one
    --out on a file system that they share. The first one prints. Where one dies the others end within a minute; start
    all of them again, with --resume.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if resume is not None and out is None:
        raise ValueError("--resume needs --out with the folder of the run")
    with contextlib.ExitStack() as held:
        run = None
        if out is not None and _goes_on(out, resume, overwrite, given):
            run = held.enter_context(open_run(out, writing=True))
            _check_settings(run, given)
            now = experiment.reopen(run, given.get("data"))
        else:
            now = experiment.build(recipe(**{"task": DEFAULT_TASK, **given}))
        mesh, used = machine.choose_devices(devices, now.settings, now.task.outputs)
        now = now._replace(mesh=mesh)
        if run is None:
            run = held.enter_context(Run.create(out or _new_folder(now.task), experiment.record(now), overwrite))
        elif "data" in given:
            run.change_settings(experiment.record(now)["settings"])  # for the next --resume, and for flow
        console.print(f"{used}\n{_describe(now, run)}")
        _train(now, run, grace)


def _goes_on(out: pathlib.Path, resume: str | None, overwrite: bool, given: dict[str, Any]) -> bool:
    """Returns whether to go on with a run that is there."""
    if resume is None:
        return False
    if overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if resume == "auto":
        return bool(on_first(lambda: (out / SETTINGS).is_file()))
    if others := [_flag(name) for name in given if name != "data"]:
        raise ValueError(f"--resume takes the settings of the run; leave out {', '.join(others)}")
    return True


def _check_settings(run: Run, given: dict[str, Any]) -> None:
    """Raises where settings that were given are not those of the run."""
    if others := experiment.other_settings(run, given):
        flags = ", ".join(map(_flag, others))
        raise ValueError(
            f"{str(run.path)!r} holds a run with other settings: leave out {flags}, or choose another --out"
        )


def _train(now: experiment.Experiment, run: Run, grace: float | None) -> None:
    """Trains, from where the run stands, and shows what came of it."""
    state = now.state_of(run)
    with stop_on_signals(grace) as stop, _bar(now, int(state.step)) as show:
        outcome = now.train(run, state, show, stop)
    if outcome.interrupted:
        console.print(f"Interrupted after step {int(outcome.train.step)}; saved in {run.path}. To go on:")
        console.print(f"  jaxrnn train --resume --out {run.path}")
        sys.exit(128 + largest_of_all(stop.signal or 0))
    _conclude(now, run)


def _new_folder(task: Task) -> pathlib.Path:
    """Returns the first folder of the task's name in runs/ that does not exist."""
    names = itertools.chain([task.folder], (f"{task.folder}-{i}" for i in itertools.count(2)))
    return next(path for path in (pathlib.Path("runs") / name for name in names) if not path.exists())


def _describe(now: experiment.Experiment, run: Run) -> str:
    settings = now.settings
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(now.initial_state).params))
    kind = type(now.net.layers[0]).__name__
    of_cell = {"elman": f", {settings.activation}", "gru-before": ", reset before"}.get(settings.cell, "")
    layers = f"{settings.layers} x {kind}({settings.hidden}{of_cell})"
    network = f"{layers}, {size:,} parameters, gradient by {settings.gradient}"
    return "\n".join([*now.task.describe(), f"Network: {network}", f"Folder: {run.path}"])


@contextlib.contextmanager
def _bar(now: experiment.Experiment, done: int) -> Iterator[Log]:
    """Shows the progress of a training; gives the function to call with metrics."""
    figures, start = TextColumn("{task.fields[figures]}"), time.perf_counter()
    columns = [TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), figures, TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("training", total=now.settings.steps, completed=done, figures="compiling")

        def show(metrics: dict[str, Any]) -> None:
            """Moves the bar for a training metric; prints a line for a validation."""
            step, elapsed = metrics["step"], time.perf_counter() - start
            if "skipped" in metrics:
                bar.console.print(f"step {step:>6}  {metrics['skipped']} skipped, whose gradient was not finite")
            if "loss" in metrics:
                speed = f"{(step - done) / elapsed:,.1f} steps/s"
                bar.update(shown, completed=step, figures=f"{_in_words(now.task, metrics['loss'])}  {speed}")
            elif "validation_loss" in metrics:
                rate = metrics.get("validation_error_rate")
                wrong = "" if rate is None else f", {rate:.2%} wrong"
                error = _in_words(now.task, metrics["validation_loss"])
                bar.console.print(f"step {step:>6}  validation {error}{wrong}  ({elapsed:.0f} s)")

        yield show


def _in_words(task: Task, error: float) -> str:
    units = {task.unit: 1.0, **task.further_units}
    return ", ".join(f"{error * count:.4f} {unit}" for unit, count in units.items())


def _conclude(now: experiment.Experiment, run: Run) -> None:
    """Prints the table of a finished run, and adds pictures and a sample to its folder."""
    net, params = experiment.load_best(run, now.mesh)
    if jax.process_index() > 0:
        return
    _print_errors(now._replace(mesh=None), run, params)
    figures: dict[str, Any] = {
        "learning_curve.png": learning_curve(run.metrics(), now.task.baselines, now.task.unit),
        "examples.png": now.task.picture(net, params),
    }
    written = [name for name, figure in figures.items() if figure is not None]
    for name in written:
        figures[name].savefig(run.path / name, dpi=150)
    if (sample := now.task.sample(net, params)) is not None:
        (run.path / "sample.txt").write_text(sample, encoding="utf-8")
        written.append("sample.txt")
        console.print("A sample:\n")
        console.print(sample)
    console.print(f"\nTrained in {run.seconds():.0f} s. Curve, metrics, checkpoints and examples are in {run.path}/:")
    console.print("  " + "  ".join([*written, "metrics.jsonl", "settings.json", "checkpoints/"]))
    if sample is not None:
        console.print(f"  jaxrnn sample {run.path}")


def _print_errors(now: experiment.Experiment, run: Run, params: Any) -> None:
    """Prints the validation error, and that of the test part where there is one, beside the baselines."""
    step, loss = run.best_validation()
    errors = {**now.task.baselines, f"this network (step {step})": loss}
    if (test := now.test(params)) is not None:
        errors["this network, test part"] = test.loss
    units = {now.task.unit: 1.0, **now.task.further_units}
    table = Table("validation", *units)
    for name, error in errors.items():
        table.add_row(name, *(f"{error * count:.4f}" for count in units.values()))
    console.print(table)
    wrong = now.validate(params).error_rate if now.task.classes else None
    if wrong is not None:
        console.print(f"Wrong answers: {wrong:.2%}")
    console.print("\n".join(_published(now.task, loss if test is None else test.loss, wrong)))


def _published(task: Task, error: float, wrong: float | None) -> list[str]:
    """Returns lines that say how far away published figures are."""
    if not task.published:
        return ["No published figure is known for these data."]
    lines = []
    for figure, source, of_wrong in task.published:
        ours, unit = (wrong or 0.0, "wrong") if of_wrong else (error, task.unit)
        show = (lambda value: f"{value:.2%}") if of_wrong else (lambda value: f"{value:.4g}")
        apart = f"{show(abs(ours - figure))} {'above' if ours > figure else 'below'}" if ours != figure else "the same"
        lines.append(f"Published: {show(figure)} {unit} ({source}); here {show(ours)}, {apart}")
    return lines
