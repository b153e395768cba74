"""What plain and gated recurrent networks can learn: published figures beside what the settings recorded here reach.

    python scripts/reproduce.py --list                          # the experiments by name
    python scripts/reproduce.py --data FOLDER                   # all of them; FOLDER holds the .mat and .txt files
    python scripts/reproduce.py order-50 adding-200 --seeds 2   # some
    python scripts/reproduce.py --quick                         # a taste of all that needs no files, five minutes

Every run has a fixed seed and a folder of its own in --out. Stopped at any time, the script goes on from there; what
is finished is not run again. For each run the first 200 steps are taken once more with `gradient="autodiff"`, and the
two curves compared. The table is printed, and kept as table.md beside table.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.training import experiment
from jaxrnn.training.experiment import Experiment
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings, recipe
from jaxrnn.training.signals import stop_on_signals

TWIN_STEPS = 200
AGREE = 1e-3  # relative, of two float32 curves after up to 200 steps


class Reproduction(NamedTuple):
    """Describes an experiment, and the published figure beside which it stands."""

    title: str
    published: str  # figures and their sources
    goal: float  # what is to be reached, in the unit of the figure
    figure: str  # "test", "loss" or "error_rate", of the parameters with the least validation loss
    settings: Settings
    file: str | None = None  # in --data


BL, BAI = "Boulanger-Lewandowski et al. 2012", "Bai et al. 2018"
PASCANU, LE = "Pascanu et al. 2013", "Le et al. 2015"
MUSIC = {"dropout": 0.3, "average": 0.99, "rate": 2e-3, "steps": 1500, "patience": 8}
ORDER = {"rate": 1e-3, "vanishing": 1.0, "vanishing_steps": 1000.0, "steps": 10_000, "every": 1000}
GATED = {"rate": 3e-3, "steps": 4000, "every": 500}

EXPERIMENTS = {
    "jsb-elman": Reproduction(
        "JSB chorales, Elman", f"8.71 ({BL}), 8.91 ({BAI})", 8.6, "test",
        recipe("chorales", hidden=300, **MUSIC), "JSB_Chorales.mat"),
    "jsb-gru": Reproduction(
        "JSB chorales, GRU", f"8.43 ({BAI})", 8.43, "test",
        recipe("chorales", cell="gru", hidden=200, **MUSIC), "JSB_Chorales.mat"),
    "nottingham-elman": Reproduction(
        "Nottingham, Elman", f"4.46 ({BL}), 4.05 ({BAI}), 3.36 ({PASCANU})", 3.4, "test",
        recipe("chorales", hidden=400, **MUSIC), "Nottingham.mat"),
    "nottingham-lstm": Reproduction(
        "Nottingham, LSTM", f"3.29 ({BAI})", 3.2, "test",
        recipe("chorales", cell="lstm", hidden=300, **MUSIC), "Nottingham.mat"),
    "order-50": Reproduction(
        "temporal order, T = 50, Elman, regularised", f"0 % wrong ({PASCANU})", 0.01, "error_rate",
        recipe("order", length=50, **ORDER)),
    "order-100": Reproduction(
        "temporal order, T = 100, Elman, regularised", f"0 % wrong ({PASCANU})", 0.01, "error_rate",
        recipe("order", length=100, **ORDER)),
    "order-100-gru": Reproduction(
        "temporal order, T = 100, GRU", "-", 0.01, "error_rate", recipe("order", length=100, cell="gru", **GATED)),
    "adding-200": Reproduction(
        "adding, T = 200, IRNN", f"solved ({LE})", 0.01, "loss", recipe("adding", length=200, steps=8000, every=1000)),
    "adding-200-gru": Reproduction(
        "adding, T = 200, GRU", "-", 0.001, "loss", recipe("adding", length=200, cell="gru", **GATED)),
    "adding-600": Reproduction(
        "adding, T = 600, IRNN", f"0.177, chance ({BAI})", 0.177, "loss",
        recipe("adding", length=600, steps=6000, every=1000, rate=3e-4)),
    "adding-600-gru": Reproduction(
        "adding, T = 600, GRU", f"5.3e-5 ({BAI})", 0.001, "loss", recipe("adding", length=600, cell="gru", **GATED)),
    "copy-100": Reproduction(
        "copy memory, pause 100, Elman", "-", 0.1733, "loss", recipe("copy", length=100, steps=6000, every=1000)),
    "copy-1000": Reproduction(
        "copy memory, pause 1000, GRU", f"0.0197, chance is 0.0204 ({BAI})", 0.0204, "loss",
        recipe("copy", length=1000, cell="gru", batch=32, **GATED)),
    "digits": Reproduction(
        "8 x 8 digits, pixel by pixel, IRNN", "-", 0.1, "error_rate",
        recipe("digits", activation="relu", initializer="identity", input_scale=0.1)),
    "permuted-digits": Reproduction(
        "the same, permuted", "-", 0.1, "error_rate",
        recipe("permuted-digits", activation="relu", initializer="identity", input_scale=0.1)),
    "shakespeare-elman": Reproduction(
        "tiny Shakespeare, Elman", "1.88 (nanoGPT, 3 minutes of a CPU)", 1.55, "loss",
        recipe("text", hidden=1024, batch=32, chunk=64, steps=6000, every=500), "tiny-shakespeare.txt"),
    "shakespeare-lstm": Reproduction(
        "tiny Shakespeare, LSTM", "1.4697 (nanoGPT, 3 minutes of an A100)", 1.47, "loss",
        recipe("text", cell="lstm", hidden=512, batch=32, chunk=64, steps=5000, every=500), "tiny-shakespeare.txt"),
}  # fmt: skip


def settings_of(name: str, seed: int, data: pathlib.Path | None, quick: bool) -> Settings:
    """Returns the settings of one run."""
    found = EXPERIMENTS[name]
    settings = dataclasses.replace(found.settings, seed=seed)
    if found.file is not None:
        if data is None or not (data / found.file).is_file():
            raise ValueError(f"{name} needs --data with a folder that holds {found.file}")
        settings = dataclasses.replace(settings, data=str(data / found.file))
    if quick:
        steps = min(settings.steps, 300)
        settings = dataclasses.replace(settings, steps=steps, every=min(settings.every, steps // 2))
    return settings


def run_once(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one network, or goes on with it, or reads what came of it."""
    folder = options.out / f"{name}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    if (folder / "settings.json").is_file():
        run = Run.open(folder, writing=True)
        now = experiment.reopen(run)
    else:
        now = experiment.build(settings_of(name, seed, options.data, options.quick))
        run = Run.create(folder, experiment.record(now))
    with run, stop_on_signals() as stop:
        outcome = now.train(run, now.state_of(run), stop=stop)
    if outcome.interrupted:
        raise KeyboardInterrupt
    found = {
        **figures(now, run),
        "seconds": run.seconds(),
        "disagreement": disagreement(now),
        "settings": dataclasses.asdict(now.settings)
        | {"data": None, "vanishing_steps": str(now.settings.vanishing_steps)},
    }
    result.write_text(json.dumps(found))
    return found


def figures(now: Experiment, run: Run) -> dict[str, Any]:
    """Returns the errors of the best parameters."""
    _, params = experiment.load_best(run)
    test = now.test(params)
    return {**now.validate(params)._asdict(), "test": None if test is None else test.loss}


def disagreement(now: Experiment) -> float:
    """Computes the largest relative difference of the losses of the first 200 steps by hand and by autodiff.

    Of the same training without what autodiff cannot do (the regulariser), from the same start.
    """
    curves = []
    for gradient in ("bptt", "autodiff"):
        settings = dataclasses.replace(now.settings, gradient=gradient, vanishing=0.0, flow=0)
        twin = now._replace(settings=settings, optimizer=experiment.make_optimizer(settings))
        state, step, losses = twin.initial_state(), twin.make_step(), []
        for i in range(min(TWIN_STEPS, settings.steps)):
            state, metrics = step(state, twin.task.batch(i))
            losses.append(metrics["loss"])
        curves.append(np.asarray(losses, np.float64))
    return float(np.max(np.abs(curves[0] - curves[1]) / np.abs(curves[1])))


def line(name: str, results: list[dict[str, Any]]) -> str:
    """Returns a row of the table."""
    about = EXPERIMENTS[name]
    values = [result[about.figure] for result in results]
    percent = about.figure == "error_rate"
    show = (lambda value: f"{value:.2%}") if percent else (lambda value: f"{value:.4g}")
    ours = show(statistics.mean(values))
    if len(values) > 1:
        ours += f" ({show(min(values))} to {show(max(values))}, {len(values)} seeds)"
    verdict = "reached" if statistics.mean(values) <= about.goal else "not reached"
    minutes = statistics.mean(result["seconds"] for result in results) / 60
    apart = max(result["disagreement"] for result in results)
    cells = [about.title, about.published, show(about.goal), f"{ours}: {verdict}", f"{minutes:.1f} min", f"{apart:.0e}"]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| task and network | published | to reach | ours | a run | by hand and by autodiff differ by |\n"
    + "|---" * 6
    + "|"
)


def picture(rows: dict[str, list[dict[str, Any]]]) -> Any:
    """Draws what was reached against what was to be reached, one bar for each experiment: below one is better."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, results) in enumerate(reversed(rows.items())):
        about = EXPERIMENTS[name]
        ratios = [max(result[about.figure], 1e-6) / about.goal for result in results]
        mean = statistics.mean(ratios)
        axes.barh(i, mean, color="#33658a" if mean <= 1 else "#d1603d", height=0.6)
        axes.plot(ratios, [i] * len(ratios), "k.", markersize=4)
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set(yticks=range(len(rows)), yticklabels=[EXPERIMENTS[name].title for name in reversed(rows)], xscale="log")
    axes.set_xlabel("error against what was to be reached (points: seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Runs what is asked for; prints, writes and draws the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="run these experiments (default: all)")
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        help="take JSB_Chorales.mat, Nottingham.mat and tiny-shakespeare.txt from this folder",
    )
    parser.add_argument("--seeds", type=int, default=3, help="run each with so many seeds (default: 3)")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("reproduce"), help="keep all runs in this folder"
    )
    parser.add_argument(
        "--quick", action="store_true", help="take 300 steps of each, one seed, nothing that needs a file"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"there is no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    if options.seeds < 1:
        parser.error(f"--seeds must be 1 or more, got {options.seeds}")
    if options.list:
        print("\n".join(f"{name:22}{about.title}" for name, about in EXPERIMENTS.items()))
        return
    names = options.names or [n for n, about in EXPERIMENTS.items() if not (options.quick and about.file)]
    rows: dict[str, list[dict[str, Any]]] = {}
    print(HEAD)
    try:
        for name in names:
            rows[name] = [run_once(name, seed, options) for seed in range(1 if options.quick else options.seeds)]
            print(line(name, rows[name]), flush=True)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")
    (options.out / "table.md").write_text("\n".join([HEAD, *(line(*row) for row in rows.items())]) + "\n")
    picture(rows).savefig(options.out / "table.png", dpi=130)
    print(f"\nThe table and its picture are in {options.out}/")
    far = [name for name, found in rows.items() if not max(r["disagreement"] for r in found) <= AGREE]
    if far:
        parser.exit(1, f"by hand and by autodiff do not agree in {', '.join(far)}\n")


if __name__ == "__main__":
    main()
