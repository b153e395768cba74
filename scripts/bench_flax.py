"""Loss and gradient through `jaxrnn.interop.flax.RNN` beside `nnx.RNN`, around the same cells of flax.

    python scripts/bench_flax.py                          # all cells and shapes, some eight minutes on two cores
    python scripts/bench_flax.py --cells GRUCell          # one cell
    python scripts/bench_flax.py --quick                  # does it run: one small shape, few turns
    python scripts/bench_flax.py --out bench              # where flax.csv goes; results/ beside this by default

A model is a recurrent layer and an `nnx.Linear`, its loss the cross-entropy of a softmax. Beside the two stand the same
loss through `jaxrnn.unroll` with time first, and `jaxrnn.value_and_grad`, whose readout is within the pass by hand. The
contenders take turns within one process; a ratio is the median of the ratios of neighbouring turns (see bench.py). The
layout "batch" is [B, T, D], which flax takes by default, "time" is [T, B, D] with `time_major=True`.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import bench
import flax
import jax
import jax.numpy as jnp
import speed_table
from bench import Result, Shape
from bench_peers import mean_error
from flax import nnx

import jaxrnn
from jaxrnn import interop
from jaxrnn.interop.flax import RNN

CELLS = ("SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell")
LAYOUTS = {"batch": False, "time": True}
QUICK = Shape(5, 2, 3, 4, 6)


def model_of(cell: str, shape: Shape) -> tuple[nnx.RNNCellBase, Any]:
    """Makes a cell of flax and a readout."""
    rngs = nnx.Rngs(0)
    return getattr(nnx, cell)(shape.D, shape.H, rngs=rngs), nnx.Linear(shape.H, shape.V, rngs=rngs)


def data(shape: Shape, time_major: bool) -> tuple[jax.Array, jax.Array]:
    """Draws inputs and labels, the same in both layouts."""
    inputs = jax.random.normal(jax.random.key(1), (shape.T, shape.B, shape.D))
    labels = jax.random.randint(jax.random.key(2), (shape.T, shape.B), 0, shape.V)
    return (inputs, labels) if time_major else (jnp.swapaxes(inputs, 0, 1), labels.T)


def through_flax(Module: Callable[..., Any], cell: str, shape: Shape, time_major: bool) -> tuple[Callable, tuple]:
    """Returns loss and gradient of a model of flax, and its arguments."""
    step, readout = model_of(cell, shape)
    parts: Any = nnx.split((Module(step, time_major=time_major), readout), nnx.Param, ...)
    model, params, rest = parts

    def loss(params: Any, rest: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        layer, readout = nnx.merge(model, params, rest, copy=True)
        return mean_error(readout(layer(inputs)), labels)

    return jax.value_and_grad(loss), (params, rest, *data(shape, time_major))


def through_unroll(cell: str, shape: Shape) -> tuple[Callable, tuple]:
    """Returns loss and gradient of the same model, its layer run by `jaxrnn.unroll`, and its arguments."""
    net, params = network(cell, shape)

    def loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        hidden, _ = jaxrnn.unroll(net.layers[0], params.layers[0], inputs)
        return mean_error(hidden @ params.readout.V.T + params.readout.c, labels)

    return jax.value_and_grad(loss), (params, *data(shape, time_major=True))


def through_network(cell: str, shape: Shape) -> tuple[Callable, tuple]:
    """Returns loss and gradient of the same model by `jaxrnn.value_and_grad`, and its arguments."""
    net, params = network(cell, shape)
    return jaxrnn.value_and_grad(net), (params, *data(shape, time_major=True))


def network(cell: str, shape: Shape) -> tuple[jaxrnn.Network, Any]:
    """Makes the network of jaxrnn that computes what the model of flax does, and its parameters."""
    step, readout = model_of(cell, shape)
    layer, params = interop.from_flax(cell, nnx.to_pure_dict(nnx.state(step, nnx.Param)))  # type: ignore[arg-type]
    net = jaxrnn.Network((layer,), jaxrnn.Readout(shape.H, shape.V), jaxrnn.softmax_cross_entropy)
    fresh = net.init(jax.random.key(0))
    weights = fresh.readout._replace(V=readout.kernel[...].T, c=readout.bias[...])
    return net, fresh._replace(layers=(jax.tree.map(jnp.asarray, params),), readout=weights)


def contenders(cell: str, shape: Shape, time_major: bool) -> dict[str, tuple[Callable, tuple]]:
    """Returns what is compared."""
    return {
        "nnx.RNN": through_flax(nnx.RNN, cell, shape, time_major),
        "flax.RNN": through_flax(RNN, cell, shape, time_major),
        "unroll": through_unroll(cell, shape),
        "value_and_grad": through_network(cell, shape),
    }


def measure(cell: str, shape: Shape, time_major: bool, budget: float) -> dict[str, Result]:
    """Measures every contender, alternating until `budget` seconds are spent."""
    compiled, results = {}, {}
    for name, (function, arguments) in contenders(cell, shape, time_major).items():
        program = jax.jit(function).lower(*arguments).compile()
        compiled[name] = program, arguments
        memory = program.memory_analysis()
        results[name] = Result([], memory.temp_size_in_bytes if memory else 0, compile_seconds=0.0)
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(results["unroll"].seconds) < 9:
        for name, (program, arguments) in compiled.items():
            bench.seconds(program, arguments)  # untimed, to find the caches as the last program left them
            results[name].seconds.append(sum(bench.seconds(program, arguments) for _ in range(2)) / 2)
    return results


def compare(cell: str, shape: Shape, layout: str, results: dict[str, Result]) -> speed_table.Row:
    """Makes one row of the table."""
    theirs, ours, unroll, whole = results.values()
    sizes = {name: value for name, value in shape._asdict().items() if name != "layers"}
    row: dict[str, Any] = {"cell": f"{cell}, {layout}", **sizes}
    row |= {f"{name} ms": f"{statistics.median(found.seconds) * 1e3:.3g}" for name, found in results.items()}
    row |= {
        "nnx.RNN / flax.RNN": f"{bench.ratio(theirs, ours):.2f}",
        "flax.RNN / unroll": f"{bench.ratio(ours, unroll):.2f}",
        "flax.RNN / value_and_grad": f"{bench.ratio(ours, whole):.2f}",
        "nnx.RNN MB": f"{theirs.temp_bytes / 1e6:.1f}",
        "flax.RNN MB": f"{ours.temp_bytes / 1e6:.1f}",
        "memory": f"{ours.temp_bytes / theirs.temp_bytes:.2f}",
    }
    return {name: str(value) for name, value in row.items()}


def main() -> None:
    """Measures, prints, and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS))
    parser.add_argument("--seconds", type=float, default=20.0, help="time to spend on each row")
    parser.add_argument("--quick", action="store_true", help="one small shape, as few turns as there can be")
    parser.add_argument("--out", type=pathlib.Path, default=speed_table.PEERS.parent, help="where flax.csv goes")
    options = parser.parse_args()
    shapes = (QUICK,) if options.quick else bench.GATED_SHAPES
    where = {"processor": bench.processor(), "jax": jax.__version__, "flax": flax.__version__}
    where["date"] = datetime.date.today().isoformat()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "flax.csv"
    for cell in options.cells:
        for shape in shapes:
            for layout, time_major in LAYOUTS.items():
                results = measure(cell, shape, time_major, 0.0 if options.quick else options.seconds)
                row = compare(cell, shape, layout, results) | where
                print(" | ".join(f"{name} {value}" for name, value in row.items() if name not in where), flush=True)
                speed_table.write(table, speed_table.merge(speed_table.read(table), [row]))  # saved after every row
    print(f"saved {table}")


if __name__ == "__main__":
    main()
