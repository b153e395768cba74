"""`jaxrnn flow`: how far back the gradients of a network reach."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterable
from typing import Any

import click
import jax
import numpy as np
from click.core import ParameterSource

import jaxrnn
from jaxrnn.arguments import check_memory
from jaxrnn.cells.initializers import RECURRENT
from jaxrnn.cli.group import PATH, console, open_run, option
from jaxrnn.flow import diagnosis, plots
from jaxrnn.training import experiment, memory
from jaxrnn.training.settings import CELLS

LONGEST = 2000  # steps


@click.command(short_help="See how far back gradients reach, and why no further.")
@click.argument("run", required=False, type=PATH)
@option("--init", is_flag=True, help="Look at a fresh network on random sequences, in the place of a run.")
@option("--cell", type=click.Choice(list(CELLS)), default="elman", help="Choose the recurrence.")
@option("--inputs", default=32, help="Set D, the features of standard normal inputs.")
@option("--hidden", default=128, help="Set H, the hidden units of a layer.")
@option("--outputs", default=32, help="Set V, the outputs of a softmax.")
@option("--layers", default=1, help="Set the number of layers of cells.")
@option("--activation", type=click.Choice(["tanh", "relu"]), help="Choose f of an Elman cell.  [default: tanh]")
@option("--initializer", "recurrent_initializer", type=click.Choice(RECURRENT),
        help="Choose how to draw W of an Elman cell.  [default: orthogonal]")  # fmt: skip
@option("--scale", "recurrent_scale", type=float, help="Set the spectral radius of W of an Elman cell.  [default: 1]")
@option("--layer", default=-1, help="Look at this layer; -1 is the top one.")
@option("--steps", default=100, help="Set T, 20 to 2,000 steps.")
@option("--batch", default=8, help="Set B, the number of sequences.")
@option("--seed", default=0, help="Set the seed of everything random.")
@option("--out", type=PATH, help="Write flow.png and flow.npz here.  [default: RUN; with --init, this folder]")
def flow(
    run: pathlib.Path | None, init: bool, out: pathlib.Path | None, layer: int, steps: int, batch: int, seed: int,
    **network: Any,
) -> None:  # fmt: skip
    """Show the gradient flow of RUN, a folder that `jaxrnn train` made, or of a fresh network (--init).

    A diagnosis in words: does the gradient vanish, explode, or pass; how many steps back it reaches; saturation; the
    largest Lyapunov exponent; and what to try. The same as one page of pictures, flow.png, and as arrays, flow.npz.

    It EXPLODES where it is not finite or has grown tenfold on its way back, and VANISHES where one percent of it is
    left after fewer than T/4 steps; else it is HEALTHY. So T decides as well: a longer --steps asks for more.
    """
    if init == (run is not None):
        raise ValueError("give the folder of a run, or --init, not both")
    if steps > LONGEST:
        raise ValueError(f"--steps must be 20 to {LONGEST:,}: every step is held against every other, got {steps}")
    check_memory("a batch of these sizes", 4 * steps * batch)
    if run is None:
        net, title = _fresh(steps, batch, **network)
        keys = jax.random.split(jax.random.key(seed), 3)
        inputs = jax.random.normal(keys[0], (steps, batch, net.layers[0].inputs))
        targets = jax.random.randint(keys[1], (steps, batch), 0, net.readout.outputs)
        params = net.init(keys[2])
    else:
        _refuse(network)
        opened = open_run(run)
        inputs, targets, *_ = experiment.reopen(opened).task.excerpt(steps, batch, seed)
        net, params = experiment.load_best(opened)
        title = f"{run.name}, best checkpoint"
    found = diagnosis.diagnose(net, params, inputs, targets, key=jax.random.key(seed), layer=layer)
    folder = out or run or pathlib.Path()
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"{title}, T = {steps}, B = {batch}, layer {found.layer}\n")
    console.print(str(found))
    plots.gradient_flow(found, title).savefig(folder / "flow.png", dpi=130)
    np.savez(folder / "flow.npz", allow_pickle=False, **found.arrays())
    console.print(f"\nThe page is {folder / 'flow.png'}, the arrays are in {folder / 'flow.npz'}.")


def _refuse(names: Iterable[str]) -> None:
    """Raises where an option of a fresh network was typed."""
    context = click.get_current_context()
    typed = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    given = [parameter.opts[0] for parameter in context.command.params if parameter.name in typed]
    if given:
        raise ValueError(f"a run has its own network: leave out {', '.join(given)}, or ask for --init")


def _fresh(
    steps: int, batch: int, cell: str, inputs: int, hidden: int, outputs: int, layers: int, **options: Any
) -> tuple[jaxrnn.Network, str]:  # fmt: skip
    """Returns a network of the sizes asked for, and what to call it."""
    memory.check(memory.Sizes(cell, inputs, hidden, outputs, layers, steps, batch), copies=2)
    given = {name: value for name, value in options.items() if value is not None}
    if given and cell != "elman":
        raise ValueError(f"--activation, --initializer and --scale are for an Elman cell, not for {cell}")
    sizes = [inputs] + [hidden] * layers
    cells = tuple(CELLS[cell](D, H, **given) for D, H in itertools.pairwise(sizes))
    net = jaxrnn.Network(cells, jaxrnn.Readout(hidden, outputs), jaxrnn.softmax_cross_entropy)
    kind = f"{type(cells[0]).__name__}({hidden}{', reset before' * (cell == 'gru-before')})"
    return net, f"{layers} x {kind}, at initialisation"
