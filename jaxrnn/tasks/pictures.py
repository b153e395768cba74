"""Pictures of what a network has learnt, by task: a piano roll beside a real one, answers beside what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.flow.plots import BLUE, GREY, ORANGE
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks import chorales
from jaxrnn.tasks.sequences import Sequences, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = 21  # the MIDI number of the lowest key of a piano


def examples(task: Task, net: Network, params: NetworkParams, seed: int = 0) -> Figure:
    """The picture that suits a task."""
    first = next(iter(task.validation()))
    if task.name == "chorales":
        sampled = chorales.sample(net, params, np.asarray(first.inputs)[:8, 0], 60, seed)
        return piano_rolls(np.asarray(first.inputs)[:60, 0], sampled)
    outputs = np.asarray(jax.jit(net.apply)(params, first.inputs, None, first.mask, first.reset)[0])
    if not net.last_step:
        return steps(first, outputs, np.asarray(net.objective(jnp.asarray(outputs), first.targets)), task.unit)
    if task.classes:
        return confusion(np.asarray(first.targets), outputs)
    return answers(np.asarray(first.targets)[:, 0], outputs[:, 0])


def piano_rolls(real: np.ndarray, sampled: np.ndarray) -> Figure:
    """A real piece beside one that the network went on with by itself after its first steps, [T, 88] each."""
    figure = _figure(12, 4.6)
    notes = np.flatnonzero(np.concatenate([real, sampled]).any(0))
    low, high = (notes.min() - 2, notes.max() + 2) if notes.size else (0, chorales.NOTES - 1)
    for axes, roll, title in zip(figure.subplots(1, 2, sharey=True), (real, sampled), ("real", "sampled"), strict=True):
        axes.imshow(roll.T, origin="lower", aspect="auto", cmap="Greys", interpolation="nearest",
                    extent=(-0.5, len(roll) - 0.5, LOWEST - 0.5, LOWEST + roll.shape[1] - 0.5))  # fmt: skip
        axes.set(xlabel="step", ylabel="MIDI note", title=title, ylim=(LOWEST + low, LOWEST + high))
    return figure


def steps(batch: Sequences, outputs: np.ndarray, errors: np.ndarray, unit: str) -> Figure:
    """Error against step, and one sequence with the network's answers below what was asked, as rows of symbols."""
    figure = _figure(11, 6)
    above, below = figure.subplots(2, 1, height_ratios=[1, 1])
    there = np.ones(errors.shape, bool) if batch.mask is None else np.asarray(batch.mask)
    mean = np.where(there, errors, 0).sum(1) / np.maximum(there.sum(1), 1)
    above.plot(np.arange(1, len(mean) + 1), np.where(there.any(1), mean, np.nan), color=BLUE)
    above.set(xlabel="step", ylabel=unit, title="error against step, all sequences")
    length = int(there[:, 0].sum())
    rows = np.stack([np.asarray(batch.inputs)[:length, 0], np.asarray(batch.targets)[:length, 0],
                     outputs[:length, 0].argmax(-1)])  # fmt: skip
    image = below.imshow(rows, aspect="auto", cmap="tab10", vmin=-0.5, vmax=9.5, interpolation="nearest",
                         extent=(0.5, length + 0.5, 2.5, -0.5))  # fmt: skip
    below.set(xlabel="step", yticks=[0, 1, 2], yticklabels=["input", "target", "answer"], title="one sequence")
    figure.colorbar(image, ax=below, label="symbol", ticks=range(10))
    _bare(above)
    return figure


def confusion(targets: np.ndarray, outputs: np.ndarray) -> Figure:
    """How often each class was taken for which, in shares of the true class."""
    classes = outputs.shape[-1]
    counts = np.zeros((classes, classes))
    np.add.at(counts, (targets, outputs.argmax(-1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = _figure(6, 5)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(classes):
        for j in range(classes):
            if counts[i, j]:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set(xlabel="answer", ylabel="class", xticks=range(classes), yticks=range(classes), title="classes and answers")
    figure.colorbar(image, ax=axes, label="share of the class")
    return figure


def answers(targets: np.ndarray, outputs: np.ndarray) -> Figure:
    """Answers against what was asked, one point for each sequence."""
    figure = _figure(5.5, 5)
    axes = figure.subplots()
    ends = [min(targets.min(), outputs.min()), max(targets.max(), outputs.max())]
    axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--")
    axes.plot(targets, outputs, ".", color=ORANGE, markersize=4)
    axes.set(xlabel="target", ylabel="answer", title="answers on sequences never seen")
    _bare(axes)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _bare(axes: Axes) -> Any:
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
