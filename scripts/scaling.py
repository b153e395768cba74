"""Measures loss and gradient spread over devices and processes, and draws a model of it on GPUs.

    python scripts/scaling.py                          # about five minutes on two cores
    python scripts/scaling.py --quick                  # one tiny network, in seconds
    python scripts/scaling.py --out results            # where scaling.csv and scaling.png go
    python scripts/scaling_model.py results/scaling.csv    # takes the results over into the kept ones, and draws them

Three ways to spread a batch are compared, over virtual devices of the CPU, each number of them in a process of its own,
and over two processes that talk through the loopback:

    data_parallel    jax.jit of jaxrnn.data_parallel(jaxrnn.value_and_grad(net), mesh)
    jit              jax.jit of jaxrnn.value_and_grad(net), its batch sharded over a mesh of automatic axes
    autodiff         jax.jit of jax.value_and_grad(net.loss), its batch sharded likewise

What does not depend on the machine is read from the compiled programs: collectives and their bytes, in loops and
outside of them, matrix products, memory, steps. Time is measured only where every device has a core; the processes take
turns, one call untimed and two timed, and a speed-up is the median over turns of the ratio to one device. Strong: the
batch is that of one device, cut up. Weak: every device has such a batch, and the speed-up counts the larger work. One
device of a CPU is not one core: XLA spreads a large product over all cores by itself.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import bench
import compiled
import jax
import scaling_model
import speed_table
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxrnn

Row = dict[str, Any]  # column -> what stands in the file


class Case(NamedTuple):
    """Names one network, and whether it is small enough to be timed on a CPU."""

    cell: str
    shape: bench.Shape
    timed: bool = True


class Spread(NamedTuple):
    """Names how many devices there are, in how many processes."""

    devices: int
    processes: int = 1


CASES = (
    Case("elman", bench.Shape(64, 32, 16, 64, 32)),
    Case("lstm", bench.Shape(100, 32, 64, 128, 65)),
    Case("lstm", bench.Shape(128, 256, 256, 1024, 256), timed=False),
)
SPREADS = (Spread(1), Spread(2), Spread(2, processes=2), Spread(4), Spread(8))
QUICK_CASES, QUICK_SPREADS = (Case("elman", bench.Shape(8, 8, 4, 8, 4)),), SPREADS[:2]


def network(case: Case) -> jaxrnn.Network:
    """Makes the network of a case."""
    shape = case.shape
    cell = bench.CELLS[case.cell](shape.D, shape.H)
    return jaxrnn.Network((cell,), jaxrnn.Readout(shape.H, shape.V), jaxrnn.softmax_cross_entropy)


def ways(net: jaxrnn.Network, mesh: Mesh) -> dict[str, Callable]:
    """Returns what is compared, each `(params, inputs, targets) -> (loss, grads)`."""
    return {
        "data_parallel": jaxrnn.data_parallel(jaxrnn.value_and_grad(net), mesh),
        "jit": jaxrnn.value_and_grad(net),
        "autodiff": jax.value_and_grad(net.loss),
    }


def arguments(case: Case, batch: int, mesh: Mesh) -> tuple[Callable, Any]:
    """Returns a function that makes parameters, inputs and targets, spread over the mesh, and what these will be."""
    T, _, D, _, V, _ = case.shape

    def make() -> tuple:
        keys = jax.random.split(jax.random.key(0), 3)
        inputs = jax.random.normal(keys[1], (T, batch, D))
        return network(case).init(keys[0]), inputs, jax.random.randint(keys[2], (T, batch), 0, V)

    whole, cut = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(None, "data")))
    params, *data = jax.eval_shape(make)
    shardings = (jax.tree.map(lambda _: whole, params), cut, cut)
    expected = jax.tree.map(
        lambda leaf, spread: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread), (params, *data), shardings
    )
    return jax.jit(make, out_shardings=shardings), expected


def facts(program: Any, devices: int) -> Row:
    """Reads from a compiled program what does not depend on the machine."""
    found, memory = compiled.work(program.as_text()), program.memory_analysis()
    within, after = ([each for each in found.collectives if each.in_loop is inside] for inside in (True, False))
    return {
        "collectives in loops": sum(each.times for each in within),
        "bytes in loops": sum(each.times * each.bytes for each in within),
        "collectives outside": sum(each.times for each in after),
        "bytes outside": sum(each.times * each.bytes for each in after),
        "bytes sent": round(sum(each.sent(devices) for each in found.collectives)),
        "arithmetic": found.arithmetic,
        "steps": found.steps,
        "argument bytes": memory.argument_size_in_bytes,
        "temporary bytes": memory.temp_size_in_bytes,
    }


def programs(case: Case, spread: Spread, mesh: Mesh, timed: bool) -> Iterator[tuple[Row, Any]]:
    """Yields for every scaling and way one row of facts, and where it is timed a function that times one call."""
    names = {"cell": case.cell, **case.shape._asdict(), **spread._asdict()}
    for scaling in ("strong", "weak"):
        if scaling == "strong" or spread.devices > 1:  # one device has the same program for both
            make, expected = arguments(case, case.shape.B * (spread.devices if scaling == "weak" else 1), mesh)
            compiled_ways = {way: jax.jit(f).lower(*expected).compile() for way, f in ways(network(case), mesh).items()}
            made = make() if timed and case.timed else None
        for way, program in compiled_ways.items():
            call = made and functools.partial(bench.seconds, program, made)
            yield names | {"scaling": scaling, "way": way} | facts(program, spread.devices), call


def process(task: dict[str, Any]) -> None:
    """Compiles every program, prints its facts, and times all of them whenever a line comes: what a process does."""
    spread = Spread(*task["spread"])
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Gloo says on the standard output what it is connected to
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", spread.devices // spread.processes)
    if spread.processes > 1:
        jax.distributed.initialize(task["address"], spread.processes, task["process"])
    mesh = jax.make_mesh((spread.devices,), ("data",), axis_types=(AxisType.Auto,))
    cases = [Case(cell, bench.Shape(*shape), timed) for cell, shape, timed in task["cases"]]
    rows, calls = zip(*(each for case in cases for each in programs(case, spread, mesh, task["timed"])), strict=True)
    print(json.dumps(rows), file=reports, flush=True)
    for _ in sys.stdin:
        print(json.dumps([call and turn(call) for call in calls]), file=reports, flush=True)


def turn(call: Callable[[], float]) -> float:
    """Times two calls after one that is not timed."""
    call()
    return (call() + call()) / 2


class Team:
    """Holds the processes of one spread: they work when they are asked to, and else wait."""

    def __init__(self, spread: Spread, cases: tuple[Case, ...], timed: bool) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        task = {"spread": spread, "cases": cases, "timed": timed, "address": address}
        self.timed = timed
        self.members = [
            subprocess.Popen(
                [sys.executable, __file__, "--task", json.dumps(task | {"process": index})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(spread.processes)
        ]
        self.rows: list[Row] = []
        self.turns: list[list[float | None]] = []

    def hear(self) -> list[list[Any]]:
        """Waits for one line of every process."""
        lines = [member.stdout.readline() for member in self.members if member.stdout]
        if not all(lines):
            raise RuntimeError("a process ended before its work was done; what it printed stands above")
        return [json.loads(line) for line in lines]

    def start(self) -> list[Row]:
        """Waits until every program is compiled, and returns the facts."""
        self.rows = self.hear()[0]
        if not self.timed:
            self.dismiss()
        return self.rows

    def turn(self) -> None:
        """Times every program once; the slowest process counts."""
        for member in self.members:
            print(file=member.stdin, flush=True)
        by_program = zip(*self.hear(), strict=True)
        self.turns.append([None if None in times else max(times) for times in by_program])

    def dismiss(self) -> None:
        """Ends the processes."""
        for member in self.members:
            if member.stdin:
                member.stdin.close()
        for member in self.members:
            member.wait(60)


def measure(cases: tuple[Case, ...], spreads: tuple[Spread, ...], budget: float) -> list[Row]:
    """Measures all ways over all spreads, in turns until `budget` seconds are spent; the first spread is one device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    teams = []
    for spread in spreads:
        alike = spread.processes > 1  # as many devices of one process have the same programs
        teams.append(Team(spread, tuple(case for case in cases if case.timed or not alike), spread.devices <= cores))
    rows = [row for team in teams for row in team.start()]
    teams = [team for team in teams if team.timed]
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(teams[0].turns) < 3:
        for team in teams:
            team.turn()
    for team in teams:
        team.dismiss()
        add_times(team, teams[0])
    return rows


def add_times(team: Team, alone: Team) -> None:
    """Adds times and speed-ups to the rows of a team: against one device, for so many times the work if it is weak."""
    of_one = {program(row): index for index, row in enumerate(alone.rows)}
    for index, row in enumerate(team.rows):
        times = [turn[index] for turn in team.turns]
        before = [turn[of_one[program(row)]] for turn in alone.turns]
        ratios = [a / b for a, b in zip(before, times, strict=True) if a and b]
        if ratios:
            work = row["devices"] if row["scaling"] == "weak" else 1
            row["ms"] = round(statistics.median(filter(None, times)) * 1e3, 3)
            row["speed-up"] = round(work * statistics.median(ratios), 2)


def program(row: Row) -> tuple:
    """Returns what a row has in common with those of other numbers of devices."""
    return tuple(row[name] for name in ("cell", *bench.Shape._fields, "scaling", "way"))


def table(rows: list[Row]) -> str:
    """Makes a Markdown table of all rows of one network and scaling."""
    head = ("way", "devices", "in loops", "outside", "Mflop", "steps", "arguments", "temporary", "time", "speed-up")
    body = []
    for row in sorted(rows, key=lambda row: (row["way"], row["devices"], row["processes"])):
        exchanged = (f"{row[f'collectives {place}']}, {row[f'bytes {place}'] / 1e3:.1f} kB" for place in head[2:4])
        memory = (f"{row[f'{kind} bytes'] / 1e6:.2f} MB" for kind in ("argument", "temporary"))
        devices = f"{row['devices']}" + (f" in {row['processes']} processes" if row["processes"] > 1 else "")
        took = (f"{row['ms']:.2f} ms", f"{row['speed-up']:.2f}") if "ms" in row else ("-", "-")
        body.append(
            (row["way"], devices, *exchanged, f"{row['arithmetic'] / 1e6:.1f}", str(row["steps"]), *memory, *took)
        )
    return speed_table.table(head, body)


def main() -> None:
    """Measures, prints, saves, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend on timing (default: 60)")
    parser.add_argument("--quick", action="store_true", help="one tiny network, on one and two devices")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("scaling"), help="where the results go")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    scaling_model.add_options(parser)
    options = parser.parse_args()
    if options.task:
        process(options.task)
        return
    if options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    cases, spreads, budget = (QUICK_CASES, QUICK_SPREADS, 0.0) if options.quick else (CASES, SPREADS, options.seconds)
    where = {"processor": bench.processor(), "jax": jax.__version__, "date": datetime.date.today().isoformat()}
    rows = measure(cases, spreads, budget)
    for case in cases:
        for scaling in ("strong", "weak"):
            names = {"cell": case.cell, **case.shape._asdict(), "scaling": scaling}
            print(f"\n{scaling} scaling, {speed_table.label({key: str(value) for key, value in names.items()})}\n")
            print(table([row for row in rows if names.items() <= row.items()]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    results, drawn = options.out / "scaling.csv", options.out / "scaling.png"
    speed_table.write(results, [{key: str(value) for key, value in (row | where).items()} for row in rows])
    scaling_model.picture(speed_table.read(results), scaling_model.Machine.of(options)).savefig(drawn, dpi=100)
    print(f"\nsaved {results} and {drawn}")


if __name__ == "__main__":
    main()
