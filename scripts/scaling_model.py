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
COLOURS = {"data_parallel": "#33658a", "jit": "#5b8c5a", "autodiff": "#d1603d", "ideal": "#999999"}
WAYS = tuple(COLOURS)[:3]
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
    """Draws a row of panels for every network: what a GPU sends, one batch cut up, and as large a one on every GPU."""
    from matplotlib.figure import Figure

    networks: dict[str, list[Row]] = {}
    for row in rows:
        networks.setdefault(speed_table.label(row), []).append(row)
    figure = Figure(figsize=(9.6, 2.1 * len(networks) + 1.4), layout="constrained")
    panels = figure.subplots(len(networks), 3, squeeze=False, sharex="col", width_ratios=(1.2, 1, 1))
    for (name, of_one), (sent, *speed_ups) in zip(networks.items(), panels, strict=True):
        _draw_sent(sent, of_one)
        sent.set_title(name, fontsize=9, fontweight="bold", loc="left")
        for scaling, axes in zip(("strong", "weak"), speed_ups, strict=True):
            _draw_speed_ups(axes, {way: speed_up(of_one, scaling, way, machine) for way in WAYS})
    most = max(int(row["devices"]) for row in rows)
    largest = max(float(row["bytes sent"]) for row in rows) / 1e6
    ticks = [10.0**power for power in range(-4, 7) if 10.0**power <= largest]
    panels[0, 0].set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    panels[0, 0].set_xlim(largest / 3e5, largest * 3)
    sent_title = f"MB sent by each of {most} GPUs in a call"
    panels[0, 1].set_title("one batch, cut up", fontsize=9)
    panels[0, 2].set_title("such a batch on every GPU", fontsize=9)
    panels[len(networks) // 2, 1].set_ylabel("work done in the time of one GPU, times", fontsize=8)
    for axes, title in zip(panels[-1], (sent_title, "GPUs", "GPUs"), strict=True):
        axes.set_xlabel(title, fontsize=8)
    figure.suptitle("Loss and gradient over the GPUs of one machine: a model, not a measurement", fontsize=11)
    figure.supxlabel(
        f"Assumed: {machine}; a ring, nothing overlaps, small products at the rate of large ones.\n"
        "Steps, arithmetic, collectives, bytes: of the programs that XLA compiles for as many devices of a CPU. "
        "Bold: T, B, D, H, V.",
        fontsize=7.5,
        color="#555555",
    )
    return figure


def _draw_sent(axes: Any, rows: list[Row]) -> None:
    """Draws what a device sends in one call over the most devices, one batch cut up, and in how many collectives."""
    most = max(rows, key=lambda row: int(row["devices"]))["devices"]
    chosen = {row["way"]: row for row in rows if (row["devices"], row["scaling"]) == (most, "strong")}
    for position, way in enumerate(WAYS):
        sent = float(chosen[way]["bytes sent"]) / 1e6
        within, outside = (int(chosen[way][f"collectives {place}"]) for place in ("in loops", "outside"))
        told = f"{within + outside} collective{'s' if within + outside > 1 else ''}"
        told += f", {within} in loops" if within else ""
        axes.plot(sent, position, "o", color=COLOURS[way], markersize=7)
        amount = f"{sent:,.0f}" if sent >= 10 else f"{sent:.2g}"
        axes.text(
            0.02,
            position - 0.2,
            f"{amount} MB in {told}",
            transform=axes.get_yaxis_transform(),
            va="bottom",
            fontsize=8,
        )
    axes.set(xscale="log", ylim=(len(WAYS) - 0.6, -0.7))
    axes.set_yticks(range(len(WAYS)), WAYS)
    for text in axes.get_yticklabels():
        text.set_color(COLOURS[text.get_text()])
    axes.minorticks_off()
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    _tidy(axes)


def _draw_speed_ups(axes: Any, found: dict[str, dict[int, float]]) -> None:
    """Draws speed-ups against the number of devices, both logarithmic, and names every line at its end."""
    devices = list(found[WAYS[0]])
    lines = {"ideal": {N: float(N) for N in devices}, **found}
    below = 0.0
    for way, values in sorted(lines.items(), key=lambda item: item[1][devices[-1]]):
        ideal = way == "ideal"
        style = {"linewidth": 0.8, "linestyle": "--"} if ideal else {"linewidth": 1.6, "marker": "o", "markersize": 3.5}
        axes.plot(devices, values.values(), color=COLOURS[way], **style)
        height = max(values[devices[-1]], 1.26 * below)  # names that would overlap stand above one another
        below = height
        axes.annotate(
            way, (devices[-1], height), (6, 0), textcoords="offset points", va="center", fontsize=8, color=COLOURS[way]
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(devices, map(str, devices))
    axes.set_yticks(devices, map(str, devices))
    axes.minorticks_off()
    axes.set_ylim(0.4, 1.3 * devices[-1])
    axes.grid(linewidth=0.4, alpha=0.6)
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
