"""What a GPU or TPU makes of loss and gradient: jaxrnn with its options, beside jax.grad, flax and cuDNN.

    python scripts/accelerator.py                        # the whole, within eight minutes
    python scripts/accelerator.py --minutes 3            # as much of it as three minutes allow
    python scripts/accelerator.py --cells lstm           # one cell
    python scripts/accelerator.py --quick                # does it run: a tiny shape, few calls
    python scripts/accelerator.py --out scripts/results  # where the record goes; accelerator/ here by default

Contenders come in the order of their importance: the plain question at one middle shape for every cell; then the
options of jaxrnn, one at a time; then other shapes. After each the record is saved, so that a run that is cut short is
a shorter record, and no less a true one. What fails (no memory, not installed, another device) is a row that says why.

Before it is timed, each is held to the loss and gradient of a plain scan in float64 on the host, at a small shape; one
that is wrong is not timed. Times are medians of calls that are waited for. A default is a default: float32 is
multiplied as JAX does on this device, and as cuDNN is set by its library; "highest" is
`jax.default_matmul_precision("highest")`.

It needs the extra "command" for its picture, and runs flax and torch where they are installed.

All of it runs in one process: a start of JAX on a GPU takes longer than most of these measurements. A timer ends what
hangs in the compiler. The record is accelerator-DEVICE.csv, with a table (.md) and a picture (.png) of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import accelerator_table
import bench
import jax
import jax.numpy as jnp
import numpy as np
import speed_table
from accelerator_contenders import ALL, ELSEWHERE, OPTIONS, PLAIN, Case, Contender, by_autodiff, by_flax
from bench import Shape
from jax import lax

CELLS = ("lstm", "gru", "elman", "gru-before")
MIDDLE = Shape(128, 64, 128, 256, 128)
SHAPES = (
    Shape(100, 32, 64, 128, 65),
    Shape(256, 128, 512, 1024, 128),
    Shape(1024, 1, 64, 64, 65),
    Shape(2000, 8, 32, 128, 32),
    Shape(128, 32, 64, 256, 10000),
)
SMALL = Shape(11, 4, 6, 16, 7)  # where the truth is computed
EXACT, ROUGH = 1e-4, 0.1  # largest errors, relative, with products in float32, and with fewer digits in them
CALL_SECONDS = 1.0  # how long a contender is called at least


class Problem(NamedTuple):
    """Names one row of the record."""

    cell: str
    shape: Shape
    name: str


def plan(cells: list[str], quick: bool) -> Iterator[Problem]:
    """Yields what is to be measured, the most important first."""
    middle = SMALL if quick else MIDDLE
    yield from (Problem(cell, middle, name) for cell in cells for name in PLAIN if _asked(cell, name))
    yield from (Problem(cell, middle, name) for name in OPTIONS for cell in cells if _asked(cell, name))
    if not quick:
        elsewhere = ((cell, shape, name) for shape in SHAPES for cell in cells for name in ELSEWHERE)
        yield from (Problem(cell, shape, name) for cell, shape, name in elsewhere if _asked(cell, name))


def _asked(cell: str, name: str) -> bool:
    """Tells whether a contender has a chance with a cell: for what cannot be anywhere there is no row."""
    if name.startswith("cuDNN in jax"):
        return cell == "lstm"
    return not (cell == "gru-before" and name in ("flax nnx.RNN", "cuDNN in torch"))


class Program(NamedTuple):
    """Holds a compiled case, and what its compilation took."""

    call: Callable[[], tuple[Any, Any]]
    as_ours: Callable[[Any], Any]
    temporary_bytes: int
    seconds: float


def program_of(case: Case) -> Program:
    """Compiles a case."""
    if not case.compiles:
        return Program(case.function, case.as_ours, 0, 0.0)
    start = time.perf_counter()
    program = jax.jit(case.function).lower(*case.arguments).compile()
    took = time.perf_counter() - start
    memory = program.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else 0
    return Program(functools.partial(program, *case.arguments), case.as_ours, temporary, took)


@functools.cache
def truth(cell: str, make: Callable[[str, Shape], Case]) -> tuple[float, Any]:
    """Computes loss and gradient of the problem of a case in float64 on the host, by `jax.grad` of a plain scan."""
    case = make(cell, SMALL)

    def precise(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array

    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        loss = functools.partial(bench.plain_loss, case.net, hoisted=False)
        E, grads = jax.jit(jax.value_and_grad(loss))(*jax.tree.map(precise, case.given))
        return float(E), jax.tree.map(np.asarray, grads)


def errors(true: tuple[float, Any], found: tuple[Any, Any]) -> tuple[float, float]:
    """Computes how far a loss and its gradient are from the truth, relative to the largest entry of each array."""
    arrays = (jax.tree.leaves(grads, is_leaf=lambda leaf: leaf is None) for grads in (true[1], found[1]))
    pairs = [(a, np.asarray(b, np.float64)) for a, b in zip(*arrays, strict=True) if b is not None]
    gradient = max(float(np.max(np.abs(b - a)) / np.max(np.abs(a))) for a, b in pairs)
    return abs(float(found[0]) - true[0]) / abs(true[0]), gradient


@functools.cache
def small(cell: str, name: str) -> Program:
    """Compiles a contender at the small shape."""
    return program_of(ALL[name].make(cell, SMALL))


@functools.cache
def check(cell: str, name: str) -> dict[str, str]:
    """Holds a contender to the truth at the small shape; raises where it is wrong."""
    contender = ALL[name]
    E, grads = small(cell, name).call()
    true = truth(cell, by_flax if contender.make is by_flax else by_autodiff)  # flax draws weights of its own
    loss, gradient = errors(true, (E, small(cell, name).as_ours(grads)))
    if not max(loss, gradient) <= limit(contender):  # NaN is wrong too
        raise ArithmeticError(
            f"wrong: loss off by {loss:.1e}, gradient by {gradient:.1e}, {limit(contender):g} allowed"
        )
    return {"loss error": f"{loss:.1e}", "gradient error": f"{gradient:.1e}"}


def limit(contender: Contender) -> float:
    """Returns the largest error that is put down to rounding."""
    full = contender.precision == "highest" or jax.default_backend() == "cpu"
    return EXACT if full and not contender.rough else ROUGH


def timed(call: Callable[[], Any], least: float) -> list[float]:
    """Calls until so many seconds are over, five times at least; the first two calls do not count."""
    times = [bench.seconds(call, ()) for _ in range(2)]
    while len(times) < 7 or (sum(times[2:]) < least and len(times) < 1000):
        times.append(bench.seconds(call, ()))
    return times[2:]


def measure(problem: Problem, least: float) -> dict[str, str]:
    """Measures one contender: the columns of its row, or why there are none."""
    contender = ALL[problem.name]
    precision = jax.default_matmul_precision(contender.precision) if contender.precision else contextlib.nullcontext()
    try:
        with precision:
            columns = check(problem.cell, problem.name)
            tiny = problem.shape == SMALL
            program = small(problem.cell, problem.name) if tiny else program_of(contender.make(*problem[:2]))
            times = timed(program.call, least)
    except Exception as error:  # whatever it is, the next contender may have better luck
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return {"status": text.splitlines()[0][:200]}
    median = statistics.median(times)
    columns = columns | {"status": "measured", "ms": f"{median * 1e3:.4g}", "least ms": f"{min(times) * 1e3:.4g}"}
    columns |= {"calls": str(len(times)), "us a step": f"{median / problem.shape.T * 1e6:.4g}"}
    if program.seconds:
        columns |= {"temporary MB": f"{program.temporary_bytes / 1e6:.2f}", "compile s": f"{program.seconds:.2f}"}
    if peak := (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        columns["process peak MB"] = f"{peak / 1e6:.0f}"  # of all contenders so far
    return columns


def turn_seconds(steps: int = 2000) -> float:
    """Measures what one turn of a loop costs whose body adds two small arrays."""
    x = jnp.ones((8, 128))
    program = jax.jit(lambda s: lax.scan(lambda s, _: (s + x, None), s, length=steps)[0]).lower(x).compile()
    return min(timed(lambda: program(x), 0.1)) / steps


def where() -> dict[str, str]:
    """Says where this was measured."""
    device, client = jax.devices()[0], jax.devices()[0].client
    facts = {"device": bench.processor() if device.platform == "cpu" else device.device_kind}
    facts |= {"platform": " ".join(client.platform_version.split()), "jax": jax.__version__}
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        facts["driver"] = driver[0] if driver else ""
    return facts | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "date": datetime.date.today().isoformat()}


class Record:
    """Keeps the rows, and saves them after each."""

    def __init__(self, folder: pathlib.Path, quick: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.where, self.rows = where(), list[speed_table.Row]()
        self.rate, self.turn = bench.product_flops_per_second(256 if quick else 4096), turn_seconds()
        kind = "".join(each if each.isalnum() else "-" for each in jax.devices()[0].device_kind.lower())
        self.path = folder / f"accelerator-{kind}{'-quick' if quick else ''}"
        self.lock = threading.Lock()

    def add(self, problem: Problem, columns: dict[str, str]) -> None:
        """Adds a row to the record, and prints it."""
        cell, shape, name = problem
        sizes = {size: str(getattr(shape, size)) for size in speed_table.SIZES}
        floor = {"floor ms": f"{bench.flops(cell, shape) / self.rate * 1e3:.4g}"}
        facts = {"product Tflop/s": f"{self.rate / 1e12:.4g}", "turn us": f"{self.turn * 1e6:.3g}"}
        row = {"cell": cell, **sizes, "contender": name, **columns, **floor, **facts, **self.where}
        with self.lock:
            self.rows.append(row)
            speed_table.write(self.path.with_suffix(".csv"), self.rows)
            self.path.with_suffix(".md").write_text(accelerator_table.report(self.rows), encoding="utf-8")
        said = f"{columns['ms']:>8} ms" if "ms" in columns else columns["status"]
        print(f"{cell:10} {','.join(sizes.values()):20} {name:28} {said}", flush=True)

    def draw(self) -> None:
        """Draws the picture of what there is."""
        with self.lock:
            accelerator_table.picture(self.rows).savefig(self.path.with_suffix(".png"), dpi=100)

    def end(self) -> None:
        """Ends the process with what there is, wherever the rest of it hangs."""
        if self.rows:
            self.draw()
        print(f"The time is over, in the midst of a contender; saved {self.path}.csv", flush=True)
        os._exit(0)


def main() -> None:
    """Measures until all is measured or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="when it ends at the latest (default: 8)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="in the order of importance")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, and as few calls as there can be")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("accelerator"), help="where the record goes")
    options = parser.parse_args()
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be a positive number, got {options.minutes}")
    end = time.perf_counter() + options.minutes * 60
    if jax.config.jax_platforms and "cpu" not in jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", f"{jax.config.jax_platforms},cpu")  # type: ignore[attr-defined]
    record = Record(options.out, options.quick)
    print(f"{record.where}; one large product: {record.rate / 1e12:.3g} Tflop/s; a turn: {record.turn * 1e6:.3g} us")
    timer = threading.Timer(max(end - time.perf_counter() - 5, 0), record.end)  # 5 s for the picture
    timer.daemon = True
    timer.start()
    problems = list(plan(options.cells, options.quick))
    for number, problem in enumerate(problems):
        record.add(problem, measure(problem, 0.0 if options.quick else CALL_SECONDS))
        if number + 1 == len(problems) or problem.shape != problems[number + 1].shape:
            record.draw()
    timer.cancel()
    print(f"saved {record.path}.csv, .md and .png")


if __name__ == "__main__":
    main()
