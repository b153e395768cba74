"""The length of segments that "auto" chooses against the best one, before and after `jaxrnn tune`.

    jaxrnn tune && python scripts/auto_segment.py             # the shapes of bench.py, some three minutes on two cores
    python scripts/auto_segment.py --random 3 --seed 1        # and three drawn shapes of every cell
    python scripts/auto_segment.py --quick                    # one small shape, for a try

For every shape the gradient is cut into segments of T, of the powers of two around what "auto" chooses, and of that,
in turns. "by caches" is the K that follows from the sizes of the caches, "tuned" that from what `jaxrnn tune` measured,
where it has; each with its time against the best. The table goes to results/auto_segment.csv, row by row.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import statistics
import time

import bench
import bench_peers
import jax
import speed_table
from bench import Shape

import jaxrnn
from jaxrnn.gradients import calibrate
from jaxrnn.gradients.plan import Sizes
from jaxrnn.layer import machine
from jaxrnn.layer.machine import Limits
from jaxrnn.layer.segments import nearby_divisor

CELLS = ("elman", "gru", "lstm")
STACK = Shape(70, 24, 48, 160, 90, layers=2)
AROUND = 8  # times shorter and longer than what is chosen
FIGURES = ("by caches", "tuned")


def shapes(cell: str, random: int, seed: int) -> tuple[Shape, ...]:
    """Returns the shapes of bench.py for a cell, with a stack among them, and so many drawn ones."""
    usual = bench.SHAPES if cell == "elman" else (*bench.GATED_SHAPES, STACK)
    return (*usual, *bench_peers.drawn(cell, random, seed))


def chosen(net: jaxrnn.Network, inputs: jax.Array) -> list[int]:
    """Returns the K that "auto" chooses by the caches, and the one that it chooses now."""
    sizes = Sizes(net, inputs, inputs.dtype, inputs.shape[0])

    def choose(limits: Limits) -> int:
        return sizes.lengths("auto", "none", limits)[0]

    return [choose(machine.default_limits(jax.default_backend(), machine.cache_size())), choose(machine.limits())]


def tried(steps: int, chosen: list[int]) -> list[int]:
    """Returns what is tried: T, what is chosen, and the powers of two around it, or the divisors of T near them."""
    powers = (2**power for power in range(steps.bit_length()))
    around = {K for K in powers if min(chosen) / AROUND <= K <= min(steps, max(chosen) * AROUND)}
    return sorted({steps, *chosen, *(nearby_divisor(steps, K) for K in around)})


def measure(cell: str, shape: Shape, seconds: float) -> dict[str, str]:
    """Measures a shape, and makes its row."""
    end = time.perf_counter() + seconds
    net, (params, inputs, targets, *_) = bench.problem(cell, shape)
    call, found = (params, inputs, targets), chosen(net, inputs)
    programs = {K: jax.jit(jaxrnn.value_and_grad(net, K)).lower(*call).compile() for K in tried(shape.T, found)}
    times, disturbed = calibrate.in_turns(programs, call, end, time.perf_counter)
    best = min(times, key=lambda K: times[K])
    row = {"cell": cell, **{name: str(size) for name, size in shape._asdict().items()}}
    row |= {"disturbed": f"{disturbed:.2f}", "best K": str(best), "best ms": f"{times[best] * 1e3:.3g}"}
    for name, K in zip(FIGURES, found, strict=True):
        row |= {f"K {name}": str(K), f"{name} ms": f"{times[K] * 1e3:.3g}"}
        row[f"{name} / best"] = f"{times[K] / times[best]:.3f}"
    return row


def main() -> None:
    """Measures, prints, and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=CELLS)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="draw N more shapes of every cell")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes that are drawn (default: 0)")
    parser.add_argument("--seconds", type=float, default=12.0, help="time to spend on a shape, compilation included")
    parser.add_argument("--quick", action="store_true", help="measure one small shape only")
    parser.add_argument("--out", type=pathlib.Path, default=speed_table.PEERS.parent, help="where the table goes")
    options = parser.parse_args()
    todo = [(cell, shape) for cell in options.cells for shape in shapes(cell, options.random, options.seed)]
    if options.quick:
        todo, options.seconds = [("elman", Shape(8, 2, 3, 4, 5))], 0.0
    path = machine.measured_file()
    tuned = "yes" if path is not None and machine.read_measured(path) is not None else "no"
    where = {"tuned": tuned, "processor": bench.processor(), "jax": jax.__version__}
    where["date"] = datetime.date.today().isoformat()
    options.out.mkdir(parents=True, exist_ok=True)
    table, rows = options.out / "auto_segment.csv", []
    for number, (cell, shape) in enumerate(todo):
        rows.append(measure(cell, shape, options.seconds) | where)
        if not number:
            print(" | ".join(rows[0]))
        print(" | ".join(rows[-1].values()), flush=True)
        speed_table.write(table, speed_table.merge(speed_table.read(table), rows[-1:]))  # saved after every shape
    for name in FIGURES:
        ratios = [float(row[f"{name} / best"]) for row in rows]
        print(f"{name}: median {statistics.median(ratios):.2f} of the best, most {max(ratios):.2f}")


if __name__ == "__main__":
    main()
