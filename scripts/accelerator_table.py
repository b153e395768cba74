"""The table and the picture of a record that accelerator.py has made.

    python scripts/accelerator_table.py scripts/results/accelerator-DEVICE.csv     # makes both anew from the record
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import speed_table
from accelerator_contenders import ELSEWHERE, JAX_GRAD, PLAIN
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
        f"One large product in float32, at the default precision: {first['product Tflop/s']} Tflop/s; the floor is what "
        f"the products of a gradient would take at this rate. One turn of a loop that adds two small arrays: "
        f"{first['turn us']} us; a gradient takes two turns a step, forward and back. Times are medians; ratios say how "
        f"many times as fast as {JAX_GRAD} of a plain scan with U x_t + b before the loop. Errors are relative to "
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
    lines = [("floor of the products", f"{floor:.3g}", "", f"{floor / T * 1e3:.3g}", "", "", "", "")]
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
    for axis, (cell, group) in zip(parts[0].subplots(1, len(middle), squeeze=False)[0], middle.items(), strict=True):
        _bars(axis, cell, group)
    parts[0].supxlabel(f"ms of loss and gradient at T, B, D, H, V = {', '.join(first)}", fontsize=9)
    if others:
        _ratios(parts[1].subplots(), others)
    figure.suptitle(f"Loss and gradient on {rows[0]['device']}, jax {rows[0]['jax']}, {rows[0]['date']}", fontsize=11)
    return figure


def _bars(axis: Axes, cell: str, group: list[Row]) -> None:
    measured = [row for row in group if row.get("ms")]
    names = [row["contender"] for row in measured]
    values = [float(row["ms"]) for row in measured]
    colours = [PEERS if name in PLAIN and name != "jaxrnn" or name.startswith(("cuDNN", "jax.")) else OURS for name in names]
    axis.bar_label(axis.barh(names, values, color=colours), fmt="%.3g", padding=3, fontsize=7)
    axis.axvline(float(group[0]["floor ms"]), color=FLOOR, linewidth=1, linestyle="--", label="floor of the products")
    axis.set_title(NAMES[cell], fontsize=10)
    axis.set_xscale("log")
    axis.margins(x=0.2, y=0.02)
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="lower right")


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
            colour = PEERS if name in PLAIN and name != "jaxrnn" else OURS
            axis.scatter(*zip(*points, strict=True), marker=mark, s=28, color=colour, label=name)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel(f"other shapes (T, B, D, H, V): how many times as fast as {JAX_GRAD}", fontsize=9)
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
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
