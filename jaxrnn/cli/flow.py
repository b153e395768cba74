"""`jaxrnn flow`: how far back the gradients of a network reach."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import click
import jax
import numpy as np

import jaxrnn
from jaxrnn.cells.initializers import RECURRENT
from jaxrnn.cli.group import console
from jaxrnn.flow import diagnosis, plots
from jaxrnn.training import experiment
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import CELLS


@click.command(short_help="See how far back gradients reach, and why no further.")
@click.argument("run", required=False, type=click.Path(path_type=pathlib.Path))
@click.option("--init", is_flag=True, help="Look at a fresh network on random sequences, in the place of a run.")
@click.option(
    "--cell", type=click.Choice(list(CELLS)), default="elman", show_default=True, help="Choose the recurrence."
)
@click.option("--inputs", default=32, show_default=True, help="Set D, the features of standard normal inputs.")
@click.option("--hidden", default=128, show_default=True, help="Set H, the hidden units of a layer.")
@click.option("--outputs", default=32, show_default=True, help="Set V, the outputs of a softmax.")
@click.option("--layers", default=1, show_default=True, help="Set the number of layers of cells.")
@click.option(
    "--activation", type=click.Choice(["tanh", "relu"]), help="Choose the activation of an Elman cell.  [default: tanh]"
)
@click.option(
    "--initializer", type=click.Choice(RECURRENT), help="Choose how to draw W of an Elman cell.  [default: orthogonal]"
)
@click.option("--scale", type=float, help="Set the spectral radius of W of an Elman cell.  [default: 1]")
@click.option("--layer", default=-1, show_default=True, help="Look at this layer; -1 is the top one.")
@click.option("--steps", default=100, show_default=True, help="Set T, 20 to 2,000 steps.")
@click.option("--batch", default=8, show_default=True, help="Set B, the number of sequences.")
@click.option("--seed", default=0, show_default=True, help="Set the seed of everything random.")
@click.option(
    "--out", type=click.Path(path_type=pathlib.Path), help="Write flow.png and flow.npz here.  [default: RUN]"
)
def flow(run: pathlib.Path | None, init: bool, out: pathlib.Path | None, layer: int, seed: int, **options: Any) -> None:
    """Show the gradient flow of RUN, a folder that `jaxrnn train` made, or of a fresh network (--init).

    A diagnosis in words: does the gradient vanish, explode, or pass; how many steps back it reaches; saturation; the
    largest Lyapunov exponent; and what to try. The same as one page of pictures, flow.png, and as arrays, flow.npz.
    """
    if init == (run is not None):
        raise ValueError("give the folder of a run, or --init, not both")
    if init:
        steps, batch = options.pop("steps"), options.pop("batch")
        net, title = _fresh(**options)
        keys = jax.random.split(jax.random.key(seed), 3)
        inputs = jax.random.normal(keys[0], (steps, batch, net.layers[0].inputs))
        targets = jax.random.randint(keys[1], (steps, batch), 0, net.readout.outputs)
        params = net.init(keys[2])
    else:
        assert run is not None
        _only_for_init()
        steps, batch = options["steps"], options["batch"]
        net, params, inputs, targets, title = _of_run(Run.open(run), steps, batch, seed)
    found = diagnosis.diagnose(net, params, inputs, targets, key=jax.random.key(seed), layer=layer)
    folder = out or run or pathlib.Path()
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"{title}, T = {steps}, B = {batch}, layer {found.layer}\n")
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
    cell: str, inputs: int, hidden: int, outputs: int, layers: int, **options: Any
) -> tuple[jaxrnn.Network, str]:
    """Returns a network of the sizes asked for, and what to call it."""
    names = {"activation": "activation", "initializer": "recurrent_initializer", "scale": "recurrent_scale"}
    given = {names[name]: value for name, value in options.items() if value is not None}
    if given and cell != "elman":
        raise ValueError(f"--activation, --initializer and --scale are for an Elman cell, not for {cell}")
    sizes = [inputs] + [hidden] * layers
    cells = tuple(CELLS[cell](D, H, **given) for D, H in itertools.pairwise(sizes))
    net = jaxrnn.Network(cells, jaxrnn.Readout(hidden, outputs), jaxrnn.softmax_cross_entropy)
    return net, f"{layers} x {type(cells[0]).__name__}({hidden}), at initialisation"


def _of_run(run: Run, steps: int, batch: int, seed: int) -> tuple[jaxrnn.Network, Any, Any, Any, str]:
    """Returns the network of the best checkpoint, and pieces of the validation part."""
    pieces = experiment.reopen(run).task.excerpt(steps, batch, seed)
    net, params = experiment.load_best(run)
    return net, params, pieces.inputs, pieces.targets, f"{run.path.name}, best checkpoint"
