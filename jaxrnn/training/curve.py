"""The learning curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrnn.flow.plots import BLUE, GREY, ORANGE, add_colour_bar, empty_figure, hide_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curve(metrics: Iterable[Mapping[str, Any]], baselines: Mapping[str, float], unit: str = "nats") -> Figure:
    """Draws errors over steps: training, validation, and the baselines as lines.

    Where the metrics hold the gradient flow of training, its history is drawn below.

    Args:
        metrics: with "step" and one of "loss" and "validation_loss", or "flow", |dE/ds_t| per layer.
        baselines: errors by name.
        unit: of all errors.
    """
    rows = list(metrics)
    history = [row for row in rows if "flow" in row]
    figure = empty_figure(8, 8 if history else 4.5)
    above, *below = figure.subplots(2 if history else 1, sharex=True, squeeze=False)[:, 0]
    _draw_errors(above, rows, baselines, unit)
    for axes in below:
        _draw_flow(axes, history)
    return figure


def _draw_errors(axes: Axes, rows: list[Mapping[str, Any]], baselines: Mapping[str, float], unit: str) -> None:
    curves = [("loss", "training", BLUE, ""), ("validation_loss", "validation", ORANGE, "o")]
    everything = []
    for name, label, colour, marker in curves:
        points = [(row["step"], row[name]) for row in rows if name in row]
        steps, errors = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, errors, label=label, color=colour, marker=marker, markersize=4, linewidth=1.2)
        everything += errors
    for name, error in baselines.items():
        axes.axhline(error, color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate(name, (1, error), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                      textcoords="offset points", ha="right", color=GREY, fontsize=9)  # fmt: skip
    axes.set(xlabel="steps", ylabel=unit)
    least, most = min(everything), max([*baselines.values(), *everything[-1:]])
    # Errors that fall by orders of magnitude want a logarithm; others are best seen from zero.
    if 0 < least < most / 30:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.06 * most)
    axes.margins(x=0.02)
    hide_frame(axes)
    axes.legend(frameon=False, loc="lower left")


def _draw_flow(axes: Axes, history: list[Mapping[str, Any]]) -> None:
    """Draws |dE/ds_t| of the top layer, by training step and by steps before the end of the chunk."""
    norms = np.array([row["flow"][-1][::-1] for row in history])  # [records, T], the last step first
    logs = np.log10(np.where(norms > 0, norms, np.nan))
    # Records come at equal distances from 0 on: the edges of their cells lie half way between.
    steps = np.pad([0, *(row["step"] for row in history)], (0, 1), "reflect", reflect_type="odd")
    edges = (steps[1:] + steps[:-1]) / 2
    image = axes.pcolormesh(edges, np.arange(norms.shape[1] + 1) - 0.5, logs.T, cmap="viridis")
    axes.set(xlabel="steps", ylabel="steps before the end of the chunk")
    add_colour_bar(axes, image, "log10 |dE/ds_t|")
