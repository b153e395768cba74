"""Draws how loss and gradient would scale over the GPUs of one machine, from what the compiled programs do.

    python scripts/scaling_model.py                        # draws the kept results, results/scaling.csv
    python scripts/scaling_model.py scaling/scaling.csv    # takes others over first, as scaling.py saves them
    python scripts/scaling_model.py --bandwidth 20         # for another machine

The model, for N GPUs in a ring:

    time = steps * step + arithmetic / rate + collectives * (latency + 2 (N - 1) hop) + bytes sent / bandwidth

Steps, arithmetic, collectives and bytes are those of the program that XLA compiles for N devices of the CPU. Nothing is
measured on a GPU, no exchange overlaps with arithmetic, and small products are given the rate of large ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import speed_table
from speed_table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = speed_table.HERE / "results" / "scaling.csv"
PICTURE = speed_table.HERE / "pictures" / "scaling.png"
COLOURS = {"data_parallel": "#33658a", "jit": "#33658a", "autodiff": "#d1603d"}
NAMES = {"data_parallel": "data_parallel", "jit": "jit of value_and_grad", "autodiff": "jit of jax.grad"}
SOURCES = {
    "step": "us that a step of a loop costs beside its arithmetic (default: 8.2, what each of ten million steps of a "
    "lax.scan with next to no arithmetic took on a GPU: QuantEcon/lecture-python-programming, issue 440)",
    "rate": "Tflop/s of products in float32 (default: 20, under a third of the 67 in the data sheet of the H100 SXM)",
    "latency": "us that a collective costs before anything is sent (default: 6.6, from NCCL's own cost model for short "
    "messages in a ring: LL in src/graph/tuning.cc)",
    "hop": "us from one GPU to the next (default: 0.6, that model's for NVLink)",
    "bandwidth": "GB/s that a GPU sends (default: 92, a quarter of the 370 that NCCL reaches over NVLink 4 as told "
    "in NVIDIA/nccl-tests, issue 212: the share that NCCL's model gives its protocol for short messages)",
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Holds what the model has to know of a machine, in microseconds, Tflop/s and GB/s."""

    step: float = 8.2
    rate: float = 20.0
    latency: float = 6.6
    hop: float = 0.6
    bandwidth: float = 92.0

    @classmethod
    def of(cls, options: argparse.Namespace) -> Machine:
        """Makes it of the options of a command."""
        return cls(*(getattr(options, field.name) for field in dataclasses.fields(cls)))

    def microseconds(self, row: Row) -> float:
        """Computes how long one call takes."""
        N = int(row["devices"])
        collectives = int(row["collectives in loops"]) + int(row["collectives outside"])
        exchange = collectives * (self.latency + 2 * (N - 1) * self.hop) if N > 1 else 0.0
        sent = float(row["bytes sent"]) / (self.bandwidth * 1e3)
        return int(row["steps"]) * self.step + float(row["arithmetic"]) / (self.rate * 1e6) + exchange + sent

    def __str__(self) -> str:
        return (
            f"{self.step:g} us a step of a loop, {self.rate:g} Tflop/s, {self.latency:g} us a collective and "
            f"{self.hop:g} us a hop, {self.bandwidth:g} GB/s"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe the machine."""
    group = parser.add_argument_group("the machine of the model")
    for field in dataclasses.fields(Machine):
        group.add_argument(f"--{field.name}", type=float, default=field.default, help=SOURCES[field.name])


def speed_up(rows: list[Row], scaling: str, way: str, machine: Machine) -> dict[int, float]:
    """Computes how many times the work of one GPU is done in its time, by the number of GPUs."""
    chosen = [row for row in rows if (row["scaling"], row["way"], row["processes"]) == (scaling, way, "1")]
    times = {int(row["devices"]): machine.microseconds(row) for row in chosen}
    return {N: (N if scaling == "weak" else 1) * times[1] / time for N, time in times.items()}


def picture(rows: list[Row], machine: Machine) -> Figure:
    """Draws one row of panels for every network: what a GPU sends, the same batch cut up, and as large a one each."""
    from matplotlib.figure import Figure

    networks: dict[str, list[Row]] = {}
    for row in rows:
        networks.setdefault(speed_table.label(row), []).append(row)
    figure = Figure(figsize=(9.6, 2.7 * len(networks) + 1.1), layout="constrained")
    panels = figure.subplots(len(networks), 3, squeeze=False, width_ratios=(1.1, 1, 1))
    for (name, of_one), (bars, strong, weak) in zip(networks.items(), panels, strict=True):
        _draw_sent(bars, of_one)
        bars.set_ylabel(name, fontsize=10, fontweight="bold", labelpad=10)
        for scaling, axes in (("strong", strong), ("weak", weak)):
            _draw_speed_up(axes, {way: speed_up(of_one, scaling, way, machine) for way in COLOURS})
    most = max(int(row["devices"]) for row in rows)
    titles = (f"sent by each of {most} GPUs in a call", "one batch, cut up", "such a batch on every GPU")
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for axes, title in zip(panels[-1], ("MB", "GPUs", "GPUs"), strict=True):
        axes.set_xlabel(title, fontsize=9)
    figure.suptitle("Loss and gradient over N GPUs: a model, not a measurement", fontsize=12)
    figure.supxlabel(
        f"Assumed: {machine}; GPUs in a ring, nothing overlaps, small products as fast as large ones.\n"
        "Steps, arithmetic, collectives and bytes: from the programs that XLA compiles for as many devices of a CPU.",
        fontsize=8,
        color="#555555",
    )
    return figure


def _draw_sent(axes: Any, rows: list[Row]) -> None:
    """Draws what a device sends in one call over the most devices: a bar for each way, its collectives beside it."""
    most = max(rows, key=lambda row: int(row["devices"]))["devices"]
    chosen = {row["way"]: row for row in rows if (row["devices"], row["scaling"]) == (most, "strong")}
    for position, way in enumerate(COLOURS):
        row = chosen[way]
        sent = float(row["bytes sent"]) / 1e6
        within, outside = int(row["collectives in loops"]), int(row["collectives outside"])
        axes.barh(position, sent, color=COLOURS[way], height=0.45)
        count = f"{outside} after the loops" if not within else f"{within} in a loop, {outside} after"
        axes.text(0, position - 0.3, f" {NAMES[way]}", fontsize=8, va="bottom", color=COLOURS[way])
        axes.text(sent, position, f" {sent:.2g} MB: {count}", fontsize=8, va="center")
    axes.set(yticks=[], ylim=(2.5, -0.7))
    axes.margins(x=0.6)
    _tidy(axes)


def _draw_speed_up(axes: Any, found: dict[str, dict[int, float]]) -> None:
    """Draws speed-ups against the number of devices, in double logarithmic axes, ways that coincide as one."""
    devices = list(next(iter(found.values())))
    axes.plot(devices, devices, color="#bbbbbb", linewidth=1)
    for way, values in found.items():
        axes.plot(devices, values.values(), color=COLOURS[way], linewidth=1.8, marker="o", markersize=3.5)
        axes.annotate(NAMES[way], (devices[-1], values[devices[-1]]), fontsize=8, color=COLOURS[way])
    axes.set(xscale="log", yscale="log", xticks=devices, yticks=devices)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Takes results over where a file of them is given, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", nargs="?", type=pathlib.Path, help="a scaling.csv that takes the place of the kept one")
    add_options(parser)
    options = parser.parse_args()
    if options.new is not None:
        if not options.new.exists():
            parser.error(f"no file {str(options.new)!r}")
        speed_table.write(RESULTS, speed_table.read(options.new))
    picture(speed_table.read(RESULTS), Machine.of(options)).savefig(PICTURE, dpi=100)
    print(f"Drawn in {PICTURE}")


if __name__ == "__main__":
    main()
