"""Makes the picture and the tables of speed in README.md from the results that are kept beside this file.

    python scripts/bench.py --out bench               # measures one cell, and adds it to bench/speed.csv
    python scripts/speed_table.py bench/speed.csv     # takes the new rows over, then draws and writes
    python scripts/speed_table.py                     # only draws and writes

The results are results/speed.csv, peers.csv, random.csv, flax.csv and auto_segment.csv, which bench.py, bench_peers.py,
bench_peers.py --random, bench_flax.py and auto_segment.py measure.
"""

from __future__ import annotations

import argparse
import csv
import math
import pathlib
import re
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
SPEED, PEERS, FLAX, RANDOM = (RESULTS / f"{name}.csv" for name in ("speed", "peers", "flax", "random"))
AUTO = RESULTS / "auto_segment.csv"
PICTURE, README = HERE / "pictures" / "speed.png", HERE.parent / "README.md"
SIZES = ("T", "B", "D", "H", "V")
NAMES = {"elman": "Elman", "gru": "GRU", "gru-before": "GRU (reset before)", "lstm": "LSTM"}
Row = dict[str, str]  # column -> what stands in the file


def read(path: pathlib.Path) -> list[Row]:
    """Reads the rows of a results file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: pathlib.Path, rows: list[Row]) -> None:
    """Writes the rows of a results file, with the columns of all of them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Puts every new row in the place of the old one of the same cell and shape, or at the end."""

    def key(row: Row) -> tuple[str, ...]:
        return tuple(row.get(column, "1") for column in ("cell", *SIZES, "layers"))

    return list(({key(row): row for row in old} | {key(row): row for row in new}).values())


def label(row: Row) -> str:
    """Names the network and the sizes of a row."""
    layers = f", {row['layers']} layers" if row.get("layers", "1") != "1" else ""
    return f"{NAMES[row['cell']]} {', '.join(row[size] for size in SIZES)}{layers}"


def milliseconds(value: str) -> str:
    """Rounds a duration to what its size deserves."""
    number = float(value)
    return f"{number:.2f} ms" if number < 1 else f"{number:.1f} ms" if number < 30 else f"{number:.0f} ms"


def rounded_up(value: float) -> str:
    """Rounds up to two places: what is at most so much must not be said to be less."""
    return f"{math.ceil(round(value * 100, 6)) / 100:.2f}"


def megabytes(value: str) -> str:
    """Rounds an amount of memory."""
    number = float(value)
    return f"{number:.1f} MB" if number < 10 else f"{number:.0f} MB"


def origins(rows: list[Row]) -> str:
    """Says on what machine, by what version and when the rows were measured."""
    found = dict.fromkeys(
        ", ".join(filter(None, (row["processor"], row.get("jax") and f"jax {row['jax']}", row["date"]))) for row in rows
    )
    return "; ".join(found)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Makes a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ("---",) * len(head), *rows])


def speed_table(rows: list[Row]) -> str:
    """Makes the table of the bench: by hand against the best of the plain scans."""
    head = ("cell and T, B, D, H, V", "by hand", "autodiff", "ratio", "memory", "autodiff")
    body = (
        (
            label(row),
            milliseconds(row["by hand ms"]),
            milliseconds(row["autodiff ms"]),
            f"{float(row['ratio']):.2f}",
            megabytes(row["by hand MB"]),
            megabytes(row["autodiff MB"]),
        )
        for row in rows
    )
    return f"Measured on: {origins(rows)}.\n\n{table(head, body)}"


def peers_table(rows: list[Row]) -> str:
    """Makes the table of other libraries; a range is the least and the largest of several runs."""
    columns = [column for column in rows[0] if column.endswith(" ms")]
    head = ("cell and T, B, D, H, V", *(column.removesuffix(" ms") for column in columns))
    body = ((label(row), *(f"{row[column]} ms" if row[column] else "-" for column in columns)) for row in rows)
    return f"Measured on: {origins(rows)}.\n\n{table(head, body)}"


def random_sentence(rows: list[Row]) -> str:
    """Says how much faster than the others jaxrnn is at drawn shapes, and how far above the floor where H is large."""
    said = []
    for what, ours, others in (
        ("all cores against the best of all others", "jaxrnn, all cores", ("jax.grad", "flax nnx", "haiku", "torch")),
        ("one device against the best of those in JAX", "jaxrnn, 1 device", ("jax.grad", "flax nnx", "haiku")),
    ):
        ratios = [min(float(row[f"{name} ms"]) for name in others) / float(row[f"{ours} ms"]) for row in rows]
        mean = statistics.geometric_mean(ratios)
        said.append(f"{what}: {min(ratios):.2f} to {max(ratios):.2f} times as fast, geometric mean {mean:.2f}")
    large = [row for row in rows if row.get("floor ms") and int(row["H"]) >= 256]
    if large:
        above = [float(row["jaxrnn, all cores ms"]) / float(row["floor ms"]) for row in large]
        said.append(f"where H is 256 or more, all cores take {min(above):.2f} to {max(above):.2f} times the floor")
    return f"{len(rows)} drawn shapes, {'; '.join(said)}. Measured on: {origins(rows)}."


def auto_sentence(rows: list[Row]) -> str:
    """Says how far the length that "auto" chooses is from the best one; the most is rounded up."""
    ratios = [float(row["by caches / best"]) for row in rows]
    tuned = [float(row["tuned / best"]) for row in rows if row["tuned"] == "yes"]
    most = rounded_up(max(ratios))
    after = f"; after `jaxrnn tune` {rounded_up(max(tuned))} at most, at {len(tuned)} of them" if tuned else ""
    return (
        f"At {len(rows)} shapes, drawn ones among them, the length that is chosen by itself takes "
        f"{statistics.median(ratios):.2f} times the best one's time at the median, {most} at most{after}: "
        f"`python scripts/auto_segment.py --random 3 --seed 1`. Measured on: {origins(rows)}."
    )


def flax_table(rows: list[Row]) -> str:
    """Makes the table of the drop-in for flax: its times, and its memory in that of `nnx.RNN`."""
    head = ("flax cell and T, B, D, H, V", "nnx.RNN", "ours", "ratio", "memory", "ours / value_and_grad")
    body = (
        (
            f"{row['cell']} first: {', '.join(row[size] for size in SIZES)}",
            f"{row['nnx.RNN ms']} ms",
            f"{row['flax.RNN ms']} ms",
            row["nnx.RNN / flax.RNN"],
            row["memory"],
            row["flax.RNN / value_and_grad"],
        )
        for row in rows
    )
    return f"Measured on: {origins(rows)}.\n\n{table(head, body)}"


def insert(text: str, name: str, content: str) -> str:
    """Puts the content between the comments `<!-- name -->` and `<!-- /name -->` of a text."""
    found = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"the text must have the comments <!-- {name} --> and <!-- /{name} --> once")
    return found.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def picture(rows: list[Row]) -> Figure:
    """Draws two panels of bars: how many times faster, and how much of the memory."""
    from matplotlib.figure import Figure

    labels = [label(row) for row in rows]
    memory = [float(row["by hand MB"]) / max(float(row["autodiff MB"]), 0.05) for row in rows]
    panels = [
        ("time: autodiff / by hand", [float(row["ratio"]) for row in rows], "#33658a"),
        ("temporary memory: by hand / autodiff", memory, "#86bbd8"),
    ]
    figure = Figure(figsize=(9.6, 0.26 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, values, colour) in zip(axes, panels, strict=True):
        axis.bar_label(axis.barh(labels, values, color=colour), fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.12, y=0.02)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("cell and T, B, D, H, V", fontsize=9)
    figure.suptitle("Loss and gradient: BPTT by hand against the best plain scan under jax.grad", fontsize=11)
    return figure


def main() -> None:
    """Takes new rows over where a file of them is given, draws the picture, and writes the tables into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", nargs="?", type=pathlib.Path, help="a speed.csv whose rows replace the kept ones")
    options = parser.parse_args()
    if options.new is not None:
        if not options.new.exists():
            parser.error(f"no file {str(options.new)!r}")
        write(SPEED, merge(read(SPEED), read(options.new)))
    rows = read(SPEED)
    PICTURE.parent.mkdir(exist_ok=True)
    picture(rows).savefig(PICTURE, dpi=100)
    text = insert(README.read_text(encoding="utf-8"), "speed", speed_table(rows))
    text = insert(text, "peers", peers_table(read(PEERS)))
    text = insert(text, "random", random_sentence(read(RANDOM)))
    text = insert(text, "auto", auto_sentence(read(AUTO)))
    README.write_text(insert(text, "flax", flax_table(read(FLAX))), encoding="utf-8")
    print(f"Drawn in {PICTURE}, written into {README}")


if __name__ == "__main__":
    main()
