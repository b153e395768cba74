"""Loss and gradient by hand against autodiff of plain scans: time, memory, compile time, over a grid of shapes.

    python scripts/bench.py                    # Elman, all shapes, about five minutes on two cores
    python scripts/bench.py --cell lstm        # another cell, at its own shapes
    python scripts/bench.py --shapes 1 3       # two of them
    python scripts/bench.py --out results      # where speed.csv and speed.png go

The contenders take turns within one process, and a ratio is the median of the ratios of neighbouring turns, so that a
machine whose speed drifts cannot favour either. A turn is one untimed call, which finds the caches and the heap as
another program left them, and two timed ones, which find them as a training loop does. The floor is what the matrix
products alone would take at the rate of one large product, measured in the same run.

A row of speed.csv that has the cell and shape of a new one is replaced, the others stay: so the cells of several runs
come together. `python scripts/speed_table.py results/speed.csv` takes them over into README.md.

Beside them stand the same gradient with a mask, vmapped over sequences, with gates or all states made anew in the
reverse pass (`recompute`), and torch's own layer in a process of its own where torch is installed.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import speed_table
from jax import lax

import jaxrnn


class Shape(NamedTuple):
    """Names one point of the grid: floats of D features in, labels of V classes out."""

    T: int
    B: int
    D: int
    H: int
    V: int
    layers: int = 1


GATED_SHAPES = (Shape(100, 32, 64, 128, 65), Shape(128, 64, 128, 256, 128))
SHAPES = (
    Shape(100, 32, 64, 128, 65),
    Shape(128, 64, 128, 512, 128),
    Shape(512, 1, 64, 64, 65),
    Shape(128, 32, 64, 256, 10000),
    Shape(1024, 32, 64, 256, 128),
    Shape(64, 32, 65, 512, 65),
    Shape(101, 8, 32, 64, 32),
    Shape(2000, 4, 16, 128, 16),
    Shape(50, 256, 64, 128, 65),
    Shape(100, 32, 64, 128, 65, layers=3),
)


CELLS: dict[str, Callable[[int, int], Any]] = {
    "elman": jaxrnn.Elman,
    "gru": jaxrnn.GRU,
    "gru-before": functools.partial(jaxrnn.GRU, reset="before"),
    "lstm": jaxrnn.LSTM,
}


def elman_step(p: Any, s: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes an Elman step as most people write it, from z = U x + b."""
    s = jnp.tanh(s @ p.W.T + z)
    return s, s


def gru_step(p: Any, s: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes a GRU step."""
    z_r, z_z, z_n = jnp.split(z, 3, -1)
    w_r, w_z, w_n = jnp.split(s @ p.W.T, 3, -1)
    r, z, n = jax.nn.sigmoid(w_r + z_r), jax.nn.sigmoid(w_z + z_z), w_n + p.d
    n = jnp.tanh(z_n + r * n)
    s = (1 - z) * n + z * s
    return s, s


def gru_before_step(p: Any, s: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes a step of the GRU with the reset before the product."""
    z_rz, z_n = jnp.split(z, [2 * s.shape[-1]], -1)
    W_rz, W_n = jnp.split(p.W, [2 * s.shape[-1]])
    r, z = jnp.split(jax.nn.sigmoid(s @ W_rz.T + z_rz), 2, -1)
    s = (1 - z) * jnp.tanh((r * s) @ W_n.T + z_n) + z * s
    return s, s


def lstm_step(p: Any, state: tuple, z: jax.Array) -> tuple[tuple, jax.Array]:
    """Takes an LSTM step."""
    s, m = state
    i, f, g, o = jnp.split(s @ p.W.T + z, 4, -1)
    m = jax.nn.sigmoid(f) * m + jax.nn.sigmoid(i) * jnp.tanh(g)
    s = jax.nn.sigmoid(o) * jnp.tanh(m)
    return (s, m), s


def step_of(cell: Any) -> Callable:
    """Returns the step of a cell as most people write it."""
    if isinstance(cell, jaxrnn.GRU):
        return gru_step if cell.reset == "after" else gru_before_step
    return elman_step if isinstance(cell, jaxrnn.Elman) else lstm_step


def plain_loss(net: jaxrnn.Network, params: Any, inputs: jax.Array, targets: jax.Array, hoisted: bool) -> jax.Array:
    """Computes the loss of a network as most people write it: U x_t + b within the loop, or before it for all steps."""
    for cell, p in zip(net.layers, params.layers, strict=True):

        def step(state: Any, x: jax.Array, cell: Any = cell, p: Any = p) -> tuple[Any, jax.Array]:
            return step_of(cell)(p, state, x if hoisted else x @ p.U.T + p.b)

        zeros = jnp.zeros((inputs.shape[1], cell.hidden))
        start = (zeros, zeros) if isinstance(cell, jaxrnn.LSTM) else zeros
        _, inputs = lax.scan(step, start, inputs @ p.U.T + p.b if hoisted else inputs)
    outputs = inputs @ params.readout.V.T + params.readout.c
    return jnp.mean(net.objective(outputs, targets))


def vmapped_loss(net: jaxrnn.Network, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes a loss written for one sequence, vmapped: its derivative is the reverse scan's rule, vmapped."""
    one = functools.partial(net.loss, gradient="bptt")
    return jnp.mean(jax.vmap(one, (None, 1, 1))(params, inputs, targets))


class Result(NamedTuple):
    """Holds what one contender took at one shape."""

    seconds: list[float]
    temp_bytes: int
    compile_seconds: float


def problem(cell: str, shape: Shape) -> tuple[jaxrnn.Network, tuple]:
    """Makes a network of the shape and random arguments for its loss."""
    layers = [CELLS[cell](shape.D if i == 0 else shape.H, shape.H) for i in range(shape.layers)]
    net = jaxrnn.Network(tuple(layers), jaxrnn.Readout(shape.H, shape.V), jaxrnn.softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[1], (shape.T, shape.B, shape.D))
    targets = jax.random.randint(keys[2], (shape.T, shape.B), 0, shape.V)
    mask = jaxrnn.lengths_to_mask(jax.random.randint(keys[3], (shape.B,), shape.T // 2, shape.T + 1), shape.T)
    return net, (net.init(keys[0]), inputs, targets, None, None, mask)


def contenders(net: jaxrnn.Network, segment: int | str) -> dict[str, Callable]:
    """Returns what is compared, each `(params, inputs, targets) -> (loss, grads)`; the masked run takes more."""
    return {
        "by hand": jaxrnn.value_and_grad(net, segment),
        "gates anew": jaxrnn.value_and_grad(net, recompute="gates"),
        "recomputed": jaxrnn.value_and_grad(net, recompute=True),
        "masked": jaxrnn.value_and_grad(net),
        "vmapped": jax.value_and_grad(lambda *arguments: vmapped_loss(net, *arguments)),
        "autodiff": jax.value_and_grad(lambda params, x, y: plain_loss(net, params, x, y, hoisted=False)),
        "autodiff, hoisted": jax.value_and_grad(lambda params, x, y: plain_loss(net, params, x, y, hoisted=True)),
        "autodiff of net.loss": jax.value_and_grad(net.loss),
    }


def flops(cell: str, shape: Shape) -> int:
    """Counts operations of matrix products alone: one forward, two backward a weight, none to the lowest inputs."""
    rows = {"elman": 1, "gru": 3, "gru-before": 3, "lstm": 4}[cell] * shape.H
    weights = rows * (3 * (2 * shape.layers - 1) * shape.H + 2 * shape.D) + 3 * shape.H * shape.V
    return 2 * shape.T * shape.B * weights


def product_flops_per_second(size: int = 2048) -> float:
    """Measures the rate of one large matrix product on this machine, the best of several."""
    square = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    times = [seconds(product, (square, square)) for _ in range(8)]
    return 2 * size**3 / min(times[1:])


def seconds(function: Callable, arguments: tuple) -> float:
    """Times one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def compile_best(function: Callable, arguments: tuple, repeats: int = 3) -> tuple[Any, float]:
    """Compiles a program, and returns the least time that tracing and compiling took."""
    times = []
    for _ in range(repeats):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        times.append(time.perf_counter() - start)
    return compiled, min(times)


def measure(cell: str, shape: Shape, budget: float, segment: int | str = "auto") -> dict[str, Result]:
    """Measures every contender at one shape, alternating until `budget` seconds are spent."""
    net, everything = problem(cell, shape)
    compiled, results = {}, {}
    for name, function in contenders(net, segment).items():
        arguments = everything if name == "masked" else everything[:3]
        program, compile_seconds = compile_best(function, arguments)
        memory = program.memory_analysis()
        results[name] = Result([], memory.temp_size_in_bytes if memory else 0, compile_seconds)
        compiled[name] = program, arguments
        seconds(program, arguments)
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(results["by hand"].seconds) < 9:
        for name, (function, arguments) in compiled.items():
            seconds(function, arguments)
            results[name].seconds.append(sum(seconds(function, arguments) for _ in range(2)) / 2)
    return results


def torch_milliseconds(cell: str, shape: Shape, budget: float) -> float | str:
    """Measures torch's own layer, in a process of its own; nothing where torch or the layer is missing."""
    if importlib.util.find_spec("torch") is None or cell == "gru-before":
        return ""
    script = pathlib.Path(__file__).with_name("bench_peers.py")
    command = [sys.executable, str(script), "--worker", "torch", cell, *map(str, shape)]
    found = subprocess.run(command, input=f"{budget}\n", check=True, capture_output=True, text=True).stdout
    return round(float(found.splitlines()[-1]), 1)


def compare(cell: str, shape: Shape, results: dict[str, Result], rate: float) -> dict[str, Any]:
    """Makes one row of the table: by hand against the best of the plain scans."""
    hand, masked, vmapped = (results.pop(name) for name in ("by hand", "masked", "vmapped"))
    anew, recomputed = results.pop("gates anew"), results.pop("recomputed")
    name, plain = min(results.items(), key=lambda item: statistics.median(item[1].seconds))
    return {
        "cell": cell,
        **shape._asdict(),
        "floor ms": round(flops(cell, shape) / rate * 1e3, 2),
        "by hand ms": round(statistics.median(hand.seconds) * 1e3, 2),
        "autodiff ms": round(statistics.median(plain.seconds) * 1e3, 2),
        "best scan": name,
        "ratio": round(ratio(plain, hand), 2),
        "masked / by hand": round(ratio(masked, hand), 2),
        "vmapped / by hand": round(ratio(vmapped, hand), 2),
        "by hand MB": round(hand.temp_bytes / 2**20, 1),
        "autodiff MB": round(min(r.temp_bytes for r in results.values()) / 2**20, 1),
        "by hand compile s": round(hand.compile_seconds, 2),
        "autodiff compile s": round(min(r.compile_seconds for r in results.values()), 2),
        "gates anew / by hand": round(ratio(anew, hand), 2),
        "gates anew MB": round(anew.temp_bytes / 2**20, 1),
        "recomputed / by hand": round(ratio(recomputed, hand), 2),
        "recomputed MB": round(recomputed.temp_bytes / 2**20, 1),
    }


def ratio(a: Result, b: Result) -> float:
    """Computes how much longer a takes than b: the median over neighbouring turns."""
    return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))


def processor() -> str:
    """Describes the processor: cores that this process may use, its name, and its widest vector instructions."""
    facts = pathlib.Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    known: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        known.setdefault(name.strip(), value.strip())
    flags = known.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return " ".join(filter(None, (f"{cores} cores of", known.get("model name", platform.machine()), vectors)))


def main() -> None:
    """Measures, prints, and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="elman")
    parser.add_argument("--shapes", type=int, nargs="*", help="numbers of shapes, from 1; all by default")
    parser.add_argument("--seconds", type=float, default=15.0, help="time to spend on each shape")
    parser.add_argument("--segment", type=int, help="K of the contender by hand; what fits by default")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench"), help="where the results go")
    options = parser.parse_args()
    rate = product_flops_per_second()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; one large product: {rate / 1e9:.0f} Gflop/s")
    where = {"processor": processor(), "jax": jax.__version__, "date": datetime.date.today().isoformat()}
    rows: list[dict[str, Any]] = []
    shapes = SHAPES if options.cell == "elman" else GATED_SHAPES
    for number in options.shapes or range(1, len(shapes) + 1):
        shape = shapes[number - 1]
        rows.append(
            compare(options.cell, shape, measure(options.cell, shape, options.seconds, options.segment or "auto"), rate)
        )
        rows[-1] |= {"torch ms": torch_milliseconds(options.cell, shape, options.seconds), **where}
        if len(rows) == 1:
            print(" | ".join(rows[0]))
        print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    ratios = [row["ratio"] for row in rows]
    print(f"geometric mean of the ratios {statistics.geometric_mean(ratios):.2f}, least {min(ratios):.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    table, picture = options.out / "speed.csv", options.out / "speed.png"
    new = [{column: str(value) for column, value in row.items()} for row in rows]
    speed_table.write(table, speed_table.merge(speed_table.read(table), new))
    speed_table.picture(speed_table.read(table)).savefig(picture, dpi=100)
    print(f"saved {table} and {picture}")


if __name__ == "__main__":
    main()
