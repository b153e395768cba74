"""Loss and gradient with jaxrnn and with other libraries, each in a process of its own, all with every core there is.

    python scripts/bench_peers.py                             # all shapes, some eight minutes on two cores
    python scripts/bench_peers.py --cells lstm --rounds 3     # one cell, fewer rounds
    python scripts/bench_peers.py --out bench                 # where peers.csv goes; results/ beside this by default
    python scripts/bench_peers.py --random 10 --seed 1        # so many drawn shapes of every cell, into random.csv

A library that is not installed is left out (`pip install flax dm-haiku torch==2.13.0`). Every contender compiles first;
then they take turns of a second each, one at a time, and what is kept is the median of the medians of all turns. With
several devices, jaxrnn spreads the batch over virtual devices of the CPU, one for each core: `jaxrnn.data_parallel`.
The floor is what the matrix products would take at the rate of a large one, which is measured before every shape.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import math
import pathlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import bench
import jax
import jax.numpy as jnp
import speed_table
from bench import Shape

import jaxrnn
from jaxrnn.cli.machine import use_all_cores
from jaxrnn.training.devices import AXIS, make_mesh, spread

TURN = 1.0  # seconds that a contender works before the next one does
SHAPES = {
    "elman": (
        Shape(70, 24, 48, 160, 90),
        Shape(200, 8, 32, 96, 40),
        Shape(40, 128, 256, 384, 1000),
        Shape(2000, 4, 16, 48, 20),
    ),
    "gru": (Shape(70, 24, 48, 160, 90), Shape(128, 48, 96, 224, 90)),
    "lstm": (Shape(70, 24, 48, 160, 90), Shape(128, 48, 96, 224, 90)),
}
LARGEST = 4e10  # operations of a call, about a second of two cores, so that drawn shapes come to an end


def drawn(cell: str, count: int, seed: int) -> tuple[Shape, ...]:
    """Draws shapes, every size uniform in its logarithm, and none that takes more operations than `LARGEST`."""
    source = random.Random(f"{cell} {seed}")
    shapes: list[Shape] = []
    while len(shapes) < count:
        T, B, D, H, V = (
            round(math.exp(source.uniform(math.log(least), math.log(most))))
            for least, most in ((20, 2000), (1, 256), (16, 256), (32, 512), (20, 5000))
        )
        gates = {"elman": 1, "gru": 3, "lstm": 4}[cell]
        if 6 * T * B * H * (gates * (D + H) + V) <= LARGEST:
            shapes.append(Shape(T, B, D, H, V))
    return tuple(shapes)


def by_jaxrnn(cell: str, shape: Shape, devices: int = 1) -> Callable[[], Any]:
    """Returns a call of `jaxrnn.value_and_grad`, on one device or spread over several."""
    net, (params, inputs, targets, *_) = bench.problem(cell, shape)
    function = jaxrnn.value_and_grad(net)
    if devices > 1:
        mesh = make_mesh(devices)
        function = jaxrnn.data_parallel(function, mesh)
        params, (inputs, targets) = spread(params, mesh), spread((inputs, targets), mesh, None, AXIS)
    return jitted(function, params, inputs, targets)


def by_all_devices(cell: str, shape: Shape) -> Callable[[], Any]:
    """Returns a call of `jaxrnn.data_parallel` over all devices that the batch can be spread over."""
    return by_jaxrnn(cell, shape, max(n for n in range(1, jax.device_count() + 1) if shape.B % n == 0))


def by_autodiff(cell: str, shape: Shape) -> Callable[[], Any]:
    """Returns a call of `jax.value_and_grad` of a plain scan, with U x_t + b moved out of the loop."""
    net, (params, inputs, targets, *_) = bench.problem(cell, shape)
    loss = lambda params, inputs, targets: bench.plain_loss(net, params, inputs, targets, hoisted=True)  # noqa: E731
    return jitted(jax.value_and_grad(loss), params, inputs, targets)


def by_flax(cell: str, shape: Shape) -> Callable[[], Any]:
    """Returns a call of the gradient through `nnx.RNN`."""
    from flax import nnx

    rngs = nnx.Rngs(0)
    step = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[cell]
    layer = nnx.RNN(step(shape.D, shape.H, rngs=rngs), time_major=True)
    parts: Any = nnx.split((layer, nnx.Linear(shape.H, shape.V, rngs=rngs)), nnx.Param, ...)
    model, params, rest = parts
    zeros = jnp.zeros((shape.B, shape.H))
    start = (zeros, zeros) if cell == "lstm" else zeros

    def loss(params: Any, rest: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        layer, readout = nnx.merge(model, params, rest)
        return mean_error(readout(layer(inputs, initial_carry=start)), targets)

    return jitted(jax.value_and_grad(loss), params, rest, *bench.problem(cell, shape)[1][1:3])


def by_haiku(cell: str, shape: Shape) -> Callable[[], Any]:
    """Returns a call of the gradient through `hk.dynamic_unroll`."""
    import haiku as hk

    def forward(inputs: jax.Array, targets: jax.Array) -> jax.Array:
        core = {"elman": hk.VanillaRNN, "gru": hk.GRU, "lstm": hk.LSTM}[cell](shape.H)
        hidden, _ = hk.dynamic_unroll(core, inputs, core.initial_state(shape.B))
        return mean_error(hk.Linear(shape.V)(hidden), targets)

    loss: Any = hk.without_apply_rng(hk.transform(forward))
    inputs, targets = bench.problem(cell, shape)[1][1:3]
    return jitted(jax.value_and_grad(loss.apply), loss.init(jax.random.key(0), inputs, targets), inputs, targets)


def by_torch(cell: str, shape: Shape) -> Callable[[], Any]:
    """Returns a call of the gradient through torch's own layer."""
    import torch

    layer = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    recurrent, readout = layer(shape.D, shape.H, shape.layers), torch.nn.Linear(shape.H, shape.V)
    inputs = torch.randn(shape.T, shape.B, shape.D)
    targets = torch.randint(shape.V, (shape.T, shape.B))
    parameters = [*recurrent.parameters(), *readout.parameters()]

    def call() -> None:
        outputs = readout(recurrent(inputs)[0])
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        torch.autograd.grad(loss, parameters)

    return call


# Contender -> what makes its call, and the library that it needs.
CONTENDERS: dict[str, tuple[Callable[[str, Shape], Callable[[], Any]], str]] = {
    "jaxrnn, 1 device": (by_jaxrnn, "jax"),
    "jaxrnn, all cores": (by_all_devices, "jax"),
    "jax.grad": (by_autodiff, "jax"),
    "flax nnx": (by_flax, "flax"),
    "haiku": (by_haiku, "haiku"),
    "torch": (by_torch, "torch"),
}


def mean_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the cross-entropy of a softmax, the mean of all steps."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], -1)
    return -jnp.mean(chosen)


def jitted(function: Callable, *arguments: Any) -> Callable[[], Any]:
    """Compiles a function, and returns a call of it that waits for the result."""
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def work(name: str, cell: str, shape: Shape) -> None:
    """Answers every line of standard input, a number of seconds, with the median of one contender's calls in ms."""
    if name == "jaxrnn, all cores":
        use_all_cores()
    call = CONTENDERS[name][0](cell, shape)
    call()
    print("ready", flush=True)
    for line in sys.stdin:
        durations: list[float] = []
        end = time.perf_counter() + float(line)
        while time.perf_counter() < end or len(durations) < 3:
            start = time.perf_counter()
            call()
            durations.append(time.perf_counter() - start)
        print(statistics.median(durations) * 1e3, flush=True)


class Worker:
    """Runs one contender in a process of its own."""

    def __init__(self, name: str, cell: str, shape: Shape) -> None:
        command = [sys.executable, __file__, "--worker", name, cell, *map(str, shape)]
        pipe = subprocess.PIPE
        self.name, self.process = name, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.found: list[float] = []

    def answer(self) -> str:
        """Waits for a line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early: see above")
        return line

    def turn(self, seconds: float) -> None:
        """Lets the process work for some seconds, and keeps the median of its calls."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        self.found.append(float(self.answer()))


def measure(cell: str, shape: Shape, rounds: int, names: list[str]) -> dict[str, float]:
    """Measures contenders at one shape: the milliseconds of each."""
    workers = {name: Worker(name, cell, shape) for name in names}
    try:
        for worker in workers.values():
            worker.answer()
        for _ in range(rounds):
            for worker in workers.values():
                worker.turn(TURN)
        return {name: statistics.median(worker.found) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.process.kill()


def main() -> None:
    """Measures, prints, and saves; or is a contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contender")
    parser.add_argument("--random", type=int, metavar="N", help="draw N shapes of every cell instead of the usual ones")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes that are drawn (default: 0)")
    parser.add_argument("--out", type=pathlib.Path, default=speed_table.PEERS.parent, help="where peers.csv goes")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, cell, *sizes = options.worker
        work(name, cell, Shape(*map(int, sizes)))
        return
    names = [name for name, (_, library) in CONTENDERS.items() if importlib.util.find_spec(library)]
    where = {"processor": bench.processor(), "date": datetime.date.today().isoformat()}
    options.out.mkdir(parents=True, exist_ok=True)
    for cell in options.cells:
        for shape in drawn(cell, options.random, options.seed) if options.random else SHAPES[cell]:
            floor = bench.flops(cell, shape) / bench.product_flops_per_second() * 1e3
            found = measure(cell, shape, options.rounds, names)
            sizes = {name: str(value) for name, value in shape._asdict().items() if name != "layers"}
            columns = {f"{name} ms": f"{value:.3g}" for name, value in (found | {"floor": floor}).items()}
            row = {"cell": cell, **sizes, **columns, **where}
            print(" | ".join(row.values()), flush=True)
            table = options.out / ("random.csv" if options.random else "peers.csv")  # saved after every shape
            speed_table.write(table, speed_table.merge(speed_table.read(table), [row]))


if __name__ == "__main__":
    main()
