"""Pictures that suit several tasks: what a network answers beside what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxrnn.flow.plots import BLUE, GREY, ORANGE, empty_figure, hide_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def steps(errors: np.ndarray, there: np.ndarray, rows: np.ndarray, unit: str) -> Figure:
    """Draws error against step, and below it the first sequence as symbols.

    Args:
        errors, there: E_t [T, B], and where steps are real.
        rows: inputs, targets and answers of the first sequence, [3, T].
        unit: of the errors.
    """
    figure = empty_figure(11, 6)
    above, below = figure.subplots(2, 1, height_ratios=[1, 1])
    mean = np.where(there, errors, 0).sum(1) / np.maximum(there.sum(1), 1)
    above.plot(np.arange(1, len(mean) + 1), np.where(there.any(1), mean, np.nan), color=BLUE)
    above.set(xlabel="step", ylabel=unit, title="error against step, all sequences")
    length = int(there[:, 0].sum())
    image = below.imshow(rows[:, :length], aspect="auto", cmap="tab10", vmin=-0.5, vmax=9.5, interpolation="nearest",
                         extent=(0.5, length + 0.5, 2.5, -0.5))  # fmt: skip
    below.set(xlabel="step", yticks=[0, 1, 2], yticklabels=["input", "target", "answer"], title="one sequence")
    figure.colorbar(image, ax=below, label="symbol", ticks=range(10))
    hide_frame(above)
    return figure


def confusion(targets: np.ndarray, outputs: np.ndarray) -> Figure:
    """Draws how often each class was taken for which, in shares of the true class."""
    classes = outputs.shape[-1]
    counts = np.zeros((classes, classes))
    np.add.at(counts, (targets, outputs.argmax(-1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = empty_figure(6, 5)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set(xlabel="answer", ylabel="class", xticks=range(classes), yticks=range(classes), title="classes and answers")
    figure.colorbar(image, ax=axes, label="share of the class")
    return figure


def answers(targets: np.ndarray, outputs: np.ndarray) -> Figure:
    """Draws answers against what was asked, one point for each sequence."""
    figure = empty_figure(5.5, 5)
    axes = figure.subplots()
    ends = [min(targets.min(), outputs.min()), max(targets.max(), outputs.max())]
    axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--")
    axes.plot(targets, outputs, ".", color=ORANGE, markersize=4)
    axes.set(xlabel="target", ylabel="answer", title="answers on sequences never seen")
    hide_frame(axes)
    return figure
