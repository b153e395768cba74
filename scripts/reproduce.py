"""What plain and gated recurrent networks can learn: published figures beside what is reached here.

    python scripts/reproduce.py --list                          # the rows by name
    python scripts/reproduce.py --data FOLDER                   # all of them; FOLDER holds the .mat and .txt files
    python scripts/reproduce.py order-50 adding-200             # some
    python scripts/reproduce.py --data FOLDER --minutes 30      # for half an hour; the next call goes on from there
    python scripts/reproduce.py --quick                         # a taste of all that needs no files, three minutes
    python scripts/reproduced_table.py                          # makes the table and the picture in README.md

Rows and settings are in published.py. Each setting of a row is tried with the first seed, until one reaches what is to
be reached; the one with the best validation figure is then run with the other seeds, and where one of these falls
short, the next setting is tried. Every finished run is added to results/reproduced.json, and is not run again. Stopped
at any time, the script goes on from there. The first 200 steps of each run are taken once more with
`gradient="autodiff"`, and the two curves compared (twin_curves.py); of a row that falls short, `jaxrnn.flow` says how
far back its gradient reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import bench
import jax
import jax.numpy as jnp
from published import ROWS
from twin_curves import disagreement

from jaxrnn.cli import machine
from jaxrnn.flow import diagnosis
from jaxrnn.training import disk, experiment
from jaxrnn.training.experiment import Experiment
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings
from jaxrnn.training.signals import stop_on_signals

RECORDS = pathlib.Path(__file__).parent / "results" / "reproduced.json"
AGREE = 1e-3  # relative, of two float32 curves after up to 200 steps
QUICK_STEPS = 20
SHOWN_STEPS, SHOWN_SEQUENCES = 100, 4  # of the batch whose gradient flow is looked at

Record = dict[str, Any]  # a finished run


def read(path: pathlib.Path) -> list[Record]:
    """Reads the records of finished runs; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def add(path: pathlib.Path, record: Record) -> None:
    """Adds the record of a run, or puts it in the place of the one there is; the file is there whole at any moment."""
    rows = list(ROWS)
    kept = {(rows.index(found["row"]), *place(found)): found for found in [*read(path), record]}
    records = [kept[key] for key in sorted(kept)]
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_whole(path, json.dumps(records, indent=1) + "\n")


def place(record: Record) -> tuple[int, int]:
    """Returns the setting and the seed of a record, both of them counted from 0."""
    return record["setting"], record["seed"]


def best_setting(name: str, records: list[Record]) -> int:
    """Returns the setting with the best validation figure, the mean of its seeds so far, whose two gradients agree."""
    of_setting: dict[int, list[Record]] = {}
    for found in records:
        of_setting.setdefault(found["setting"], []).append(found)

    def rank(setting: int) -> tuple[bool, float, int]:
        runs = of_setting[setting]
        figure = statistics.mean(found[ROWS[name].chosen_by] for found in runs)
        return not all(map(agrees, runs)), figure, setting

    return min(of_setting, key=rank)


def agrees(record: Record) -> bool:
    """Returns whether the curves by hand and by autodiff are one: if need be in float64, or step by step."""
    return min(record[name] for name in record if name.startswith("disagreement")) <= AGREE


def next_run(name: str, records: list[Record], seeds: int) -> tuple[int, int] | None:
    """Returns the setting and the seed that a row is to be run with next, or None where it is finished.

    Args:
        name: of the row.
        records: the finished runs of the row.
        seeds: how many to run the best setting with.
    """
    about, done = ROWS[name], {place(found) for found in records}
    if not done:
        return 0, 0
    best = best_setting(name, records)
    untried = [setting for setting in range(len(about.tried)) if (setting, 0) not in done]
    good = [about.reached(found[about.figure]) and agrees(found) for found in records if found["setting"] == best]
    if untried and not (all(good) and about.goal is not None):
        return untried[0], 0
    return next(((best, seed) for seed in range(seeds) if (best, seed) not in done), None)


def settings_of(name: str, setting: int, seed: int, options: argparse.Namespace) -> Settings:
    """Returns the settings of one run."""
    about = ROWS[name]
    settings = dataclasses.replace(about.tried[setting], seed=seed)
    if about.file is not None:
        if options.data is None or not (options.data / about.file).is_file():
            raise ValueError(f"{name} needs --data with a folder that holds {about.file}")
        settings = dataclasses.replace(settings, data=str(options.data / about.file))
    if options.quick:
        settings = dataclasses.replace(settings, steps=QUICK_STEPS, every=QUICK_STEPS)
    return settings


def run_once(
    name: str, setting: int, seed: int, options: argparse.Namespace, stop: Callable[[], bool]
) -> Record | None:
    """Trains one network, or goes on with it; returns what came of it, or None where it was told to stop, and saved."""
    folder = options.out / f"{name}-{setting}-{seed}"
    if (folder / "settings.json").is_file():
        run = Run.open(folder, writing=True)
        now = experiment.reopen(run)
    else:
        now = experiment.build(settings_of(name, setting, seed, options))
        run = Run.create(folder, experiment.record(now))
    mesh, _ = machine.choose_devices(None, now.settings, now.task.outputs)
    with run:
        before = time.process_time()
        outcome = now._replace(mesh=mesh).train(run, now._replace(mesh=mesh).state_of(run), stop=stop)
        used = add_seconds(folder / "processor_seconds", time.process_time() - before)
        if outcome.interrupted:
            return None
        found = {"row": name, "setting": setting, "seed": seed, **figures(now, run, mesh)}
    found["disagreement"] = disagreement(now)
    with jax.enable_x64(True):
        if not agrees(found):
            found["disagreement_float64"] = disagreement(now, jnp.float64)
        if not agrees(found):
            found["disagreement_together"] = disagreement(now, jnp.float64, together=True)
    return found | {
        "steps": int(outcome.train.step),
        "seconds": round(run.seconds(), 1),
        "processor_seconds": round(used, 1),
        "settings": changed(now.settings),
        "jax": jax.__version__,
        "processor": bench.processor(),
        "date": datetime.date.today().isoformat(),
    }


def add_seconds(path: pathlib.Path, seconds: float) -> float:
    """Adds up the seconds of all parts of a run that was stopped."""
    total = seconds + (float(path.read_text()) if path.exists() else 0.0)
    path.write_text(f"{total}")
    return total


def changed(settings: Settings) -> dict[str, Any]:
    """Returns the settings that are not the defaults, without where the data lie."""
    plain = Settings()
    found = {name: value for name, value in dataclasses.asdict(settings).items() if value != getattr(plain, name)}
    return {name: value for name, value in found.items() if name not in ("data", "seed")}


def figures(now: Experiment, run: Run, mesh: Any) -> Record:
    """Returns the errors of the parameters with the least validation loss, and their step."""
    _, params = experiment.load_best(run, mesh)
    test = now.test(params)
    found = now.validate(params)._asdict() | {"test": None if test is None else test.loss}
    return {"best_step": run.best_validation()[0], **found}


def explain(name: str, options: argparse.Namespace) -> None:
    """Adds to the record of a finished row that falls short what its gradient flow is."""
    about, records = ROWS[name], [found for found in read(options.record) if found["row"] == name]
    best = best_setting(name, records)
    short = [found for found in records if found["setting"] == best and not about.reached(found[about.figure])]
    folder = options.out / f"{name}-{best}-{short[0]['seed']}" if short else options.out
    if any("flow" in found for found in short) or not (folder / "settings.json").is_file():
        return
    run = Run.open(folder)
    add(options.record, short[0] | {"flow": flow_in_words(experiment.reopen(run), run)})


def flow_in_words(now: Experiment, run: Run) -> list[str]:
    """Returns what the gradient flow of the best parameters on a validation batch is, as `jaxrnn flow` says it."""
    mesh, _ = machine.choose_devices(None, now.settings, now.task.outputs)
    net, params = experiment.load_best(run, mesh)
    batch = next(iter(now.task.validation()))
    T = None if net.last_step else SHOWN_STEPS
    inputs, mask, reset = (
        None if each is None else each[:T, :SHOWN_SEQUENCES] for each in (batch.inputs, batch.mask, batch.reset)
    )
    targets = batch.targets[:SHOWN_SEQUENCES] if net.last_step else batch.targets[:T, :SHOWN_SEQUENCES]
    key = jax.random.key(now.settings.seed)
    return str(diagnosis.diagnose(net, params, inputs, targets, key=key, mask=mask, reset=reset)).splitlines()


def run_all(names: list[str], options: argparse.Namespace, stop: Callable[[], bool]) -> bool:
    """Runs what is to be run of some rows, one run of each in turn, and records it; returns whether all is done."""
    while waiting := [(name, run) for name in names if (run := due(name, options)) is not None]:
        for name, run in waiting:
            try:
                found = None if stop() else run_once(name, *run, options, stop)
            except FloatingPointError as error:
                print(f"{name}, setting {run[0] + 1}, seed {run[1]}: {error}", file=sys.stderr)
                names = [other for other in names if other != name]
                continue
            if found is None:
                return False
            add(options.record, found)
            print(in_words(found), flush=True)
    for name in names:
        if not options.quick and not stop():
            explain(name, options)
    return True


def due(name: str, options: argparse.Namespace) -> tuple[int, int] | None:
    """Returns the setting and the seed that a row is to be run with next, for the options given."""
    seeds = ROWS[name].seeds if options.seeds is None else min(options.seeds, ROWS[name].seeds)
    records = [found for found in read(options.record) if found["row"] == name]
    if options.quick:
        return None if records else (0, 0)
    return next_run(name, records, seeds)


def in_words(record: Record) -> str:
    """Returns a line that says what came of a run."""
    figure = ROWS[record["row"]].figure
    return (
        f"{record['row']}, setting {record['setting'] + 1}, seed {record['seed']}: {figure} {record[figure]:.5g} "
        f"in {record['seconds']:.0f} s; by hand and by autodiff differ by {record['disagreement']:.0e}"
    )


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="run these rows (default: all)")
    parser.add_argument("--data", type=pathlib.Path, help="take .mat and .txt files from this folder")
    parser.add_argument("--seeds", type=int, help="run so many seeds at most (default: as many as the row has)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, with all saved")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/reproduce"), help="keep the runs here")
    parser.add_argument("--record", type=pathlib.Path, help=f"add finished runs to this file (default: {RECORDS.name})")
    parser.add_argument("--quick", action="store_true", help=f"take {QUICK_STEPS} steps of each; recorded in --out")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    for name in ("seeds", "minutes"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            parser.error(f"--{name} must be above 0, got {getattr(options, name)}")
    options.names = options.names or [name for name, about in ROWS.items() if not (options.quick and about.file)]
    options.record = options.record or (options.out / RECORDS.name if options.quick else RECORDS)
    return options


def main() -> None:
    """Runs what is asked for, and says what came of it."""
    options = arguments()
    if options.list:
        print("\n".join(f"{name:22}{about.title}" for name, about in ROWS.items()))
        return
    machine.keep_the_heap()
    machine.use_all_cores()
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    try:
        with stop_on_signals() as told:
            done = run_all(options.names, options, lambda: told() or (end is not None and time.monotonic() > end))
    except ValueError as error:
        sys.exit(f"reproduce.py: {error}")
    if not done:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + told.signal if told.signal else 0)
    far = {found["row"] for found in read(options.record) if not agrees(found)}
    if far:
        sys.exit(f"by hand and by autodiff do not agree in {', '.join(sorted(far))}")


if __name__ == "__main__":
    main()
