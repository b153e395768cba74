"""The `jaxrnn` command."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import jaxrnn
from jaxrnn import check as checking
from jaxrnn import diagnosis, experiment, plots
from jaxrnn.experiment import Experiment, Settings
from jaxrnn.initializers import RECURRENT
from jaxrnn.runs import Run
from jaxrnn.tasks import text

OBJECTIVES = {
    "softmax": jaxrnn.softmax_cross_entropy,
    "sigmoid": jaxrnn.sigmoid_cross_entropy,
    "squared": jaxrnn.squared_error,
}
DEFAULT = Settings()
console = Console(highlight=False, soft_wrap=True)


class Group(click.Group):
    """A group whose commands tell a user's errors in a line, with exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; what the library says about its arguments is all that is printed."""
        try:
            return super().invoke(context)
        except (ValueError, TypeError) as error:
            click.echo(f"jaxrnn: {error}", err=True)
            context.exit(2)
        except FloatingPointError as error:
            click.echo(f"jaxrnn: {error}", err=True)
            context.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(jaxrnn.__version__, prog_name="jaxrnn")
def main() -> None:
    """Recurrent networks in JAX, with back-propagation through time written by hand.

    \b
    jaxrnn train           learn a text, character by character, in a minute and a half
    jaxrnn sample RUN      write text from what was learnt
    jaxrnn check           hold the gradients against autodiff and finite differences
    jaxrnn flow RUN        see how far back its gradients reach, and why no further
    """


@main.command(short_help="Learn a text, character by character.")
@click.option("--data", type=str, help="UTF-8 file, or folder of them.  [default: Python's language reference]")
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="Folder of the run.  [default: new, in runs/]")
@click.option("--hidden", default=DEFAULT.hidden, show_default=True, help="Hidden units of a layer.")
@click.option("--layers", default=DEFAULT.layers, show_default=True, help="Elman layers.")
@click.option("--activation", type=click.Choice(["tanh", "relu"]), default=DEFAULT.activation, show_default=True)
@click.option("--token-scale", default=DEFAULT.token_scale, show_default=True, help="Standard deviation of a fresh U.")
@click.option("--recurrent-scale", default=DEFAULT.recurrent_scale, show_default=True, help="Eigenvalues of a fresh W.")
@click.option("--batch", default=DEFAULT.batch, show_default=True, help="Streams read side by side.")
@click.option("--chunk", default=DEFAULT.chunk, show_default=True, help="Characters of BPTT; the state is carried on.")
@click.option("--steps", default=DEFAULT.steps, show_default=True, help="Training steps.")
@click.option("--rate", default=DEFAULT.rate, show_default=True, help="Highest rate of Adam.")
@click.option("--warmup", default=DEFAULT.warmup, show_default=True, help="Steps of rising rate, before the cosine.")
@click.option("--clip", default=DEFAULT.clip, show_default=True, help="Global norm that gradients are clipped to.")
@click.option("--gradient", type=click.Choice(["bptt", "autodiff"]), default=DEFAULT.gradient, show_default=True)
@click.option("--every", default=DEFAULT.every, show_default=True, help="Steps between validations and saves.")
@click.option("--flow", default=DEFAULT.flow, show_default=True, help="Steps between records of the gradient flow.")
@click.option("--seed", default=DEFAULT.seed, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with the settings it has.")
@click.option("--overwrite", is_flag=True, help="Delete the run in --out first.")
def train(out: pathlib.Path | None, resume: bool, overwrite: bool, **options: Any) -> None:
    """Train an Elman network to tell the next character of a text.

    Without options: Python's own language reference (0.46 million characters), a minute and a half on two cores.
    At the end come the validation figure beside three yardsticks, a sample, and a learning curve; all of it stays in
    the folder of the run. Ctrl-C saves, and --resume goes on from there, bit for bit.
    """
    if resume:
        run, now = _resumed(out, overwrite)
    else:
        now = experiment.build(Settings(**options))
        run = Run.create(out or _new_folder(now), experiment.record(now), overwrite)
    console.print(_describe(now, run))
    state = run.restore(jax.eval_shape(now.initial)) if resume else now.initial()
    run.forget_after(int(state.step))
    with Bar(now.settings, int(state.step)) as show:
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
    name = pathlib.Path(now.settings.data).expanduser().resolve().stem if now.settings.data else "topics"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(path for path in (pathlib.Path("runs") / n for n in names) if not path.exists())


def _describe(now: Experiment, run: Run) -> str:
    content, settings = now.text, now.settings
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(now.initial).params))
    lines = [
        f"Text: {content.source}",
        f"  {len(content.train):,} characters to train on, {len(content.validation):,} to validate, "
        f"{len(content.vocabulary) - 1} different, {content.unseen} of the validation part never seen in training",
        f"Network: {settings.layers} x Elman({settings.hidden}, {settings.activation}), {size:,} parameters, "
        f"gradient by {settings.gradient}",
        f"Folder: {run.path}",
    ]
    return "\n".join(lines)


class Bar:
    """The live bar of a training, as a context that gives the function to feed with metrics."""

    def __init__(self, settings: Settings, done: int) -> None:
        self.settings, self.done, self.start = settings, done, time.perf_counter()
        columns = [
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("training", total=settings.steps, completed=done, figures="compiling")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self.bar.__enter__()
        return self.show

    def __exit__(self, *arguments: Any) -> None:
        self.bar.__exit__(*arguments)

    def show(self, metrics: dict[str, Any]) -> None:
        """Move the bar for a training metric; print a line for a validation."""
        step = metrics["step"]
        if "loss" in metrics:
            characters = (step - self.done) * self.settings.batch * self.settings.chunk
            speed = characters / (time.perf_counter() - self.start)
            figures = f"loss {metrics['loss']:.3f}  {_bits(metrics['loss']):.3f} bits/char  {speed:,.0f} char/s"
            self.bar.update(self.task, completed=step, figures=figures)
        elif "validation_loss" in metrics:
            loss, elapsed = metrics["validation_loss"], time.perf_counter() - self.start
            self.bar.console.print(
                f"step {step:>6}  validation {loss:.4f} nats, {_bits(loss):.4f} bits per character  ({elapsed:.0f} s)"
            )


def _logger(run: Run, show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    before = max((metrics["seconds"] for metrics in run.metrics()), default=0.0)
    start = time.perf_counter()

    def log(metrics: dict[str, Any]) -> None:
        run.log({**metrics, "seconds": round(before + time.perf_counter() - start, 3)})
        show(metrics)

    return log


def _conclude(now: Experiment, run: Run) -> None:
    """The table, the sample and the picture of a finished run."""
    yardsticks = now.text.yardsticks()
    step, loss = run.validation()
    table = Table("validation", "bits/char", "nats/char")
    for name, bits in {**yardsticks, f"this network (step {step})": _bits(loss)}.items():
        table.add_row(name, f"{bits:.3f}", f"{bits * math.log(2):.3f}")
    console.print(table)
    net, params, vocabulary = experiment.trained(run)
    written = "".join(text.sample(net, params, vocabulary, length=600, temperature=0.8, seed=now.settings.seed))
    (run.path / "sample.txt").write_text(written, encoding="utf-8")
    console.print("A sample, at temperature 0.8:\n")
    console.print(written, markup=False)
    plots.learning_curve(run.metrics(), yardsticks).savefig(run.path / "learning_curve.png", dpi=150)
    seconds = max(metrics["seconds"] for metrics in run.metrics())
    console.print(f"\nTrained in {seconds:.0f} s. Curve, sample, metrics and checkpoints are in {run.path}/:")
    console.print("  learning_curve.png  sample.txt  metrics.jsonl  settings.json  best/  latest/")
    console.print(f"  jaxrnn sample {run.path} --prompt 'The '")


def _bits(nats: float) -> float:
    return nats / math.log(2)


@main.command(short_help="Write text from a saved run.")
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--prompt", default="\n", help="What the text goes on from.  [default: a new line]")
@click.option("--temperature", default=0.8, show_default=True, help="1: as learnt; less: surer; 0: the likeliest.")
@click.option("--length", default=500, show_default=True, help="Characters to write.")
@click.option("--seed", default=0, show_default=True)
def sample(run: pathlib.Path, prompt: str, temperature: float, length: int, seed: int) -> None:
    """Write text from the best checkpoint of RUN, a folder that `jaxrnn train` made."""
    net, params, vocabulary = experiment.trained(Run.open(run))
    characters = text.sample(net, params, vocabulary, prompt, length, temperature, seed)
    for character in _flushed(itertools.chain(prompt.lstrip("\n"), characters)):
        click.echo(character, nl=False)
    click.echo()


def _flushed(characters: Iterator[str]) -> Iterator[str]:
    for character in characters:
        yield character
        if character == "\n":
            sys.stdout.flush()


@main.command(short_help="Hold the gradients against autodiff and finite differences.")
@click.option("--inputs", default=32, show_default=True, help="D, input features or tokens.")
@click.option("--hidden", default=64, show_default=True, help="H, hidden units.")
@click.option("--outputs", default=32, show_default=True, help="V, outputs.")
@click.option("--layers", default=1, show_default=True, help="Layers of cells.")
@click.option("--activation", type=click.Choice(["tanh", "relu"]), default="tanh", show_default=True)
@click.option("--bias/--no-bias", default=True, show_default=True)
@click.option("--objective", type=click.Choice(list(OBJECTIVES)), default="softmax", show_default=True)
@click.option("--tokens", is_flag=True, help="Integer tokens as inputs.")
@click.option("--steps", default=50, show_default=True, help="T, steps of time.")
@click.option("--batch", default=8, show_default=True, help="B, sequences.")
@click.option("--segment", type=int, help="K, steps of a segment.  [default: what fits the cache]")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--seed", default=0, show_default=True)
def check(
    inputs: int, hidden: int, outputs: int, layers: int, activation: str, bias: bool, objective: str, **options: Any
) -> None:
    """Compare the gradients of BPTT by hand with jax.grad of the plain scan, central differences and RTRL.

    For every parameter: the relative error of BPTT against the truth (jax.grad in float64), jax.grad's own error where
    the dtype is float32, the bound, the error of the directional derivatives against central differences, and in
    float64 that against RTRL, a gradient forward in time, for one layer. Exit code 1 if anything is over its bound.
    """
    sizes = [inputs] + [hidden] * layers
    cells = tuple(jaxrnn.Elman(D, H, activation, bias) for D, H in itertools.pairwise(sizes))
    net = jaxrnn.Network(cells, jaxrnn.Readout(hidden, outputs, bias), OBJECTIVES[objective])
    options["segment"] = "auto" if options["segment"] is None else options["segment"]
    report = checking.check(net, **options)
    table = Table("parameter", "BPTT", "bound", "jax.grad", "differences", "RTRL", "verdict")
    for row in report.rows:
        verdict = "[green]passed[/green]" if row.passed else "[red]FAILED[/red]"
        figures = [row.bptt, row.bound, row.autodiff, row.differences, row.forward]
        table.add_row(row.parameter, *("-" if figure is None else f"{figure:.1e}" for figure in figures), verdict)
    T, B, dtype = options["steps"], options["batch"], options["dtype"]
    console.print(f"Relative errors of the gradients: {dtype}, T = {T}, B = {B}")
    console.print(table)
    console.print(f"Bounds: differences {checking.DIFFERENCES:.0e}, RTRL {checking.FORWARD:.0e}, both in float64")
    times = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in report.seconds.items())
    console.print(f"One loss and gradient: {times}")
    if not report.passed:
        sys.exit(1)


CELLS = {"elman": jaxrnn.Elman, "gru": jaxrnn.GRU, "lstm": jaxrnn.LSTM}


@main.command(short_help="See how far back gradients reach, and why no further.")
@click.argument("run", required=False, type=click.Path(path_type=pathlib.Path))
@click.option("--init", is_flag=True, help="A fresh network in the place of a run, on random sequences.")
@click.option("--cell", type=click.Choice(list(CELLS)), default="elman", show_default=True)
@click.option("--inputs", default=32, show_default=True, help="D, features of standard normal inputs.")
@click.option("--hidden", default=128, show_default=True, help="H, hidden units.")
@click.option("--outputs", default=32, show_default=True, help="V, outputs of a softmax.")
@click.option("--layers", default=1, show_default=True)
@click.option("--activation", type=click.Choice(["tanh", "relu"]), help="Of an Elman cell.  [default: tanh]")
@click.option("--initializer", type=click.Choice(RECURRENT), help="Of an Elman cell's W.  [default: orthogonal]")
@click.option("--scale", type=float, help="Of an Elman cell's W: its spectral radius.  [default: 1]")
@click.option("--layer", default=-1, show_default=True, help="The layer to look at; -1 is the top one.")
@click.option("--steps", default=100, show_default=True, help="T, 20 to 2,000.")
@click.option("--batch", default=8, show_default=True, help="B, sequences.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=pathlib.Path), help="Folder for flow.png and flow.npz.  [default: RUN]"
)
def flow(run: pathlib.Path | None, init: bool, out: pathlib.Path | None, layer: int, seed: int, **options: Any) -> None:
    """Show the gradient flow of RUN, a folder that `jaxrnn train` made, or of a fresh network (--init).

    A diagnosis in words: does the gradient vanish, explode, or pass; how many steps back it reaches; saturation; the
    largest Lyapunov exponent; and what to try. The same as one page of pictures, flow.png, and as arrays, flow.npz.
    """
    if init == (run is not None):
        raise ValueError("give the folder of a run, or --init, not both")
    if init:
        net, params, inputs, targets, title = _fresh(seed=seed, **options)
    else:
        assert run is not None
        _only_for_init()
        net, params, inputs, targets, title = _of_run(Run.open(run), options["steps"], options["batch"], seed)
    found = diagnosis.diagnose(net, params, inputs, targets, key=jax.random.key(seed), layer=layer)
    folder = out or run or pathlib.Path()
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"{title}, T = {options['steps']}, B = {options['batch']}, layer {found.layer}\n")
    console.print(str(found), markup=False)
    plots.gradient_flow(found, title).savefig(folder / "flow.png", dpi=130)
    np.savez(folder / "flow.npz", allow_pickle=False, **found.arrays())
    console.print(f"\nThe page is {folder / 'flow.png'}, the arrays are in {folder / 'flow.npz'}.")


def _only_for_init() -> None:
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    names = ("cell", "inputs", "hidden", "outputs", "layers", "activation", "initializer", "scale")
    given = [f"--{name}" for name in names if context.get_parameter_source(name) is typed]
    if given:
        raise ValueError(f"a run has its own network: leave out {', '.join(given)}, or ask for --init")


def _fresh(
    cell: str, inputs: int, hidden: int, outputs: int, layers: int, steps: int, batch: int, seed: int, **options: Any
) -> tuple[jaxrnn.Network, Any, Any, Any, str]:
    names = {"activation": "activation", "initializer": "recurrent_initializer", "scale": "recurrent_scale"}
    given = {names[name]: value for name, value in options.items() if value is not None}
    if given and cell != "elman":
        raise ValueError(f"--activation, --initializer and --scale are for an Elman cell, not for {cell}")
    sizes = [inputs] + [hidden] * layers
    cells = tuple(CELLS[cell](D, H, **given) for D, H in itertools.pairwise(sizes))
    net = jaxrnn.Network(cells, jaxrnn.Readout(hidden, outputs), jaxrnn.softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (steps, batch, inputs))
    y = jax.random.randint(keys[1], (steps, batch), 0, outputs)
    described = f"{layers} x {type(cells[0]).__name__}({hidden}), at initialisation"
    return net, net.init(keys[2]), x, y, described


def _of_run(run: Run, steps: int, batch: int, seed: int) -> tuple[jaxrnn.Network, Any, Any, Any, str]:
    """The best checkpoint of a run, and pieces of its validation text."""
    net, params, _ = experiment.trained(run)
    tokens = experiment.reopen(run).text.validation
    if len(tokens) <= steps + 1:
        raise ValueError(f"--steps must be less than the {len(tokens)} characters of the validation text, got {steps}")
    starts = np.random.default_rng(seed).integers(0, len(tokens) - steps - 1, batch)
    pieces = np.stack([tokens[start : start + steps + 1] for start in starts], 1).astype(np.int32)  # [T + 1, B]
    return net, params, pieces[:-1], pieces[1:], f"{run.path.name}, best checkpoint"


if __name__ == "__main__":
    main()
