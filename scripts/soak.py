"""Trains on and on, and reports what must not grow: the memory of the process, and the number of compilations.

    python scripts/soak.py                     # five minutes
    python scripts/soak.py --minutes 600 --cell lstm --hidden 256
    python scripts/soak.py --quick             # some seconds

A run as of `jaxrnn train` goes on in this process: steps, validations, checkpoints, metrics, the gradient flow, all in
a folder that is deleted at the end. Every interval prints a row. The first ones compile and fill caches; after a third
of the rows nothing may be compiled any more, and memory may grow by so many MB at most: else it ends with exit code 1.

Two things grow by design, and count against these MB: the lines of metrics, which a run holds, and a little that Orbax
0.12 keeps of every save by itself. For hours, allow more --megabytes, or save less often: --every.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrnn.training import experiment
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import recipe

COMPILED = "/jax/core/compile/backend_compile_duration"  # as jax.monitoring names it


class Row(NamedTuple):
    """Holds what was seen at the end of an interval."""

    seconds: float
    step: int
    megabytes: float
    compilations: int


class Watch:
    """Counts compilations, and takes a row where an interval is over."""

    def __init__(self, interval: float, until: float) -> None:
        self.interval, self.until = interval, until
        self.rows: list[Row] = []
        self._start: float | None = None  # when the first step was compiled and taken
        self._compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, *_: Any, **__: Any) -> None:
        self._compilations += event == COMPILED

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Takes a row where it is time; ends the training as Ctrl-C does where all of the time is over."""
        self._start = self._start or time.monotonic()
        seconds = time.monotonic() - self._start
        if seconds >= self.interval * (len(self.rows) + 1):
            self.rows.append(Row(seconds, metrics["step"], resident(), self._compilations))
            print("| {:.0f} | {:,} | {:.0f} | {} |".format(*self.rows[-1]), flush=True)
        if seconds >= self.until:
            raise TimeoutError


def resident() -> float:
    """Returns the resident memory of this process in MB; where the system does not say, the most it ever was."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) / 1e3
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def soak(settings: Any, show: Callable[[dict[str, Any]], None]) -> None:
    """Trains in a folder that is deleted, until `show` has seen enough."""
    now = experiment.build(settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(pathlib.Path(folder) / "run", experiment.record(now))
        try:
            now.train(run, now.initial_state(), show)
        except TimeoutError:
            print(f"{len(run.metrics()):,} lines of metrics, {run.best_validation()[0]:,} the best step")


def verdict(rows: list[Row], allowed: float) -> str | None:
    """Returns what has grown after a third of the rows, in words; None where nothing has."""
    if len(rows) < 3:
        return f"only {len(rows)} rows: give it more time, or a shorter interval"
    settled, last = rows[len(rows) // 3], rows[-1]
    if (more := last.compilations - settled.compilations) > 0:
        return f"{more} compilations after step {settled.step:,}"
    if (grown := last.megabytes - settled.megabytes) > allowed:
        return f"{grown:.0f} MB more after {last.step - settled.step:,} steps, {allowed:.0f} MB are allowed"
    return None


def main() -> None:
    """Trains, prints a row every interval, and judges them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--quick", action="store_true", help="some seconds, small sizes")
    parser.add_argument("--task", default="text", help="as for jaxrnn train (default: text)")
    parser.add_argument("--cell", default="elman", help="as for jaxrnn train (default: elman)")
    parser.add_argument("--hidden", type=int, default=32, help="H (default: 32)")
    parser.add_argument("--every", type=int, default=2000, help="steps between validations and saves (default: 2000)")
    parser.add_argument("--megabytes", type=float, default=20.0, help="by which memory may grow (default: 20)")
    options = parser.parse_args()
    seconds = 12.0 if options.quick else 60 * options.minutes
    sizes = {"hidden": options.hidden, "batch": 8, "chunk": 16, "length": 20, "steps": 2**31 - 1}
    settings = recipe(options.task, cell=options.cell, every=options.every, flow=50, **sizes)
    print("| seconds | step | MB | compilations |\n| --- | --- | --- | --- |")
    watch = Watch(seconds / 12, seconds)
    soak(settings, watch)
    grown = verdict(watch.rows, options.megabytes)
    print(f"FAILED: {grown}" if grown else "passed: nothing grows")
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
