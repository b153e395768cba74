"""Makes the table and the picture of published figures in README.md, and the page of all settings tried.

    python scripts/reproduced_table.py

All of it comes from results/reproduced.json, to which reproduce.py adds its finished runs, and from published.py.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

import published
import reproduce
import speed_table
import twin_curves
from published import ROWS, Reproduction
from reproduce import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent
PICTURE, PAGE = HERE / "pictures" / "reproduced.png", HERE / "results" / "reproduced.md"
README = HERE.parent / "README.md"
REACHED, MISSED = "#33658a", "#d1603d"


def by_row(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Returns the records of every row that has some, in the order of the rows."""
    found: dict[str, list[Record]] = {name: [] for name in ROWS}
    for record in records:
        found[record["row"]].append(record)
    return {name: of_row for name, of_row in found.items() if of_row}


def chosen(name: str, records: list[Record]) -> list[Record]:
    """Returns the records of the setting with the best validation figure."""
    best = reproduce.best_setting(name, records)
    return [found for found in records if found["setting"] == best]


def show(about: Reproduction, value: float) -> str:
    """Rounds a figure as its unit deserves."""
    if about.figure == "error_rate":
        return f"{value:.1%}"
    return f"{value:.2f}" if value >= 1 and about.figure == "test" else f"{value:.3g}" if value < 1 else f"{value:.3f}"


def ours(about: Reproduction, records: list[Record]) -> str:
    """Says what came out: the mean, the least and the largest of the seeds, and how many of them reach the goal."""
    values = [found[about.figure] for found in records]
    words = show(about, statistics.mean(values))
    least, most = show(about, min(values)), show(about, max(values))
    if least != most:
        words += f" ({least} to {most})"
    if about.goal is None:
        return words + (f", {len(values)} seeds" if len(values) > 1 else "")
    good = sum(map(about.reached, values))
    verdict = "reached" if good == len(values) else "not reached"
    return f"{words}, {verdict}" + (f" ({good} of {len(values)} seeds)" if len(values) > 1 else "")


def table(records: list[Record]) -> str:
    """Makes the table of the README, a row for each task and network."""
    head = ("task and network", "published", "to reach", "here", "a run")
    body = []
    for name, of_row in by_row(records).items():
        about, best = ROWS[name], chosen(name, of_row)
        goal = "-" if about.goal is None else show(about, about.goal)
        minutes = statistics.mean(found["processor_seconds"] for found in best) / 60
        body.append((about.title, about.published, goal, ours(about, best), f"{minutes:.1f} min"))
    waiting = [about.title for name, about in ROWS.items() if name not in by_row(records)]
    left = f"\n\nNot run yet: {'; '.join(waiting)}." if waiting else ""
    return f"{sentence(records)}\n\n{speed_table.table(head, body)}{left}"


def sentence(records: list[Record]) -> str:
    """Says how far the two gradients are apart, what all runs took, and where and when they ran."""
    shown = [found for name, of_row in by_row(records).items() for found in chosen(name, of_row)]
    apart = dict.fromkeys(("disagreement", "disagreement_float64", "disagreement_together"), 0.0)
    for found in shown:
        measured = [name for name in apart if name in found][-1]
        apart[measured] = max(apart[measured], found[measured])
    calm, wild, chaotic = apart.values()
    further = f", those of networks that amplify what rounding leaves by {wild:.0e} in float64" if wild else ""
    further += f"; of chaotic ones two steps from the same parameters, by {chaotic:.0e}" if chaotic else ""
    hours = sum(found["processor_seconds"] for found in records) / 3600
    where = dict.fromkeys(f"{found['processor']}, jax {found['jax']}, {found['date']}" for found in records)
    return (
        f"{len(records)} runs, {hours:.1f} hours of one core in all. In their first {twin_curves.STEPS} steps the "
        f"losses by hand and by autodiff differ by {calm:.0e} at most{further}. Measured on: {'; '.join(where)}."
    )


def page(records: list[Record]) -> str:
    """Makes the page of all settings tried: what each gave, and of a goal that was missed, why."""
    parts = [
        "# Published figures: what was tried\n",
        "Made by `python scripts/reproduced_table.py` from reproduced.json. A setting is what differs from the\n"
        f"defaults of `jaxrnn train`. At most {published.MOST_TRIED} are tried in a row, with the first seed; the one\n"
        "with the best figure on the validation part (bold) is run with the others, if the losses of its first\n"
        f"{twin_curves.STEPS} steps by hand and by autodiff differ by {reproduce.AGREE:g} at most, relatively: in\n"
        "float64, where a network amplifies what rounding leaves; and where the training is chaotic, each step from\n"
        "the same parameters (together). Minutes are those of one core; seconds on the clock, of a machine that\n"
        "others used as well, are in reproduced.json.\n",
    ]
    for name, of_row in by_row(records).items():
        parts += [f"## {ROWS[name].title}\n", f"{tried(name, of_row)}\n", *why(name, of_row)]
    return "\n".join(parts)


def tried(name: str, records: list[Record]) -> str:
    """Makes the table of the settings of a row."""
    about, best = ROWS[name], reproduce.best_setting(name, records)
    body = []
    for setting in sorted({found["setting"] for found in records}):
        runs = [found for found in records if found["setting"] == setting]
        label = ", ".join(f"{key} {value}" for key, value in runs[0]["settings"].items() if key != "task")
        value = ", ".join(show(about, found[about.figure]) for found in runs)
        validation = ", ".join(show(about, found[about.chosen_by]) for found in runs)
        minutes = statistics.mean(found["processor_seconds"] for found in runs) / 60
        label = f"**{label}**" if setting == best else label
        steps, apart = max(found["steps"] for found in runs), f"{max(found['disagreement'] for found in runs):.0e}"
        for how in ("float64", "together"):
            if any(f"disagreement_{how}" in found for found in runs):
                apart += f"; {how}: {max(found.get(f'disagreement_{how}', 0.0) for found in runs):.0e}"
        body.append((label, validation, value, f"{steps:,}", f"{minutes:.1f} min", apart))
    kind = {"test": "nats per step, test part", "error_rate": "wrong", "loss": "loss"}[about.figure]
    head = (f"`{name}`, setting", "validation", kind, "steps", "a run", "by hand and autodiff differ by")
    return speed_table.table(head, body)


def why(name: str, records: list[Record]) -> list[str]:
    """Says why a goal was missed: a remark, and what the gradient flow of the best setting looks like."""
    about = ROWS[name]
    short = [found for found in chosen(name, records) if not about.reached(found[about.figure])]
    if not short:
        return []
    words = [f"To reach: {show(about, about.goal or 0)}. {about.remark}".strip() + "\n"]
    for found in [each for each in short if "flow" in each][:1]:
        words += [f"`jaxrnn flow`, seed {found['seed']}:\n", "```text", *found["flow"], "```\n"]
    return words


def picture(records: list[Record]) -> Figure:
    """Draws a bar for each row with a goal: by how much the error is below it, to the left, or above it."""
    from matplotlib.figure import Figure

    rows = {name: of_row for name, of_row in by_row(records).items() if ROWS[name].goal}
    figure = Figure(figsize=(9.6, 0.27 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for i, (name, of_row) in enumerate(reversed(rows.items())):
        about, goal, best = ROWS[name], ROWS[name].goal or 1.0, chosen(name, of_row)
        apart = [100 * (found[about.figure] / goal - 1) for found in best]
        axes.barh(i, statistics.mean(apart), color=REACHED if max(apart) <= 0 else MISSED, height=0.62)
        axes.plot(apart, [i] * len(apart), "k.", markersize=4)
        here = f"{show(about, statistics.mean(found[about.figure] for found in best))}, of {show(about, goal)}"
        axes.annotate(here, (1, i), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    labels = [ROWS[name].title for name in reversed(rows)]
    axes.set(yticks=range(len(rows)), yticklabels=labels)
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    axes.set_xlim(-130, max(130, axes.get_xlim()[1]))
    axes.set_xticks([-100, -10, -1, 0, 1, 10, 100], ["-100 %", "-10 %", "-1 %", "0", "1 %", "10 %", "100 %"])
    axes.tick_params(labelsize=8)
    axes.set_xlabel("error against what was to be reached: to the left is better (points: seeds)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Draws the picture, and writes the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    records = reproduce.read(reproduce.RECORDS)
    if not records:
        parser.error(f"{reproduce.RECORDS.name} has no runs yet: python scripts/reproduce.py")
    picture(records).savefig(PICTURE, dpi=100)
    PAGE.write_text(page(records), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(speed_table.insert(text, "reproduced", table(records)), encoding="utf-8")
    print(f"Drawn in {PICTURE}, written into {README} and {PAGE}")


if __name__ == "__main__":
    main()
