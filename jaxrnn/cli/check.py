"""`jaxrnn check`: gradients held against three references."""

from __future__ import annotations

import itertools
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

OBJECTIVES = {
    "softmax": jaxrnn.softmax_cross_entropy,
    "sigmoid": jaxrnn.sigmoid_cross_entropy,
    "squared": jaxrnn.squared_error,
}


@click.command(short_help="Hold the gradients against autodiff and finite differences.")
@option("--inputs", default=32, help="Set D, the number of features or tokens.")
@option("--hidden", default=64, help="Set H, the hidden units of a layer.")
@option("--outputs", default=32, help="Set V, the number of outputs.")
@option("--layers", default=1, help="Set the number of layers of cells.")
@option("--activation", type=click.Choice(["tanh", "relu"]), default="tanh", help="Choose f.")
@option("--bias/--no-bias", default=True, help="Give cells and readout a bias, or none.")
@option("--objective", type=click.Choice(list(OBJECTIVES)), default="softmax", help="Choose the loss.")
@option("--tokens", is_flag=True, help="Take integer tokens as inputs.")
@option("--steps", default=50, help="Set T, the number of steps.")
@option("--batch", default=8, help="Set B, the number of sequences.")
@option("--segment", type=int, help="Set K, the steps of a segment.  [default: what fits the cache]")
@option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Compute in this.")
@option("--seed", default=0, help="Set the seed of everything random.")
@option("--devices", default=1, help="Spread the batch of BPTT over so many accelerators or cores.")
def check(
    inputs: int,
    hidden: int,
    outputs: int,
    layers: int,
    activation: str,
    bias: bool,
    objective: str,
    devices: int,
    **options: Any,
) -> None:
    """Compare the gradients of BPTT by hand with jax.grad of the plain scan, central differences and RTRL.

    For every parameter: the relative error of BPTT against the truth (jax.grad in float64), jax.grad's own error where
    the dtype is float32, the bound, the error of the directional derivatives against central differences, and in
    float64 that against RTRL, a gradient forward in time, for one layer. Exit code 1 if anything is over its bound.
    """
    memory.check(memory.Sizes("elman", inputs, hidden, outputs, layers, options["steps"], options["batch"]), copies=4)
    sizes = [inputs] + [hidden] * layers
    cells = tuple(jaxrnn.Elman(D, H, activation, bias) for D, H in itertools.pairwise(sizes))
    net = jaxrnn.Network(cells, jaxrnn.Readout(hidden, outputs, bias), OBJECTIVES[objective])
    options["segment"] = "auto" if options["segment"] is None else options["segment"]
    report = checking.check(net, mesh=make_mesh(devices) if devices != 1 else None, **options)
    table = Table("parameter", "BPTT", "bound", "jax.grad", "differences", "RTRL", "verdict")
    for row in report.rows:
        verdict = Text("passed", "green") if row.passed else Text("FAILED", "red")
        figures = [row.bptt, row.bound, row.autodiff, row.differences, row.forward]
        table.add_row(row.parameter, *("-" if figure is None else f"{figure:.1e}" for figure in figures), verdict)
    spread = f", BPTT on {devices} devices" if devices > 1 else ""
    console.print("Relative errors of the gradients: {dtype}, T = {steps}, B = {batch}".format(**options) + spread)
    console.print(table)
    console.print(f"Bounds: differences {checking.DIFFERENCES:.0e}, RTRL {checking.FORWARD:.0e}, both in float64")
    times = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in report.seconds.items())
    console.print(f"One loss and gradient: {times}")
    if not report.passed:
        sys.exit(1)
