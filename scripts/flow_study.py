"""Does the horizon of the gradient predict who learns? Five networks on the adding problem, flow recorded throughout.

    python scripts/flow_study.py [--steps 100] [--updates 4000] [--seeds 3] [--out flow_study]

Every network is trained on fresh batches of the adding problem (T = 100, mean squared error, chance 0.167). Now and
then the gradient of its one loss, at the end, is followed back: the horizon is the number of steps until it has fallen
under 1 % of what it was, T where it has not. Printed as a table, drawn as flow_study.png, kept in flow_study.json;
started again with the same --out, it goes on with what is missing.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from jaxrnn import flow
from jaxrnn.tasks.adding import Adding

HIDDEN, BATCH = 100, 64
BASELINE = Adding.baselines["always one"]
History = list[dict[str, float]]  # of one training: update, error, horizon


def networks(hidden: int) -> dict[str, tuple[jaxrnn.Cell, float]]:
    """Returns the networks by name, each with the best rate after 1,500 updates, of 1e-2, 3e-3, 1e-3 and 3e-4."""
    elman = functools.partial(jaxrnn.Elman, 2, hidden)
    return {
        "Elman, W of radius 0.5": (elman(recurrent_scale=0.5), 3e-4),
        "Elman, orthogonal": (elman(), 3e-4),
        "IRNN": (elman("relu", recurrent_initializer="identity", input_scale=0.03), 1e-3),
        "GRU": (jaxrnn.GRU(2, hidden), 3e-3),
        "LSTM": (jaxrnn.LSTM(2, hidden), 3e-3),
    }


def study(cell: jaxrnn.Cell, rate: float, seed: int, steps: int, updates: int, records: int) -> History:
    """Trains one network, and returns its mean squared error and horizon by update."""
    net = jaxrnn.Network((cell,), jaxrnn.Readout(cell.hidden, 1), jaxrnn.squared_error, last_step=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    key, key_params, key_test = jax.random.split(jax.random.key(seed), 3)
    params = net.init(key_params)
    optimizer_state = optimizer.init(params)
    task = Adding(BATCH, length=steps)
    test = task.draw(key_test, 500)
    loss_and_gradient = jaxrnn.value_and_grad(net)

    @functools.partial(jax.jit, static_argnums=3)
    def train(params: Any, optimizer_state: Any, first: int, count: int) -> tuple[Any, Any]:
        def update(carry: Any, i: Any) -> tuple[Any, None]:
            params, optimizer_state = carry
            inputs, targets, *_ = task.draw(jax.random.fold_in(key, i), BATCH)
            _, grads = loss_and_gradient(params, inputs, targets)
            updates, optimizer_state = optimizer.update(grads, optimizer_state)
            return (optax.apply_updates(params, updates), optimizer_state), None

        return jax.lax.scan(update, (params, optimizer_state), first + jnp.arange(count))[0]

    error = jax.jit(lambda params: net.loss(params, test.inputs, test.targets))
    history, each = [], max(1, updates // records)
    for done in range(0, updates + 1, each):
        found = flow.terms(net, params, test.inputs[:, :32], test.targets[:32])
        reached = flow.horizon(found.adjoints[0])
        history.append({"update": done, "error": float(error(params)), "horizon": float(reached.mean)})
        if done < updates:
            params, optimizer_state = train(params, optimizer_state, done, each)
    return history


def summary(name: str, runs: list[History]) -> str:
    """Returns a line of the table: means over seeds, and how many of them came below a tenth of the error of chance."""
    last = [run[-1]["error"] for run in runs]
    at_start = statistics.mean(run[0]["horizon"] for run in runs)
    early = statistics.mean(run[min(len(run) - 1, len(run) // 10)]["horizon"] for run in runs)
    at_end = statistics.mean(run[-1]["horizon"] for run in runs)
    learned = sum(error < BASELINE / 10 for error in last)
    errors = f"{statistics.mean(last):.4f} ({min(last):.4f} to {max(last):.4f})"
    return f"| {name} | {at_start:.0f} | {early:.0f} | {at_end:.0f} | {errors} | {learned} of {len(runs)} |"


def correlation(results: dict[str, list[History]]) -> float:
    """Computes the rank correlation (Spearman) of the horizon after a tenth of the updates and the final error."""
    runs = [run for each in results.values() for run in each]
    horizons = np.array([run[min(len(run) - 1, len(run) // 10)]["horizon"] for run in runs])
    errors = np.array([run[-1]["error"] for run in runs])
    return float(np.corrcoef(_ranks(horizons), _ranks(errors))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks, ties sharing their mean."""
    return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])


def picture(results: dict[str, list[History]], steps: int) -> Any:
    """Draws horizon and error against updates, side by side, a line for every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = dict(zip(results, ("#888888", "#33658a", "#d1603d", "#5b8c5a", "#7b4b94"), strict=True))
    for name, runs in results.items():
        for i, run in enumerate(runs):
            updates = [row["update"] for row in run]
            label = name if i == 0 else None
            for axes, what in ((left, "horizon"), (right, "error")):
                axes.plot(updates, [row[what] for row in run], color=colours[name], linewidth=1.2, label=label)
    left.axhline(steps, color="black", linewidth=0.6, linestyle=":")
    left.set(
        xlabel="updates", ylabel="horizon: steps back to 1 % of the gradient", title="How far back the loss reaches"
    )
    right.axhline(BASELINE, color="black", linewidth=0.6, linestyle=":")
    right.annotate("chance", (1, BASELINE), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    right.set(xlabel="updates", ylabel="mean squared error", yscale="log", title=f"The adding problem, T = {steps}")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(results), frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Runs what is missing, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="set T (default: 100)")
    parser.add_argument("--updates", type=int, default=4000, help="update every network so often (default: 4000)")
    parser.add_argument("--seeds", type=int, default=3, help="train every network with so many seeds (default: 3)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help=f"set H (default: {HIDDEN})")
    parser.add_argument("--records", type=int, default=40, help="record horizon and error so often (default: 40)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("flow_study"), help="write into this folder")
    options = parser.parse_args()
    for name in ("updates", "seeds", "hidden", "records"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(options, name)}")
    if options.steps < 4:
        parser.error(f"--steps must be 4 or more, got {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "flow_study.json"
    settings = {name: getattr(options, name) for name in ("steps", "updates", "hidden", "records")}
    kept = json.loads(file.read_text()) if file.exists() else {"settings": settings, "runs": {}}
    if kept["settings"] != settings:
        parser.error(f"{file} was made with {kept['settings']}: choose another --out")
    results = {}
    for name, (cell, rate) in networks(options.hidden).items():
        runs = kept["runs"].setdefault(name, [])
        for seed in range(len(runs), options.seeds):
            start = time.perf_counter()
            runs.append(study(cell, rate, seed, options.steps, options.updates, options.records))
            file.write_text(json.dumps(kept))
            print(
                f"{name}, seed {seed}: error {runs[-1][-1]['error']:.4f}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        results[name] = runs[: options.seeds]
    print(f"\nThe adding problem, T = {options.steps}, {options.updates} updates; chance {BASELINE:.3f}\n")
    print("| network | horizon at first | after a tenth | at the end | final error (from, to) | learned |")
    print("|---|---|---|---|---|---|")
    for name, runs in results.items():
        print(summary(name, runs))
    print(f"\nHorizon after a tenth of the updates against final error: rank correlation {correlation(results):+.2f}")
    picture(results, options.steps).savefig(options.out / "flow_study.png", dpi=130)
    print(f"Drawn in {options.out / 'flow_study.png'}")


if __name__ == "__main__":
    main()
