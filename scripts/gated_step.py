"""Where the time of loss and gradient of an LSTM or a GRU goes on a CPU, and what else was tried for their steps.

    python scripts/gated_step.py                                     # both cells, all shapes: a quarter of an hour
    python scripts/gated_step.py --cells lstm --shapes 1 --seconds 2
    taskset -c 0 python scripts/gated_step.py                        # on one core
    XLA_FLAGS=--xla_cpu_max_isa=AVX2 python scripts/gated_step.py    # as on a processor without AVX-512
    python scripts/gated_step.py --quick                             # a small shape, to see that it runs

The first table takes the library's own gradient apart: its parts as programs of their own, of the same shapes, each as
often as there are segments. In a loop the products, and the calls of the runtime (as many operations on one number),
are measured by loops of their own; the rest of it is arithmetic, tanh, and what is read and written.

The second one has the trials: the same gradient with one thing done another way, held against the library's in float64
to 1e-12 first, then timed in turns with it. A ratio above 1 is a loser. results/gated_step.csv keeps the figures; a row
of the same cell, shape, trial, processor and instructions takes the place of the old one.

What it found on 2 cores with AVX-512. Losers at every shape: units first (1.5 to 1.8), gates kept in bfloat16 (1.12 to
1.34, and not exact), factors in the loop (1.06 to 1.19), select (1.02 to 1.28), weight products beside the next
segment's loop (1.05 to 1.50: XLA's CPU runtime takes one after the other, and the segments in wait need memory), and
two layers in one loop with one product (1.6 to 3.2). Losers at most: a product for each gate (0.97 to 1.17), tanh(m)
kept (1.01 to 1.37), factors by pieces (1.00 to 1.05), deltas after the loop (0.99 to 1.14), two layers in one loop
(0.98 to 1.36: U s_t of the upper one is no longer one product for a segment), one weight product (1.00 to 1.05). Won
at one shape and lost at another: unroll (0.89 to 1.18), which `jaxrnn.tune` tries. Not among the trials: slices in the
place of `jnp.split`, which are the same program, and another tanh: that of XLA is a rational function already.

One trial wins, and is not in the library: outputs of the loops written over inputs that are read (0.94 to 1.01, up to a
sixth less memory). With one sequence on a device XLA copies the whole array at every step, which makes the time
quadratic in T, and what other devices do nobody has seen.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import itertools
import os
import pathlib
import re
import statistics
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import bench
import jax
import jax.numpy as jnp
import numpy as np
import speed_table
from bench import GATED_SHAPES, Shape
from gated_trials import TRIALS, Trial
from jax import lax
from scan_in_place import scan_in_place

import jaxrnn
from jaxrnn.gradients.plan import decide
from jaxrnn.layer.bptt import linearize_segment, scan_adjoints
from jaxrnn.layer.masking import Adjoint, Flags
from jaxrnn.layer.prepared import PreparedCell, prepare_cell
from jaxrnn.layer.scan import Residuals, forward_segment
from jaxrnn.network.batch import LossSteps
from jaxrnn.network.losses import Loss

SHAPES = (Shape(70, 24, 48, 160, 90), Shape(128, 48, 96, 224, 90), *GATED_SHAPES)
QUICK = Shape(7, 2, 3, 4, 5)
CALLS = {"lstm": (9, 9), "gru": (10, 9)}  # of the runtime in a turn of the compiled loops, forward and back
FLAGS = Flags(None, None)


class Segment(NamedTuple):
    """Holds what the parts of the gradient of one segment are computed from."""

    cell: Any
    layer: PreparedCell
    inputs: jax.Array  # [K, B, D]
    start: Any  # the state before it
    hidden: jax.Array  # [K, B, H]
    residuals: Residuals
    recurrent: Any  # what W is multiplied by at every step
    deltas: Any
    loss: Loss
    loss_steps: LossSteps

    def forward(self, operands: Any, inputs: jax.Array) -> Any:
        """Computes U x_t + b, and the loop over the steps."""
        return forward_segment(self.layer._replace(operands=operands), self.start, inputs, FLAGS, "none")

    def linearize(self, inputs: jax.Array, residuals: Residuals) -> Any:
        """Computes the factors of the adjoint."""
        return linearize_segment(self.layer, inputs, FLAGS, residuals)

    def back(self, operands: Any, inputs: jax.Array, hidden: jax.Array, residuals: Residuals) -> Any:
        """Computes the factors, and the loop over the steps backwards."""
        adjoint = Adjoint(jax.tree.map(jnp.zeros_like, self.start), None)
        _, local = self.linearize(inputs, residuals)
        return scan_adjoints(self.layer._replace(operands=operands), FLAGS, hidden, local, adjoint)[:2]

    def read_out(self, params: Any, hidden: jax.Array) -> Any:
        """Computes readout and loss, and what they ask of the hidden states."""
        return self.loss._replace(params=params).backward(hidden, self.loss_steps)

    def weight_grads(self, inputs: jax.Array, recurrent: Any, deltas: Any) -> Any:
        """Computes the sums over the steps."""
        return self.cell.weight_grads(self.layer.params, self.layer.operands, inputs, recurrent, deltas)


def first_segment(net: jaxrnn.Network, params: Any, inputs: jax.Array, targets: jax.Array) -> Segment:
    """Takes a network through the first of the segments that the library cuts its steps into, and back."""
    K = decide(net, inputs, inputs.dtype).lengths[0]
    cell: Any = net.layers[0]
    B = inputs.shape[1]
    layer, start, inputs = prepare_cell(cell, params.layers[0], inputs.dtype), cell.initial_state((B,)), inputs[:K]
    hidden, residuals, _ = forward_segment(layer, start, inputs, FLAGS, "none")
    loss, steps = Loss(net.readout, net.objective, params.readout), LossSteps(targets[:K], jnp.ones((K, B)), None)
    segment = Segment(cell, layer, inputs, start, hidden, residuals, None, None, loss, steps)
    recurrent = cell.recurrent_inputs(*segment.linearize(inputs, residuals))
    _, deltas = segment.back(layer.operands, inputs, hidden, residuals)
    return segment._replace(recurrent=recurrent, deltas=deltas)


def parts(cell_name: str, segment: Segment) -> dict[str, tuple[Callable, tuple]]:
    """Returns the parts of the gradient of a segment, as functions and their arguments."""
    inputs, hidden, residuals = segment.inputs, segment.hidden, segment.residuals
    operands, W = segment.layer.operands, segment.layer.params.W
    steps, B, _ = inputs.shape
    loop, calls = functools.partial(loop_of_products, steps=steps), functools.partial(loop_of_calls, steps=steps)
    ahead, back = ([jnp.zeros(n + 1) for n in range(count)] for count in CALLS[cell_name])
    return {
        "U x_t + b": (segment.cell.project, (operands, inputs)),
        "forward": (segment.forward, (operands, inputs)),
        "products forward": (loop, (hidden[0], W.T)),
        "calls forward": (calls, (ahead,)),
        "readout and loss": (segment.read_out, (segment.loss.params, hidden)),
        "linearize": (segment.linearize, (inputs, residuals)),
        "linearize and back": (segment.back, (operands, inputs, hidden, residuals)),
        "products back": (loop, (jnp.zeros((B, len(W))), W)),
        "calls back": (calls, (back,)),
        "weight products": (segment.weight_grads, (inputs, segment.recurrent, segment.deltas)),
    }


def loop_of_products(rows: jax.Array, W: jax.Array, steps: int) -> jax.Array:
    """Multiplies rows [B, n] by W, one step after the other: what comes out stands in the rows of the next step."""

    def turn(rows: jax.Array, _: None) -> tuple[jax.Array, None]:
        product = rows @ W
        n = rows.shape[1]
        return product[:, :n] if product.shape[1] >= n else lax.dynamic_update_slice(rows, product, (0, 0)), None

    return lax.scan(turn, rows, None, steps)[0]


def loop_of_calls(numbers: list[jax.Array], steps: int) -> list[jax.Array]:
    """Adds one to small arrays of different shapes, which XLA does by a call of its own for each."""
    return lax.scan(lambda numbers, _: ([number + 1 for number in numbers], None), numbers, None, steps)[0]


def breakdown(cell_name: str, shape: Shape, budget: float) -> dict[str, float]:
    """Measures the parts of a gradient and the whole, in milliseconds; the parts stand before their sum."""
    net, (params, inputs, targets, *_) = bench.problem(cell_name, shape)
    arguments = params, inputs, targets
    segment = first_segment(net, *arguments)
    count = -(-shape.T // len(segment.inputs))
    found = parts(cell_name, segment)
    programs = {name: (compiled(function, *given), given) for name, (function, given) in found.items()}
    programs["whole"] = compiled(jaxrnn.value_and_grad(net), *arguments), arguments
    ms = {name: 1e3 * statistics.median(seconds) for name, seconds in in_turns(programs, budget).items()}
    ms = {name: value * (1 if name == "whole" else count) for name, value in ms.items()}
    rest = ms["forward"] - ms["U x_t + b"] - ms["products forward"] - ms["calls forward"]
    rest_back = ms["linearize and back"] - ms["linearize"] - ms["products back"] - ms["calls back"]
    whole = ms.pop("whole")
    del ms["forward"], ms["linearize and back"]
    ms |= {"arithmetic and memory of the loop forward": rest, "and of the loop back": rest_back}
    return ms | {"sum": sum(ms.values()), "whole": whole}


def compiled(function: Callable, *arguments: Any) -> Any:
    """Compiles a function for its arguments."""
    return jax.jit(function).lower(*arguments).compile()


def in_turns(programs: dict[str, tuple[Callable, tuple]], budget: float) -> dict[str, list[float]]:
    """Times programs, an untimed call and the mean of two each in turn, for so many seconds in all."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, (program, arguments) in programs.items():
            bench.seconds(program, arguments)
            times[name].append(sum(bench.seconds(program, arguments) for _ in range(2)) / 2)
    return times


def build(trial: Trial, net: jaxrnn.Network) -> Callable:
    """Returns the loss and gradient of a network as a trial computes them."""
    if trial.function is not None:
        return trial.function(net)
    if trial.kind is not None:
        cell = net.layers[0]
        net = jaxrnn.Network((trial.kind(cell.inputs, cell.hidden),), net.readout, net.objective)
    return jaxrnn.value_and_grad(net, unroll=trial.unroll)


@contextlib.contextmanager
def scans_of(trial: Trial) -> Any:
    """Lets the two loops write over their inputs while a trial that wants it is traced."""
    other = types.SimpleNamespace(**vars(lax) | {"scan": scan_in_place})
    with contextlib.ExitStack() as stack:
        for module in ("scan", "bptt") * trial.in_place:
            stack.enter_context(mock.patch(f"jaxrnn.layer.{module}.lax", other))
        yield


def error(trial: Trial, cell_name: str, shape: Shape) -> float:
    """Computes how far a trial's gradient is from the library's in float64, of the largest entry: a few steps."""
    shape = shape._replace(T=min(shape.T, 9), B=min(shape.B, 4), layers=trial.layers)
    with jax.enable_x64(True), scans_of(trial):
        net, (params, inputs, targets, *_) = bench.problem(cell_name, shape)
        params, inputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, inputs))
        found = jax.jit(build(trial, net))(params, inputs, targets)
    with jax.enable_x64(True):
        expected = jax.jit(jaxrnn.value_and_grad(net))(params, inputs, targets)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def try_all(cell_name: str, shape: Shape, budget: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the trials of a cell and what they take, each measured in turns with the library's own gradient.

    Raises:
        ArithmeticError: the gradient of a trial that must be exact is not.
    """
    libraries = {}  # by the number of layers
    for name, trial in TRIALS.items():
        if trial.cell != cell_name:
            continue
        net, arguments = bench.problem(cell_name, shape._replace(layers=trial.layers))
        arguments = arguments[:3]
        if trial.layers not in libraries:
            libraries[trial.layers] = compiled(jaxrnn.value_and_grad(net), *arguments)
        library = libraries[trial.layers]
        off = error(trial, cell_name, shape)
        if trial.exact and off > 1e-12:
            raise ArithmeticError(f"{name}: the gradient is off by {off:.1e}")
        with scans_of(trial):
            program = compiled(build(trial, net), *arguments)
        own, other = in_turns({"own": (library, arguments), "other": (program, arguments)}, budget).values()
        yield (
            name,
            {
                "ms": 1e3 * statistics.median(other),
                "ratio": statistics.median(a / b for a, b in zip(other, own, strict=True)),
                "MB": program.memory_analysis().temp_size_in_bytes / 2**20,
                "error": off,
            },
        )


def machine() -> dict[str, str]:
    """Describes the processor, and the instructions that XLA was told to keep to."""
    told = re.search(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {"processor": bench.processor(), "instructions": told[1] if told else "all"}


def save(path: pathlib.Path, rows: list[dict[str, str]]) -> None:
    """Puts rows into a file of results, each in the place of one of the same cell, shape, kind, name and machine."""

    def key(row: dict[str, str]) -> tuple:
        names = ("cell", *speed_table.SIZES, "kind", "name", "processor", "instructions")
        return tuple(row[name] for name in names)

    old = speed_table.read(path)
    speed_table.write(path, list(({key(row): row for row in old} | {key(row): row for row in rows}).values()))


def measure(cell_name: str, shape: Shape, budget: float) -> Iterator[dict[str, str]]:
    """Yields the rows of one cell and shape: its parts, then its trials."""
    ms = breakdown(cell_name, shape, budget)
    for name, value in ms.items():
        yield {"kind": "part", "name": name, "ms": f"{value:.3g}", "ratio": f"{value / ms['whole']:.3f}"}
    for name, found in try_all(cell_name, shape, budget):
        formats = {"ms": ".3g", "ratio": ".3f", "MB": ".1f", "error": ".1e"}
        yield {"kind": "trial", "name": name} | {column: format(found[column], formats[column]) for column in formats}


def main() -> None:
    """Measures, prints, and saves every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", choices=CALLS, default=list(CALLS))
    parser.add_argument("--shapes", type=int, nargs="*", help="numbers of shapes, from 1; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="for the parts, and for each trial (default: 5)")
    parser.add_argument("--out", type=pathlib.Path, default=speed_table.PEERS.parent, help="where gated_step.csv goes")
    parser.add_argument("--quick", action="store_true", help="one small shape, a moment each")
    options = parser.parse_args()
    numbers = options.shapes or range(1, len(SHAPES) + 1)
    shapes = [QUICK] if options.quick else [SHAPES[number - 1] for number in numbers]
    options.out.mkdir(parents=True, exist_ok=True)
    where = machine() | {"jax": jax.__version__, "date": datetime.date.today().isoformat()}
    print(", ".join(where.values()))
    for cell_name, shape in itertools.product(options.cells, shapes):
        sizes = {name: str(value) for name, value in shape._asdict().items() if name != "layers"}
        print(f"\n{speed_table.NAMES[cell_name]}, T,B,D,H,V = {','.join(sizes.values())}")
        for row in measure(cell_name, shape, 0.0 if options.quick else options.seconds):
            print(f"{row['name']:48} {row['ms']:>8} ms {row['ratio']:>8} {row.get('MB', '')}", flush=True)
            save(options.out / "gated_step.csv", [{"cell": cell_name, **sizes, **row, **where}])


if __name__ == "__main__":
    main()
