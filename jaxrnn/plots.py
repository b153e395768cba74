"""Pictures: arrays in, matplotlib figures out. Nothing global is touched, and nothing is shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#33658a", "#d1603d", "#888888"


def learning_curve(metrics: Iterable[Mapping[str, Any]], yardsticks: Mapping[str, float]) -> Figure:
    """Bits per character over steps: training, validation, and the yardsticks as lines.

    Args:
        metrics: with "step" and either "loss" or "validation_loss", in nats.
        yardsticks: bits per character by name.
    """
    from matplotlib.figure import Figure

    rows = list(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    curves = [("loss", "training", BLUE, ""), ("validation_loss", "validation", ORANGE, "o")]
    for name, label, colour, marker in curves:
        points = [(row["step"], row[name] / math.log(2)) for row in rows if name in row]
        axes.plot(
            [step for step, _ in points],
            [bits for _, bits in points],
            label=label,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
        )
    for name, bits in yardsticks.items():
        axes.axhline(bits, color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate(name, (1, bits), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
                      ha="right", color=GREY, fontsize=9)  # fmt: skip
    axes.set(xlabel="steps", ylabel="bits per character")
    axes.set_ylim(0, 1.06 * max([*yardsticks.values(), 1.0]))
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure
