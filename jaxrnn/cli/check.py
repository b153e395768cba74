"""`jaxrnn check`: gradients held against three references."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.table import Table
from rich.text import Text

import jaxrnn
from jaxrnn.cli.group import console, option
from jaxrnn.gradients import check as checking
from jaxrnn.training import memory
from jaxrnn.training.devices import make_mesh
from jaxrnn.training.settings import CELLS

OBJECTIVES = {
    "softmax": jaxrnn.softmax_cross_entropy,
    "sigmoid": jaxrnn.sigmoid_cross_entropy,
    "squared": jaxrnn.squared_error,
}
TRUNCATIONS = {"carried": jaxrnn.Carried, "window": jaxrnn.Window, "tail": jaxrnn.Tail}


@click.command(short_help="Hold the gradients against autodiff and finite differences.")
@option("--cell", type=click.Choice(list(CELLS)), default="elman", help="Choose the recurrence.")
@option("--inputs", default=32, help="Set D, the number of features or tokens.")
@option("--hidden", default=64, help="Set H, the hidden units of a layer.")
@option("--outputs", default=32, help="Set V, the number of outputs.")
@option("--layers", default=1, help="Set the number of layers of cells.")
@option("--activation", type=click.Choice(["tanh", "relu"]), help="Choose f of an Elman cell.  [default: tanh]")
@option("--bias/--no-bias", default=True, help="Give cells and readout a bias, or none.")
@option("--bidirectional", is_flag=True, help="Let every layer read both ways.")
@option("--objective", type=click.Choice(list(OBJECTIVES)), default="softmax", help="Choose the loss.")
@option("--tokens", is_flag=True, help="Take integer tokens as inputs.")
@option("--mask", is_flag=True, help="Mask a quarter of the steps; what is masked is NaN.")
@option("--reset", is_flag=True, help="Begin anew at a quarter of the steps.")
@option("--steps", default=50, help="Set T, the number of steps.")
@option("--batch", default=8, help="Set B, the number of sequences.")
@option("--segment", type=int, help="Set K, the steps of a segment.  [default: what fits the cache]")
@option("--recompute", type=click.Choice(["none", "gates", "states"]), default="none",
        help="Compute this again on the way back, instead of keeping it.")  # fmt: skip
@option("--truncate", type=(click.Choice(list(TRUNCATIONS)), int), metavar="carried|window|tail K",
        help="Cut the gradient after K steps, in one of three ways.")  # fmt: skip
@option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Compute in this.")
@option("--seed", default=0, help="Set the seed of everything random.")
@option("--devices", default=1, help="Spread the batch of BPTT over so many accelerators or cores.")
def check(
    cell: str,
    inputs: int,
    hidden: int,
    outputs: int,
    layers: int,
    activation: str | None,
    bias: bool,
    bidirectional: bool,
    objective: str,
    truncate: tuple[str, int] | None,
    devices: int,
    **options: Any,
) -> None:
    """Compare the gradients of BPTT by hand with jax.grad of the plain scan, central differences and RTRL.

    For every parameter: the relative error of BPTT against the truth (jax.grad in float64), jax.grad's own error where
    the dtype is float32, the bound, the error of the directional derivatives against central differences, and in
    float64 that against RTRL, a gradient forward in time, for one small layer that reads forward and is not truncated.
    Exit code 1 if anything is over its bound.

    A truncated gradient is not that of the loss. It is held against jax.grad and differences of the pieces that
    --truncate leaves of the sequence: chunks of K steps (carried), K steps back from every loss (window), or the last K
    steps (tail).
    """
    of_cell = {"bias": bias} | ({} if activation is None else {"activation": activation})
    if activation is not None and cell != "elman":
        raise ValueError(f"--activation is for an Elman cell, not for {cell}")
    memory.check(memory.Sizes(cell, inputs, hidden, outputs, layers, options["steps"], options["batch"]), copies=4)
    sizes = [inputs, *[hidden * (1 + bidirectional)] * layers]
    stack: Any = [CELLS[cell](D, hidden, **of_cell) for D in sizes[:-1]]
    stack = [jaxrnn.Bidirectional(one, one) for one in stack] if bidirectional else stack
    net = jaxrnn.Network(tuple(stack), jaxrnn.Readout(sizes[-1], outputs, bias), OBJECTIVES[objective])
    options["segment"] = "auto" if options["segment"] is None else options["segment"]
    options["truncate"] = None if truncate is None else TRUNCATIONS[truncate[0]](truncate[1])
    report = checking.check(net, mesh=make_mesh(devices) if devices != 1 else None, **options)
    said = {"bidirectional": bidirectional, "masked": options["mask"], "with resets": options["reset"]}
    said |= {"truncated, {} {}".format(*truncate or ("", "")): truncate, f"BPTT on {devices} devices": devices > 1}
    head = "Relative errors of the gradients: {0}, {dtype}, T = {steps}, B = {batch}".format(cell, **options)
    console.print(", ".join([head, *(words for words, true in said.items() if true)]))
    _print(report)
    if not report.passed:
        sys.exit(1)


def _print(report: checking.Report) -> None:
    """Prints a table of the errors, without RTRL where that was left out, and the times."""
    with_rtrl = any(row.forward is not None for row in report.rows)
    table = Table("parameter", "BPTT", "bound", "jax.grad", "differences", *["RTRL"] * with_rtrl, "verdict")
    for row in report.rows:
        verdict = Text("passed", "green") if row.passed else Text("FAILED", "red")
        figures = [row.bptt, row.bound, row.autodiff, row.differences, *[row.forward] * with_rtrl]
        table.add_row(row.parameter, *(f"{figure:.1e}" for figure in figures), verdict)
    console.print(table)
    rtrl = f"RTRL {checking.FORWARD:.0e}" if with_rtrl else "no RTRL, which is for one small layer, not truncated"
    console.print(f"Bounds in float64: differences {checking.DIFFERENCES:.0e}, {rtrl}")
    times = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in report.seconds.items())
    console.print(f"One loss and gradient: {times}")
