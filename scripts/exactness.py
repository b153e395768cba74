"""Does exactness pay? Two tasks learnt with the whole gradient, with truncated ones, and forward in time.

    python scripts/exactness.py --data tiny-shakespeare.txt     # all, half an hour on two cores
    python scripts/exactness.py --tasks order --methods whole "Tail(5)"
    python scripts/exactness.py --draw                          # only the picture and the table, from what is kept
    python scripts/exactness.py --quick                         # a few updates, into a folder that is deleted

Every method trains the same Elman network from the same start on the same batches for as many updates:

    whole                           jaxrnn.value_and_grad(net)
    Carried(k), Window(k), Tail(k)  jaxrnn.value_and_grad(net, truncate=jaxrnn.Carried(k)), and so on
    SnAp-1, RFLO                    jaxrnn.online.value_and_grad(net, method="snap1"), and "rflo"

`text` is tiny Shakespeare in chunks of 100 characters, the state carried on; an update a chunk. `order` is temporal
order in 30 steps, asked at the last one: which of two symbols came in steps 3 to 5, and in steps 12 to 14. Kept after
every run: results/exactness.csv, from which picture and table come. The time is the median of all updates, of the
fastest seed; memory is what XLA takes besides arguments and results.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import bench
import jax
import jax.numpy as jnp
import optax
import speed_table

import jaxrnn
from jaxrnn.tasks import text
from jaxrnn.tasks.base import Sequences
from jaxrnn.tasks.temporal_order import TemporalOrder
from jaxrnn.training.step import adam

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = speed_table.HERE / "results" / "exactness.csv"
PICTURE = speed_table.HERE / "pictures" / "exactness.png"
LAGS = (5, 20, 50)
METHODS: dict[str, Callable[[jaxrnn.Network], Any]] = {
    "whole": functools.partial(jaxrnn.value_and_grad, return_state=True),
    **{
        f"{truncation.__name__}({k})": functools.partial(
            jaxrnn.value_and_grad, truncate=truncation(k), return_state=True
        )
        for truncation in (jaxrnn.Carried, jaxrnn.Window, jaxrnn.Tail)
        for k in LAGS
    },
    "SnAp-1": functools.partial(jaxrnn.online.value_and_grad, method="snap1"),
    "RFLO": functools.partial(jaxrnn.online.value_and_grad, method="rflo"),
}


class Lesson(NamedTuple):
    """Says what is learnt, and how it is judged."""

    net: jaxrnn.Network
    batch: Callable[[int], Sequences]  # of an update
    weights: jax.Array | None  # of the losses E_t, [T, B]; None for their mean
    judge: Callable[[Any], float]  # of parameters
    rate: float
    updates: int


def network(cell: jaxrnn.Elman, outputs: int) -> jaxrnn.Network:
    """Returns a network of one layer that gives classes."""
    return jaxrnn.Network((cell,), jaxrnn.Readout(cell.hidden, outputs), jaxrnn.softmax_cross_entropy)


def text_lesson(data: pathlib.Path, seed: int) -> Lesson:
    """Returns tiny Shakespeare, judged in nats per character of the validation part."""
    content = text.load(data)
    V, T, B = len(content.vocabulary), 100, 32
    net = network(jaxrnn.Elman(V, 128, input_scale=2 * V**0.5), V)
    streams = text.Streams(content.train, T, B, jax.random.key(seed))
    held_out = text.validation_batches(content.validation, B)

    def judge(params: Any) -> float:
        losses, state = [], None
        for batch in held_out:
            loss, state = apply(params, batch, state)
            losses.append(float(loss))
        return statistics.mean(losses)

    @jax.jit
    def apply(params: Any, batch: Sequences, state: Any) -> tuple[jax.Array, Any]:
        outputs, state = net.apply(params, batch.inputs, state)
        return jnp.mean(net.objective(outputs, batch.targets)), state

    return Lesson(net, streams.batch, None, judge, 3e-3, 1500)


def order_lesson(seed: int) -> Lesson:
    """Returns temporal order, judged by the share of wrong answers; only the loss of the last step counts."""
    T, B = 30, 64
    net = network(jaxrnn.Elman(6, 64, input_scale=1.0, recurrent_scale=1.0), 4)
    task = TemporalOrder(B, seed, length=T)

    def batch(update: int) -> Sequences:
        found = task.batch(update)
        return found._replace(targets=jnp.broadcast_to(found.targets, (T, B)))

    def judge(params: Any) -> float:
        wrong = [jnp.mean(apply(params, found.inputs)[-1].argmax(-1) != found.targets) for found in task.validation()]
        return statistics.mean(map(float, wrong))

    apply = jax.jit(lambda params, inputs: net.apply(params, inputs)[0])
    return Lesson(net, batch, jnp.zeros((T, B)).at[-1].set(1 / B), judge, 1e-3, 1000)


LESSONS: dict[str, tuple[Callable[[pathlib.Path, int], Lesson], str]] = {  # what makes it, and what its figure is
    "text": (text_lesson, "nats per character"),
    "order": (lambda data, seed: order_lesson(seed), "wrong answers"),
}


def train(lesson: Lesson, method: str, seed: int, updates: int) -> dict[str, str]:
    """Trains a network by one method; returns what came of it."""
    function, optimizer = METHODS[method](lesson.net), adam(lesson.rate, updates)

    def update(params: Any, optimizer_state: Any, carry: Any, batch: Sequences) -> tuple[Any, Any, Any, jax.Array]:
        carry = jax.tree.map(lambda leaf: jnp.where(batch.fresh, 0.0, leaf), carry)
        (loss, carry), grads = function(params, batch.inputs, batch.targets, lesson.weights, carry)
        changes, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return optax.apply_updates(params, changes), optimizer_state, carry, loss

    params, first = lesson.net.init(jax.random.key(seed)), lesson.batch(0)
    (_, carry), _ = jax.eval_shape(function, params, first.inputs, first.targets, lesson.weights)
    now = params, optimizer.init(params), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)
    step = jax.jit(update, donate_argnums=(0, 1, 2)).lower(*now, first).compile()
    durations = []
    for i in range(updates):
        batch = lesson.batch(i)
        start = time.perf_counter()
        *now, _ = jax.block_until_ready(step(*now, batch))
        durations.append(time.perf_counter() - start)
    memory = step.memory_analysis()
    return {
        "figure": f"{lesson.judge(now[0]):.4f}",
        "ms": f"{statistics.median(durations) * 1e3:.3g}",
        "MB": f"{memory.temp_size_in_bytes / 1e6:.3g}" if memory else "",
        "updates": str(updates),
    }


def summed_up(rows: list[speed_table.Row], column: str) -> float:
    """Computes one number of those of all seeds: the mean, but of times the least, which others disturbed least."""
    return (min if column == "ms" else statistics.mean)(float(row[column]) for row in rows)


def grouped(rows: list[speed_table.Row]) -> dict[str, dict[str, list[speed_table.Row]]]:
    """Returns the rows by task and method, in the order of both."""
    of = lambda task, method: [row for row in rows if (row["task"], row["method"]) == (task, method)]  # noqa: E731
    by_task = {task: {method: of(task, method) for method in METHODS} for task in LESSONS}
    return {task: {m: found for m, found in by_method.items() if found} for task, by_method in by_task.items()}


def table(rows: list[speed_table.Row]) -> str:
    """Makes the table: a row a method, and for each task the mean of the seeds, the time of an update, and memory."""
    tasks = {task: found for task, found in grouped(rows).items() if found}
    head = ["gradient", *(words for task in tasks for words in (f"{task}: {LESSONS[task][1]}", "an update", "memory"))]
    body = []
    for method in dict.fromkeys(method for found in tasks.values() for method in found):
        cells = (in_words(task, found.get(method, [])) for task, found in tasks.items())
        body.append((method, *(word for words in cells for word in words)))
    return f"Measured on: {speed_table.origins(rows)}.\n\n{speed_table.table(tuple(head), body)}"


def in_words(task: str, rows: list[speed_table.Row]) -> tuple[str, str, str]:
    """Returns what a method reached at a task, from the least to the largest; its time, and its memory."""
    if not rows:
        return "-", "-", "-"
    form = "{:.1%}" if task == "order" else "{:.3f}"
    figures = sorted(float(row["figure"]) for row in rows)
    mean, *ends = map(form.format, (statistics.mean(figures), figures[0], figures[-1]))
    spread = f" ({' to '.join(ends)})" if len(set(ends)) > 1 else ""
    return mean + spread, f"{summed_up(rows, 'ms'):.2g} ms", f"{summed_up(rows, 'MB'):.2g} MB"


def colour(method: str) -> str:
    """Returns the colour of a method: one for each kind."""
    kinds = {"whole": "#1b1b1e", "Carried": "#33658a", "Window": "#86bbd8", "Tail": "#758e4f"}
    return kinds.get(method.partition("(")[0], "#d1603d")


def picture(rows: list[speed_table.Row]) -> Figure:
    """Draws for each task what was reached, the time of an update, and the memory, one bar a method."""
    from matplotlib.figure import Figure

    tasks = {task: found for task, found in grouped(rows).items() if found}
    figure = Figure(figsize=(9.6, 2.9 * len(tasks) + 0.4), layout="constrained")
    for axes, (task, found) in zip(
        figure.subplots(len(tasks), 3, squeeze=False, sharey="row"), tasks.items(), strict=True
    ):
        for axis, (column, title) in zip(
            axes, (("figure", LESSONS[task][1]), ("ms", "ms an update"), ("MB", "temporary memory, MB")), strict=True
        ):
            means = [summed_up(of_method, column) for of_method in found.values()]
            axis.barh(list(found), means, color=[colour(method) for method in found], height=0.7)
            if column == "figure":
                points = {method: [float(row[column]) for row in of_method] for method, of_method in found.items()}
                for method, of_method in points.items():
                    axis.plot(of_method, [method] * len(of_method), "k.", markersize=3)
                axis.set_xlim(0 if task == "order" else 0.97 * min(means), 1.02 * max(map(max, points.values())))
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].invert_yaxis()
        axes[0].set_ylabel(task, fontsize=10)
    figure.suptitle("The same network, start, batches and number of updates; only the gradient differs", fontsize=11)
    return figure


def main() -> None:
    """Trains what is asked for, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, help="the file of tiny Shakespeare, which the task text needs")
    parser.add_argument("--tasks", nargs="+", choices=LESSONS, help="all that have their data by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="how many to train each from (default: 3)")
    parser.add_argument("--draw", action="store_true", help="train nothing, draw what is kept and fill README.md")
    parser.add_argument("--quick", action="store_true", help="take 20 updates of one seed, and keep nothing")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds must be 1 or more, got {options.seeds}")
    tasks = options.tasks or [task for task in LESSONS if task != "text" or options.data]
    if "text" in tasks and (options.data is None or not options.data.is_file()):
        parser.error("the task text needs --data with the file of tiny Shakespeare")
    with tempfile.TemporaryDirectory() as scratch:
        kept = pathlib.Path(scratch) / "exactness.csv" if options.quick else RESULTS
        for task in () if options.draw else tasks:
            for method in options.methods:
                train_all(task, method, options, kept)
        rows = speed_table.read(kept)
        if not rows:
            parser.error(f"there is nothing to draw in {kept}")
        print(table(rows))
        picture(rows).savefig(kept.with_suffix(".png") if options.quick else PICTURE, dpi=100)
    if options.draw:
        readme = speed_table.README
        readme.write_text(
            speed_table.insert(readme.read_text(encoding="utf-8"), "exactness", table(rows)), encoding="utf-8"
        )


def train_all(task: str, method: str, options: argparse.Namespace, kept: pathlib.Path) -> None:
    """Trains by one method from every seed, and keeps each result as it comes."""
    make, _ = LESSONS[task]
    for seed in range(1 if options.quick else options.seeds):
        lesson = make(options.data, seed)
        found = train(lesson, method, seed, 20 if options.quick else lesson.updates)
        row = {"task": task, "method": method, "seed": str(seed), **found, "processor": bench.processor()}
        row |= {"jax": jax.__version__, "date": datetime.date.today().isoformat()}
        print(" | ".join(row.values()), flush=True)
        same = lambda old, row=row: all(old[name] == row[name] for name in ("task", "method", "seed"))  # noqa: E731
        speed_table.write(kept, [*(old for old in speed_table.read(kept) if not same(old)), row])


if __name__ == "__main__":
    main()
