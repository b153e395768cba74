"""Long sequences: memory and time of loss and gradient against T, and where the modes without a loop over T win.

    python scripts/bench_long.py                       # T from 100 to 1,000,000: about ten minutes on two cores
    python scripts/bench_long.py --longest 10000       # one minute
    python scripts/bench_long.py --only parallel       # windows by lags, DEER, the reverse scan by halves
    python scripts/bench_long.py --out results         # where long.csv and long.png go

An Elman network on tokens, B = 1, H = 64, D = V = 65, float32; then one batch of B = 32, H = 256, V = 128 at T = 4096.
Every figure is from a process of its own with a time limit, so that what swaps or never ends is told as such.
jax.grad's own ways are measured with U x_t + b before the loop and within it, and the faster of the two counts. Memory
is the temporary memory that the compiler says the program needs, beside its arguments and results.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxrnn

LENGTHS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
TOKENS = {"B": 1, "D": 65, "H": 64, "V": 65}
BATCH = {"T": 4096, "B": 32, "D": 64, "H": 256, "V": 128}
BUDGET = 20_000_000
MODES = {
    "jax.grad": "#888888",
    "jax.grad, nested checkpoints": "#b8860b",
    "states kept": "#33658a",
    "recompute=True": "#d1603d",
    "memory_budget=20 MB": "#5b8c5a",
}


def plain_scan(params: Any, state: jax.Array, inputs: jax.Array, hoisted: bool) -> tuple[jax.Array, jax.Array]:
    """Computes Elman states of some steps as most people write them, U x_t + b before the loop or within it."""
    layer = params.layers[0]

    def project(x: jax.Array) -> jax.Array:
        return (layer.U.T[x] if jnp.issubdtype(x.dtype, jnp.integer) else x @ layer.U.T) + layer.b

    def step(s: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        s = jnp.tanh(s @ layer.W.T + (x if hoisted else project(x)))
        return s, s

    return lax.scan(step, state, project(inputs) if hoisted else inputs)


def plain_loss(net: jaxrnn.Network, hoisted: bool, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the loss of the whole sequence in one scan."""
    start = jnp.zeros((inputs.shape[1], net.layers[0].hidden))
    _, states = plain_scan(params, start, inputs, hoisted)
    return jnp.mean(net.objective(states @ params.readout.V.T + params.readout.c, targets))


def checkpointed_loss(
    net: jaxrnn.Network, hoisted: bool, params: Any, inputs: jax.Array, targets: jax.Array
) -> jax.Array:
    """Computes it by a scan over sqrt(T) checkpointed segments, each a scan over its steps, with readout and loss."""
    T = inputs.shape[0]
    K = next(k for k in range(math.isqrt(T), 0, -1) if T % k == 0)

    # Within a scan, what `jax.checkpoint` does against the merging of equal expressions is needless, and slow.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def segment(state: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, targets = x
        state, states = plain_scan(params, state, inputs, hoisted)
        errors = net.objective(states @ params.readout.V.T + params.readout.c, targets)
        return state, jnp.sum(errors)

    start = jnp.zeros((inputs.shape[1], net.layers[0].hidden))
    cut = jax.tree.map(lambda leaf: leaf.reshape(T // K, K, *leaf.shape[1:]), (inputs, targets))
    return jnp.sum(lax.scan(segment, start, cut)[1]) / targets.size


def gradient(net: jaxrnn.Network, mode: str, hoisted: bool = True) -> Callable:
    """Returns `(params, inputs, targets) -> (loss, grads)` by one of MODES."""
    if mode == "jax.grad":
        return jax.value_and_grad(functools.partial(plain_loss, net, hoisted))
    if mode == "jax.grad, nested checkpoints":
        return jax.value_and_grad(functools.partial(checkpointed_loss, net, hoisted))
    if mode == "states kept":
        return jaxrnn.value_and_grad(net)
    if mode == "recompute=True":
        return jaxrnn.value_and_grad(net, recompute=True)
    return jaxrnn.value_and_grad(net, memory_budget=BUDGET)


def problem(T: int, B: int, D: int, H: int, V: int, tokens: bool) -> tuple[jaxrnn.Network, tuple]:
    """Makes a network and arguments for its gradient."""
    net = jaxrnn.Network((jaxrnn.Elman(D, H),), jaxrnn.Readout(H, V), jaxrnn.softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.randint(keys[1], (T, B), 0, D) if tokens else jax.random.normal(keys[1], (T, B, D))
    return net, (net.init(keys[0]), inputs, jax.random.randint(keys[2], (T, B), 0, V))


def timed(function: Callable[[], Any], seconds: float) -> float:
    """Measures the median time of a call, of at least three."""
    jax.block_until_ready(function())
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(mode: str, sizes: dict[str, int], tokens: bool, seconds: float) -> dict[str, float]:
    """Measures time and memory of one gradient: what a process of its own does."""
    net, arguments = problem(**sizes, tokens=tokens)
    found = []
    for hoisted in (True, False) if mode.startswith("jax.grad") else (True,):
        compiled = jax.jit(gradient(net, mode, hoisted)).lower(*arguments).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        taken = timed(functools.partial(compiled, *arguments), seconds)
        found.append({"bytes": memory.temp_size_in_bytes, "seconds": taken})
    return min(found, key=lambda figures: figures["seconds"])


def apart(task: dict[str, Any], limit: float) -> dict[str, Any]:
    """Takes the figures of a task from a process of its own; where it takes too long or dies, says so."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
    except subprocess.TimeoutExpired:
        return {"failure": f"more than {limit:g} s"}
    except subprocess.CalledProcessError as error:
        return {"failure": (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def lengths_table(longest: int, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Measures all modes at all lengths; prints them as they come."""
    rows = []
    print("| T | " + " | ".join(MODES) + " |\n|---|" + "---|" * len(MODES))
    for T in [T for T in LENGTHS if longest >= T]:
        found = {}
        for mode in MODES:
            task = {"mode": mode, "sizes": {"T": T, **TOKENS}, "tokens": True, "seconds": seconds}
            found[mode] = apart(task, limit)
            rows.append({"T": T, "mode": mode, **found[mode]})
        print(f"| {T:,} | " + " | ".join(_cell(found[mode], T) for mode in MODES) + " |", flush=True)
    return rows


def _cell(figures: dict[str, Any], T: int) -> str:
    if "failure" in figures:
        return figures["failure"]
    return f"{figures['bytes'] / 1e6:,.2f} MB, {figures['seconds'] / T * 1e6:.2f} us/step"


def batch_table(seconds: float, limit: float) -> None:
    """Measures all modes at one larger shape, against jax.grad."""
    print(f"\n{', '.join(f'{name} = {size}' for name, size in BATCH.items())}, floats\n")
    print("| mode | memory | jax.grad's / it | time | it / jax.grad's |\n|---|---|---|---|---|")
    first: dict[str, Any] = {}
    for mode in MODES:
        found = apart({"mode": mode, "sizes": BATCH, "tokens": False, "seconds": seconds}, limit)
        first = found if mode == "jax.grad" else first
        memory = time_taken = ""
        if "seconds" in found and "seconds" in first:
            memory, time_taken = f"{first['bytes'] / found['bytes']:.1f}", f"{found['seconds'] / first['seconds']:.2f}"
        figures = [found.get("failure", ""), "", "", ""]
        if "seconds" in found:
            figures = [f"{found['bytes'] / 1e6:.1f} MB", memory, f"{found['seconds'] * 1e3:.0f} ms", time_taken]
        print("| " + " | ".join([mode, *figures]) + " |", flush=True)


def parallel(H: int, T: int, seconds: float) -> dict[str, float]:
    """Seconds of the loops over T, and of what does without, for one layer: what a process of its own does."""
    net, (params, inputs, targets) = problem(T, 1, 8, H, 8, tokens=False)
    cell, layer = jaxrnn.Elman(8, H), params.layers[0]

    def states(run: Callable, **options: Any) -> float:
        return timed(functools.partial(jax.jit(lambda p: run(cell, p, inputs, **options)), layer), seconds)

    def backward(**options: Any) -> float:
        grad = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(jaxrnn.unroll(cell, p, inputs, **options)[0]))))
        return timed(functools.partial(grad, layer), seconds)

    def whole(**options: Any) -> float:
        grad = jax.jit(jaxrnn.value_and_grad(net, **options))
        return timed(functools.partial(grad, params, inputs, targets), seconds)

    lags = jax.jit(jaxrnn.value_and_grad(net, truncate=jaxrnn.Window(T, tolerance=1e-6), return_lags=True))
    return {
        "forward": states(jaxrnn.unroll),
        "DEER": states(jaxrnn.deer),
        "quasi-DEER": states(jaxrnn.deer, diagonal=True),
        "iterations": int(jaxrnn.deer(cell, layer, inputs)[2].iterations),
        "quasi-iterations": int(jaxrnn.deer(cell, layer, inputs, diagonal=True)[2].iterations),
        "forward and back": backward(),
        "back by halves": backward(backward="associative"),
        "gradient": whole(),
        "8 lags": whole(truncate=jaxrnn.Window(8)),
        "32 lags": whole(truncate=jaxrnn.Window(32)),
        "lags to 1e-6": whole(truncate=jaxrnn.Window(T, tolerance=1e-6)),
        "lags used": int(lags(params, inputs, targets)[0][1].used),
    }


def parallel_table(seconds: float, limit: float) -> None:
    """Measures what does without a loop over T, against what has one."""
    print(f"\nWithout a loop over T, B = 1, Elman, on {jax.devices()[0].device_kind}: ms, against the loop's\n")
    print(
        "| H | T | forward: DEER, quasi-DEER (iterations) | backward by halves | Window: 8, 32 lags, to 1e-6 (lags) |"
    )
    print("|---|---|---|---|---|")
    for H, T in ((4, 1000), (4, 10_000), (16, 1000), (16, 10_000), (64, 1000)):
        found = apart({"H": H, "T": T, "seconds": seconds}, limit)
        if "failure" in found:
            print(f"| {H} | {T:,} | {found['failure']} | | |", flush=True)
            continue
        ms = {name: f"{1e3 * value:.2f}" for name, value in found.items()}
        cells = [
            str(H),
            f"{T:,}",
            f"{ms['forward']}: {ms['DEER']}, {ms['quasi-DEER']} ({found['iterations']}, {found['quasi-iterations']})",
            f"{ms['forward and back']}: {ms['back by halves']}",
            f"{ms['gradient']}: {ms['8 lags']}, {ms['32 lags']}, {ms['lags to 1e-6']} ({found['lags used']})",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def picture(rows: list[dict[str, Any]]) -> Any:
    """Draws memory and time against T, log-log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for mode, colour in MODES.items():
        points = [row for row in rows if row["mode"] == mode and "seconds" in row]
        T = [row["T"] for row in points]
        style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.3}
        left.loglog(T, [row["bytes"] / 1e6 for row in points], label=mode, **style)
        right.loglog(T, [row["seconds"] * 1e3 for row in points], **style)
    left.axhline(BUDGET / 1e6, color="black", linewidth=0.6, linestyle=":")
    left.set(xlabel="T, steps", ylabel="temporary memory, MB", title="Memory of loss and gradient")
    right.set(xlabel="T, steps", ylabel="time, ms", title="Time of loss and gradient")
    for axes in (left, right):
        axes.grid(which="major", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(MODES), frameon=False, fontsize=9)
    figure.suptitle("Elman, B = 1, H = 64, D = V = 65, tokens, float32", fontsize=10)
    return figure


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--longest", type=int, default=LENGTHS[-1], help="T up to which is measured (default: 1,000,000)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for the timing of each figure (default: 3)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a process may take (default: 300)")
    parser.add_argument("--only", choices=["lengths", "batch", "parallel"], help="one of the three tables")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_long"), help="a folder")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        found = parallel(**task) if "mode" not in task else measure(**task)
        print(json.dumps(found))
        return
    if options.longest < LENGTHS[0]:
        parser.error(f"--longest must be {LENGTHS[0]} at least, got {options.longest}")
    for name in ("seconds", "limit"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    if options.only in (None, "lengths"):
        rows = lengths_table(options.longest, options.seconds, options.limit)
        options.out.mkdir(parents=True, exist_ok=True)
        with open(options.out / "long.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["T", "mode", "bytes", "seconds", "failure"])
            writer.writeheader()
            writer.writerows(rows)
        picture(rows).savefig(options.out / "long.png", dpi=130)
        print(f"\nDrawn in {options.out / 'long.png'}; the figures are in {options.out / 'long.csv'}.")
    if options.only in (None, "batch"):
        batch_table(options.seconds, options.limit)
    if options.only in (None, "parallel"):
        parallel_table(options.seconds, options.limit)


if __name__ == "__main__":
    main()
