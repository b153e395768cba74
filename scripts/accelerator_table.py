"""The table and the picture of a record that accelerator.py has made.

python scripts/accelerator_table.py scripts/results/accelerator-DEVICE.csv     # makes both anew from the record
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import speed_table
from accelerator_contenders import ELSEWHERE, JAX_GRAD
from speed_table import NAMES, SIZES, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, PEERS, FLOOR = "#33658a", "#9a9a9a", "#d1603d"
MARKS = dict(zip(ELSEWHERE, "os^vD*", strict=True))


def groups(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Gathers the rows of every cell and shape, in the order in which they came."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row["cell"], *(row[size] for size in SIZES)), []).append(row)
    return found


def against(group: list[Row]) -> float | None:
    """Returns the milliseconds of `jax.grad` in a group; None where there are none."""
    return next((float(row["ms"]) for row in group if row["contender"] == JAX_GRAD and row.get("ms")), None)


def report(rows: list[Row]) -> str:
    """Makes a page of Markdown: where it was measured, and a table for every cell and shape."""
    first = rows[0]
    names = ("device", "platform", "driver", "jax", "XLA_FLAGS", "date")
    facts = "; ".join(f"{name} {first[name]}" for name in names if first.get(name))
    text = [
        f"# Loss and gradient on {first['device']}",
        f"{facts}.",
        f"One large product in float32, at the default precision: {first['product Tflop/s']} Tflop/s; the floor is "
        f"what the products of a gradient would take at this rate. One turn of a loop that adds two small arrays: "
        f"{first['turn us']} us; a gradient takes two turns a step, forward and back. Times are medians; a ratio says "
        f"how many times as fast as {JAX_GRAD} of a plain scan with U x_t + b before the loop. Errors are relative to "
        f"float64 on the host, at a small shape. Made by `python scripts/accelerator.py`.",
    ]
    for key, group in groups(rows).items():
        sizes = ", ".join(f"{name} = {value}" for name, value in zip(SIZES, key[1:], strict=True))
        text += [f"## {NAMES[key[0]]}: {sizes}", table(group)]
    return "\n\n".join(text) + "\n"


def table(group: list[Row]) -> str:
    """Makes the table of one cell and shape; what was not measured says why."""
    head = ("contender", "ms", "ratio", "us a step", "temporary MB", "compile s", "error of loss", "of gradient")
    base, T = against(group), float(group[0]["T"])
    floor = float(group[0]["floor ms"])
    lines: list[tuple[str, ...]] = [
        ("floor of the products", f"{floor:.3g}", "", f"{floor / T * 1e3:.3g}", "", "", "", "")
    ]
    for row in group:
        if not row.get("ms"):
            lines.append((row["contender"], row["status"].replace("|", "/"), *[""] * 6))
            continue
        ratio = f"{base / float(row['ms']):.2f}" if base else ""
        columns = ("us a step", "temporary MB", "compile s", "loss error", "gradient error")
        lines.append((row["contender"], row["ms"], ratio, *(row.get(column, "") for column in columns)))
    return speed_table.table(head, lines)


def picture(rows: list[Row]) -> Figure:
    """Draws the times at the first shape, a panel for every cell, and below what the others are against `jax.grad`."""
    from matplotlib.figure import Figure

    found = groups(rows)
    first = next(iter(found))[1:]
    middle = {key[0]: group for key, group in found.items() if key[1:] == first}
    others = [(key, group) for key, group in found.items() if key[1:] != first and against(group)]
    heights = [0.24 * max(map(len, middle.values())) + 0.6, *([0.3 * len(others) + 0.8] if others else [])]
    figure = Figure(figsize=(max(9.6, 3.2 * len(middle) + 1.6), sum(heights) + 0.9), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = parts[0].subplots(1, len(middle), squeeze=False, sharex=True)[0]
    for axis, (cell, group) in zip(panels, middle.items(), strict=True):
        _times(axis, cell, group)
    parts[0].supxlabel(f"ms of loss and gradient at T, B, D, H, V = {', '.join(first)}", fontsize=9)
    if others:
        _ratios(parts[1].subplots(), others)
    figure.suptitle(f"Loss and gradient on {rows[0]['device']}, jax {rows[0]['jax']}, {rows[0]['date']}", fontsize=11)
    return figure


def _times(axis: Axes, cell: str, group: list[Row]) -> None:
    """Draws a point for the floor and for every contender that was measured."""
    points = [("floor of the products", float(group[0]["floor ms"]))]
    points += [(row["contender"], float(row["ms"])) for row in group if row.get("ms")]
    names, values = zip(*points, strict=True)
    axis.set_xscale("log")
    axis.tick_params(which="minor", labelbottom=False)
    axis.scatter(values, names, color=[FLOOR, *map(_colour, names[1:])], s=26, zorder=2)
    for name, value in points:
        axis.annotate(f"{value:.3g}", (value, name), (6, 0), textcoords="offset points", va="center", fontsize=7)
    if ours := [value for name, value in points if name == "jaxrnn"]:
        axis.axvline(ours[0], color=OURS, linewidth=0.8, zorder=1)
    axis.set_title(NAMES[cell], fontsize=10)
    axis.margins(x=0.2, y=0.03)
    axis.grid(axis="y", linewidth=0.3)
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    """Returns grey for what is not jaxrnn."""
    return PEERS if name.startswith(("jax.grad", "flax", "cuDNN")) else OURS


def _ratios(axis: Axes, others: list[tuple[tuple[str, ...], list[Row]]]) -> None:
    labels = [f"{NAMES[key[0]]} {', '.join(key[1:])}" for key, _ in others]
    for name, mark in MARKS.items():
        points = [
            (against(group) / float(row["ms"]), label)  # type: ignore[operator]
            for label, (_, group) in zip(labels, others, strict=True)
            for row in group
            if row["contender"] == name and row.get("ms") and name != JAX_GRAD
        ]
        if points:
            ratios, at = zip(*points, strict=True)
            axis.scatter(ratios, at, marker=mark, s=28, color=_colour(name), label=name)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel(f"other shapes (T, B, D, H, V): how many times as fast as {JAX_GRAD}", fontsize=9)
    axis.grid(axis="y", linewidth=0.3)
    _plain(axis)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def main() -> None:
    """Makes the table and the picture of a record anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=pathlib.Path, help="a .csv that accelerator.py has made")
    path = parser.parse_args().record
    rows = speed_table.read(path)
    if not rows:
        parser.error(f"no rows in {str(path)!r}")
    path.with_suffix(".md").write_text(report(rows), encoding="utf-8")
    picture(rows).savefig(path.with_suffix(".png"), dpi=100)
    print(f"made {path.with_suffix('.md')} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
