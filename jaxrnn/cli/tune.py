"""`jaxrnn tune`: which lengths of segments are fastest on this machine, measured and kept."""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import tempfile
import time
from typing import Any

import click
import jax
from rich.table import Table

import jaxrnn
from jaxrnn.arguments import check_above_zero
from jaxrnn.cli.group import console, option
from jaxrnn.gradients.calibrate import PROBLEMS, Timings, cost, fit, measure
from jaxrnn.layer import machine
from jaxrnn.layer.machine import Limits
from jaxrnn.training.disk import write_whole

FEWEST = 4  # problems by which anything is fitted
BUSY = 1.4  # times as long as an undisturbed call: what a busy machine says would be kept for long


@click.command(short_help="Measure which lengths of segments are fastest on this machine.")
@option("--seconds", default=100.0, help="Measure for about so long; what does not fit in is left out.")
@option("--forget", is_flag=True, help="Delete what was measured, and measure nothing.")
def tune(seconds: float, forget: bool) -> None:
    """Measure which lengths of segments are fastest on this machine, by the gradients of a few networks, and keep it.

    Every later segment="auto" on this device goes by it, in all programs of this user. It is a small file in the user's
    cache folder, with the name of the device; without it lengths come from the sizes of the caches. Let nothing else
    run: what a busy machine says is not kept (exit code 1).

    Gradients stay the same but for rounding: a training run that is resumed may differ in its last bits from one that
    was not tuned in between. To find the best options for one network, see jaxrnn.tune.
    """
    check_above_zero("--seconds", seconds)
    path = machine.measured_file()
    if path is None:
        raise ValueError("there is no home folder to keep what is measured in: set XDG_CACHE_HOME")
    if forget:
        there = path.exists()
        path.unlink(missing_ok=True)
        console.print(f"Deleted {path}" if there else f"There is nothing to delete at {path}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):  # better refused now than in two minutes
        pass
    console.print(f"Device: {machine.device_name()}, jax {jax.__version__}; about {seconds:.0f} seconds\n")
    table = _measure(seconds)
    before = machine.default_limits(jax.default_backend(), machine.cache_size())
    after = fit(table, before)
    _print(table, before, after)
    if (disturbed := statistics.median(timings.disturbed for timings in table)) > BUSY:
        console.print(
            f"Nothing is kept: a usual call took {disturbed:.1f} times as long as the fastest. Try again when idle."
        )
        sys.exit(1)
    write_whole(path, json.dumps(_facts(table, after), indent=1) + "\n")
    console.print(f"Kept in {path}")


def _measure(seconds: float) -> list[Timings]:
    """Measures as many problems as the time is enough for."""
    end, table = time.monotonic() + seconds, list[Timings]()
    for number, problem in enumerate(PROBLEMS):
        left = (end - time.monotonic()) / (len(PROBLEMS) - number)
        if left <= 0 and number >= FEWEST:
            console.print(f"The time was enough for {number} of {len(PROBLEMS)} networks: more --seconds, finer limits")
            break
        table.append(measure(problem, max(left, 0.0)))
    return table


def _print(table: list[Timings], before: Limits, after: Limits) -> None:
    """Prints what every problem took, how far "auto" was from the best K, and what is kept."""
    shown = Table("network T,B,D,H,V", "whole", "best K", "ms", "before", "after")
    for timings in table:
        best = min(timings.seconds, key=lambda K: timings.seconds[K])
        shown.add_row(
            timings.problem, _in_MB(timings.steps * timings.step_bytes), f"{best} of {timings.steps}",
            f"{timings.seconds[best] * 1e3:.2f}", *(f"x {cost(timings, limits):.2f}" for limits in (before, after)),
        )  # fmt: skip
    console.print(shown)
    for limits, when in ((before, "before"), (after, "after")):
        costs = [cost(timings, limits) for timings in table]
        usual, most = statistics.median(costs), max(costs)
        console.print(
            f"auto {when} takes x {usual:.2f} of the best K at the median, x {most:.2f} at most: whole up to "
            f"{_in_MB(limits.whole_bytes)}, then segments of {_in_MB(limits.cache_bytes)} or {limits.rows} rows"
        )


def _in_MB(size: int) -> str:
    return f"{size / 2**20:.1f} MB"


def _facts(table: list[Timings], limits: Limits) -> dict[str, Any]:
    """Returns what the file says: the limits, and where, when and by what figures they were found."""
    return {
        "device": machine.device_name(),
        "whole_bytes": limits.whole_bytes,
        "cache_bytes": limits.cache_bytes,
        "rows": limits.rows,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "jaxrnn": jaxrnn.__version__,
        "milliseconds": {
            timings.problem: {str(K): round(found * 1e3, 4) for K, found in timings.seconds.items()}
            for timings in table
        },
    }
